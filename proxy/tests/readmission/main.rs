//! Black-box tests of readmission: long streams through both proxies past the SVIDs that they began under, and everybody
//! who must not be readmitted.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

mod asked;
mod asks;
mod lives;
mod roots;

//! Black-box tests of the outbound path: our app in front, through both proxies to a canary, or to peers that are not
//! what they should be.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

mod bent;
mod explicit;
mod limits;
mod oneself;
mod peers;
mod pool;
mod retry;
mod review;
mod streams;

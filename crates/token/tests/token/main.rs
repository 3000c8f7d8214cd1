//! Tokens between an issuer that these tests play and what a workload believes.
#![allow(clippy::unwrap_used)]

mod corpus;
mod hostile;
mod invariants;
mod keys;
mod locations;
mod mint;
mod property;
mod valid;

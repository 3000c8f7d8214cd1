//! Pods before and after: golden pairs, what holds of all of them, random pods, and other webhooks in between.
#![allow(clippy::unwrap_used)]

mod golden;
mod invariants;
mod property;
mod reinvocation;
mod review_corpus;
mod verification;
mod world;

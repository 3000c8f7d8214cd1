//! Black-box tests of the inbound path: raw sockets in front, a canary behind. Named after the rows of the adversarial
//! catalogue that they hold.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

#[path = "../../../crates/token/tests/token/mint/mod.rs"]
// The token crate's tests use other parts of it.
#[allow(dead_code)]
mod mint;

mod bounds;
mod conditions;
mod custom;
mod deadlines;
mod denied_fields;
mod doors;
mod drain;
mod envoy;
mod floods;
mod framing;
mod hosts;
mod http2;
mod hygiene;
mod identity;
mod live_policy;
mod messages;
mod mutated;
mod path;
mod permissive;
mod records;
mod relay;
mod review;
mod smuggling;
mod tls;
mod translation;
mod upgrades;
mod users;

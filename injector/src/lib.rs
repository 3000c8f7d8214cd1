//! Admission webhooks: pods of labelled namespaces get the sidecar, policies are checked before they are stored.
//!
//! ```text
//! TLS -> server (connections, answering) -> review -> server::webhook -> inject     -> JSON Patch, warnings, or why not
//!        namespaces, roots (what is known of the cluster) ------^     -> verify_pod -> is what was injected still whole?
//!                                                                     -> policies   -> path and nearest name of what is wrong
//! ```
//!
//! [`inject`] and [`verify_pod`] are pure: no I/O, clock or randomness. What they need of the cluster is a [`PodContext`],
//! and the random token of a pod's probes is a parameter of it. So a dry run has no side effects, and applying twice is
//! applying once.
//!
//! [`PodContext`]: inject::PodContext

pub mod annotations;
mod args;
mod escape;
pub mod inject;
pub mod metrics;
pub mod namespaces;
pub mod policies;
mod probes;
pub mod review;
pub mod roots;
pub mod server;
pub mod verify_pod;

pub use args::{Args, Cli, run};

pub(crate) use postern_telemetry::error_chain;

//! Admission webhooks: pods of labelled namespaces get the sidecar, policies are checked before they are stored.
//!
//! ```text
//! AdmissionReview -> review (which webhook, which namespace) -> inject      -> JSON Patch, warnings, or why not
//!                                                            -> verify_pod  -> is what was injected still whole?
//!                                                            -> policy      -> path and nearest name of what is wrong
//! ```
//!
//! [`inject`] and [`verify_pod`] are pure: no I/O, clock or randomness. What they need of the cluster is a [`PodContext`],
//! and the random token of a pod's probes is a parameter of it. So a dry run has no side effects, and applying twice is
//! applying once.
//!
//! [`PodContext`]: inject::PodContext

pub mod annotations;
mod escape;
pub mod inject;
mod probes;
pub mod verify_pod;

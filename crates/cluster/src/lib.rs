//! What components need of the Kubernetes API.

pub mod serving;

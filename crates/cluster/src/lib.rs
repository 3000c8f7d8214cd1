//! What components need of the Kubernetes API.
//!
//! ```text
//! client        in the cluster, or by KUBECONFIG
//! confidential  calls whose answers hold keys or tokens: never logged
//! lease         who leads: one of the replicas, by a Lease
//! places        how many connections one address may have
//! serving       a serving certificate that replicas share
//! testing       (feature) an API server that is played, over a real socket
//! ```

mod client;
pub mod confidential;
pub mod lease;
pub mod places;
pub mod serving;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use client::{ClusterError, client};

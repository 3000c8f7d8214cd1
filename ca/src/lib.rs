//! The workload CA: attests callers, issues X.509-SVIDs, signs and publishes the trust bundle.
//!
//! ```text
//! args -> serve: store --load--> Authority (self-tested) + TokenBook
//!   TLS port:      handshake (client certificate optional) -> rpc::Issuing -> issuance::Ca::issue
//!                    csr (key proven) -> attest (identity) -> authority.sign -> settle (on disk) -> answer
//!                                                          -> rpc::bundles: the signed bundle, to control only
//!   replicas:      state in a Secret of Kubernetes: found once, follow, lead (rotation, roots in a ConfigMap)
//!   admin socket:  rpc::admin: join tokens, rotation, status
//!   metrics port:  /metrics, /readyz
//! ```
//!
//! Invariants: an identity comes from attestation alone, never from a CSR; a join token is used up on disk before its
//! certificate leaves; nothing signs that has not passed the verifier's own test; one process owns a store; what is on
//! disk is whole or refused; no key, token or CSR is ever logged.

mod admission;
mod args;
mod attest;
mod authority;
pub mod clock;
mod connections;
mod csr;
mod init;
mod issuance;
mod keys_seen;
mod metrics;
mod operator;
mod pem;
mod profile;
mod refusal;
#[cfg(feature = "kubernetes")]
mod replicas;
mod rpc;
mod serve;
mod serving;
pub mod store;
mod svid_files;
mod tokens;

pub use args::{Args, Cli, run};
pub use init::{InitConfig, InitError, Initialised, init};
#[cfg(feature = "kubernetes")]
pub use replicas::Founding;
#[cfg(feature = "kubernetes")]
pub use serve::{InCluster, Pace, SecretState, start_in_cluster};
pub use serve::{Running, ServeConfig, ServeError, rotate_store, start};

/// An error with its causes, in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

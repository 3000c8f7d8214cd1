//! The workload CA: attests callers, issues X.509-SVIDs, signs and publishes the trust bundle.
//!
//! ```text
//! args -> serve: store --load--> Authority (self-tested) + TokenBook
//!   TLS port:      handshake (client certificate optional) -> rpc::Issuing -> issuance::Ca::issue
//!                    csr (key proven) -> attest (identity) -> authority.sign -> settle (on disk) -> answer
//!                                                          -> rpc::bundles: the signed bundle, to control only
//!   ledger:        what was issued and refused: one sealed chain per replica, written before a certificate leaves
//!   seal:          every record under a key that a KEK wraps (a file, a KMS plugin); sealed until that is there
//!   brought_files: a root or an issuer from elsewhere: files, or a mounted directory that is watched
//!   replicas:      state in a Secret of Kubernetes: found once, follow, lead (rotation, roots in a ConfigMap)
//!   admin socket:  rpc::admin: join tokens, rotation, quarantine, status
//!   quarantine:    who is cut off: stored, refused here, signed for control and for each answer
//!   metrics port:  /metrics, /readyz
//! ```
//!
//! Invariants: an identity comes from attestation alone, never from a CSR; a join token is used up on disk before its
//! certificate leaves; nothing signs that has not passed the verifier's own test; one process owns a store; what is on
//! disk is whole or refused; no key, token or CSR is ever logged, and
//! nothing of its state is on disk in clear.

mod acknowledged;
mod admission;
mod args;
mod attest;
mod authority;
mod base64_bytes;
mod brought_files;
pub mod clock;
mod connections;
mod csr;
mod init;
mod issuance;
mod keys_seen;
mod ledger;
mod metrics;
mod operator;
mod pem;
mod profile;
mod quarantine;
mod refusal;
#[cfg(feature = "kubernetes")]
mod replicas;
mod rewrap;
mod rpc;
mod seal;
mod serve;
mod serving;
pub mod store;
mod svid_files;
mod tokens;

pub use args::{Args, Cli, run};
pub use authority::{BroughtError, Fault, RootPace};
pub use csr::proven_key;
pub use init::{InitConfig, InitError, Initialised, RootSource, init, init_from, init_sealed};
pub use ledger::{DEFAULT_RETENTION, LedgerConfig, Lines, MAX_JWT_RECORDS, MAX_RECORDS};
#[cfg(feature = "kubernetes")]
pub use replicas::Founding;
pub use seal::{KekConfig, KekError, Sealer};
#[cfg(feature = "kubernetes")]
pub use serve::{InCluster, Pace, SecretState, start_in_cluster};
pub use serve::{
    Running, ServeConfig, ServeError, import_issuer_into, request_issuer_from, rewrap_store, rotate_store, start,
};

pub(crate) use postern_telemetry::error_chain;

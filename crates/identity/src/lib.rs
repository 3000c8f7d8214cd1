//! Identity: who a workload is, what proves it, and the one function that believes it.
//!
//! ```text
//! text --SpiffeId::parse--> SpiffeId
//! leaf DER --leaf::inspect--> Leaf (exactly one URI SAN, not a CA, digitalSignature, ...)
//! SignedBundle* --bundle::advance--> TrustBundle --> Trust (bundles per trust domain + quarantine)
//! another trust domain's document --federation::parse_document--> TrustBundle of its own name --> Trust
//! SignedQuarantine --quarantine::open (under the bundle)--> QuarantineSet --> Trust (never an older one)
//! peer's chain + Trust + now --verify_peer--> VerifiedPeer      (both directions, one function)
//! Svid + SharedTrust --tls::{server,client}_config--> rustls configs (TLS 1.3 only, no resumption)
//! ```
//!
//! Pure: no sockets, no clock, no randomness; time is a parameter. What is checked here is tested row by row of the
//! SPIFFE checklist: IDs in `tests/spec_id.rs`, documents in `tests/spec_bundle.rs` and
//! `tests/spec_federation.rs`, leaves, paths and handshakes in
//! `tests/spec_verify/`; the walk from bundle to bundle in `tests/bundle_chain.rs`. What the CA issues is tested in
//! `ca/tests/spec_*.rs`.

pub mod authority;
pub mod bundle;
mod der;
pub mod federation;
pub mod id;
pub mod leaf;
pub mod quarantine;
pub mod svid;
pub mod tls;
pub mod verify;

pub use bundle::{BundleSet, SignedBundle, TrustBundle};
pub use id::{IdError, Instance, SpiffeId, TrustDomain};
pub use quarantine::{QuarantineSet, SignedQuarantine};
pub use svid::Svid;
pub use verify::{Expected, Role, SharedTrust, Trust, VerifiedPeer, VerifyError};

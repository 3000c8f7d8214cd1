//! Identity: who a workload is, what proves it, and the one function that believes it.
//!
//! ```text
//! text --SpiffeId::parse--> SpiffeId
//! leaf DER --leaf::inspect--> Leaf (exactly one URI SAN, not a CA, digitalSignature, ...)
//! SignedBundle* --bundle::advance--> TrustBundle --> Trust (bundles per trust domain + quarantine)
//! peer's chain + Trust + now --verify_peer--> VerifiedPeer      (both directions, one function)
//! Svid + SharedTrust --tls::{server,client}_config--> rustls configs (TLS 1.3 only, no resumption)
//! ```
//!
//! Pure: no sockets, no clock, no randomness; time is a parameter. What is checked here is listed
//! row by row in `tests/spec_*.rs` (the SPIFFE checklist).

mod authority;
pub mod bundle;
mod der;
pub mod id;
pub mod leaf;
pub mod svid;
pub mod tls;
pub mod verify;

pub use bundle::{BundleSet, SignedBundle, TrustBundle};
pub use id::{IdError, Instance, SpiffeId, TrustDomain};
pub use svid::Svid;
pub use verify::{Expected, Role, SharedTrust, Trust, VerifiedPeer, VerifyError};

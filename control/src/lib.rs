//! Control: watches a source, tells each proxy what concerns it, and collects what proxies saw.
//!
//! ```text
//! args -> serve:
//!   directory (scan, watch), or kubernetes (list, watch)
//!     -> documents (decode) -> model (who, how strict, which protocol) -> state (versions) -> hub
//!   identity (own SVID from the CA), bundles and quarantine (the CA's, carried unchanged) -> hub
//!   keys (end users' issuers: fetched, kept fresh) -> hub
//!   federation (bundles of other trust domains: given, or fetched and kept fresh) -> hub
//!   TLS port:     connect (who calls, from its SVID) -> session: snapshot of what concerns it, when it changes
//!                                                    <- acknowledgements, questions, flow reports -> observed
//!   view socket:  view: a picture of all of it
//!   bundle ports: bundle_endpoint: our own bundle, for other trust domains
//!   metrics port: /metrics, /readyz
//! ```
//!
//! Invariants: a caller's workload comes from its SVID, never from what it says; a file that is refused leaves its last good
//! state in force; a policy that nobody understands denies what it selects; a slow proxy costs a bounded queue and gets
//! the newest state; control holds no secret but its own key, and can forge neither a bundle of its own
//! trust domain nor a quarantine.

#[cfg(feature = "kubernetes")]
pub mod api;
mod args;
mod bundle_endpoint;
mod bundles;
mod connect;
mod directory;
mod documents;
pub mod explain;
mod federation;
mod get;
mod hub;
mod identity;
mod keys;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod mesh;
mod metrics;
mod model;
mod observed;
mod protocol;
mod quarantine;
mod serve;
mod snapshot;
mod source;
mod state;
mod subscribers;
mod view;

pub use args::{Args, Cli, run};
pub use bundle_endpoint::{EndpointProof, WebCertificateError};
pub use federation::{FederationConfig, RefusedAtStart, RootsError};
pub use identity::{Evidence, IdentitySource};
pub use keys::{Cidr, FetchConfig, FetchConfigError};
#[cfg(feature = "kubernetes")]
pub use kubernetes::Cluster;
pub use mesh::Mesh;
pub use serve::{BundleEndpoint, Running, ServeConfig, ServeError, start};
pub use source::Source;

pub(crate) use postern_telemetry::error_chain;

//! Control: watches a source, tells each proxy what concerns it, and collects what proxies saw.
//!
//! ```text
//! args -> serve:
//!   directory (scan, watch), or kubernetes (list, watch)
//!     -> documents (decode) -> model (who, how strict, which protocol) -> state (versions) -> hub
//!   identity (own SVID from the CA) and bundles (the CA's, carried unchanged) -> hub
//!   keys (end users' issuers: fetched, kept fresh) -> hub
//!   TLS port:     connect (who calls, from its SVID) -> session: snapshot of what concerns it, when it changes
//!                                                    <- acknowledgements, questions, flow reports -> observed
//!   view socket:  view: a picture of all of it
//!   metrics port: /metrics, /readyz
//! ```
//!
//! Invariants: a caller's workload comes from its SVID, never from what it says; a file that is refused leaves its last good
//! state in force; a policy that nobody understands denies what it selects; a slow proxy costs a bounded queue and gets
//! the newest state; control holds no secret but its own key, and cannot forge a bundle.

#[cfg(feature = "kubernetes")]
pub mod api;
mod args;
mod bundles;
mod connect;
mod directory;
mod documents;
pub mod explain;
mod hub;
mod identity;
mod keys;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod metrics;
mod model;
mod observed;
mod protocol;
mod serve;
mod snapshot;
mod source;
mod state;
mod subscribers;
mod view;

pub use args::{Args, Cli, run};
pub use identity::{Evidence, IdentitySource};
pub use keys::{Cidr, FetchConfig, FetchConfigError};
#[cfg(feature = "kubernetes")]
pub use kubernetes::Cluster;
pub use serve::{Running, ServeConfig, ServeError, start};
pub use source::Source;

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

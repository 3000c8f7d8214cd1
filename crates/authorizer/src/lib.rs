//! CUSTOM policies: the question that an authorizer is asked, and what its answer may do.
//!
//! ```text
//! request --proxy--> Check (plain data, once per request)
//! Check --message--> CheckRequest --client--> ext_authz server --reply--> Verdict
//! Check --input--> regorus::Value (what OPA-Envoy makes of the same CheckRequest) --rego--> Verdict
//! Verdict: Allow (edits of the request, fields for the answer) or Deny (status, fields, body)
//! ```
//!
//! Whatever goes wrong on either way is a [`Failure`], and a failure denies: there is no third answer. A reply that
//! touches what only the proxy may say (pseudo-headers, `host`, framing, hop-by-hop and identity fields) is a failure
//! as a whole. Sizes on both ways are bounded.

pub mod check;
pub mod client;
pub mod document;
pub mod failure;
#[cfg(feature = "rego")]
mod input;
mod message;
#[cfg(feature = "rego")]
pub mod rego;
pub mod reply;
// Without Rego only what edits queries is used.
#[cfg_attr(not(feature = "rego"), allow(dead_code))]
mod target;
pub mod verdict;

pub use check::{Body, Check, Http, Peer};
pub use client::{Address, AuthorizationClient};
pub use failure::Failure;
#[cfg(feature = "rego")]
pub use rego::{Evaluator, RegoError, RegoPolicy};
pub use verdict::{Append, Edits, Refusal, Verdict};

/// Envoy's messages, generated (see `tests/generated.rs`).
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod envoy {
    /// What several services share.
    pub mod config {
        /// Addresses, header values, metadata.
        pub mod core {
            /// Version 3.
            pub mod v3 {
                include!("gen/envoy.config.core.v3.rs");
            }
        }
    }
    /// External authorization.
    pub mod service {
        /// The service `Authorization`.
        pub mod auth {
            /// Version 3.
            pub mod v3 {
                include!("gen/envoy.service.auth.v3.rs");
            }
        }
    }
    /// Status codes.
    pub mod r#type {
        /// Version 3.
        pub mod v3 {
            include!("gen/envoy.r#type.v3.rs");
        }
    }
}

/// Google's status, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod google {
    /// The status of an RPC.
    pub mod rpc {
        include!("gen/google.rpc.rs");
    }
}

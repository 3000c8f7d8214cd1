//! The wire contract: protobuf, the generated code, the conversions, and gRPC over SPIFFE mTLS.
//!
//! `proto/` is the source; `src/gen/` is generated from it (see `tests/generated.rs`, which fails when they
//! disagree and says how to regenerate) and committed, so that no build needs protoc.

pub mod authentication_wire;
pub mod authorizer_wire;
pub mod ca_client;
pub mod flow;
pub mod mtls_wire;
pub mod policy_wire;
pub mod quarantine_wire;
pub mod refusal;
pub mod transport;
#[cfg(feature = "workload-client")]
pub mod workload_client;

/// The CA's services.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod ca {
    /// Version 1.
    pub mod v1 {
        include!("gen/postern.ca.v1.rs");
    }
}

/// Control's services.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod control {
    /// Version 1.
    pub mod v1 {
        include!("gen/postern.control.v1.rs");
    }
}

/// The SPIFFE Workload API.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod workload_api {
    include!("gen/_.rs");
}

/// Semantic version that components announce.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

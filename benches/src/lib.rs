//! What the benches share: certificates of one shape for the verifier's micro-bench and for HAProxy's pair.
//!
//! ```text
//! benches/   criterion: verify an SVID, issue, decide, canonicalise   cargo bench -p postern-benches
//! compare/   whole pairs in network namespaces, CPU per request       cargo run --profile dist -p postern-benches --bin pair
//! issuing/   a CA end to end: cold start, rate, flood                 cargo run --profile dist -p postern-benches --bin issuing
//! ```

pub mod callers;
pub mod certificates;

//! What the benches share: certificates of one shape for the verifier's micro-bench and for HAProxy's pair.
//!
//! ```text
//! benches/   criterion: verify an SVID, decide, canonicalise          cargo bench -p postern-benches
//! compare/   whole pairs in network namespaces, CPU per request       cargo run --release -p postern-benches --bin pair
//! ```

pub mod certificates;

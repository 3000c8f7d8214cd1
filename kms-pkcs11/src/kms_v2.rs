//! The messages of KMS v2, generated for the CA (`ca/tests/generated.rs`).
#![allow(missing_docs, dead_code, clippy::all, clippy::pedantic, unreachable_pub)]

include!("../../ca/src/gen/v2.rs");

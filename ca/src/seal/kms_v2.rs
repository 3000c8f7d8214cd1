//! The messages of KMS v2, generated (see `tests/generated.rs`).
#![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]

include!("../gen/v2.rs");

//! A request target and a host from the wire: what passes is a fixed point, holds nothing that a server could resolve or
//! cut, and the two readers (with and without a copy) agree.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests of the crate replay the corpus with it.
#[path = "../../crates/policy/tests/fuzzed/canonical_path.rs"]
mod canonical_path;

fuzz_target!(|text: &str| canonical_path::check(text));

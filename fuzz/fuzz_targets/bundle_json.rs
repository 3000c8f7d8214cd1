//! A SPIFFE bundle document: nothing panics, and what is read is what is written.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests of the crate replay the corpus with it.
#[path = "../../crates/identity/tests/fuzzed/bundle_json.rs"]
mod bundle_json;

fuzz_target!(|data: &[u8]| {
    bundle_json::check(data);
});

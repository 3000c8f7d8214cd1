//! A SPIFFE ID from a certificate or a document: what passes is one by the standard's own words.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests of the crate replay the corpus with it.
#[path = "../../crates/identity/tests/fuzzed/spiffe_uri.rs"]
mod spiffe_uri;

fuzz_target!(|data: &[u8]| {
    spiffe_uri::check(data);
});

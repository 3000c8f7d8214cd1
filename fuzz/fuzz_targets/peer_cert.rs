//! A peer's certificate: nothing panics, and what passes the leaf rules says one thing.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests of the crate replay the corpus with it.
#[path = "../../crates/identity/tests/fuzzed/peer_cert.rs"]
mod peer_cert;

fuzz_target!(|data: &[u8]| {
    peer_cert::check(data);
});

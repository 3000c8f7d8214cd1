//! A join token from a file: nothing panics, and what passes has one spelling and shows no secret.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests of the crate replay the corpus with it.
#[path = "../../crates/api/tests/fuzzed/join_token.rs"]
mod join_token;

fuzz_target!(|data: &[u8]| {
    join_token::check(data);
});

//! A certificate request from a stranger: nothing panics, and what passes proves one key in one encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests of the crate replay the corpus with it.
#[path = "../../ca/tests/fuzzed/csr_der.rs"]
mod csr_der;

fuzz_target!(|data: &[u8]| {
    csr_der::check(data);
});

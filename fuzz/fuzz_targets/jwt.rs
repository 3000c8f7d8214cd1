//! A request's token, an issuer's key set, and the claims of an issuer that signs anything: nothing panics, and what is
//! believed says what it must.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/token/tests/token/invariants.rs"]
mod invariants;

fuzz_target!(|data: &[u8]| invariants::hold(data));

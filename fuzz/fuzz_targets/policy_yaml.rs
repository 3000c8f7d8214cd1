//! Policy documents from files: what is refused is refused with its place; what is read decides, and every other way to
//! look at it (explanation, lint, step-up, an older proxy's part of it) agrees.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The ordinary tests of the crate replay the corpus with it.
#[path = "../../crates/policy/tests/fuzzed/policy_yaml.rs"]
mod policy_yaml;

fuzz_target!(|text: &str| policy_yaml::check(text));

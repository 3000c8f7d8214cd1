//! The corpus of `fuzz/fuzz_targets/join_token.rs`, replayed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod join_token;

use std::path::Path;

#[test]
fn every_seed_of_join_token_is_one_token_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/join_token");
    let entries = std::fs::read_dir(folder).unwrap();
    let seeds: Vec<Vec<u8>> = entries
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(seeds.len() >= 10, "only {} seeds", seeds.len());
    let tokens = seeds.iter().filter(|seed| join_token::check(seed)).count();
    assert!(tokens >= 2, "{tokens} of them are tokens");
}

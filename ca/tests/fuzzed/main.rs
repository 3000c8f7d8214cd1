//! The corpus of `fuzz/fuzz_targets/csr_der.rs`, replayed: as it is, and with a byte changed or cut off.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod csr_der;

use std::path::Path;

use proptest::prelude::*;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/csr_der");
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn every_seed_of_csr_der_proves_one_key_in_one_encoding_or_is_refused() {
    let seeds = corpus();
    assert!(seeds.len() >= 10, "only {} seeds", seeds.len());
    let proven = seeds.iter().filter(|seed| csr_der::check(seed)).count();
    assert!(proven >= 3, "{proven} of them prove a key");
}

proptest! {
    #[test]
    fn and_so_does_what_is_like_them(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut input = which.get(&corpus()).clone();
        if !input.is_empty() {
            let at = at.index(input.len());
            input[at] = byte;
            if cut {
                input.truncate(at);
            }
        }
        csr_der::check(&input);
    }
}

//! The corpus of `fuzz/fuzz_targets/jwt.rs`, by the ordinary tests: as it is, and cut and changed.

use std::path::Path;

use proptest::prelude::*;

use crate::invariants;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/jwt");
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn what_the_fuzz_corpus_holds_is_refused_or_means_what_it_says() {
    let corpus = corpus();
    assert!(corpus.len() >= 12, "{}", corpus.len());
    for input in corpus {
        invariants::hold(&input);
    }
}

proptest! {
    #[test]
    fn and_so_is_what_is_like_it(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let corpus = corpus();
        let mut input = which.get(&corpus).clone();
        if !input.is_empty() {
            let at = at.index(input.len());
            input[at] = byte;
            if cut {
                input.truncate(at);
            }
        }
        invariants::hold(&input);
    }
}

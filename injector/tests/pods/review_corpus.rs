//! The corpus of `fuzz/fuzz_targets/admission_review.rs`, by the ordinary tests: nothing panics, and what is injected holds.

use std::path::Path;

use serde_json::Value;

use crate::invariants;
use crate::world::Case;

#[test]
fn every_review_of_the_fuzz_corpus_is_answered() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/admission_review");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        seen += 1;
        if let Ok(review) = serde_json::from_slice::<Value>(&bytes) {
            let case = Case::of(review["request"]["object"].clone());
            invariants::hold(&path.display().to_string(), &case);
        }
    }
    assert!(seen >= 10, "{seen}");
}

//! The corpus of `fuzz/fuzz_targets/admission_review.rs`, by the ordinary tests, as it is and with parts exchanged: nothing
//! panics, and what is injected holds.

use std::path::Path;

use postern_injector::review::Request;
use serde_json::{Value, json};

use crate::golden::{golden, read};
use crate::invariants;
use crate::world::Case;

/// Of each pod.
const MUTANTS: u64 = 60;

#[test]
fn every_review_of_the_fuzz_corpus_is_answered() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/admission_review");
    let (mut pods, mut refused) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match Request::parse(&std::fs::read(&path).unwrap()) {
            Ok(request) => {
                pods += 1;
                invariants::hold(&path.display().to_string(), &Case::of(request.object.clone()));
                mutants(&path.display().to_string(), &request.object, Case::of);
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(pods >= 10 && refused >= 5, "{pods}, {refused}");
}

#[test]
fn golden_pods_with_parts_exchanged_are_refused_or_injected_whole() {
    for (name, path) in golden() {
        mutants(&name, &read(&path).pod, Case::of);
    }
}

fn mutants(name: &str, pod: &Value, case: fn(Value) -> Case) {
    for seed in 0..MUTANTS {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut mutant = pod.clone();
        for _ in 0..random.u8(1..=3) {
            exchange(&mut mutant, &mut random);
        }
        invariants::hold(&format!("{name}, seed {seed}: {mutant}"), &case(mutant));
    }
}

/// Some value in it becomes another.
fn exchange(value: &mut Value, random: &mut fastrand::Rng) {
    let deeper = random.u8(0..8) > 0;
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let nth = random.usize(0..fields.len());
            if let Some(value) = fields.values_mut().nth(nth) {
                exchange(value, random);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let nth = random.usize(0..items.len());
            if random.u8(0..8) == 0 {
                let twice = items[nth].clone();
                items.push(twice);
            } else {
                exchange(&mut items[nth], random);
            }
        }
        other => {
            let odd = [
                json!(null),
                json!(0),
                json!(-1),
                json!(65_536),
                json!(15_020),
                json!(15_371),
                json!(i64::MIN),
                json!(""),
                json!("postern-proxy"),
                json!("$(X)\n\u{0}é"),
                json!("/probe/0123456789abcdef0123456789abcdef/web/liveness"),
                json!(true),
                json!([]),
                json!({}),
            ];
            *other = odd[random.usize(0..odd.len())].clone();
        }
    }
}

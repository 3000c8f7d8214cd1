//! The corpora of the fuzz targets of this crate, replayed: as they are, and with a byte changed or cut off.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod bundle_json;
mod peer_cert;
mod spiffe_uri;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let entries = fs::read_dir(folder).unwrap();
    let seeds: Vec<Vec<u8>> = entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() >= 10, "{target}: only {} seeds", seeds.len());
    seeds
}

/// Panics where a promise does not hold; does the input pass?
type Check = fn(&[u8]) -> bool;

/// How many of a corpus pass: one that has become all refusals tests nothing.
fn passing(target: &str, check: Check) -> usize {
    corpus(target).iter().filter(|seed| check(seed)).count()
}

#[test]
fn every_seed_of_spiffe_uri_is_an_id_by_the_standards_words_or_refused() {
    assert!(passing("spiffe_uri", spiffe_uri::check) >= 4);
}

#[test]
fn every_seed_of_peer_cert_is_a_leaf_by_each_rule_or_refused() {
    assert!(passing("peer_cert", peer_cert::check) >= 3);
}

#[test]
fn every_seed_of_bundle_json_reads_back_as_it_is_written_or_is_refused() {
    assert!(passing("bundle_json", bundle_json::check) >= 4);
}

proptest! {
    #[test]
    fn and_so_is_what_is_like_them(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let targets: [(&str, Check); 3] = [
            ("spiffe_uri", spiffe_uri::check),
            ("peer_cert", peer_cert::check),
            ("bundle_json", bundle_json::check),
        ];
        for (target, check) in targets {
            let corpus = corpus(target);
            let mut input = which.get(&corpus).clone();
            if !input.is_empty() {
                let at = at.index(input.len());
                input[at] = byte;
                if cut {
                    input.truncate(at);
                }
            }
            check(&input);
        }
    }
}

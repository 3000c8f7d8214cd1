//! The corpora of the fuzz targets of this crate, replayed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod canonical_path;
mod policy_yaml;

use std::fs;
use std::path::Path;

fn replay(target: &str, check: fn(&str)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        check(&fs::read_to_string(entry.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 10, "{}: only {replayed} seeds", folder.display());
}

#[test]
fn every_seed_of_canonical_path_is_a_fixed_point_or_refused() {
    replay("canonical_path", canonical_path::check);
}

#[test]
fn every_seed_of_policy_yaml_decides_as_it_is_explained_and_an_older_proxy_allows_no_more() {
    replay("policy_yaml", policy_yaml::check);
}

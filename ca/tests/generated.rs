//! The committed generated code is what the protobuf file says.
#![allow(clippy::unwrap_used)]

use std::path::Path;

const GENERATED: &str = "v2.rs";

fn generate(into: &Path) {
    let descriptors = protox::compile(["kms.proto"], ["proto"]).unwrap();
    tonic_prost_build::configure()
        .out_dir(into)
        // Maps in order: the same question is the same bytes.
        .btree_map(".")
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .unwrap();
}

/// `POSTERN_REGENERATE=1 cargo test -p postern-ca --test generated` writes `src/gen/` anew.
#[test]
fn committed_code_is_generated_from_the_protobuf_file() {
    if std::env::var_os("POSTERN_REGENERATE").is_some() {
        generate(Path::new("src/gen"));
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    let committed = std::fs::read_to_string(Path::new("src/gen").join(GENERATED)).unwrap();
    let generated = std::fs::read_to_string(fresh.path().join(GENERATED)).unwrap();
    assert!(
        committed == generated,
        "src/gen/{GENERATED} is stale: POSTERN_REGENERATE=1 cargo test -p postern-ca --test generated"
    );
}

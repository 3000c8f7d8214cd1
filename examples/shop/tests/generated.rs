//! The committed generated code is what the protobuf files say.
#![allow(clippy::unwrap_used)]

use std::path::Path;

const GENERATED: [&str; 2] = ["shop.v1.rs", "grpc.health.v1.rs"];

fn generate(into: &Path) {
    let descriptors = protox::compile(["payments.proto", "health.proto"], ["proto"]).unwrap();
    tonic_prost_build::configure()
        .out_dir(into)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .unwrap();
}

/// `POSTERN_REGENERATE=1 cargo test -p postern-shop --test generated` writes `src/gen/` anew.
#[test]
fn committed_code_is_generated_from_the_protobuf_file() {
    if std::env::var_os("POSTERN_REGENERATE").is_some() {
        generate(Path::new("src/gen"));
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    for file in GENERATED {
        let committed = std::fs::read_to_string(Path::new("src/gen").join(file)).unwrap();
        let generated = std::fs::read_to_string(fresh.path().join(file)).unwrap();
        assert!(
            committed == generated,
            "src/gen/{file} is stale: POSTERN_REGENERATE=1 cargo test -p postern-shop --test generated"
        );
    }
}

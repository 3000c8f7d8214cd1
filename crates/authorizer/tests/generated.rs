//! The committed generated code is what the protobuf files say.
#![allow(clippy::unwrap_used)]

use std::path::Path;

const GENERATED: [&str; 4] = [
    "envoy.config.core.v3.rs",
    "envoy.service.auth.v3.rs",
    "envoy.r#type.v3.rs",
    "google.rpc.rs",
];

fn generate(into: &Path) {
    let descriptors = protox::compile(["envoy/service/auth/v3/external_auth.proto"], ["proto"]).unwrap();
    tonic_prost_build::configure()
        .out_dir(into)
        // Maps in order: the same question is the same bytes.
        .btree_map(".")
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .unwrap();
}

/// `POSTERN_REGENERATE=1 cargo test -p postern-authorizer --test generated` writes `src/gen/` anew.
#[test]
fn committed_code_is_generated_from_the_protobuf_files() {
    if std::env::var_os("POSTERN_REGENERATE").is_some() {
        generate(Path::new("src/gen"));
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    for name in GENERATED {
        let committed = std::fs::read_to_string(Path::new("src/gen").join(name)).unwrap();
        let generated = std::fs::read_to_string(fresh.path().join(name)).unwrap();
        assert!(
            committed == generated,
            "src/gen/{name} is stale: POSTERN_REGENERATE=1 cargo test -p postern-authorizer --test generated"
        );
    }
}

//! The committed generated code is what the protobuf files say.
#![allow(clippy::unwrap_used)]

use std::path::Path;

fn generate(into: &Path) {
    let files = [
        "postern/ca/v1/ca.proto",
        "postern/control/v1/authentication.proto",
        "postern/control/v1/policy.proto",
        "postern/control/v1/control.proto",
        "spiffe/workload.proto",
    ];
    let descriptors = protox::compile(files, ["proto"]).unwrap();
    tonic_prost_build::configure()
        .out_dir(into)
        // Channels come from `transport`, over SPIFFE mTLS, never from a bare address.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        // Parts of what was received, not copies.
        .bytes(".postern.control.v1.AuthorizationPolicy.rules")
        .bytes(".postern.control.v1.PolicySet.policies")
        .compile_fds(descriptors)
        .unwrap();
}

/// `POSTERN_REGENERATE=1 cargo test -p postern-api --test generated` writes `src/gen/` anew.
#[test]
fn committed_code_is_generated_from_the_protobuf_files() {
    if std::env::var_os("POSTERN_REGENERATE").is_some() {
        generate(Path::new("src/gen"));
        return;
    }
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    for name in ["postern.ca.v1.rs", "postern.control.v1.rs", "_.rs"] {
        let committed = std::fs::read_to_string(Path::new("src/gen").join(name)).unwrap();
        let generated = std::fs::read_to_string(fresh.path().join(name)).unwrap();
        assert!(
            committed == generated,
            "src/gen/{name} is stale: POSTERN_REGENERATE=1 cargo test -p postern-api --test generated"
        );
    }
}

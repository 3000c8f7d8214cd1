//! The chart's CustomResourceDefinition is what the schema says.
#![allow(clippy::unwrap_used)]

const FILE: &str = "../../charts/postern/files/crd-authorizationpolicies.yaml";
const HEAD: &str = "# Generated from crates/policy/src/schema.rs:\n\
                    # POSTERN_REGENERATE=1 cargo test -p postern-policy --test schema\n";

/// `POSTERN_REGENERATE=1 cargo test -p postern-policy --test schema` writes the file anew.
#[test]
fn the_charts_definition_is_generated_from_the_schema() {
    let text = serde_saphyr::to_string(&postern_policy::schema::definition()).unwrap();
    let generated = format!("{HEAD}{text}");
    if std::env::var_os("POSTERN_REGENERATE").is_some() {
        std::fs::write(FILE, generated).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(FILE).unwrap();
    assert!(
        committed == generated,
        "{FILE} is stale: POSTERN_REGENERATE=1 cargo test -p postern-policy --test schema"
    );
}

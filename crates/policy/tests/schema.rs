//! The chart's CustomResourceDefinitions are what the schema says.
#![allow(clippy::unwrap_used)]

const HEAD: &str = "# Generated from crates/policy/src/schema.rs:\n\
                    # POSTERN_REGENERATE=1 cargo test -p postern-policy --test schema\n";

/// `POSTERN_REGENERATE=1 cargo test -p postern-policy --test schema` writes the files anew.
#[test]
fn the_charts_definitions_are_generated_from_the_schema() {
    for (name, definition) in postern_policy::schema::definitions() {
        let file = format!(
            "../../charts/postern/files/crd-{}.yaml",
            name.split('.').next().unwrap()
        );
        let text = serde_saphyr::to_string(&definition).unwrap();
        let generated = format!("{HEAD}{text}");
        if std::env::var_os("POSTERN_REGENERATE").is_some() {
            std::fs::write(&file, generated).unwrap();
            continue;
        }
        let committed = std::fs::read_to_string(&file).unwrap();
        assert!(
            committed == generated,
            "{file} is stale: POSTERN_REGENERATE=1 cargo test -p postern-policy --test schema"
        );
    }
}

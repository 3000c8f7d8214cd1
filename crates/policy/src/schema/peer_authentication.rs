//! The CustomResourceDefinition of our PeerAuthentication.

use serde_json::{Value, json};

use super::{Field, SELECTOR, Shape, column, field, names, node};
use crate::PeerAuthentication;

const MODE: &[Field] = &[field(
    "mode",
    Shape::Text,
    "STRICT: mutual TLS alone. PERMISSIVE: plaintext as well, of a caller without identity. DISABLE: plaintext alone. UNSET \
     (the default): what a wider document says.",
)];

const SPEC: &[Field] = &[
    field(
        "selector",
        Shape::Object(SELECTOR),
        "Whom it is for; left out: every workload of the namespace (of the mesh, in the root namespace).",
    ),
    field(
        "mtls",
        Shape::Object(MODE),
        "What is taken at every port. In mode protect only STRICT counts, unless a selector names the workload.",
    ),
    field(
        "portLevelMtls",
        Shape::ByPort(MODE),
        "The same of single ports of the workload, by number. Needs a selector.",
    ),
];

/// The table above names what the model has. A field that is added there does not compile until it is added here.
const _: fn(PeerAuthentication) = |document| {
    let PeerAuthentication {
        namespace: _,
        name: _,
        place: _,
        selector: _,
        mode: _,
        ports: _,
        unreadable: _,
    } = document;
};

pub(super) fn definition() -> Value {
    super::definition(
        // `pa` is Istio's.
        &names("PeerAuthentication", "peerauthentications", "peerauthentication", "ppa"),
        &[column("Mode", ".spec.mtls.mode")],
        &json!({
            "type": "object",
            "description": "Says whether callers must prove who they are: Istio's PeerAuthentication. Without any, as the \
                            workload's mode has it.",
            "properties": { "spec": node(&Shape::Object(SPEC), "What is taken at which port.") },
        }),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::document::Object;

    fn errors(spec: &Value) -> Vec<String> {
        let document = json!({
            "apiVersion": "postern.dev/v1alpha1",
            "kind": "PeerAuthentication",
            "metadata": { "name": "p", "namespace": "shop" },
            "spec": spec,
        });
        let object = Object::from_json(&document, "PeerAuthentication/shop/p").unwrap();
        let errors = PeerAuthentication::from_object(&object).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_definition_names_is_read_and_nothing_of_spec_is_dropped_before() {
        let spec = json!({
            "selector": { "matchLabels": { "app": "cart" } },
            "mtls": { "mode": "STRICT" },
            "portLevelMtls": { "8080": { "mode": "DISABLE" } },
        });
        assert_eq!(errors(&spec), Vec::<String>::new());
        let names: Vec<&str> = SPEC.iter().map(|field| field.name).collect();
        assert!(
            spec.as_object()
                .unwrap()
                .keys()
                .all(|key| names.contains(&key.as_str()))
                && names.len() == 3
        );
        let schema = &definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let by_port = &schema["properties"]["portLevelMtls"];
        for keeps in [
            schema,
            &schema["properties"]["selector"],
            &schema["properties"]["mtls"],
            &by_port["additionalProperties"],
        ] {
            assert_eq!(keeps["x-kubernetes-preserve-unknown-fields"], true, "{keeps}");
        }
        // A port without a value is a mistake that must not be dropped either.
        assert_eq!(by_port["additionalProperties"]["nullable"], true);
    }
}

#![allow(clippy::unwrap_used)]

use super::*;
use crate::document::Object;

/// What is wrong with a document whose spec is exactly this.
fn decoded(spec: Value) -> Vec<String> {
    decoded_as("AuthorizationPolicy", spec)
}

fn decoded_as(kind: &str, spec: Value) -> Vec<String> {
    let object = json!({
        "apiVersion": "postern.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": spec,
    });
    let object = Object::from_json(&object, &format!("{kind}/shop/p")).unwrap();
    let errors = match kind {
        "AuthorizationPolicy" => AuthorizationPolicy::from_object(&object).err(),
        _ => crate::RequestAuthentication::from_object(&object).err(),
    };
    errors.unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn sample(field: &Field) -> Value {
    match (&field.shape, field.name) {
        (Shape::Text, "key") => json!("destination.port"),
        (Shape::Text, "issuer" | "jwksUri") => json!("https://sso.test"),
        (Shape::Text, "jwks") => json!("{\"keys\":[]}"),
        (Shape::Text, "timeout" | "clockSkew" | "maxStale") => json!("5s"),
        (Shape::Text, _) => json!("ALLOW"),
        (Shape::Bool, _) => json!(true),
        (Shape::Texts, "algorithms") => json!(["ES256"]),
        (Shape::Ports, _) => json!(["80", 81]),
        (Shape::Anything, _) => json!({ "a": 1 }),
        (Shape::Labels, _) => json!({ "app": "cart" }),
        (Shape::Texts, "paths" | "notPaths") => json!(["/a"]),
        (Shape::Texts, "methods" | "notMethods") => json!(["GET"]),
        (Shape::Texts, "principals" | "notPrincipals" | "requestPrincipals" | "notRequestPrincipals") => json!(["*"]),
        (Shape::Texts, name) if name.ends_with("pBlocks") => json!(["10.0.0.0/8"]),
        (Shape::Texts, _) => json!(["a"]),
        (Shape::Object(fields) | Shape::Objects(fields) | Shape::ByPort(fields), _) => {
            panic!("{} is no leaf: {}", field.name, fields.len())
        }
    }
}

/// What may not stand alone gets what must stand beside it.
fn completed(mut spec: Value) -> Value {
    let missing = |object: &mut Value, name: &str, value: Value| {
        if object.get(name).is_none() {
            object[name] = value;
        }
    };
    if spec.get("provider").is_some() {
        missing(&mut spec, "action", json!("CUSTOM"));
        missing(&mut spec, "rules", json!([{}]));
    }
    let targets = ["/targetRef", "/targetRefs/0"];
    for path in targets {
        if let Some(target) = spec.pointer_mut(path) {
            missing(target, "kind", json!("Gateway"));
            missing(target, "name", json!("x"));
        }
    }
    if let Some(rule) = spec.pointer_mut("/jwtRules/0") {
        missing(rule, "issuer", json!("https://sso.test"));
        missing(rule, "audiences", json!(["a"]));
        for (list, fields) in [
            ("fromHeaders", &["name"][..]),
            ("outputClaimToHeaders", &["header", "claim"]),
            ("bindToWorkload", &["clientId"]),
        ] {
            if let Some(entry) = rule.pointer_mut(&format!("/{list}/0")) {
                fields.iter().for_each(|name| missing(entry, name, json!("x")));
            }
        }
        if let Some(binding) = rule.pointer_mut("/bindToWorkload/0") {
            missing(binding, "principals", json!(["*"]));
        }
    }
    if let Some(condition) = spec.pointer_mut("/rules/0/when/0") {
        missing(condition, "key", json!("destination.port"));
        missing(condition, "values", json!(["80"]));
    }
    spec
}

/// Every leaf of a table alone, inside what its parents are.
fn leaves(fields: &'static [Field], inside: &dyn Fn(Value) -> Value, into: &mut Vec<(String, Value)>) {
    for field in fields {
        let wrap = |value: Value| inside(json!({ field.name: value }));
        match field.shape {
            Shape::Object(inner) => leaves(inner, &wrap, into),
            Shape::Objects(inner) => leaves(inner, &|value| wrap(json!([value])), into),
            Shape::ByPort(inner) => leaves(inner, &|value| wrap(json!({ "80": value })), into),
            Shape::Text | Shape::Bool | Shape::Texts | Shape::Ports | Shape::Labels | Shape::Anything => {
                into.push((field.name.to_owned(), wrap(sample(field))));
            }
        }
    }
}

#[test]
fn every_field_of_the_schema_is_one_that_policies_have() {
    let mut all = Vec::new();
    leaves(SPEC, &|value| value, &mut all);
    assert_eq!(all.len(), 38, "{all:?}");
    for (name, spec) in all {
        let spec = completed(spec);
        let errors = decoded(spec.clone());
        assert!(errors.is_empty(), "{name}: {spec}: {errors:?}");
    }
}

#[test]
fn every_field_of_an_authorizers_schema_is_one_that_authorizers_have() {
    let mut all = Vec::new();
    leaves(authorizer::SPEC, &|value| value, &mut all);
    assert_eq!(all.len(), 10, "{all:?}");
    for (name, mut spec) in all {
        if spec.get("extAuthz").is_some() {
            spec["extAuthz"]["address"] = json!("127.0.0.1:9191");
        } else {
            spec["rego"]["modules"] = json!([{ "name": "a", "text": "package a" }]);
        }
        for (kind, field, value) in [
            ("extAuthz", "timeout", "1ms"),
            ("rego", "timeout", "1ms"),
            ("rego", "query", "data.a.b"),
            ("rego", "regoVersion", "v0"),
        ] {
            if spec[kind].get(field).is_some() {
                spec[kind][field] = json!(value);
            }
        }
        let object = json!({
            "apiVersion": "postern.dev/v1alpha1", "kind": "Authorizer",
            "metadata": { "name": "p", "namespace": "shop" }, "spec": spec,
        });
        let object = Object::from_json(&object, "Authorizer/shop/p").unwrap();
        assert!(crate::Authorizer::from_object(&object).is_ok(), "{name}: {spec}");
    }
}

#[test]
fn every_field_of_the_schema_is_one_that_request_authentications_have() {
    let mut all = Vec::new();
    leaves(authentication::SPEC, &|value| value, &mut all);
    assert_eq!(all.len(), 30, "{all:?}");
    for (name, spec) in all {
        let spec = completed(spec);
        let errors = decoded_as("RequestAuthentication", spec.clone());
        assert!(errors.is_empty(), "{name}: {spec}: {errors:?}");
    }
}

/// Kubernetes would drop it otherwise, and nobody would be told.
#[test]
fn every_map_of_spec_keeps_what_it_does_not_know() {
    fn check(node: &Value, path: &str) -> usize {
        let inner = |node: &Value| node["properties"].as_object().cloned().unwrap_or_default();
        let mut maps = 0;
        if node["type"] == "object" {
            let keeps =
                node["x-kubernetes-preserve-unknown-fields"] == true || node["additionalProperties"].is_object();
            assert!(keeps, "{path} drops unknown fields");
            maps += 1;
        }
        for (name, property) in inner(node) {
            assert_eq!(property["nullable"], true, "{path}.{name}: a null would be dropped");
            maps += check(&property, &format!("{path}.{name}"));
        }
        if node["items"].is_object() {
            maps += check(&node["items"], &format!("{path}[]"));
        }
        maps
    }
    for ((_, definition), maps) in definitions().into_iter().zip([12, 9, 5, 6]) {
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert_eq!(check(spec, "spec"), maps);
    }
}

#[test]
fn a_null_and_a_misspelled_field_are_refused_by_what_reads_them() {
    for (spec, says) in [
        (
            json!({ "selector": null, "rules": [{}] }),
            "spec.selector: must be a map, not nothing",
        ),
        (json!({ "rules": [{ "from": null }] }), "must be a list, not nothing"),
        (
            json!({ "rules": [{ "from": [{ "source": { "notPrincipal": ["a"] } }] }] }),
            "unknown field `notPrincipal`; did you mean `notPrincipals`?",
        ),
    ] {
        let errors = decoded(spec);
        assert!(errors.iter().any(|error| error.contains(says)), "{says}: {errors:?}");
    }
}

//! Policies before they are stored: what cannot be understood is refused, with the JSON path and the nearest name.

use postern_policy::AuthorizationPolicy;
use postern_policy::document::{DocumentError, Object};
use serde_json::{Value, json};

use crate::review::Verdict;

/// The API group of our kinds.
pub const GROUP: &str = "postern.dev";
/// The resources of what is looked at: policies, and whom CUSTOM ones ask.
pub const RESOURCES: [&str; 2] = ["authorizationpolicies", "authorizers"];
/// Faults that one refusal names; the rest are counted.
const MAX_NAMED: usize = 8;

/// Can the mesh enforce this policy?
#[must_use]
pub fn verdict(policy: Value, namespace: &str) -> Verdict {
    match check(policy, namespace) {
        Ok(()) => Verdict::allowed(),
        Err(errors) => Verdict::Refused {
            message: message(&errors),
        },
    }
}

fn check(mut policy: Value, namespace: &str) -> Result<(), Vec<DocumentError>> {
    if let Some(metadata) = policy.get_mut("metadata").and_then(Value::as_object_mut) {
        // A new object need not say where it is, nor have its name yet.
        metadata.entry("namespace").or_insert_with(|| json!(namespace));
        let generated = metadata.get("generateName").cloned().unwrap_or_else(|| json!(""));
        metadata.entry("name").or_insert(generated);
    }
    let part = |pointer: &str| policy.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let origin = format!("{}/{namespace}/{}", part("/kind"), part("/metadata/name"));
    let object = Object::from_json(&policy, &origin)?;
    match object.kind.as_str() {
        "Authorizer" => postern_authorizer::document::read(&object).map(drop),
        _ => AuthorizationPolicy::from_object(&object).map(drop),
    }
}

fn message(errors: &[DocumentError]) -> String {
    let named = errors.iter().take(MAX_NAMED).map(ToString::to_string);
    let mut text = named.collect::<Vec<_>>().join("; ");
    if let Some(more) = errors.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(rules: &Value) -> Option<String> {
        let policy = json!({
            "apiVersion": "postern.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "cart" }, "spec": { "action": "ALLOW", "rules": rules },
        });
        match verdict(policy, "shop") {
            Verdict::Refused { message } => Some(message),
            Verdict::Allowed { .. } | Verdict::Later { .. } => None,
        }
    }

    #[test]
    fn a_wrong_field_is_named_with_its_path_and_the_nearest_name() {
        let message = refusal(&json!([{ "from": [{ "source": { "principal": ["a"] } }] }])).unwrap_or_default();
        assert_eq!(
            message,
            "AuthorizationPolicy/shop/cart:spec.rules[0].from[0].source.principal: unknown field `principal`; did you mean `principals`?"
        );
        assert_eq!(
            refusal(&json!([{ "to": [{ "operation": { "methods": ["GET"] } }] }])),
            None
        );
    }

    #[test]
    fn an_authorizers_fields_and_its_rego_are_looked_at() {
        let refusal = |spec: Value| {
            let authorizer = json!({
                "apiVersion": "postern.dev/v1alpha1", "kind": "Authorizer",
                "metadata": { "name": "opa" }, "spec": spec,
            });
            match verdict(authorizer, "shop") {
                Verdict::Refused { message } => Some(message),
                Verdict::Allowed { .. } | Verdict::Later { .. } => None,
            }
        };
        let rego = |text: &str| json!({ "rego": { "modules": [{ "name": "a.rego", "text": text }] } });
        assert_eq!(refusal(json!({ "extAuthz": { "address": "opa.policy:9191" } })), None);
        assert_eq!(refusal(rego("package envoy.authz\ndefault allow := false")), None);
        let message = refusal(json!({ "extAuthz": { "adress": "opa.policy:9191" } })).unwrap_or_default();
        assert!(message.contains("did you mean `address`?"), "{message}");
        let message = refusal(rego("package envoy.authz\nallow if http.send({})")).unwrap_or_default();
        assert!(
            message.starts_with("Authorizer/shop/opa:spec.rego.modules[0].text: module `a.rego`, line 2,")
                && message.contains("http.send"),
            "{message}"
        );
    }

    #[test]
    fn many_faults_are_counted() {
        let rules: Vec<Value> = (0..10).map(|at| json!({ format!("x{at}"): 1 })).collect();
        let message = refusal(&json!(rules)).unwrap_or_default();
        assert!(
            message.contains("rules[7]") && !message.contains("rules[8]"),
            "{message}"
        );
        assert!(message.ends_with("; and 2 more"), "{message}");
    }

    #[test]
    fn a_policy_whose_name_is_still_to_be_made_is_read() {
        let policy = json!({
            "apiVersion": "postern.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "generateName": "cart-" }, "spec": {},
        });
        assert_eq!(verdict(policy, "shop"), Verdict::allowed());
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for other in [
            json!({}),
            json!([]),
            json!(null),
            json!({ "kind": "Pod", "metadata": 7 }),
        ] {
            assert!(matches!(verdict(other, "shop"), Verdict::Refused { .. }));
        }
    }
}

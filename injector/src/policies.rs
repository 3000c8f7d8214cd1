//! Policies before they are stored: what cannot be understood is refused, with the JSON path and the nearest name.

use postern_policy::document::{DocumentError, Object};
use postern_policy::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use serde_json::{Value, json};

use crate::review::{Request, Verdict};

/// The API group of our kinds.
const GROUP: &str = "postern.dev";
/// The resource of authorization policies.
const AUTHORIZATIONS: &str = "authorizationpolicies";
/// The resource of request authentications.
const AUTHENTICATIONS: &str = "requestauthentications";
/// The resource of peer authentications.
const PEER_AUTHENTICATIONS: &str = "peerauthentications";
/// The resource of whom CUSTOM policies ask.
const AUTHORIZERS: &str = "authorizers";
/// Faults that one refusal names; the rest are counted.
const MAX_NAMED: usize = 8;

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who may do what.
    Authorization,
    /// Whose tokens are believed.
    Authentication,
    /// What ports take.
    PeerAuthentication,
    /// Whom CUSTOM policies ask.
    Authorizer,
}

impl Kind {
    /// `None`: neither.
    #[must_use]
    pub fn of(request: &Request) -> Option<Self> {
        let kinds = [
            (AUTHORIZATIONS, Self::Authorization),
            (AUTHENTICATIONS, Self::Authentication),
            (PEER_AUTHENTICATIONS, Self::PeerAuthentication),
            (AUTHORIZERS, Self::Authorizer),
        ];
        let kind = kinds
            .into_iter()
            .find(|(resource, _)| request.is(GROUP, resource, None))?;
        Some(kind.1)
    }
}

/// Can the mesh enforce this policy?
#[must_use]
pub fn verdict(kind: Kind, policy: Value, namespace: &str) -> Verdict {
    match check(kind, policy, namespace) {
        Ok(()) => Verdict::allowed(),
        Err(errors) => Verdict::Refused {
            message: message(&errors),
        },
    }
}

fn check(kind: Kind, mut policy: Value, namespace: &str) -> Result<(), Vec<DocumentError>> {
    if let Some(metadata) = policy.get_mut("metadata").and_then(Value::as_object_mut) {
        // A new object need not say where it is, nor have its name yet.
        metadata.entry("namespace").or_insert_with(|| json!(namespace));
        let generated = metadata.get("generateName").cloned().unwrap_or_else(|| json!(""));
        metadata.entry("name").or_insert(generated);
    }
    let part = |pointer: &str| policy.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let origin = format!("{}/{namespace}/{}", part("/kind"), part("/metadata/name"));
    let object = Object::from_json(&policy, &origin)?;
    match kind {
        Kind::Authorization => AuthorizationPolicy::from_object(&object).map(drop),
        Kind::Authorizer => postern_authorizer::document::read(&object).map(drop),
        Kind::Authentication => {
            let document = RequestAuthentication::from_object(&object)?;
            let errors = postern_token::key_set::errors_in_cluster(&document);
            if errors.is_empty() { Ok(()) } else { Err(errors) }
        }
        Kind::PeerAuthentication => PeerAuthentication::from_object(&object).map(drop),
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
        refused(Kind::Authorization, policy)
    }

    fn refused(kind: Kind, object: Value) -> Option<String> {
        match verdict(kind, object, "shop") {
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
            match verdict(Kind::Authorizer, authorizer, "shop") {
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
        assert_eq!(verdict(Kind::Authorization, policy, "shop"), Verdict::allowed());
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for other in [
            json!({}),
            json!([]),
            json!(null),
            json!({ "kind": "Pod", "metadata": 7 }),
        ] {
            for kind in [Kind::Authorization, Kind::Authentication, Kind::PeerAuthentication] {
                assert!(refused(kind, other.clone()).is_some());
            }
        }
    }

    #[test]
    fn whose_tokens_are_believed_is_checked_the_same_down_to_the_keys() {
        let document = |rule: Value| {
            json!({
                "apiVersion": "postern.dev/v1alpha1", "kind": "RequestAuthentication",
                "metadata": { "name": "sso" }, "spec": { "jwtRules": [rule] },
            })
        };
        let good = json!({ "issuer": "https://sso.test", "audiences": ["cart"] });
        assert_eq!(refused(Kind::Authentication, document(good.clone())), None);
        for (field, value, says) in [
            (
                "audience",
                json!(["a"]),
                "unknown field `audience`; did you mean `audiences`?",
            ),
            ("jwks", json!("{\"keys\":[]}"), "no key of the set can be used"),
            ("jwksFile", json!("keys.json"), "for documents in a directory"),
        ] {
            let mut rule = good.clone();
            rule[field] = value;
            let message = refused(Kind::Authentication, document(rule)).unwrap_or_default();
            assert!(
                message.contains(says) && message.contains("RequestAuthentication/shop/sso"),
                "{message}"
            );
        }
    }

    #[test]
    fn what_ports_take_is_checked_the_same() {
        let document = |spec: Value| {
            json!({
                "apiVersion": "postern.dev/v1alpha1", "kind": "PeerAuthentication",
                "metadata": { "name": "door" }, "spec": spec,
            })
        };
        let good = json!({ "mtls": { "mode": "STRICT" } });
        assert_eq!(refused(Kind::PeerAuthentication, document(good.clone())), None);
        for (spec, says) in [
            (
                json!({ "mtls": { "mode": "STRIKT" } }),
                "spec.mtls.mode: `STRIKT` is not one of",
            ),
            (json!({ "mtls": null }), "spec.mtls: must be a map, not nothing"),
            (
                json!({ "mtls": { "modus": "STRICT" } }),
                "unknown field `modus`; did you mean `mode`?",
            ),
            (
                json!({ "portLevelMtls": { "80": { "mode": "STRICT" } } }),
                "needs `selector.matchLabels`",
            ),
        ] {
            let message = refused(Kind::PeerAuthentication, document(spec)).unwrap_or_default();
            assert!(
                message.contains(says) && message.contains("PeerAuthentication/shop/door"),
                "{message}"
            );
        }
        // Neither is the other.
        assert!(refused(Kind::Authorization, document(good)).is_some());
    }
}

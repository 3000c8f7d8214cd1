//! A policy that cannot be decoded and never was denies what it selects.

use std::collections::BTreeMap;

use postern_policy::AuthorizationPolicy;
use postern_policy::document::{Node, Object, Value};

use super::DEFAULT_NAMESPACE;

/// `None` if the object is no AuthorizationPolicy. A selector that is itself not understood selects the whole namespace.
pub(crate) fn deny_what_it_selects(object: &Object) -> Option<AuthorizationPolicy> {
    if object.kind != "AuthorizationPolicy" {
        return None;
    }
    let selector = object.spec.as_ref().and_then(selector).unwrap_or_default();
    let namespace = object.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    Some(AuthorizationPolicy {
        foreign_target: object.spec.as_ref().is_some_and(has_foreign_target),
        ..AuthorizationPolicy::denying_all(namespace, &object.name, &object.place, selector)
    })
}

/// It is for a gateway or waypoint, and selects no workload.
fn has_foreign_target(spec: &Node) -> bool {
    field(spec, "targetRef").is_some() || field(spec, "targetRefs").is_some()
}

/// What stands beside matchLabels could only narrow the selection: without it the denial is broader.
fn selector(spec: &Node) -> Option<BTreeMap<String, String>> {
    let labels = field(field(spec, "selector")?, "matchLabels")?;
    let Value::Map(entries) = &labels.value else {
        return None;
    };
    entries
        .iter()
        .map(|(key, _, value)| match &value.value {
            Value::Text(text) => Some((key.clone(), text.clone())),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => None,
        })
        .collect()
}

fn field<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    let Value::Map(entries) = &node.value else { return None };
    entries
        .iter()
        .find(|(key, _, _)| key == name)
        .map(|(_, _, value)| value)
}

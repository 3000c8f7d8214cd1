//! From a document to the model. What is not understood is refused by name, never ignored.

use std::collections::BTreeMap;

use super::{Action, AuthorizationPolicy, Rule};
use crate::document::{DocumentError, Fields, Node, Object, Place, Value};
use crate::turns;

mod clause;
mod values;
mod when;

/// The kind that is read here.
const KIND: &str = "AuthorizationPolicy";
/// Our own apiVersion.
pub(super) const OURS: &str = "postern.dev/v1alpha1";
/// The apiVersions under which kinds of Istio's shape are read.
const API_VERSIONS: [&str; 3] = [OURS, "security.istio.io/v1", "security.istio.io/v1beta1"];

/// What a policy can do.
const ACTIONS: [Action; 4] = [Action::Allow, Action::Deny, Action::Audit, Action::Custom];

pub(super) fn policy(object: &Object) -> Result<AuthorizationPolicy, Vec<DocumentError>> {
    let mut errors = Vec::new();
    let namespace = head(object, KIND, &mut errors);
    let empty = Node {
        place: object.place.clone(),
        value: Value::Null,
    };
    let mut policy = AuthorizationPolicy {
        namespace,
        name: object.name.clone(),
        place: object.place.clone(),
        selector: BTreeMap::new(),
        action: Action::Allow,
        provider: String::new(),
        foreign_target: false,
        rules: Vec::new(),
    };
    match Fields::of(object.spec.as_ref().unwrap_or(&empty), "spec") {
        Err(error) => errors.push(error),
        Ok(spec) => read_spec(spec, &mut policy, &mut errors),
    }
    if errors.is_empty() { Ok(policy) } else { Err(errors) }
}

/// What the head of a document of Istio's shape must say. Returns the namespace, empty if there is none.
pub(super) fn head(object: &Object, kind: &str, errors: &mut Vec<DocumentError>) -> String {
    if !API_VERSIONS.contains(&object.api_version.as_str()) {
        let what = format!("`{}` is not one of {}", object.api_version, API_VERSIONS.join(", "));
        errors.push(object.error("apiVersion", what));
    }
    if object.kind != kind {
        errors.push(object.error("kind", format!("`{}` is not {kind}", object.kind)));
    }
    let namespace = object.namespace.clone().unwrap_or_default();
    if namespace.is_empty() {
        errors.push(object.error("metadata", "`namespace` is missing: it says where the document applies"));
    }
    namespace
}

/// The selector of a document that may be broken otherwise; empty if it cannot be read.
pub(super) fn selector_of(object: &Object) -> BTreeMap<String, String> {
    let fields = object.spec.as_ref().and_then(|spec| Fields::of(spec, "spec").ok());
    fields
        .and_then(|mut spec| spec.child("selector"))
        .map(|mut s| s.text_map("matchLabels"))
        .unwrap_or_default()
}

/// Is even a document that cannot be read for somebody else?
pub(super) fn has_foreign_target(object: &Object) -> bool {
    let fields = object.spec.as_ref().and_then(|spec| Fields::of(spec, "spec").ok());
    fields.is_some_and(|mut spec| spec.take("targetRef").is_some() || spec.take("targetRefs").is_some())
}

fn read_spec(mut spec: Fields<'_>, policy: &mut AuthorizationPolicy, errors: &mut Vec<DocumentError>) {
    if let Some(mut selector) = spec.child("selector") {
        policy.selector = selector.text_map("matchLabels");
        selector.finish(errors);
    }
    policy.foreign_target = foreign_target(&mut spec, !policy.selector.is_empty(), errors);
    if let Some(node) = spec.take("action") {
        match &node.value {
            Value::Text(text) => match ACTIONS.iter().find(|action| action.as_str() == text) {
                Some(action) => policy.action = *action,
                None => spec.unknown_value(&node.place, "action", text, &ACTIONS.map(Action::as_str)),
            },
            _ => spec.error(&node.place, "action", "must be ALLOW, DENY, AUDIT or CUSTOM"),
        }
    }
    provider(&mut spec, policy, errors);
    let rules = spec.list("rules");
    if matches!(policy.action, Action::Deny | Action::Custom) && rules.as_ref().is_none_or(Vec::is_empty) {
        let what = format!(
            "a {} policy needs at least one rule (`- {{}}` matches everything)",
            policy.action.as_str()
        );
        spec.error(&policy.place.clone(), "rules", what);
    }
    for (i, (path, node)) in rules.unwrap_or_default().into_iter().enumerate() {
        let index = u32::try_from(i).unwrap_or(u32::MAX);
        policy.rules.push(rule(node, &path, index, &policy.namespace, errors));
    }
    spec.finish(errors);
}

/// A document for a gateway or a waypoint is read, so that its mistakes are found, and applies to no sidecar.
pub(super) fn foreign_target(spec: &mut Fields<'_>, selects: bool, errors: &mut Vec<DocumentError>) -> bool {
    let place = spec.place().clone();
    let mut targets = Vec::new();
    targets.extend(spec.child("targetRef"));
    let listed = spec.list("targetRefs");
    let foreign = !targets.is_empty() || listed.is_some();
    if listed.as_ref().is_some_and(Vec::is_empty) {
        spec.error(&place, "targetRefs", "must not be an empty list");
    }
    for (path, node) in listed.unwrap_or_default() {
        match item(node, &path) {
            Ok(target) => targets.push(target),
            Err(error) => errors.push(error),
        }
    }
    for mut target in targets {
        for known in ["group", "namespace", "sectionName"] {
            target.text(known);
        }
        target.required_text("kind");
        target.required_text("name");
        target.finish(errors);
    }
    if foreign && selects {
        spec.error(&place, "targetRefs", "cannot be combined with a selector");
    }
    foreign
}

/// `provider: {name: ...}`, with CUSTOM and only there.
fn provider(spec: &mut Fields<'_>, policy: &mut AuthorizationPolicy, errors: &mut Vec<DocumentError>) {
    let place = spec.place().clone();
    match (spec.child("provider"), policy.action) {
        (Some(mut provider), Action::Custom) => {
            policy.provider = provider.required_text("name").unwrap_or_default();
            provider.finish(errors);
        }
        (None, Action::Custom) => {
            spec.error(
                &place,
                "provider",
                "a CUSTOM policy names whom it asks: `provider: {name: ...}`",
            );
        }
        (Some(_), Action::Allow | Action::Deny | Action::Audit) => {
            spec.error(&place, "provider", "only a CUSTOM policy asks a provider");
        }
        (None, Action::Allow | Action::Deny | Action::Audit) => {}
    }
}

fn rule(node: &Node, path: &str, index: u32, namespace: &str, errors: &mut Vec<DocumentError>) -> Rule {
    turns::next();
    let mut rule = Rule {
        place: node.place.clone(),
        index,
        from: Vec::new(),
        to: Vec::new(),
        when: Vec::new(),
    };
    let mut fields = match item(node, path) {
        Ok(fields) => fields,
        Err(error) => {
            errors.push(error);
            return rule;
        }
    };
    for (what, wrapper) in [("from", "source"), ("to", "operation")] {
        let Some(items) = fields.list(what) else { continue };
        if items.is_empty() {
            fields.error(
                &node.place,
                what,
                "must not be an empty list; leave it out to match all",
            );
        }
        for (path, node) in items {
            let Some((inner, at)) = wrapped(node, &path, wrapper, errors) else {
                continue;
            };
            if what == "from" {
                rule.from.push(clause::source(inner, &at, namespace, errors).into());
            } else {
                rule.to.push(clause::operation(inner, &at, errors).into());
            }
        }
    }
    let conditions = fields.list("when");
    if conditions.as_ref().is_some_and(Vec::is_empty) {
        fields.error(
            &node.place,
            "when",
            "must not be an empty list; leave it out to match all",
        );
    }
    for (path, node) in conditions.unwrap_or_default() {
        match item(node, &path) {
            Ok(condition) => rule.when.extend(when::condition(condition, namespace, errors)),
            Err(error) => errors.push(error),
        }
    }
    fields.finish(errors);
    rule
}

/// `from: [{source: {...}}]`, `to: [{operation: {...}}]`.
fn wrapped<'a>(
    node: &'a Node,
    path: &str,
    wrapper: &'static str,
    errors: &mut Vec<DocumentError>,
) -> Option<(Fields<'a>, Place)> {
    let mut fields = item(node, path).map_err(|error| errors.push(error)).ok()?;
    let inner = fields.child(wrapper);
    if inner.is_none() {
        fields.missing(wrapper);
    }
    fields.finish(errors);
    Some((inner?, node.place.clone()))
}

/// An item of a list. `{}` is one that matches everything; a dash with nothing behind it is a mistake.
pub(super) fn item<'a>(node: &'a Node, path: &str) -> Result<Fields<'a>, DocumentError> {
    if node.value == Value::Null {
        return Err(DocumentError {
            place: node.place.clone(),
            path: path.to_owned(),
            what: "must be a map, not nothing".to_owned(),
            nearest: None,
        });
    }
    Fields::of(node, path)
}

//! From a document to the model. What this version does not support is refused by name, never ignored.

use std::collections::BTreeMap;

use super::text::Form;
use super::value::{self, Checked};
use super::{Action, AuthorizationPolicy, Operation, Rule, Source, StringMatch};
use crate::document::{DocumentError, Fields, Node, Object, Place, Value};

/// Istio's own limit.
const MAX_SERVICE_ACCOUNTS: usize = 16;
/// The kind that is read here.
const KIND: &str = "AuthorizationPolicy";
/// The apiVersions whose AuthorizationPolicy has this shape.
const API_VERSIONS: [&str; 3] = [
    "postern.dev/v1alpha1",
    "security.istio.io/v1",
    "security.istio.io/v1beta1",
];

pub(super) fn policy(object: &Object) -> Result<AuthorizationPolicy, Vec<DocumentError>> {
    let mut errors = Vec::new();
    if !API_VERSIONS.contains(&object.api_version.as_str()) {
        let what = format!("`{}` is not one of {}", object.api_version, API_VERSIONS.join(", "));
        errors.push(object.error("apiVersion", what));
    }
    if object.kind != KIND {
        errors.push(object.error("kind", format!("`{}` is not {KIND}", object.kind)));
    }
    let namespace = object.namespace.clone().unwrap_or_default();
    if namespace.is_empty() {
        errors.push(object.error("metadata", "`namespace` is missing: it says where the policy applies"));
    }
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
        rules: Vec::new(),
    };
    match Fields::of(object.spec.as_ref().unwrap_or(&empty), "spec") {
        Err(error) => errors.push(error),
        Ok(spec) => read_spec(spec, &mut policy, &mut errors),
    }
    if errors.is_empty() { Ok(policy) } else { Err(errors) }
}

/// The selector of a document that may be broken otherwise; empty if it cannot be read.
pub(super) fn selector_of(object: &Object) -> BTreeMap<String, String> {
    let fields = object.spec.as_ref().and_then(|spec| Fields::of(spec, "spec").ok());
    fields
        .and_then(|mut spec| spec.child("selector"))
        .map(|mut s| s.text_map("matchLabels"))
        .unwrap_or_default()
}

fn read_spec(mut spec: Fields<'_>, policy: &mut AuthorizationPolicy, errors: &mut Vec<DocumentError>) {
    if let Some(mut selector) = spec.child("selector") {
        policy.selector = selector.text_map("matchLabels");
        selector.finish(errors);
    }
    if let Some(node) = spec.take("action") {
        match &node.value {
            Value::Text(text) if text == "ALLOW" => {}
            Value::Text(text) if text == "DENY" => policy.action = Action::Deny,
            Value::Text(text) if text == "AUDIT" || text == "CUSTOM" => {
                spec.error(
                    &node.place,
                    "action",
                    format!("{text} is not supported by this version"),
                );
            }
            Value::Text(text) => spec.unknown_value(&node.place, "action", text, &["ALLOW", "DENY"]),
            _ => spec.error(&node.place, "action", "must be ALLOW or DENY"),
        }
    }
    for unsupported in ["targetRef", "targetRefs", "provider"] {
        if let Some(node) = spec.take(unsupported) {
            spec.error(&node.place, unsupported, "is not supported by this version");
        }
    }
    let rules = spec.list("rules");
    if policy.action == Action::Deny && rules.as_ref().is_none_or(Vec::is_empty) {
        spec.error(
            &policy.place.clone(),
            "rules",
            "a DENY policy needs at least one rule (`- {}` denies everything)",
        );
    }
    for (i, (path, node)) in rules.unwrap_or_default().into_iter().enumerate() {
        let index = u32::try_from(i).unwrap_or(u32::MAX);
        policy.rules.push(rule(node, &path, index, &policy.namespace, errors));
    }
    spec.finish(errors);
}

fn rule(node: &Node, path: &str, index: u32, namespace: &str, errors: &mut Vec<DocumentError>) -> Rule {
    let mut rule = Rule {
        place: node.place.clone(),
        index,
        ..Rule::default()
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
                rule.from.push(source(inner, &at, namespace, errors));
            } else {
                rule.to.push(operation(inner, &at, errors));
            }
        }
    }
    if let Some(when) = fields.take("when") {
        fields.error(&when.place, "when", "conditions are not supported by this version");
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
fn item<'a>(node: &'a Node, path: &str) -> Result<Fields<'a>, DocumentError> {
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

fn source(mut fields: Fields<'_>, place: &Place, namespace: &str, errors: &mut Vec<DocumentError>) -> Source {
    for unsupported in [
        "requestPrincipals",
        "notRequestPrincipals",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
    ] {
        if let Some(node) = fields.take(unsupported) {
            fields.error(&node.place, unsupported, "is not supported by this version");
        }
    }
    let account = |text: &str| value::account(text, namespace);
    let source = Source {
        principals: values(&mut fields, "principals", Form::Plain, value::principal),
        not_principals: values(&mut fields, "notPrincipals", Form::Plain, value::principal),
        namespaces: values(&mut fields, "namespaces", Form::Wildcard, value::namespace),
        not_namespaces: values(&mut fields, "notNamespaces", Form::Wildcard, value::namespace),
        service_accounts: values(&mut fields, "serviceAccounts", Form::Wildcard, account),
        not_service_accounts: values(&mut fields, "notServiceAccounts", Form::Wildcard, account),
    };
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = !source.principals.is_empty() || !source.namespaces.is_empty();
    if accounts && others {
        fields.error(
            place,
            "serviceAccounts",
            "cannot be combined with principals or namespaces",
        );
    }
    if source.service_accounts.len().max(source.not_service_accounts.len()) > MAX_SERVICE_ACCOUNTS {
        fields.error(
            place,
            "serviceAccounts",
            format!("at most {MAX_SERVICE_ACCOUNTS} are allowed"),
        );
    }
    let before = errors.len();
    fields.finish(errors);
    if source == Source::default() && errors.len() == before {
        errors.push(empty(place, "source"));
    }
    source
}

fn operation(mut fields: Fields<'_>, place: &Place, errors: &mut Vec<DocumentError>) -> Operation {
    let operation = Operation {
        hosts: values(&mut fields, "hosts", Form::Plain, value::host),
        not_hosts: values(&mut fields, "notHosts", Form::Plain, value::host),
        ports: ports(&mut fields, "ports"),
        not_ports: ports(&mut fields, "notPorts"),
        methods: values(&mut fields, "methods", Form::Plain, value::method),
        not_methods: values(&mut fields, "notMethods", Form::Plain, value::method),
        paths: values(&mut fields, "paths", Form::Path, value::path),
        not_paths: values(&mut fields, "notPaths", Form::Path, value::path),
    };
    let before = errors.len();
    fields.finish(errors);
    if operation == Operation::default() && errors.len() == before {
        errors.push(empty(place, "operation"));
    }
    operation
}

fn empty(place: &Place, what: &str) -> DocumentError {
    DocumentError {
        place: place.clone(),
        path: what.to_owned(),
        what: format!("an empty {what} would match everything; leave it out if that is meant"),
        nearest: None,
    }
}

fn values(
    fields: &mut Fields<'_>,
    name: &'static str,
    form: Form,
    checked: impl Fn(&str) -> Checked,
) -> Vec<StringMatch> {
    let Some(texts) = fields.texts(name) else {
        return Vec::new();
    };
    if texts.is_empty() {
        let place = fields.place().clone();
        fields.error(&place, name, "must not be an empty list");
    }
    let mut values = Vec::new();
    for (place, text) in texts {
        let value = checked(&text).and_then(|text| StringMatch::read(&text, form).map_err(str::to_owned));
        match value {
            Ok(value) => values.push(value),
            Err(why) => fields.error(place, name, format!("`{text}` {why}")),
        }
    }
    values
}

/// Istio writes ports as text; plain numbers are taken as well.
fn ports(fields: &mut Fields<'_>, name: &'static str) -> Vec<u16> {
    let Some(items) = fields.list(name) else {
        return Vec::new();
    };
    if items.is_empty() {
        let place = fields.place().clone();
        fields.error(&place, name, "must not be an empty list");
    }
    let mut ports = Vec::new();
    for (_, item) in items {
        let port = match &item.value {
            Value::Int(number) => u16::try_from(*number).ok(),
            Value::Text(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse::<u16>().ok(),
            Value::Null | Value::Bool(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => None,
        };
        match port.filter(|port| *port > 0) {
            Some(port) => ports.push(port),
            None => fields.error(&item.place, name, "must be a port, \"1\" to \"65535\""),
        }
    }
    ports
}

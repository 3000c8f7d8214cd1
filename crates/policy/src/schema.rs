//! The CustomResourceDefinitions of our AuthorizationPolicy, Authorizer, RequestAuthentication and PeerAuthentication, from one
//! table of fields each.
//!
//! An API server drops what a schema does not name, before any webhook sees it: a misspelled `notPrincipals` would be gone, and
//! the policy would allow more than it says. So every map of `spec` keeps unknown fields, and every field may be null (a list
//! whose items were commented out is not a list left out): our webhook refuses them with their place and the nearest name.
//! Values are left to it as well (it knows the nearest); what the API server checks are types.

use serde_json::{Map, Value, json};

use crate::{AuthorizationPolicy, Operation, Rule, Source};

mod authentication;
mod authorizer;
mod peer_authentication;

/// A field of a policy.
struct Field {
    name: &'static str,
    shape: Shape,
    says: &'static str,
}

enum Shape {
    Text,
    Bool,
    /// A list of text.
    Texts,
    /// A list of ports, as numbers or as text; and of values that may be ports.
    Ports,
    /// A map of text to text.
    Labels,
    /// A map of port numbers to the same fields each.
    ByPort(&'static [Field]),
    /// A map of anything.
    Anything,
    Object(&'static [Field]),
    Objects(&'static [Field]),
}

const fn field(name: &'static str, shape: Shape, says: &'static str) -> Field {
    Field { name, shape, says }
}

const SPEC: &[Field] = &[
    field(
        "selector",
        Shape::Object(SELECTOR),
        "Whom it is for; left out: every workload of the namespace (of the mesh, in the root namespace).",
    ),
    field(
        "action",
        Shape::Text,
        "ALLOW (the default), DENY, AUDIT or CUSTOM. CUSTOM is asked first, then DENY; what no ALLOW matches is denied. \
         AUDIT only marks.",
    ),
    field(
        "provider",
        Shape::Object(PROVIDER),
        "Whom a CUSTOM policy asks: an Authorizer.",
    ),
    field(
        "targetRef",
        Shape::Object(TARGET),
        "For a gateway or waypoint: such a policy applies to no sidecar.",
    ),
    field(
        "targetRefs",
        Shape::Objects(TARGET),
        "For gateways or waypoints: such a policy applies to no sidecar.",
    ),
    field(
        "rules",
        Shape::Objects(RULE),
        "Any one suffices. Left out: an ALLOW policy that never matches.",
    ),
];

const SELECTOR: &[Field] = &[field(
    "matchLabels",
    Shape::Labels,
    "Labels that a workload must all have.",
)];

const PROVIDER: &[Field] = &[field(
    "name",
    Shape::Text,
    "The name of an Authorizer of the policy's namespace, or of the root namespace.",
)];

const TARGET: &[Field] = &[
    field("group", Shape::Text, "The API group of the target."),
    field("kind", Shape::Text, "The kind of the target."),
    field("name", Shape::Text, "The name of the target."),
    field("namespace", Shape::Text, "The namespace of the target."),
    field("sectionName", Shape::Text, "A part of the target."),
];

const WHEN: &[Field] = &[
    field(
        "key",
        Shape::Text,
        "request.headers[name], request.auth.{principal, audiences, presenter, claims[name], age}, source.{ip, principal, \
         namespace, serviceAccount, trustDomain, labels[name], namespace.labels[name]}, remote.ip, destination.{ip, port, \
         labels[name], namespace.labels[name]}, connection.sni.",
    ),
    field("values", Shape::Ports, "One of these."),
    field("notValues", Shape::Ports, "None of these."),
];

const RULE: &[Field] = &[
    field(
        "from",
        Shape::Objects(FROM),
        "Who calls: any one of these; left out: anybody.",
    ),
    field(
        "to",
        Shape::Objects(TO),
        "What is asked for: any one of these; left out: anything.",
    ),
    field("when", Shape::Objects(WHEN), "What else must hold: all of these."),
];

const FROM: &[Field] = &[field(
    "source",
    Shape::Object(SOURCE),
    "All fields that are given must match.",
)];

const TO: &[Field] = &[field(
    "operation",
    Shape::Object(OPERATION),
    "All fields that are given must match.",
)];

const SOURCE: &[Field] = &[
    field(
        "principals",
        Shape::Texts,
        "Identities without `spiffe://`, such as `cluster.local/ns/shop/sa/web`; `abc*`, `*abc` and `*` match many.",
    ),
    field("notPrincipals", Shape::Texts, "None of these."),
    field(
        "namespaces",
        Shape::Texts,
        "The caller's namespace; `*` stands for any characters.",
    ),
    field("notNamespaces", Shape::Texts, "None of these."),
    field(
        "serviceAccounts",
        Shape::Texts,
        "`namespace/name`, or a name of the policy's own namespace; at most 16.",
    ),
    field("notServiceAccounts", Shape::Texts, "None of these."),
    field(
        "trustDomains",
        Shape::Texts,
        "The trust domain of the caller's identity.",
    ),
    field("notTrustDomains", Shape::Texts, "None of these."),
    field(
        "requestPrincipals",
        Shape::Texts,
        "End users by their token, `issuer/subject`; each may have a star at its end: `https://sso.example/*`.",
    ),
    field("notRequestPrincipals", Shape::Texts, "None of these."),
    field(
        "ipBlocks",
        Shape::Texts,
        "Where the connection comes from: addresses and blocks such as 10.0.0.0/8.",
    ),
    field("notIpBlocks", Shape::Texts, "None of these."),
    field(
        "remoteIpBlocks",
        Shape::Texts,
        "The same: no proxy before ours is believed.",
    ),
    field("notRemoteIpBlocks", Shape::Texts, "None of these."),
];

const OPERATION: &[Field] = &[
    field(
        "hosts",
        Shape::Texts,
        "Host names; the port is part of the value: `shop`, `shop:*`.",
    ),
    field("notHosts", Shape::Texts, "None of these."),
    field("ports", Shape::Ports, "The workload's own ports, not a Service's."),
    field("notPorts", Shape::Ports, "None of these."),
    field("methods", Shape::Texts, "HTTP methods, in upper case."),
    field("notMethods", Shape::Texts, "None of these."),
    field(
        "paths",
        Shape::Texts,
        "Canonical paths; `/a/*`, `*.html`, and templates: `/carts/{*}/items/{**}`.",
    ),
    field("notPaths", Shape::Texts, "None of these."),
];

/// The tables above name what the model has. A field that is added there does not compile until it is added here.
const _: fn(AuthorizationPolicy, Rule, Source, Operation) = |policy, rule, source, operation| {
    let AuthorizationPolicy {
        namespace: _,
        name: _,
        place: _,
        selector: _,
        action: _,
        provider: _,
        foreign_target: _,
        rules: _,
    } = policy;
    let Rule {
        place: _,
        index: _,
        from: _,
        to: _,
        when: _,
    } = rule;
    let Source {
        principals: _,
        not_principals: _,
        namespaces: _,
        not_namespaces: _,
        service_accounts: _,
        not_service_accounts: _,
        trust_domains: _,
        not_trust_domains: _,
        request_principals: _,
        not_request_principals: _,
        ip_blocks: _,
        not_ip_blocks: _,
        remote_ip_blocks: _,
        not_remote_ip_blocks: _,
    } = source;
    let Operation {
        hosts: _,
        not_hosts: _,
        ports: _,
        not_ports: _,
        methods: _,
        not_methods: _,
        paths: _,
        not_paths: _,
    } = operation;
};

/// All definitions, by their full names.
#[must_use]
pub fn definitions() -> [(&'static str, Value); 4] {
    [
        (
            "authorizationpolicies.postern.dev",
            definition(
                // `ap` and `authz` are others' already.
                &names(
                    "AuthorizationPolicy",
                    "authorizationpolicies",
                    "authorizationpolicy",
                    "pap",
                ),
                &[
                    column("Action", ".spec.action"),
                    column("Accepted", ".status.conditions[?(@.type==\"Accepted\")].status"),
                    column("Enforced", ".status.proxies"),
                ],
                &json!({
                    "type": "object",
                    "description": "Says who may do what with which workloads: Istio's AuthorizationPolicy. \
                                    Without any that allows, everything is denied.",
                    "properties": {
                        "spec": node(&Shape::Object(SPEC), "What is allowed or denied, and for whom."),
                        "status": status(),
                    },
                }),
            ),
        ),
        ("requestauthentications.postern.dev", authentication::definition()),
        ("peerauthentications.postern.dev", peer_authentication::definition()),
        ("authorizers.postern.dev", authorizer::definition()),
    ]
}

fn names(kind: &str, plural: &str, singular: &str, short: &str) -> Value {
    json!({
        "kind": kind,
        "listKind": format!("{kind}List"),
        "plural": plural,
        "singular": singular,
        "shortNames": [short],
        "categories": ["postern"],
    })
}

fn definition(names: &Value, columns: &[Value], schema: &Value) -> Value {
    let age = json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" });
    let columns: Vec<&Value> = columns.iter().chain([&age]).collect();
    let mut version = json!({
        "name": "v1alpha1",
        "served": true,
        "storage": true,
        "additionalPrinterColumns": columns,
        "schema": { "openAPIV3Schema": schema },
    });
    if schema.pointer("/properties/status").is_some() {
        version["subresources"] = json!({ "status": {} });
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.postern.dev", names["plural"].as_str().unwrap_or_default()) },
        "spec": { "group": "postern.dev", "scope": "Namespaced", "names": names, "versions": [version] },
    })
}

fn column(name: &str, path: &str) -> Value {
    json!({ "name": name, "type": "string", "jsonPath": path })
}

fn node(shape: &Shape, says: &str) -> Value {
    let mut node = match shape {
        Shape::Text => json!({ "type": "string" }),
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Shape::Ports => json!({ "type": "array", "items": { "x-kubernetes-int-or-string": true } }),
        // Every key is known: nothing is dropped.
        Shape::Labels => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Shape::ByPort(fields) => json!({ "type": "object", "additionalProperties": nullable(object(fields)) }),
        Shape::Anything => json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
        Shape::Object(fields) => object(fields),
        Shape::Objects(fields) => json!({ "type": "array", "items": object(fields) }),
    };
    node["description"] = json!(says);
    nullable(node)
}

fn nullable(mut node: Value) -> Value {
    node["nullable"] = json!(true);
    node
}

fn object(fields: &[Field]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|field| (field.name.to_owned(), node(&field.shape, field.says)))
        .collect();
    json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": properties })
}

/// Control alone writes it.
fn status() -> Value {
    let text = |says: &str| json!({ "type": "string", "description": says });
    let generation = json!({ "type": "integer", "format": "int64" });
    json!({
        "type": "object",
        "description": "What control makes of it.",
        "properties": {
            "proxies": text("How many of the proxies that it selects have it in force, such as 2/3."),
            "observedGeneration": generation,
            "conditions": {
                "type": "array",
                "description": "Accepted: it is read as it is meant. Enforced: every proxy that it selects has it in force.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": text("Accepted or Enforced."),
                        "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                        "observedGeneration": generation,
                        "lastTransitionTime": { "type": "string", "format": "date-time" },
                        "reason": text("One word."),
                        "message": text("For people: what is wrong, and where."),
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;

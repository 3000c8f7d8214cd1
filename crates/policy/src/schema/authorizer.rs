//! The definition of `kind: Authorizer`.

use serde_json::{Value, json};

use super::{Field, Shape, field};
use crate::authorizer::{Authorizer, Module, Rego, Server};

pub(super) const SPEC: &[Field] = &[
    field(
        "extAuthz",
        Shape::Object(SERVER),
        "A server of Envoy's ext_authz protocol, such as OPA. Either this or rego.",
    ),
    field(
        "rego",
        Shape::Object(REGO),
        "OPA's language, evaluated by the proxy itself.",
    ),
];

const SERVER: &[Field] = &[
    field(
        "address",
        Shape::Text,
        "unix:/path or 127.0.0.1:9191 beside the proxy, or a service of the mesh, asked over mutual TLS: opa.policy:9191.",
    ),
    field(
        "timeout",
        Shape::Text,
        "How long a request waits for it: 200ms, at most 10s.",
    ),
    field("contextExtensions", Shape::Labels, "Sent with each question."),
    field(
        "includeHeaders",
        Shape::Texts,
        "The fields of a request that it is told; left out: all.",
    ),
];

const REGO: &[Field] = &[
    field("modules", Shape::Objects(MODULE), "The policy's modules."),
    field("query", Shape::Text, "The rule that decides: data.envoy.authz.allow."),
    field("data", Shape::Anything, "What modules find under `data`."),
    field(
        "timeout",
        Shape::Text,
        "How long one evaluation may take: 2ms, at most 5ms.",
    ),
    field("regoVersion", Shape::Text, "v1, or v0 for Rego before OPA 1.0."),
];

const MODULE: &[Field] = &[
    field("name", Shape::Text, "For messages, such as authz.rego."),
    field("text", Shape::Text, "Rego."),
];

/// The tables above name what the model has.
const _: fn(Authorizer, Server, Rego, Module) = |authorizer, server, rego, module| {
    let Authorizer {
        namespace: _,
        name: _,
        place: _,
        asks: _,
    } = authorizer;
    let Server {
        address: _,
        timeout: _,
        context: _,
        include_headers: _,
    } = server;
    let Rego {
        modules: _,
        query: _,
        data: _,
        timeout: _,
        v0: _,
    } = rego;
    let Module {
        name: _,
        text: _,
        place: _,
    } = module;
};

pub(super) fn definition() -> Value {
    super::definition(
        &super::names("Authorizer", "authorizers", "authorizer", "pauthz"),
        &[
            super::column("Address", ".spec.extAuthz.address"),
            super::column("Query", ".spec.rego.query"),
        ],
        &json!({
            "type": "object",
            "description": "Whom CUSTOM policies of its namespace ask, or of every namespace if it is in the root namespace.",
            "properties": { "spec": super::node(&Shape::Object(SPEC), "Who is asked: one of two.") },
        }),
    )
}

//! RequestAuthentication's table. `jwksFile` is not in it: beside the objects of a cluster there are no files.

use serde_json::{Value, json};

use super::{Field, SELECTOR, Shape, TARGET, field};
use crate::authentication::{Binding, ClaimHeader, JwtRule, RequestAuthentication};

pub(super) const SPEC: &[Field] = &[
    field(
        "selector",
        Shape::Object(SELECTOR),
        "Whom it is for; left out: every workload of the namespace (of the mesh, in the root namespace).",
    ),
    field(
        "targetRef",
        Shape::Object(TARGET),
        "For a gateway or waypoint: such a document applies to no sidecar.",
    ),
    field(
        "targetRefs",
        Shape::Objects(TARGET),
        "For gateways or waypoints: such a document applies to no sidecar.",
    ),
    field(
        "jwtRules",
        Shape::Objects(RULE),
        "Whose tokens are believed: any one suffices. A request with another token is refused; one without is \
         AuthorizationPolicy's to judge.",
    ),
];

const RULE: &[Field] = &[
    field("issuer", Shape::Text, "The claim `iss`, byte for byte."),
    field(
        "audiences",
        Shape::Texts,
        "One of these must be in `aud`; `*` alone takes tokens for anybody. Must be given.",
    ),
    field(
        "jwksUri",
        Shape::Text,
        "Where control fetches the keys. Left out, with no `jwks`: where the issuer's OpenID configuration says.",
    ),
    field("jwks", Shape::Text, "The keys, as a JSON Web Key Set."),
    field(
        "fromHeaders",
        Shape::Objects(FROM_HEADER),
        "Headers where a token may stand. With no place at all: `Authorization: Bearer` and `?access_token=`.",
    ),
    field(
        "fromParams",
        Shape::Texts,
        "Parameters of the query where a token may stand.",
    ),
    field("fromCookies", Shape::Texts, "Cookies where a token may stand."),
    field(
        "forwardOriginalToken",
        Shape::Bool,
        "Does the app get the token as well? Left out: no.",
    ),
    field(
        "outputPayloadToHeader",
        Shape::Text,
        "A header that tells the app the token's payload, in base64url; clients cannot set it.",
    ),
    field(
        "outputClaimToHeaders",
        Shape::Objects(TOLD),
        "Headers that tell the app single claims; clients cannot set them.",
    ),
    field("timeout", Shape::Text, "Of one fetch of keys, such as 5s; at most 60s."),
    field(
        "spaceDelimitedClaims",
        Shape::Texts,
        "Claims whose text is a list of words, besides `scope` and `permission`.",
    ),
    field(
        "algorithms",
        Shape::Texts,
        "Signatures that are believed: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA (all of them, if left \
         out).",
    ),
    field(
        "clockSkew",
        Shape::Text,
        "How far the issuer's clock may be from ours; 60s if left out, at most 300s.",
    ),
    field(
        "maxStale",
        Shape::Text,
        "How long keys that cannot be fetched anew are believed; 24h if left out, at most 168h.",
    ),
    field(
        "bindToWorkload",
        Shape::Objects(BINDING),
        "If given, a token is good only from a workload that one of these names beside the token's client.",
    ),
];

const FROM_HEADER: &[Field] = &[
    field("name", Shape::Text, "The header's name."),
    field(
        "prefix",
        Shape::Text,
        "What stands before the token, such as `Bearer `.",
    ),
];

const TOLD: &[Field] = &[
    field("header", Shape::Text, "The header's name."),
    field(
        "claim",
        Shape::Text,
        "The claim's name; nested ones are joined by dots.",
    ),
];

const BINDING: &[Field] = &[
    field("clientId", Shape::Text, "The token's `azp` or `client_id`."),
    field(
        "principals",
        Shape::Texts,
        "The workloads, without `spiffe://`; `abc*`, `*abc` and `*` match many.",
    ),
];

/// The tables above name what the model has. A field that is added there does not compile until it is added here.
const _: fn(RequestAuthentication, JwtRule, ClaimHeader, Binding) = |document, rule, told, binding| {
    let RequestAuthentication {
        namespace: _,
        name: _,
        place: _,
        selector: _,
        foreign_target: _,
        content: _,
    } = document;
    let JwtRule {
        place: _,
        issuer: _,
        audiences: _,
        keys: _,
        locations: _,
        forward: _,
        payload_header: _,
        claim_headers: _,
        space_delimited: _,
        algorithms: _,
        clock_skew: _,
        bindings: _,
        max_stale: _,
        timeout: _,
    } = rule;
    let ClaimHeader { header: _, claim: _ } = told;
    let Binding {
        client: _,
        principals: _,
    } = binding;
};

/// The whole definition. Nobody writes a status: what cannot be read is refused at admission, and named by control.
pub(super) fn definition() -> Value {
    super::definition(
        &super::names(
            "RequestAuthentication",
            "requestauthentications",
            "requestauthentication",
            "pra",
        ),
        &[super::column("Issuers", ".spec.jwtRules[*].issuer")],
        &json!({
            "type": "object",
            "description": "Says whose tokens (JWT) a workload believes: Istio's RequestAuthentication.",
            "properties": { "spec": super::node(&Shape::Object(SPEC), "Whose tokens are believed, and at which workloads.") },
        }),
    )
}

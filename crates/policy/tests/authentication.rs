//! RequestAuthentication documents: what is read, what is refused and in which words.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use postern_policy::authentication::{Algorithm, Audiences, Content, JwtRule, KeySource, Location};
use postern_policy::document::{Object, parse};
use postern_policy::{RequestAuthentication, StringMatch};

fn object(version: &str, spec: &str) -> Object {
    let text = format!(
        "apiVersion: {version}\nkind: RequestAuthentication\nmetadata: {{name: sso, namespace: shop}}\nspec:\n{spec}\n"
    );
    parse("sso.yaml", &text).unwrap().remove(0)
}

fn read(version: &str, spec: &str) -> Result<RequestAuthentication, String> {
    RequestAuthentication::from_object(&object(version, spec)).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

fn rule(version: &str, fields: &str) -> JwtRule {
    let document = read(version, &format!("  jwtRules:\n  - {fields}")).unwrap();
    document.rules()[0].clone()
}

const OURS: &str = "postern.dev/v1alpha1";
const ISTIO: &str = "security.istio.io/v1";

#[test]
fn a_document_of_istio_means_what_it_means_there() {
    let document = read(
        "security.istio.io/v1beta1",
        r#"  selector: {matchLabels: {app: cart}}
  jwtRules:
  - issuer: "testing@secure.istio.io"
    jwks_uri: "https://keys.test/jwks.json"
    audiences: [cart]
    fromHeaders: [{name: X-Jwt-Assertion, prefix: "JWT "}, {name: authorization}]
    fromParams: [token]
    fromCookies: [session]
    forwardOriginalToken: true
    outputPayloadToHeader: X-Payload
    outputClaimToHeaders: [{header: X-Group, claim: realm.groups}]
    timeout: 1.5s
    spaceDelimitedClaims: [roles]
  - issuer: https://sso.test"#,
    )
    .unwrap();
    assert!(document.selects(
        "postern-system",
        "shop",
        &BTreeMap::from([("app".to_owned(), "cart".to_owned())])
    ));
    assert!(!document.selects("postern-system", "shop", &BTreeMap::new()));
    let [first, second] = document.rules() else {
        panic!("two rules")
    };
    assert_eq!(first.keys, KeySource::Uri("https://keys.test/jwks.json".to_owned()));
    assert_eq!(first.audiences, Audiences::OneOf(vec!["cart".to_owned()]));
    let header = |name: &str, prefix: &str| Location::Header {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
    };
    let locations = [
        header("x-jwt-assertion", "JWT "),
        header("authorization", ""),
        Location::Param("token".to_owned()),
        Location::Cookie("session".to_owned()),
    ];
    assert_eq!(first.locations, locations);
    assert!(first.forward);
    assert_eq!(first.told_headers().collect::<Vec<_>>(), ["x-group", "x-payload"]);
    assert_eq!(first.claim_headers[0].claim, ["realm", "groups"]);
    assert_eq!(
        (first.timeout, first.clock_skew),
        (Duration::from_millis(1_500), Duration::from_secs(60))
    );
    assert_eq!(first.space_delimited, ["roles"]);
    assert_eq!(first.place.line_of(), "sso.yaml:7");
    assert_eq!(second.keys, KeySource::Discovered);
    assert_eq!(second.audiences, Audiences::Any, "Istio takes tokens for anybody then");
    assert_eq!(second.locations, Location::usual());
    assert_eq!(second.algorithms, Algorithm::ALL);
    assert!(!second.forward);
}

#[test]
fn ours_says_more_and_must_say_whom_tokens_are_for() {
    let rule = rule(
        OURS,
        "{issuer: https://sso.test, audiences: ['*'], jwksFile: keys/sso.json, algorithms: [ES256, EdDSA], clockSkew: 5s,
     maxStale: 1h, bindToWorkload: [{clientId: web, principals: [cluster.local/ns/shop/sa/web, cluster.local/ns/*]}]}",
    );
    assert_eq!(rule.audiences, Audiences::Any);
    assert_eq!(rule.keys, KeySource::File("keys/sso.json".to_owned()));
    assert_eq!(rule.algorithms, [Algorithm::Es256, Algorithm::EdDsa]);
    assert_eq!(
        (rule.clock_skew, rule.max_stale),
        (Duration::from_secs(5), Duration::from_secs(3_600))
    );
    assert_eq!(rule.bindings[0].client, "web");
    assert_eq!(
        rule.bindings[0].principals[1],
        StringMatch::Prefix("cluster.local/ns/".to_owned())
    );
    let error = read(OURS, "  jwtRules: [{issuer: https://sso.test}]").unwrap_err();
    assert!(error.contains("whom a token must be for"), "{error}");
}

#[test]
fn what_is_not_understood_is_refused_with_its_place_and_the_nearest_name() {
    let rules: [(&str, &str, &str); 33] = [
        (
            ISTIO,
            "issuer: a\n    jwksUri: https://a.test\n    audience: [b]",
            "sso.yaml:8:5: spec.jwtRules[0]: unknown field `audience`; did you mean `audiences`?",
        ),
        (ISTIO, "jwksUri: https://a.test", "`issuer` is missing"),
        (ISTIO, "issuer: ''\n    jwksUri: https://a.test", "`issuer` is missing"),
        (ISTIO, "issuer: 7", "must be text"),
        (
            ISTIO,
            "issuer: me@test",
            "where keys would be looked up, does not begin with",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    jwksUri: ftp://a.test",
            "does not begin with",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    jwksUri: https://u:p@a.test/",
            "holds a user",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    jwksUri: https://a.test/#x",
            "holds a fragment",
        ),
        (ISTIO, "issuer: https://a.test\n    jwksUri: https:///x", "is no URI"),
        (
            ISTIO,
            "issuer: a\n    jwksUri: https://a.test\n    jwks: '{\"keys\":[]}'",
            "only one of",
        ),
        (ISTIO, "issuer: a\n    jwks: '{\"keys\":'", "is no JSON"),
        (ISTIO, "issuer: a\n    jwks: '[]'", "is no key set"),
        (
            ISTIO,
            "issuer: https://a.test\n    audiences: []",
            "must not be an empty list",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    audiences:",
            "must be a list, not nothing",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    algorithms: [ES256]",
            "postern.dev/v1alpha1 only",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    jwksFile: a.json",
            "postern.dev/v1alpha1 only",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    fromHeaders: [{nam: x}]",
            "did you mean `name`?",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    fromHeaders: [{name: cookie}]",
            "use `fromCookies`",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    fromHeaders: [{name: Host}]",
            "carries the request itself",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    fromParams: ['a b']",
            "is no parameter's name",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    outputPayloadToHeader: x_forwarded_client.cert",
            "carries the request itself",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    outputPayloadToHeader: X.Postern_Source",
            "only the proxy sets",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    outputPayloadToHeader: Authorization",
            "has a meaning of its own",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    outputClaimToHeaders: [{header: x, claim: a..b}]",
            "is no claim",
        ),
        (
            ISTIO,
            "issuer: https://a.test\n    outputClaimToHeaders: [{header: x, claim: a}, {header: X, claim: b}]",
            "two things under one header",
        ),
        (ISTIO, "issuer: https://a.test\n    timeout: 5", "must be text"),
        (ISTIO, "issuer: https://a.test\n    timeout: 0s", "is not within"),
        (ISTIO, "issuer: https://a.test\n    timeout: 5 s", "is no span of time"),
        (
            OURS,
            "issuer: https://a.test\n    audiences: [a, '*']",
            "it stands alone",
        ),
        (
            OURS,
            "issuer: https://a.test\n    audiences: [a]\n    algorithms: [HS256]",
            "whoever can verify it could have made it",
        ),
        (
            OURS,
            "issuer: https://a.test\n    audiences: [a]\n    algorithms: [ES265]",
            "did you mean `ES256`?",
        ),
        (
            OURS,
            "issuer: https://a.test\n    audiences: [a]\n    jwksFile: ../ca/root.json",
            "is no file beside the documents",
        ),
        (
            OURS,
            "issuer: https://a.test\n    audiences: [a]\n    bindToWorkload: [{clientId: web, principals: ['spiffe://a/b']}]",
            "written without `spiffe://`",
        ),
    ];
    for (version, fields, wanted) in rules {
        let error = read(version, &format!("  jwtRules:\n  - {}", fields)).unwrap_err();
        assert!(error.contains(wanted), "{fields}\n{error}");
    }
    let error = read(OURS, "  jwtRule: []").unwrap_err();
    assert_eq!(
        error,
        "sso.yaml:5:3: spec: unknown field `jwtRule`; did you mean `jwtRules`?"
    );
}

#[test]
fn files_do_not_lead_out_of_the_folder() {
    for file in [
        "/etc/passwd",
        "a/../b.json",
        "..",
        ".hidden.json",
        "a//b.json",
        "a.yaml",
        "a/./b.json",
        "a\\b.json",
        "",
    ] {
        let rules = format!("  jwtRules: [{{issuer: https://a.test, audiences: [a], jwksFile: '{file}'}}]");
        assert!(read(OURS, &rules).is_err(), "{file}");
    }
}

#[test]
fn a_document_for_a_gateway_is_read_and_selects_no_workload() {
    let target = "  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]\n";
    let document = read(ISTIO, &format!("{target}  jwtRules: [{{issuer: https://a.test}}]")).unwrap();
    assert!(document.foreign_target && !document.selects("postern-system", "shop", &BTreeMap::new()));
    let error = read(ISTIO, &format!("{target}  selector: {{matchLabels: {{app: a}}}}")).unwrap_err();
    assert!(error.contains("cannot be combined with a selector"), "{error}");
}

#[test]
fn a_document_that_cannot_be_read_still_selects_and_remembers_what_may_have_been_promised() {
    let broken = object(
        ISTIO,
        "  selector: {matchLabels: {app: cart}}\n  jwtRules:\n  - isuer: https://a.test\n    outputClaimToHeaders: [{header: X-User, claim: sub}]",
    );
    assert!(RequestAuthentication::from_object(&broken).is_err());
    let document = RequestAuthentication::refusing_tokens_for(&broken, "shop");
    assert_eq!(document.selector.get("app").map(String::as_str), Some("cart"));
    let Content::Unreadable { headers } = &document.content else {
        panic!("unreadable")
    };
    assert!(headers.iter().any(|name| name == "x-user"), "{headers:?}");
    assert!(document.rules().is_empty());
}

#[test]
fn lists_are_bounded() {
    let rules = |count: usize| format!("  jwtRules: [{}]", vec!["{issuer: https://a.test}"; count].join(", "));
    assert!(read(ISTIO, &rules(64)).is_ok());
    assert!(read(ISTIO, &rules(65)).unwrap_err().contains("at most 64"));
    let audiences = |count: usize| {
        format!(
            "  jwtRules: [{{issuer: https://a.test, audiences: [{}]}}]",
            vec!["a"; count].join(", ")
        )
    };
    assert!(read(ISTIO, &audiences(64)).is_ok());
    assert!(read(ISTIO, &audiences(65)).unwrap_err().contains("at most 64"));
}

//! What of a denial a login would change.
#![allow(clippy::unwrap_used)]

use postern_identity::SpiffeId;
use postern_policy::{
    AuthorizationPolicy, CanonicalHost, CanonicalPath, Compiled, Http, NoHeaders, Request, StepUp, User, Verdict,
    document,
};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

/// Of a request for `/records` by the shop's web, with the claims of its user.
fn step_up(spec: &str, claims: Value) -> Option<StepUp> {
    let head = "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n";
    let objects = document::parse("p.yaml", &format!("{head}spec: {spec}\n")).unwrap();
    let policy = AuthorizationPolicy::from_object(&objects[0]).unwrap();
    let compiled = Compiled::new(vec![policy]);
    let peer = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let (host, path) = (
        CanonicalHost::parse("cart").unwrap(),
        CanonicalPath::parse("/records").unwrap(),
    );
    let user = match claims {
        Value::Object(mut claims) => {
            claims.insert("iss".to_owned(), json!("https://sso"));
            claims.insert("sub".to_owned(), json!("alice"));
            Some(User::of_verified(claims).unwrap())
        }
        _ => None,
    };
    let request = Request {
        peer: Some(&peer),
        port: 80,
        now: NOW,
        http: Some(Http {
            method: "GET",
            host: &host,
            path: path.as_ref(),
            headers: &NoHeaders,
            user: user.as_ref(),
        }),
        ..Request::default()
    };
    assert_eq!(compiled.decide(&request).verdict, Verdict::Deny, "{spec}");
    compiled.step_up(&request)
}

#[test]
fn a_rule_for_end_users_asks_for_a_token() {
    for spec in [
        "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
        "{rules: [{when: [{key: 'request.auth.claims[amr]', values: [otp]}]}]}",
        "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}",
        "{action: DENY, rules: [{when: [{key: 'request.auth.claims[amr]', notValues: [otp]}]}]}",
    ] {
        assert_eq!(step_up(spec, Value::Null), Some(StepUp::Token), "{spec}");
    }
}

#[test]
fn nothing_is_asked_for_where_no_login_would_help() {
    for spec in [
        "{}",
        "{action: DENY, rules: [{}]}",
        "{rules: [{from: [{source: {requestPrincipals: ['*'], namespaces: [ops]}}]}]}",
        "{rules: [{to: [{operation: {paths: [/other]}}], when: [{key: request.auth.audiences, values: [a]}]}]}",
        "{rules: [{when: [{key: 'request.headers[x]', values: [a]}, {key: request.auth.audiences, values: [a]}]}]}",
    ] {
        assert_eq!(step_up(spec, Value::Null), None, "{spec}");
    }
    // Whoever logged in is somebody else.
    let spec = "{rules: [{from: [{source: {requestPrincipals: ['https://sso/bob']}}]}]}";
    assert_eq!(step_up(spec, json!({"amr": ["pwd"]})), None);
    let spec = "{rules: [{when: [{key: 'request.auth.claims[groups]', values: [clinician]}]}]}";
    assert_eq!(step_up(spec, json!({"groups": ["nurse"]})), None);
}

#[test]
fn a_weak_or_old_login_is_told_what_would_do() {
    let login = |acr: &[&str], max_age| {
        let acr_values = acr.iter().map(|&value| value.to_owned()).collect();
        Some(StepUp::Login { acr_values, max_age })
    };
    let amr = "{rules: [{when: [{key: 'request.auth.claims[amr]', values: [otp]}]}]}";
    assert_eq!(step_up(amr, json!({"amr": ["pwd"]})), login(&[], None));
    let acr = "{rules: [{when: [{key: 'request.auth.claims[acr]', values: [gold, silver]}]}]}";
    assert_eq!(step_up(acr, json!({"acr": "bronze"})), login(&["gold", "silver"], None));
    let age = "{rules: [{when: [{key: request.auth.age, values: [15m]}]}]}";
    assert_eq!(step_up(age, json!({"auth_time": NOW - 901})), login(&[], Some(900)));
    let both = "{rules: [{when: [{key: request.auth.age, values: [15m]}, {key: 'request.auth.claims[acr]', values: [gold]}]}]}";
    assert_eq!(step_up(both, json!({"acr": "bronze"})), login(&["gold"], Some(900)));
    let denial = "{action: DENY, rules: [{when: [{key: 'request.auth.claims[acr]', notValues: [gold]}]}]}";
    assert_eq!(step_up(denial, json!({"acr": "bronze"})), login(&["gold"], None));
}

#[test]
fn a_narrow_token_is_told_the_scope() {
    let spec = "{rules: [{when: [{key: 'request.auth.claims[scope]', values: [records.read]}]}]}";
    let wanted = Some(StepUp::Scope(vec!["records.read".to_owned()]));
    assert_eq!(step_up(spec, json!({"scope": "profile"})), wanted);
}

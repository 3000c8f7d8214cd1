//! `kind: Authorizer`: what is read, and what is refused where and with which nearest name.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postern_policy::Authorizer;
use postern_policy::authorizer::{Address, Asks, Rego, Server};
use postern_policy::document::parse;

fn read(spec: &str) -> Result<Authorizer, Vec<String>> {
    let text = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: Authorizer\nmetadata: {{name: opa, namespace: shop}}\nspec:\n{spec}\n"
    );
    let object = parse("a.yaml", &text).unwrap().remove(0);
    Authorizer::from_object(&object).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn server(spec: &str) -> Server {
    match read(spec).unwrap().asks {
        Asks::Server(server) => server,
        Asks::Rego(_) => panic!("a server"),
    }
}

fn rego(spec: &str) -> Rego {
    match read(spec).unwrap().asks {
        Asks::Rego(rego) => rego,
        Asks::Server(_) => panic!("Rego"),
    }
}

const MODULE: &str =
    "    modules:\n    - name: authz.rego\n      text: |\n        package envoy.authz\n        allow := true\n";

#[test]
fn a_server_waits_200_ms_unless_told_otherwise_and_never_longer_than_10_s() {
    let plain = server("  extAuthz: {address: '127.0.0.1:9191'}");
    assert_eq!(plain.timeout, Duration::from_millis(200));
    assert_eq!((plain.context.len(), plain.include_headers), (0, None));
    for (text, milliseconds) in [("1s", 1000), ("10s", 10_000), ("1ms", 1), ("0.5s", 500), ("250ms", 250)] {
        let server = server(&format!("  extAuthz: {{address: 'opa.policy:9191', timeout: {text}}}"));
        assert_eq!(server.timeout, Duration::from_millis(milliseconds), "{text}");
    }
    for text in ["10.001s", "0s", "0ms", "1", "'5'", "-1s", "1m", "ms", "1.2.3s", "''"] {
        let wrong = read(&format!("  extAuthz: {{address: 'opa.policy:9191', timeout: {text}}}"));
        assert!(wrong.is_err(), "{text}");
    }
}

#[test]
fn what_a_server_is_told_beside_the_request_is_read() {
    let server = server(
        "  extAuthz:\n    address: unix:/run/opa.sock\n    contextExtensions: {tenant: a}\n    includeHeaders: [Authorization, x-user]",
    );
    assert_eq!(server.address, Address::Unix("/run/opa.sock".into()));
    assert_eq!(server.context["tenant"], "a");
    assert_eq!(server.include_headers.unwrap(), ["authorization", "x-user"]);
}

#[test]
fn rego_runs_2_ms_unless_told_otherwise_and_never_longer_than_5_ms() {
    let plain = rego(&format!("  rego:\n{MODULE}"));
    assert_eq!(plain.timeout, Duration::from_millis(2));
    assert_eq!(plain.query, "data.envoy.authz.allow");
    assert!(!plain.v0 && plain.data.is_empty());
    assert_eq!(plain.modules[0].text, "package envoy.authz\nallow := true\n");
    let told = rego(&format!(
        "  rego:\n{MODULE}    query: data.a.b\n    timeout: 5ms\n    regoVersion: v0\n    data: {{roles: [a, 1, 1.5, true, null]}}"
    ));
    assert_eq!(
        (told.query.as_str(), told.timeout, told.v0),
        ("data.a.b", Duration::from_millis(5), true)
    );
    assert_eq!(
        serde_json::Value::Object(told.data).to_string(),
        r#"{"roles":["a",1,1.5,true,null]}"#
    );
    assert!(read(&format!("  rego:\n{MODULE}    timeout: 6ms")).is_err());
}

#[test]
fn exactly_one_of_both_is_asked() {
    let address = "  extAuthz: {address: '127.0.0.1:9191'}\n";
    for (spec, why) in [
        ("  {}".to_owned(), "neither `extAuthz`"),
        (format!("{address}  rego:\n{MODULE}"), "both `extAuthz` and `rego`"),
        ("  extAuthz:\n".to_owned(), "must be a map, not nothing"),
    ] {
        let errors = read(&spec).unwrap_err();
        assert!(errors.iter().any(|error| error.contains(why)), "{spec}: {errors:?}");
    }
}

#[test]
fn a_mistake_is_refused_with_its_place_and_the_nearest_name() {
    for (spec, error) in [
        (
            "  extAuth: {address: '127.0.0.1:9191'}",
            "a.yaml:5:3: spec: unknown field `extAuth`; did you mean `extAuthz`?",
        ),
        (
            "  extAuthz: {adress: '127.0.0.1:9191'}",
            "unknown field `adress`; did you mean `address`?",
        ),
        ("  extAuthz: {}", "`address` is missing"),
        ("  extAuthz: {address: '10.1.2.3:9191'}", "another host's address"),
        (
            "  extAuthz: {address: '127.0.0.1:9191', includeHeaders: ['a b']}",
            "spec.extAuthz.includeHeaders: `a b` is no name of a field",
        ),
        ("  rego: {modules: []}", "at least one module is needed"),
        (
            "  rego: {modules: [{name: a}]}",
            "spec.rego.modules[0]: `text` is missing",
        ),
        (
            "  rego: {modules: [{name: a, text: x}, {name: a, text: y}]}",
            "`a` is another module's already",
        ),
        (
            "  rego: {modules: [{name: a, text: x}], query: allow}",
            "`allow` is not the path of a rule",
        ),
        ("  rego: {modules: [{name: a, text: x}], data: [1]}", "must be a map"),
        (
            "  rego: {modules: [{name: a, text: x}], regoVersion: v2}",
            "`v2` is not one of v1, v0",
        ),
        (
            "  rego: {modules: [{name: a, text: x}], querry: data.a.b}",
            "unknown field `querry`; did you mean `query`?",
        ),
    ] {
        let errors = read(spec).unwrap_err();
        assert!(errors.iter().any(|found| found.contains(error)), "{spec}: {errors:?}");
    }
}

#[test]
fn every_bound_holds_at_it_and_one_past_it() {
    let modules = |n: usize| {
        let list: Vec<String> = (0..n).map(|i| format!("{{name: m{i}, text: x}}")).collect();
        format!("  rego: {{modules: [{}]}}", list.join(", "))
    };
    assert!(read(&modules(Rego::MAX_MODULES)).is_ok());
    assert!(read(&modules(Rego::MAX_MODULES + 1)).is_err());
    let text = |n: usize| format!("  rego: {{modules: [{{name: m, text: {}}}]}}", "x".repeat(n));
    assert!(read(&text(Rego::MAX_BYTES)).is_ok());
    assert!(read(&text(Rego::MAX_BYTES + 1)).is_err());
    let context = |n: usize| {
        let pairs: Vec<String> = (0..n).map(|i| format!("k{i}: v")).collect();
        format!(
            "  extAuthz: {{address: '127.0.0.1:1', contextExtensions: {{{}}}}}",
            pairs.join(", ")
        )
    };
    assert!(read(&context(Server::MAX_CONTEXT)).is_ok());
    assert!(read(&context(Server::MAX_CONTEXT + 1)).is_err());
}

//! Policies that are refused. An ALLOW whose mistake was overlooked would let in more, a DENY less.

use postern_policy::document::DocumentError;

use super::{read, with_spec};

fn errors(spec: &str) -> Vec<DocumentError> {
    with_spec(spec).err().unwrap_or_else(|| panic!("{spec} is read"))
}

/// The one error, as it is printed.
fn refused(spec: &str) -> String {
    let errors = errors(spec);
    assert_eq!(errors.len(), 1, "{spec}: {errors:#?}");
    errors[0].to_string()
}

#[test]
fn an_unknown_field_is_refused_with_its_place_and_the_nearest_name() {
    let text = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: p
  namespace: shop
spec:
  selecter:
    matchLabels: {app: cart}
  rules:
  - form:
    - source: {principals: [a/b]}
    to:
    - operation:
        methods: [GET]
        pathes: [/x]
      operations: {}
  - from:
    - source:
        principal: [a/b]
        namespaces: [shop]
";
    let errors: Vec<_> = read(text).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "p.yaml:16:7: spec.rules[0].to[0]: unknown field `operations`; did you mean `operation`?",
            "p.yaml:15:9: spec.rules[0].to[0].operation: unknown field `pathes`; did you mean `paths`?",
            "p.yaml:10:5: spec.rules[0]: unknown field `form`; did you mean `from`?",
            "p.yaml:19:9: spec.rules[1].from[0].source: unknown field `principal`; did you mean `principals`?",
            "p.yaml:7:3: spec: unknown field `selecter`; did you mean `selector`?",
        ]
    );
}

#[test]
fn unknown_fields_are_refused_at_every_level() {
    for (spec, error) in [
        (
            "{selector: {matchLabel: {a: b}}}",
            "spec.selector: unknown field `matchLabel`; did you mean `matchLabels`?",
        ),
        (
            "{selector: {matchExpressions: []}}",
            "spec.selector: unknown field `matchExpressions`",
        ),
        ("{Action: DENY}", "spec: unknown field `Action`; did you mean `action`?"),
        ("{rule: []}", "spec: unknown field `rule`; did you mean `rules`?"),
        (
            "{rules: [{from: [{sources: {}, source: {namespaces: [a]}}]}]}",
            "unknown field `sources`; did you mean `source`?",
        ),
        (
            "{rules: [{from: [{source: {Namespaces: [a], principals: [a/b]}}]}]}",
            "did you mean `namespaces`?",
        ),
        (
            "{rules: [{from: [{source: {notprincipals: [a/b], namespaces: [a]}}]}]}",
            "did you mean `notPrincipals`?",
        ),
        (
            "{rules: [{to: [{operation: {port: ['1'], methods: [GET]}}]}]}",
            "did you mean `ports`?",
        ),
        (
            "{rules: [{to: [{operation: {xyzzy: ['1'], methods: [GET]}}]}]}",
            "unknown field `xyzzy`",
        ),
    ] {
        let found = refused(spec);
        assert!(found.contains(error), "{spec}: {found}");
        assert!(found.starts_with("p.yaml:4:"), "{found}");
    }
}

#[test]
fn a_condition_that_is_none_is_refused_with_the_nearest_key() {
    for (condition, error) in [
        (
            "{key: source.ips, values: [10.0.0.1]}",
            "`source.ips` is no key of a condition; did you mean `source.ip`?",
        ),
        (
            "{key: 'request.header[x-role]', values: [a]}",
            "`request.header[x-role]` is no key of a condition; did you mean `request.headers[x-role]`?",
        ),
        (
            "{key: request.headers, values: [a]}",
            "`request.headers` is not written as `request.headers[name]`",
        ),
        (
            "{key: 'request.headers[a][b]', values: [a]}",
            "is not written as `request.headers[name]`",
        ),
        (
            "{key: 'request.headers[a b]', values: [a]}",
            "`request.headers[a b]` names no field",
        ),
        (
            "{key: 'request.headers[Host]', values: [a]}",
            "`request.headers[Host]` is compared in `to[].operation.hosts`",
        ),
        (
            "{key: 'request.headers[:path]', values: [/a]}",
            "is compared in `to[].operation.paths`",
        ),
        (
            "{key: 'request.auth.claims[]', values: [a]}",
            "is not written as `request.auth.claims[name]",
        ),
        (
            "{key: 'request.auth.claims[a]b', values: [a]}",
            "is not written as `request.auth.claims[name]",
        ),
        (
            "{key: 'source.ip[x]', values: [10.0.0.1]}",
            "`source.ip[x]` is not written as `source.ip`",
        ),
        (
            "{key: 'source.labels[a/b/c]', values: [a]}",
            "`source.labels[a/b/c]` names no label",
        ),
        (
            "{key: source.ip}",
            "spec.rules[0].when[0].values: a condition needs `values` or `notValues`",
        ),
        ("{values: [a]}", "spec.rules[0].when[0]: `key` is missing"),
        (
            "{key: source.ip, values: []}",
            "spec.rules[0].when[0].values: must not be an empty list",
        ),
        (
            "{key: source.ip, values: [10.0.0.1/8]}",
            "`10.0.0.1/8` has bits past its prefix: write 10.0.0.0/8",
        ),
        (
            "{key: source.ip, notValue: [10.0.0.1], values: [10.0.0.1]}",
            "unknown field `notValue`; did you mean `notValues`?",
        ),
        ("{key: destination.port, values: ['0']}", "must be a port"),
        (
            "{key: request.auth.age, values: ['15']}",
            "`15` is no time such as 90s, 15m, 8h or 1d",
        ),
        ("{key: request.auth.age, values: [0s]}", "`0s` is no time such as"),
        (
            "{key: request.auth.principal, values: [alice]}",
            "`alice` is no `issuer/subject`",
        ),
        (
            "{key: 'source.labels[app]', values: ['a b']}",
            "`a b` holds a character that no label has",
        ),
        (
            "{key: 'request.headers[x]', values: ['a ']}",
            "begins or ends with white space",
        ),
        (
            "{key: 'request.headers[x]', values: ['*a*']}",
            "has a star at both ends",
        ),
        (
            "{key: source.trustDomain, values: [Cluster.local]}",
            "holds a character that no trust domain has",
        ),
        ("null", "spec.rules[0].when[0]: must be a map, not nothing"),
    ] {
        let found = refused(&format!("{{rules: [{{when: [{condition}]}}]}}"));
        assert!(found.contains(error), "{condition}: {found}");
        assert!(found.starts_with("p.yaml:4:"), "{found}");
    }
    let found = refused("{rules: [{when: []}]}");
    assert!(
        found.contains("spec.rules[0].when: must not be an empty list"),
        "{found}"
    );
}

#[test]
fn a_provider_stands_with_custom_and_only_there() {
    for (spec, error) in [
        (
            "{action: CUSTOM, rules: [{}]}",
            "spec.provider: a CUSTOM policy names whom it asks",
        ),
        (
            "{action: CUSTOM, provider: {}, rules: [{}]}",
            "spec.provider: `name` is missing",
        ),
        (
            "{action: CUSTOM, provider: {name: opa}}",
            "spec.rules: a CUSTOM policy needs at least one rule",
        ),
        (
            "{provider: {name: opa}, rules: [{}]}",
            "spec.provider: only a CUSTOM policy asks a provider",
        ),
    ] {
        let found = refused(spec);
        assert!(found.contains(error), "{spec}: {found}");
    }
}

#[test]
fn a_policy_for_a_gateway_is_read_and_selects_no_workload() {
    for spec in [
        "{action: DENY, targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: x}], rules: [{}]}",
        "{targetRef: {kind: Service, name: x}}",
    ] {
        let policy = with_spec(spec).unwrap();
        assert!(
            policy.foreign_target && !policy.selects("root", "shop", &Default::default()),
            "{spec}"
        );
    }
    for (spec, error) in [
        ("{targetRefs: []}", "must not be an empty list"),
        ("{targetRefs: [{kind: Service}]}", "`name` is missing"),
        (
            "{targetRefs: [{kind: Service, name: x, nmae: y}]}",
            "unknown field `nmae`",
        ),
        (
            "{selector: {matchLabels: {a: b}}, targetRef: {kind: S, name: x}}",
            "cannot be combined with a selector",
        ),
    ] {
        let found = refused(spec);
        assert!(found.contains(error), "{spec}: {found}");
    }
}

#[test]
fn actions_are_written_as_they_are() {
    assert!(
        refused("{action: DENI, rules: [{}]}")
            .ends_with("`DENI` is not one of ALLOW, DENY, AUDIT, CUSTOM; did you mean `DENY`?")
    );
    for spec in [
        "{action: allow}",
        "{action: ''}",
        "{action: }",
        "{action: true}",
        "{action: [DENY], rules: [{}]}",
    ] {
        assert!(refused(spec).contains(": spec.action: "), "{spec}");
    }
    for spec in ["{action: DENY}", "{action: DENY, rules: []}"] {
        assert!(
            refused(spec).contains("spec.rules: a DENY policy needs at least one rule"),
            "{spec}"
        );
    }
}

#[test]
fn a_field_that_lost_its_values_does_not_become_a_field_that_was_left_out() {
    // What remains of a list when all of its items are commented out: the rule would match everybody.
    for (spec, error) in [
        ("{rules: [{from: }]}", "spec.rules[0].from: must be a list, not nothing"),
        ("{rules: [{to: null}]}", "spec.rules[0].to: must be a list, not nothing"),
        ("{rules: [{from: []}]}", "spec.rules[0].from: must not be an empty list"),
        ("{rules: [{to: []}]}", "spec.rules[0].to: must not be an empty list"),
        ("{rules: [null]}", "spec.rules[0]: must be a map, not nothing"),
        (
            "{rules: [{from: [null]}]}",
            "spec.rules[0].from[0]: must be a map, not nothing",
        ),
        ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0]: `source` is missing"),
        (
            "{rules: [{from: [{source: }]}]}",
            "spec.rules[0].from[0].source: must be a map, not nothing",
        ),
        (
            "{rules: [{from: [{source: {}}]}]}",
            "an empty source would match everything",
        ),
        (
            "{rules: [{to: [{operation: {}}]}]}",
            "an empty operation would match everything",
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a], principals: }}]}]}",
            "spec.rules[0].from[0].source.principals: must be a list, not nothing",
        ),
        (
            "{rules: [{to: [{operation: {paths: [/a], methods: []}}]}]}",
            "spec.rules[0].to[0].operation.methods: must not be an empty list",
        ),
        (
            "{rules: [{to: [{operation: {paths: [/a], ports: ~}}]}]}",
            "spec.rules[0].to[0].operation.ports: must be a list, not nothing",
        ),
        ("{selector: }", "spec.selector: must be a map, not nothing"),
        (
            "{selector: {matchLabels: }}",
            "spec.selector.matchLabels: must be a map of text, not nothing",
        ),
        ("{rules: }", "spec.rules: must be a list, not nothing"),
    ] {
        let errors = errors(spec);
        assert!(
            errors.iter().any(|e| e.to_string().contains(error)),
            "{spec}: {errors:#?}"
        );
    }
}

#[test]
fn values_of_the_wrong_shape_are_refused() {
    for (spec, error) in [
        ("[]", "spec: must be a map, not a list"),
        ("text", "spec: must be a map, not the text `text`"),
        ("{rules: {}}", "spec.rules: must be a list, not a map"),
        ("{rules: [text]}", "spec.rules[0]: must be a map, not the text `text`"),
        (
            "{rules: [{from: {source: {}}}]}",
            "spec.rules[0].from: must be a list, not a map",
        ),
        (
            "{rules: [{from: [{source: [a]}]}]}",
            "spec.rules[0].from[0].source: must be a map, not a list",
        ),
        (
            "{rules: [{to: [{operation: {methods: GET}}]}]}",
            "methods: must be a list, not the text `GET`",
        ),
        (
            "{rules: [{to: [{operation: {methods: [1]}}]}]}",
            "methods[0]: must be text (in quotes if it looks like a number), not the number 1",
        ),
        (
            "{rules: [{to: [{operation: {paths: [[/a]]}}]}]}",
            "paths[0]: must be text",
        ),
        (
            "{rules: [{to: [{operation: {hosts: [true]}}]}]}",
            "hosts[0]: must be text (in quotes if it looks like a number), not the boolean true",
        ),
        (
            "{rules: [{to: [{operation: {hosts: [null]}}]}]}",
            "hosts[0]: must be text",
        ),
        (
            "{selector: {matchLabels: {a: 1}}}",
            "spec.selector.matchLabels: `a` must be text (in quotes), not the number 1",
        ),
        (
            "{selector: {matchLabels: [a]}}",
            "spec.selector.matchLabels: must be a map of text, not a list",
        ),
    ] {
        let errors = errors(spec);
        assert!(
            errors.iter().any(|e| e.to_string().contains(error)),
            "{spec}: {errors:#?}"
        );
    }
}

#[test]
fn ports_are_numbers_from_1_to_65535() {
    let ports = |value: &str| with_spec(&format!("{{rules: [{{to: [{{operation: {{ports: [{value}]}}}}]}}]}}"));
    for (value, port) in [("'1'", 1), ("65535", 65535), ("\"8080\"", 8080)] {
        assert_eq!(ports(value).unwrap().rules[0].to[0].ports, [port], "{value}");
    }
    for value in [
        "'0'", "0", "65536", "'65536'", "-1", "80.0", "http", "'80-90'", "' 80'", "'+80'", "''", "null", "'*'",
    ] {
        let error = &ports(value).expect_err(value)[0];
        assert_eq!(error.what, "must be a port, \"1\" to \"65535\"", "{value}");
        assert_eq!((error.place.line, error.place.column), (4, 43), "{value}");
    }
}

/// Values that no peer and no request can have: a DENY rule with one would never fire.
#[test]
fn a_value_that_can_never_match_is_refused() {
    let source = |field: &str, value: &str| format!("{{rules: [{{from: [{{source: {{{field}: ['{value}']}}}}]}}]}}");
    let operation =
        |field: &str, value: &str| format!("{{rules: [{{to: [{{operation: {{{field}: ['{value}']}}}}]}}]}}");
    for value in [
        "",
        "spiffe://cluster.local/ns/a/sa/b",
        "web",
        "Cluster.local/ns/a/sa/b",
        "cluster.local//ns/a",
        "cluster.local/ns/a/sa/b/",
        "cluster.local/ns/../sa/b",
        "cluster.local/ns/a/sa/b c",
        "cluster.local/ns/*/sa/b",
        "/ns/a/*",
        "*/sa/b/",
        "*web*",
    ] {
        refused(&source("principals", value));
        refused(&source("notPrincipals", value));
    }
    for value in ["", "shop/web", "shop/sa/web", "a b", "caf\u{e9}"] {
        refused(&source("namespaces", value));
        refused(&source("notNamespaces", value));
    }
    for value in ["", "a/b/c", "/web", "shop/", "/", "shop/sa/web", "a b", "shop/w%62"] {
        refused(&source("serviceAccounts", value));
        refused(&source("notServiceAccounts", value));
    }
    for value in ["", "GET POST", "GET,POST", "G\u{c9}T", "*ET*", "GET "] {
        refused(&operation("methods", value));
        refused(&operation("notMethods", value));
    }
    for value in [
        "", "http://a", "a/b", "a:http", "a:0", "u@a", "a..b", "a b", "*a*", "a/*", "*/a", "[::1", "[::g]",
    ] {
        refused(&operation("hosts", value));
        refused(&operation("notHosts", value));
    }
    for value in [
        "",
        "admin",
        "admin/*",
        "/a?b=c",
        "/a#b",
        "/a b",
        "/a\\b",
        "/a%2fb",
        "/a%00",
        "/a%zz",
        "/caf\u{e9}",
        "/..;/a",
        "/../a",
        "/%2e%2e/a",
        "/a?*",
        "/a%2f*",
        "*/a?b",
        "*%5c",
        "*admin*",
        "/a/{id}",
        "/a{*}",
        "/{**}/{*}",
        "/a//{*}",
        "/a/../{*}",
        "/%61/{*}",
        "/a?/{**}",
        "a/{*}",
    ] {
        refused(&operation("paths", value));
        refused(&operation("notPaths", value));
    }
}

#[test]
fn a_value_with_one_meaning_gets_the_form_that_requests_get() {
    let text = |field: &str, value: &str| {
        let spec = format!("{{rules: [{{to: [{{operation: {{{field}: ['{value}']}}}}]}}]}}");
        let policy = with_spec(&spec).unwrap_or_else(|errors| panic!("{value}: {errors:#?}"));
        let operation = &policy.rules[0].to[0];
        let values = if field == "hosts" {
            &operation.hosts
        } else {
            &operation.paths
        };
        crate::random::text_of(&values[0])
    };
    for (value, canonical) in [
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/%61dmin", "/admin"),
        ("/a//b/../c", "/a/c"),
        ("/a//*", "/a/*"),
        ("/%7euser/*", "/~user/*"),
        ("*/%61", "*/a"),
        // As they are.
        ("/", "/"),
        ("/*", "/*"),
        ("*", "*"),
        ("/a*b", "/a*b"),
        ("/a/.", "/a/"),
        ("/a/.*", "/a/.*"),
        ("*.php", "*.php"),
        ("*/", "*/"),
        ("/a%20b;v=1", "/a%20b;v=1"),
        ("/a/{*}/b%20c/{**}", "/a/{*}/b%20c/{**}"),
        ("/pkg.Service/Method", "/pkg.Service/Method"),
    ] {
        assert_eq!(text("paths", value), canonical, "{value}");
    }
    for (value, canonical) in [
        ("Example.COM.", "example.com"),
        ("example.com.:080", "example.com:80"),
        ("[0:0::1]:80", "[::1]:80"),
        ("[fd00::1]:*", "[fd00::1]:*"),
        ("EXAMPLE.com:*", "example.com:*"),
        ("*.Example.com", "*.example.com"),
        ("*:8080", "*:8080"),
        ("*", "*"),
        ("my_svc", "my_svc"),
        ("[fd*", "[fd*"),
    ] {
        assert_eq!(text("hosts", value), canonical, "{value}");
    }
}

#[test]
fn service_accounts_are_at_most_sixteen_and_stand_alone() {
    let accounts = |field: &str, count: usize| {
        let names: Vec<_> = (0..count).map(|i| format!("a{i}")).collect();
        with_spec(&format!(
            "{{rules: [{{from: [{{source: {{{field}: [{}]}}}}]}}]}}",
            names.join(", ")
        ))
    };
    for field in ["serviceAccounts", "notServiceAccounts"] {
        accounts(field, 16).unwrap();
        assert!(
            accounts(field, 17).unwrap_err()[0].what.contains("at most 16"),
            "{field}"
        );
    }
    for with in ["principals: [a/b]", "namespaces: [a]"] {
        for field in ["serviceAccounts", "notServiceAccounts"] {
            let spec = format!("{{rules: [{{from: [{{source: {{{field}: [x], {with}}}}}]}}]}}");
            assert!(
                refused(&spec).contains("cannot be combined with principals or namespaces"),
                "{spec}"
            );
        }
    }
}

#[test]
fn heads_of_another_kind_version_or_without_a_namespace_are_refused() {
    let head = |version: &str, kind: &str, metadata: &str| {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\nspec: {{}}\n");
        read(&text)
            .expect_err(&text)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (version, kind, metadata) = ("security.istio.io/v1", "AuthorizationPolicy", "{name: p, namespace: n}");
    for wrong in ["security.istio.io/v2", "postern.dev/v1", "v1"] {
        assert!(head(wrong, kind, metadata).contains(&format!("p.yaml:1:1: apiVersion: `{wrong}` is not one of")));
    }
    let found = head(version, "AuthorisationPolicy", metadata);
    assert!(
        found.ends_with("kind: `AuthorisationPolicy` is not AuthorizationPolicy"),
        "{found}"
    );
    assert!(head(version, kind, "{name: p}").contains("metadata: `namespace` is missing"));
    assert!(head(version, kind, "{namespace: n}").contains("metadata: `name` is missing"));
    assert!(head(version, kind, "{name: '', namespace: n}").contains("metadata: `name` is missing"));
    assert!(head(version, kind, "{name: p, namespace: ''}").contains("metadata: `namespace` is missing"));
    assert!(head(version, kind, "{name: 7, namespace: n}").contains("metadata.name: must be text"));
    assert!(head("''", kind, metadata).contains("`apiVersion` is missing"));
    assert!(head(version, kind, "{name: p, namespace: n, lables: {}}").contains("did you mean `labels`?"));
}

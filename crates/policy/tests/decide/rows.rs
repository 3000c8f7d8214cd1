//! One test per row of the adversarial catalogue, over documents as a user writes them.

use postern_identity::SpiffeId;
use postern_policy::{
    AuthorizationPolicy, CanonicalHost, CanonicalPath, Compiled, Http, NoHeaders, Reason, Request, Verdict, document,
};

const WEB: &str = "cluster.local/ns/shop/sa/web";

/// Policies whose rules are written in flow style, one policy a line: `ALLOW [{...}]`.
fn compiled(policies: &[&str]) -> Compiled {
    let text: String = (0..)
        .zip(policies)
        .map(|(i, policy): (usize, _)| {
            let (action, rules) = policy.split_once(' ').unwrap();
            let metadata = format!("metadata: {{name: p{i}, namespace: shop}}");
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{metadata}\n\
                 spec:\n  action: {action}\n  rules: {rules}\n"
            )
        })
        .collect();
    let objects = document::parse("p.yaml", &text).unwrap();
    let decode = |object| AuthorizationPolicy::from_object(object).unwrap();
    Compiled::new(objects.iter().map(decode).collect())
}

/// `peer` without `spiffe://`; an empty one is plaintext.
fn http(policies: &[&str], peer: &str, port: u16, line: &str) -> Reason {
    let [method, host, path] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let (host, path) = (CanonicalHost::parse(host).unwrap(), CanonicalPath::parse(path).unwrap());
    let http = Some(Http {
        method,
        host: &host,
        path: path.as_ref(),
        headers: &NoHeaders,
        user: None,
    });
    ask(policies, peer, port, http)
}

fn opaque(policies: &[&str], peer: &str, port: u16) -> Reason {
    ask(policies, peer, port, None)
}

fn ask(policies: &[&str], peer: &str, port: u16, http: Option<Http<'_>>) -> Reason {
    let peer = (!peer.is_empty()).then(|| SpiffeId::parse(&format!("spiffe://{peer}")).unwrap());
    let request = Request {
        peer: peer.as_ref(),
        port,
        http,
        ..Request::default()
    };
    let compiled = compiled(policies);
    let decision = compiled.decide(&request);
    assert_eq!(decision.verdict == Verdict::Allow, decision.reason == Reason::AllowRule);
    decision.reason
}

fn allows_peer(source: &str, peer: &str) -> bool {
    opaque(&[&format!("ALLOW [{{from: [{{source: {{{source}}}}}]}}]")], peer, 80) == Reason::AllowRule
}

#[test]
fn z_05_an_identity_that_looks_like_another_is_another() {
    let own = [
        "principals: [cluster.local/ns/shop/sa/web.v1]",
        "serviceAccounts: [web.v1]",
        "serviceAccounts: [shop/web.v1]",
        "serviceAccounts: ['sh*/web.v*']",
    ];
    for source in own {
        assert!(allows_peer(source, "cluster.local/ns/shop/sa/web.v1"), "{source}");
        for peer in [
            // CVE-2026-39350: a dot is a dot.
            "cluster.local/ns/shop/sa/web-v1",
            "cluster.local/ns/shop/sa/webXv1",
            "cluster-local/ns/shop/sa/web-v1",
            // Case.
            "cluster.local/ns/shop/sa/Web.v1",
            "cluster.local/ns/Shop/sa/web.v1",
            "cluster.local/NS/shop/sa/web.v1",
            // Prefix, suffix, inside.
            "cluster.local/ns/shop/sa/web.",
            "cluster.local/ns/shop/sa/aweb.v1",
            "cluster.local/ns/shop/sa/web.v1/x",
            "cluster.local/x/ns/shop/sa/web.v1",
            "cluster.local/ns/shop/sa",
        ] {
            assert!(!allows_peer(source, peer), "{source} is not {peer}");
        }
    }
    assert!(!allows_peer(own[0], "cluster.local.evil.org/ns/shop/sa/web.v1"));
    assert!(!allows_peer(own[0], "evil.cluster.local/ns/shop/sa/web.v1"));
    assert!(!allows_peer(own[0], "cluster.local/ns/shop/sa/web.v10"));
}

#[test]
fn z_05_a_namespace_that_holds_the_delimiter_divides_where_the_identity_does() {
    for source in ["namespaces: [sa]", "serviceAccounts: [sa/sa]", "namespaces: ['s*']"] {
        assert!(allows_peer(source, "cluster.local/ns/sa/sa/sa"), "{source}");
        for peer in [
            "cluster.local/ns/ns/sa/sa",
            "cluster.local/ns/shop/x/sa/sa/sa",
            "cluster.local/ns/sa/sa/sa/sa",
            "cluster.local/sa/sa/sa",
        ] {
            assert!(!allows_peer(source, peer), "{source} is not {peer}");
        }
    }
    // A star stays within its part: neither `shop` nor a longer path takes the slash along.
    for source in [
        "serviceAccounts: ['sh*/web']",
        "serviceAccounts: ['*/web']",
        "namespaces: ['*']",
    ] {
        assert!(allows_peer(source, WEB), "{source}");
        assert!(!allows_peer(source, "cluster.local/ns/shop/sa/x/sa/web"), "{source}");
        assert!(!allows_peer(source, "cluster.local/shop/web"), "{source}");
    }
}

#[test]
fn z_05_a_bare_account_belongs_to_the_policys_namespace() {
    assert!(allows_peer("serviceAccounts: [web]", WEB));
    assert!(!allows_peer("serviceAccounts: [web]", "cluster.local/ns/pay/sa/web"));
}

#[test]
fn z_08_without_a_policy_or_a_rule_everything_is_denied() {
    for peer in ["", WEB] {
        assert_eq!(opaque(&[], peer, 80), Reason::NoPolicy);
        assert_eq!(http(&[], peer, 80, "GET shop /"), Reason::NoPolicy);
        assert_eq!(opaque(&["ALLOW []"], peer, 80), Reason::NoAllowRule);
        assert_eq!(opaque(&["ALLOW [{}]"], peer, 80), Reason::AllowRule, "one empty rule");
        assert_eq!(opaque(&["ALLOW [{}]", "DENY [{}]"], peer, 80), Reason::DenyRule);
        // Only DENY policies: what they leave is not allowed by that.
        let other = "DENY [{to: [{operation: {ports: ['1']}}]}]";
        assert_eq!(opaque(&[other], peer, 80), Reason::NoPolicy);
    }
}

#[test]
fn cve_2019_12243_an_allow_rule_with_http_fields_does_not_match_an_opaque_stream() {
    for field in [
        "methods: [GET]",
        "notMethods: [POST]",
        "paths: ['*']",
        "notPaths: [/admin]",
        "hosts: ['*']",
        "notHosts: [evil.org]",
    ] {
        let rule = format!("ALLOW [{{to: [{{operation: {{{field}, ports: ['80']}}}}]}}]");
        assert_eq!(opaque(&[&rule], WEB, 80), Reason::NoAllowRule, "{field}");
        assert_eq!(http(&[&rule], WEB, 80, "GET shop /"), Reason::AllowRule, "{field}");
        assert!(
            compiled(&[&rule]).needs_http(80) && !compiled(&[&rule]).needs_http(81),
            "{field}"
        );
        // Another operation of the same rule still counts.
        let either = format!("ALLOW [{{to: [{{operation: {{{field}}}}}, {{operation: {{ports: ['80']}}}}]}}]");
        assert_eq!(opaque(&[&either], WEB, 80), Reason::AllowRule, "{field}");
    }
}

#[test]
fn cve_2020_16844_a_deny_rule_with_http_fields_denies_more_on_an_opaque_stream() {
    for field in [
        "methods: [GET]",
        "notMethods: [GET]",
        "paths: ['*/admin']",
        "notPaths: [/public]",
        "hosts: ['*.evil.org']",
        "notHosts: [shop]",
    ] {
        let only = format!("DENY [{{to: [{{operation: {{{field}}}}}]}}]");
        assert_eq!(opaque(&["ALLOW [{}]", &only], WEB, 80), Reason::DenyRule, "{field}");
        // What else the rule says still holds.
        let port = format!("DENY [{{to: [{{operation: {{{field}, ports: ['80']}}}}]}}]");
        assert_eq!(opaque(&["ALLOW [{}]", &port], WEB, 80), Reason::DenyRule, "{field}");
        assert_eq!(opaque(&["ALLOW [{}]", &port], WEB, 81), Reason::AllowRule, "{field}");
        let from = "from: [{source: {principals: ['*/sa/mallory']}}]";
        let source = format!("DENY [{{{from}, to: [{{operation: {{{field}}}}}]}}]");
        assert_eq!(opaque(&["ALLOW [{}]", &source], WEB, 80), Reason::AllowRule, "{field}");
        let mallory = "cluster.local/ns/shop/sa/mallory";
        assert_eq!(
            opaque(&["ALLOW [{}]", &source], mallory, 80),
            Reason::DenyRule,
            "{field}"
        );
    }
}

#[test]
fn cve_2020_16844_many_deny_rules_by_path_are_all_broadened() {
    // Enough for the path trie.
    let rules: Vec<String> = (0..50)
        .map(|i| {
            format!(
                "{{to: [{{operation: {{paths: ['/{i}', '/x/{i}*'], ports: ['{}']}}}}]}}",
                1000 + i
            )
        })
        .collect();
    let deny = format!("DENY [{}]", rules.join(", "));
    for i in 0..50 {
        assert_eq!(opaque(&["ALLOW [{}]", &deny], WEB, 1000 + i), Reason::DenyRule, "{i}");
    }
    assert_eq!(opaque(&["ALLOW [{}]", &deny], WEB, 1050), Reason::AllowRule);
    assert_eq!(
        http(&["ALLOW [{}]", &deny], WEB, 1007, "GET shop /x/77"),
        Reason::DenyRule
    );
    assert_eq!(
        http(&["ALLOW [{}]", &deny], WEB, 1007, "GET shop /x/8"),
        Reason::AllowRule
    );
}

#[test]
fn istio_security_2021_004_a_negated_identity_never_lets_an_anonymous_peer_through() {
    for source in [
        "notPrincipals: [cluster.local/ns/shop/sa/mallory]",
        "notNamespaces: [evil]",
        "notServiceAccounts: [mallory]",
        "notNamespaces: [evil], principals: ['*']",
    ] {
        assert!(allows_peer(source, WEB), "{source}");
        assert!(!allows_peer(source, ""), "{source}");
        let to = "to: [{operation: {methods: [GET]}}]";
        let rule = format!("ALLOW [{{from: [{{source: {{{source}}}}}], {to}}}]");
        assert_eq!(http(&[&rule], "", 80, "GET shop /"), Reason::NoAllowRule, "{source}");
    }
    // An identity of another shape has no namespace to negate; it has a principal.
    assert!(!allows_peer("notNamespaces: [evil]", "cluster.local/evil/web"));
    assert!(!allows_peer("notServiceAccounts: [mallory]", "cluster.local/evil/web"));
    assert!(allows_peer("notPrincipals: [a/b]", "cluster.local/evil/web"));
}

#[test]
fn istio_security_2021_004_a_negated_identity_in_deny_catches_anonymous_peers() {
    for source in [
        "notPrincipals: ['*']",
        "notPrincipals: [cluster.local/ns/shop/sa/web]",
        "notNamespaces: ['*']",
        "notNamespaces: [shop]",
        "notServiceAccounts: ['*/*']",
    ] {
        let deny = format!("DENY [{{from: [{{source: {{{source}}}}}]}}]");
        assert_eq!(opaque(&["ALLOW [{}]", &deny], "", 80), Reason::DenyRule, "{source}");
        assert_eq!(opaque(&["ALLOW [{}]", &deny], WEB, 80), Reason::AllowRule, "{source}");
    }
    let deny = "DENY [{from: [{source: {notNamespaces: ['*']}}]}]";
    assert_eq!(opaque(&["ALLOW [{}]", deny], "cluster.local/web", 80), Reason::DenyRule);
}

#[test]
fn z_04_hosts_match_in_any_case_and_only_with_their_port() {
    let allows = |hosts: &str, host: &str| {
        let rule = format!("ALLOW [{{to: [{{operation: {{hosts: {hosts}}}}}]}}]");
        http(&[&rule], WEB, 80, &format!("GET {host} /")) == Reason::AllowRule
    };
    for host in ["example.com", "EXAMPLE.com", "example.com."] {
        assert!(allows("[Example.COM]", host), "CVE-2021-39155: {host}");
    }
    for host in [
        "example.com:8080",
        "example.com.evil.org",
        "a.example.com",
        "example-com",
    ] {
        assert!(!allows("[example.com]", host), "{host}");
    }
    assert!(allows("['example.com:*']", "Example.com.:8080"));
    assert!(
        allows("['example.com:8080']", "example.com:08080"),
        "one form of a port"
    );
    assert!(!allows("['example.com:*']", "example.com"));
    assert!(allows("['*.Example.com']", "a.EXAMPLE.com") && !allows("['*.example.com']", "aexample.com"));
    assert!(allows("['[::1]:80']", "[::1]:80"));
}

#[test]
fn z_04_one_address_has_one_form() {
    let deny = "DENY [{to: [{operation: {hosts: ['[fd00::1]', '[fd00::1]:*']}}]}]";
    for host in [
        "[fd00::1]",
        "[FD00::1]",
        "[fd00:0:0:0:0:0:0:1]",
        "[fd00:0000::0001]:80",
        "[fd00::0.0.0.1]",
    ] {
        assert_eq!(
            http(&["ALLOW [{}]", deny], WEB, 80, &format!("GET {host} /")),
            Reason::DenyRule,
            "{host}"
        );
    }
}

#[test]
fn z_04_methods_are_case_sensitive() {
    let allow = "ALLOW [{to: [{operation: {methods: [GET]}}]}]";
    for (method, reason) in [
        ("GET", Reason::AllowRule),
        ("get", Reason::NoAllowRule),
        ("GETX", Reason::NoAllowRule),
    ] {
        assert_eq!(http(&[allow], WEB, 80, &format!("{method} shop /")), reason, "{method}");
    }
    let deny = "DENY [{to: [{operation: {methods: [DELETE]}}]}]";
    assert_eq!(http(&["ALLOW [{}]", deny], WEB, 80, "DELETE shop /"), Reason::DenyRule);
    assert_eq!(
        http(&["ALLOW [{}]", deny], WEB, 80, "delete shop /"),
        Reason::AllowRule,
        "another method"
    );
}

#[test]
fn istio_2021_002_ports_are_the_workloads_not_those_of_the_host_header() {
    let allow = "ALLOW [{to: [{operation: {ports: ['8080']}}]}]";
    assert_eq!(http(&[allow], WEB, 8080, "GET shop:80 /"), Reason::AllowRule);
    assert_eq!(http(&[allow], WEB, 80, "GET shop:8080 /"), Reason::NoAllowRule);
    let deny = "DENY [{to: [{operation: {notPorts: [8080]}}]}]";
    assert_eq!(opaque(&["ALLOW [{}]", deny], WEB, 80), Reason::DenyRule);
    assert_eq!(opaque(&["ALLOW [{}]", deny], WEB, 8080), Reason::AllowRule);
}

#[test]
fn a_port_is_opaque_only_if_no_rule_for_it_reads_http() {
    let needs = |rule: &str, port| compiled(&[rule]).needs_http(port);
    for action in ["ALLOW", "DENY"] {
        let to = |operation: &str| format!("{action} [{{to: [{{operation: {{{operation}}}}}]}}]");
        assert!(needs(&to("methods: [GET]"), 80));
        assert!(needs(&to("notPaths: [/a], ports: ['80']"), 80) && !needs(&to("notPaths: [/a], ports: ['80']"), 81));
        assert!(needs(&to("hosts: [a], notPorts: ['80']"), 81) && !needs(&to("hosts: [a], notPorts: ['80']"), 80));
        assert!(!needs(&to("ports: ['80']"), 80));
        assert!(!needs(
            &format!("{action} [{{from: [{{source: {{namespaces: [a]}}}}]}}]"),
            80
        ));
    }
    assert!(!compiled(&[]).needs_http(80));
}

#[test]
fn z_01_a_denied_path_is_denied_however_it_is_spelled() {
    let deny = "DENY [{to: [{operation: {paths: [/admin, '/admin/*']}}]}]";
    for path in [
        "/admin",
        "/%61dmin",
        "/x/../admin",
        "//admin",
        "/./admin/",
        "/admin//x",
        "/admin/%78",
        "/a%64min/./y",
    ] {
        assert_eq!(
            http(&["ALLOW [{}]", deny], WEB, 80, &format!("GET shop {path}")),
            Reason::DenyRule,
            "{path}"
        );
    }
    // Legal oddities are matched byte by byte.
    for path in ["/Admin", "/admin.", "/admin;x", "/%2561dmin", "/administrator"] {
        assert_eq!(
            http(&["ALLOW [{}]", deny], WEB, 80, &format!("GET shop {path}")),
            Reason::AllowRule,
            "{path}"
        );
    }
}

#[test]
fn deny_wins_whatever_the_order_and_the_scope() {
    let narrow = "ALLOW [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]";
    let broad = "DENY [{from: [{source: {namespaces: ['*']}}]}]";
    for order in [[narrow, broad], [broad, narrow]] {
        assert_eq!(opaque(&order, WEB, 80), Reason::DenyRule);
    }
}

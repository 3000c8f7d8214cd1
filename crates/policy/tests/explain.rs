//! Explanations: the verdict of the decision, with policy, rule and place; for a denial the rule that came nearest.
#![allow(clippy::unwrap_used)]

mod random;

use std::sync::Arc;

use postern_identity::SpiffeId;
use postern_policy::{
    Action, AuthorizationPolicy, CanonicalHost, CanonicalPath, Compiled, Condition, Doubt, Feature, FeatureSet, Http,
    NoHeaders, Operation, Reason, Request, Source, Verdict, document,
};
use proptest::prelude::*;
use random::{Choices, bytes};

/// Is `name`, as an explanation writes it, a field that one of these has?
fn has_field(name: &str, from: &[Arc<Source>], to: &[Arc<Operation>], when: &[Condition]) -> bool {
    if let Some(key) = name.strip_prefix("when not ").or(name.strip_prefix("when ")) {
        return when.iter().any(|condition| condition.to_string() == key);
    }
    let sources = from.iter().any(|source| match name {
        "principals" => !source.principals.is_empty(),
        "notPrincipals" => !source.not_principals.is_empty(),
        "namespaces" => !source.namespaces.is_empty(),
        "notNamespaces" => !source.not_namespaces.is_empty(),
        "serviceAccounts" => !source.service_accounts.is_empty(),
        "notServiceAccounts" => !source.not_service_accounts.is_empty(),
        "trustDomains" => !source.trust_domains.is_empty(),
        "notTrustDomains" => !source.not_trust_domains.is_empty(),
        "requestPrincipals" => !source.request_principals.is_empty(),
        "notRequestPrincipals" => !source.not_request_principals.is_empty(),
        "ipBlocks" => !source.ip_blocks.is_empty(),
        "notIpBlocks" => !source.not_ip_blocks.is_empty(),
        "remoteIpBlocks" => !source.remote_ip_blocks.is_empty(),
        "notRemoteIpBlocks" => !source.not_remote_ip_blocks.is_empty(),
        _ => false,
    });
    let operations = to.iter().any(|operation| {
        let (hosts, not_hosts) = (!operation.hosts.is_empty(), !operation.not_hosts.is_empty());
        let (methods, not_methods) = (!operation.methods.is_empty(), !operation.not_methods.is_empty());
        let (paths, not_paths) = (!operation.paths.is_empty(), !operation.not_paths.is_empty());
        match name {
            "hosts" => hosts,
            "notHosts" => not_hosts,
            "methods" => methods,
            "notMethods" => not_methods,
            "paths" => paths,
            "notPaths" => not_paths,
            "ports" => !operation.ports.is_empty(),
            "notPorts" => !operation.not_ports.is_empty(),
            "HTTP fields" => hosts || not_hosts || methods || not_methods || paths || not_paths,
            _ => false,
        }
    });
    sources || operations
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_explanation_agrees_with_the_decision(bytes in bytes()) {
        let mut choices = Choices::new(&bytes);
        let asked = choices.asked();
        let request = asked.request();
        let compiled = Compiled::new(choices.policies());
        let explanation = compiled.explain(&request);
        let open = compiled.decide(&Request { doubt: Doubt::Open, ..request });
        let mut decision = compiled.decide(&request);
        if decision.verdict != open.verdict {
            // What hangs on something is named, and there is no verdict.
            prop_assert_eq!(explanation.verdict, None);
            prop_assert!(explanation.hangs_on.is_some(), "{:?}", explanation);
            prop_assert!(explanation.to_string().starts_with("undecided: `"), "{}", explanation);
            return Ok(());
        }
        prop_assert_eq!(explanation.verdict, Some(decision.verdict));
        if decision.verdict == Verdict::Deny {
            decision = open;
        }

        let verdict = if decision.verdict == Verdict::Allow { "allowed" } else { "denied" };
        let expected = match (decision.reason, decision.policy) {
            (Reason::AllowRule | Reason::DenyRule, Some(policy)) => {
                let rule = &policy.rules[decision.rule.unwrap() as usize];
                let action = if decision.verdict == Verdict::Allow { Action::Allow } else { Action::Deny };
                prop_assert_eq!(policy.action, action);
                prop_assert_eq!(decision.place(), Some(&rule.place));
                prop_assert_eq!(&compiled.policies()[decision.policy_index.unwrap() as usize], policy);
                format!("{verdict} by rule {} of shop/{} ({})", rule.index, policy.name, rule.place)
            }
            (Reason::NoAllowRule, None) => "denied: no ALLOW rule matches".to_owned(),
            (Reason::NoPolicy, None) => "denied: no ALLOW policy selects this workload".to_owned(),
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!(explanation.to_string(), expected);

        let allow_rules: Vec<_> = compiled.policies().iter().filter(|p| p.action == Action::Allow)
            .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule))).collect();
        let wanted = decision.reason == Reason::NoAllowRule && !allow_rules.is_empty();
        prop_assert_eq!(explanation.nearest.is_some(), wanted);
        if let Some(nearest) = explanation.nearest.map(|nearest| nearest.to_string()) {
            let found = allow_rules.iter().any(|(policy, rule)| {
                let head = format!("rule {} of shop/{} ({}): `", rule.index, policy.name, rule.place);
                let field = nearest.strip_prefix(&head).and_then(|rest| rest.strip_suffix("` does not match"));
                field.is_some_and(|field| has_field(field, &rule.from, &rule.to, &rule.when))
            });
            prop_assert!(found, "{}\n{:#?}", nearest, compiled.policies());
        }
    }
}

const POLICIES: &str = "\
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/items], ports: [\"8080\"]}}]
  - from: [{source: {namespaces: [ops]}}]
---
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {hosts: [nowhere]}}]
  -   to: [{operation: {paths: [/admin], methods: [GET]}}]
";

fn policies() -> Vec<AuthorizationPolicy> {
    let objects = document::parse("shop.yaml", POLICIES).unwrap();
    objects
        .iter()
        .map(|object| AuthorizationPolicy::from_object(object).unwrap())
        .collect()
}

/// `line` is `METHOD /path`, or nothing on an opaque stream.
fn explained(policies: Vec<AuthorizationPolicy>, peer: &str, port: u16, line: &str) -> (String, Option<String>) {
    let peer = SpiffeId::parse(peer).ok();
    let host = CanonicalHost::parse("cart").unwrap();
    let (method, path) = line.split_once(' ').unwrap_or(("", "/"));
    let path = CanonicalPath::parse(path).unwrap();
    let http = (!method.is_empty()).then_some(Http {
        method,
        host: &host,
        path: path.as_ref(),
        headers: &NoHeaders,
        user: None,
    });
    let request = Request {
        peer: peer.as_ref(),
        port,
        http,
        ..Request::default()
    };
    let explanation = Compiled::new(policies).explain(&request);
    (
        explanation.to_string(),
        explanation.nearest.map(|nearest| nearest.to_string()),
    )
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[test]
fn what_decided_is_named_with_its_place() {
    let (summary, nearest) = explained(policies(), WEB, 8080, "GET /items");
    assert_eq!(summary, "allowed by rule 0 of shop/cart (shop.yaml:6:5)");
    assert_eq!(nearest, None);
    let (summary, nearest) = explained(policies(), WEB, 8080, "GET /admin");
    assert_eq!(summary, "denied by rule 1 of shop/no-admin (shop.yaml:17:7)");
    assert_eq!(nearest, None, "a DENY rule needs no nearest");
    let (summary, _) = explained(policies(), "spiffe://cluster.local/ns/ops/sa/x", 1, "PUT /y");
    assert_eq!(summary, "allowed by rule 1 of shop/cart (shop.yaml:8:5)");
    let (summary, nearest) = explained(Vec::new(), WEB, 8080, "GET /items");
    assert_eq!(summary, "denied: no ALLOW policy selects this workload");
    assert_eq!(nearest, None);
}

#[test]
fn a_denial_names_the_nearest_rule_and_the_field_that_missed() {
    let first = "rule 0 of shop/cart (shop.yaml:6:5)";
    let second = "rule 1 of shop/cart (shop.yaml:8:5)";
    for (peer, port, line, nearest) in [
        (WEB, 8080, "POST /items", format!("{first}: `methods` does not match")),
        (WEB, 8080, "GET /item", format!("{first}: `paths` does not match")),
        (WEB, 80, "GET /items", format!("{first}: `ports` does not match")),
        // Only the source misses, in a rule that asks for nothing else.
        (
            "spiffe://cluster.local/ns/shop/sa/mallory",
            80,
            "GET /x",
            format!("{second}: `namespaces` does not match"),
        ),
        // Both rules miss by the source alone: the first is named.
        (
            "spiffe://cluster.local/ns/shop/sa/mallory",
            8080,
            "GET /items",
            format!("{first}: `principals` does not match"),
        ),
        (
            "plaintext",
            8080,
            "GET /items",
            format!("{first}: `principals` does not match"),
        ),
    ] {
        let (summary, found) = explained(policies(), peer, port, line);
        assert_eq!(summary, "denied: no ALLOW rule matches", "{peer} {line}");
        assert_eq!(found, Some(nearest), "{peer} {line}");
    }
    let allow_only = policies().into_iter().take(1).collect();
    let (_, found) = explained(allow_only, WEB, 8080, "");
    assert_eq!(found, Some(format!("{first}: `HTTP fields` does not match")));
}

#[test]
fn a_rule_of_a_masked_policy_is_named_as_in_its_document() {
    let features = FeatureSet::all().without(Feature::Methods);
    let masked = policies().iter().filter_map(|policy| policy.masked(features)).collect();
    let (summary, _) = explained(masked, "spiffe://cluster.local/ns/ops/sa/x", 1, "PUT /y");
    assert_eq!(summary, "allowed by rule 1 of shop/cart (shop.yaml:8:5)");
}

fn decided_of(spec: &str, request: Request<'_>) -> postern_policy::Explanation {
    let text = format!("{HEAD}spec: {spec}\n");
    let objects = document::parse("shop.yaml", &text).unwrap();
    let policies = objects
        .iter()
        .map(|object| AuthorizationPolicy::from_object(object).unwrap());
    Compiled::new(policies.collect()).explain(&request)
}

const HEAD: &str =
    "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n";

#[test]
fn what_a_verdict_hangs_on_is_named_if_it_is_not_told() {
    let peer = SpiffeId::parse(WEB).unwrap();
    let asked = Request {
        peer: Some(&peer),
        port: 80,
        ..Request::default()
    };
    for (spec, on) in [
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}", "ipBlocks"),
        (
            "{rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}]}]}",
            "notRemoteIpBlocks",
        ),
        (
            "{rules: [{when: [{key: 'source.labels[app]', values: [web]}]}]}",
            "when source.labels[app]",
        ),
        (
            "{rules: [{when: [{key: 'destination.labels[app]', notValues: [web]}]}]}",
            "when not destination.labels[app]",
        ),
    ] {
        let explanation = decided_of(spec, asked);
        assert_eq!(explanation.verdict, None, "{spec}");
        assert_eq!(
            explanation.to_string(),
            format!("undecided: `{on}` of rule 0 of shop/p (shop.yaml:4:16) is not told")
        );
    }
    // Where the rest decides, it does not matter.
    let spec = "{rules: [{from: [{source: {namespaces: [ops], ipBlocks: [10.0.0.0/8]}}]}]}";
    let explanation = decided_of(spec, asked);
    assert_eq!(explanation.verdict, Some(Verdict::Deny));
    assert!(
        explanation.to_string().starts_with("denied: no ALLOW rule"),
        "{explanation}"
    );
}

//! Callers of other trust domains: what a rule allows them, and what it denies them.
#![allow(clippy::unwrap_used)]

use postern_identity::{SpiffeId, TrustDomain};
use postern_policy::{AuthorizationPolicy, Compiled, Reason, Request, Verdict, document};

const HOME: &str = "spiffe://cluster.local/ns/shop/sa/web";
const PARTNER: &str = "spiffe://partner.example/ns/shop/sa/web";
const OTHER: &str = "spiffe://other.example/ns/shop/sa/web";

/// A policy of these rules.
fn compiled(action: &str, rules: &str) -> Compiled {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{action: {action}, rules: [{rules}]}}\n"
    );
    let objects = document::parse("policy.yaml", &text).unwrap();
    let policies = objects
        .iter()
        .map(|object| AuthorizationPolicy::from_object(object).unwrap());
    Compiled::at_home_in(&TrustDomain::parse("cluster.local").unwrap(), policies.collect())
}

fn decided(compiled: &Compiled, peer: &str) -> (Verdict, Reason) {
    let peer = SpiffeId::parse(peer).unwrap();
    let decision = compiled.decide(&Request {
        peer: Some(&peer),
        port: 80,
        ..Request::default()
    });
    (decision.verdict, decision.reason)
}

/// Who of home, partner and other is allowed by a rule of this source.
fn allowed_by(rule: &str) -> [bool; 3] {
    let compiled = compiled("ALLOW", rule);
    [HOME, PARTNER, OTHER].map(|peer| decided(&compiled, peer).0 == Verdict::Allow)
}

#[test]
fn spec_050_a_caller_of_another_trust_domain_is_allowed_nothing_that_does_not_name_it() {
    for source in [
        "namespaces: [shop]",
        "namespaces: ['*']",
        "serviceAccounts: [shop/web]",
        "principals: ['*']",
        "principals: ['*/ns/shop/sa/web']",
        "principals: ['*web']",
        "trustDomains: ['*']",
        "notNamespaces: [bank]",
        "notPrincipals: [cluster.local/ns/bank/sa/web]",
        "notTrustDomains: [other.example]",
        "principals: [cluster.local/ns/shop/sa/web]",
        "trustDomains: [cluster.local]",
    ] {
        let allowed = allowed_by(&format!("{{from: [{{source: {{{source}}}}}]}}"));
        assert_eq!(allowed, [true, false, false], "{source}");
    }
    // A rule without a source is for everybody at home; so is one that only asks for something else.
    assert_eq!(allowed_by("{}"), [true, false, false]);
    assert_eq!(allowed_by("{to: [{operation: {ports: ['80']}}]}"), [true, false, false]);
    let by_condition = "{when: [{key: source.namespace, values: [shop]}]}";
    assert_eq!(allowed_by(by_condition), [true, false, false]);
}

#[test]
fn spec_050_a_caller_of_another_trust_domain_is_allowed_what_names_it_as_in_istio() {
    for source in [
        "principals: [partner.example/ns/shop/sa/web]",
        "principals: ['partner.example/*']",
        "principals: ['partner.example/ns/shop/*']",
        "trustDomains: [partner.example]",
        "trustDomains: ['partner.*']",
        "trustDomains: [partner.example], namespaces: [shop]",
        "trustDomains: [partner.example], principals: ['*/sa/web']",
    ] {
        let allowed = allowed_by(&format!("{{from: [{{source: {{{source}}}}}]}}"));
        assert_eq!(allowed, [false, true, false], "{source}");
    }
    for condition in [
        "{key: source.principal, values: [partner.example/ns/shop/sa/web]}",
        "{key: source.trustDomain, values: [partner.example]}",
    ] {
        assert_eq!(
            allowed_by(&format!("{{when: [{condition}]}}")),
            [false, true, false],
            "{condition}"
        );
    }
}

#[test]
fn what_names_a_trust_domain_must_be_what_matches() {
    for source in [
        // The star matches, and the name is another account's.
        "principals: ['*', partner.example/ns/shop/sa/other]",
        // The name matches and the rest does not.
        "principals: [partner.example/ns/shop/sa/web], namespaces: [bank]",
        "trustDomains: [partner.example], notPrincipals: ['*/sa/web']",
        // A star in the middle of a name may be anybody's.
        "principals: ['partner*']",
        "principals: ['*partner.example/ns/shop/sa/web']",
    ] {
        let [_, partner, other] = allowed_by(&format!("{{from: [{{source: {{{source}}}}}]}}"));
        assert!(!partner && !other, "{source}");
    }
}

#[test]
fn a_deny_rule_is_for_callers_of_every_trust_domain() {
    for rule in [
        "{}",
        "{from: [{source: {namespaces: [shop]}}]}",
        "{from: [{source: {principals: ['*/sa/web']}}]}",
        "{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/other]}}]}",
    ] {
        let compiled = compiled("DENY", rule);
        for peer in [HOME, PARTNER, OTHER] {
            assert_eq!(
                decided(&compiled, peer),
                (Verdict::Deny, Reason::DenyRule),
                "{rule} {peer}"
            );
        }
    }
}

#[test]
fn explain_says_that_the_rule_does_not_name_the_callers_trust_domain() {
    let compiled = compiled("ALLOW", "{from: [{source: {namespaces: [shop]}}]}");
    let peer = SpiffeId::parse(PARTNER).unwrap();
    let explanation = compiled.explain(&Request {
        peer: Some(&peer),
        port: 80,
        ..Request::default()
    });
    let nearest = explanation.nearest.unwrap().to_string();
    assert!(nearest.contains("must name the caller's trust domain"), "{nearest}");
}

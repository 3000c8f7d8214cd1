//! Lint: what it says of a rule is true of every request.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;

mod random;

use postern_identity::TrustDomain;
use postern_policy::lint::{Code, Level, lint, opaque_port};
use postern_policy::{AuthorizationPolicy, Compiled, document};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use random::{Choices, bytes};

fn policies(specs: &[&str]) -> Vec<AuthorizationPolicy> {
    let document = |(n, spec): (usize, &&str)| {
        let head = "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\n";
        format!("{head}metadata: {{name: p{n}, namespace: shop}}\nspec: {spec}\n---\n")
    };
    let text: String = specs.iter().enumerate().map(document).collect();
    let objects = document::parse("p.yaml", &text).unwrap();
    objects
        .iter()
        .map(|object| AuthorizationPolicy::from_object(object).unwrap())
        .collect()
}

fn home() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn codes(specs: &[&str]) -> Vec<(Code, Level, String)> {
    let found = lint(&policies(specs), "postern-system", Some(&home()));
    found
        .into_iter()
        .map(|finding| (finding.code, finding.level, finding.to_string()))
        .collect()
}

/// Policy sets tried; each is asked eight requests for every rule that is called needless.
const CASES: u32 = 20_000;

#[test]
fn without_a_rule_that_is_unreachable_or_shadowed_every_verdict_is_the_same() {
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let seen: [Cell<u32>; 2] = Default::default();
    let outcome = runner.run(&bytes(), |bytes| {
        let mut choices = Choices::new(&bytes);
        let asked: Vec<_> = (0..8).map(|_| choices.asked()).collect();
        let all = choices.policies();
        let home = home();
        let found = lint(&all, "postern-system", Some(&home));
        // Who does not know whose mesh it is names no more rules, but may name another that takes all of theirs.
        let unknown = lint(&all, "postern-system", None);
        prop_assert!(
            unknown
                .iter()
                .all(|of| found.iter().any(|it| it.code == of.code && it.place == of.place)),
            "{:?}\n{:?}",
            unknown,
            found
        );
        let full = Compiled::at_home_in(&home, all.clone());
        for finding in found {
            let count = match finding.code {
                Code::Unreachable => &seen[0],
                Code::Shadowed => &seen[1],
                _ => continue,
            };
            count.set(count.get() + 1);
            let mut less = all.clone();
            for policy in less
                .iter_mut()
                .filter(|policy| format!("shop/{}", policy.name) == finding.policy)
            {
                policy.rules.retain(|rule| rule.place != finding.place);
            }
            let less = Compiled::at_home_in(&home, less);
            for asked in &asked {
                let request = asked.request();
                let (full, less) = (full.decide(&request), less.decide(&request));
                prop_assert_eq!(full.verdict, less.verdict, "{}\n{:#?}\n{:#?}", finding, asked, all);
                prop_assert_eq!(full.audit.is_some(), less.audit.is_some(), "{}", finding);
            }
        }
        Ok(())
    });
    outcome.unwrap();
    assert!(seen.iter().all(|count| count.get() > CASES / 500), "{seen:?}");
}

#[test]
fn a_rule_that_another_one_takes_everything_of_is_named() {
    let wide = "{rules: [{from: [{source: {namespaces: [shop, ops]}}], to: [{operation: {paths: [/a/*]}}]}]}";
    let narrow =
        "{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {paths: [/a/b], methods: [GET]}}]}]}";
    let found = codes(&[wide, narrow]);
    let [(Code::Shadowed, Level::Warning, text)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        text,
        "p.yaml:9:16: warning[shadowed]: shop/p1: rule 0: changes nothing: rule 0 of shop/p0 (p.yaml:4:16) matches all of it"
    );
    let denial = "{action: DENY, rules: [{to: [{operation: {paths: [/a/*]}}]}]}";
    let found = codes(&[wide, denial]);
    assert!(
        matches!(&found[..], [(Code::Unreachable, Level::Warning, _)]),
        "{found:?}"
    );
    // Of two that are the same, the later one.
    let found = codes(&[narrow, narrow]);
    assert!(
        matches!(&found[..], [(Code::Shadowed, _, text)] if text.starts_with("p.yaml:9:")),
        "{found:?}"
    );
    // The other way round neither is needless.
    let other = "{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {paths: [/a/b*x, /c]}}]}]}";
    assert_eq!(codes(&[wide, other]), []);
}

#[test]
fn a_rule_that_lets_in_callers_of_another_trust_domain_is_not_needless_beside_one_that_does_not_name_it() {
    let of = |source: &str| format!("{{rules: [{{from: [{{source: {{{source}}}}}]}}]}}");
    let shadowed = |wide: &str, narrow: &str| {
        let found = codes(&[wide, narrow]);
        found.iter().any(|(code, ..)| *code == Code::Shadowed)
    };
    let shop = of("namespaces: [shop]");
    for (wide, narrow, needless) in [
        (&*shop, "namespaces: [shop], trustDomains: [partner.example]", false),
        (&shop, "namespaces: [shop], trustDomains: [cluster.local]", true),
        (&shop, "namespaces: [shop], trustDomains: ['*']", true),
        ("{rules: [{}]}", "principals: [partner.example/ns/shop/sa/web]", false),
        ("{rules: [{}]}", "principals: ['partner.example/*']", false),
        ("{rules: [{}]}", "principals: [cluster.local/ns/shop/sa/web]", true),
        ("{rules: [{}]}", "principals: ['*/sa/web']", true),
        (
            &of("principals: ['*']"),
            "principals: [partner.example/ns/shop/sa/web]",
            false,
        ),
        (
            &of("principals: ['partner.example/*']"),
            "principals: [partner.example/ns/shop/sa/web]",
            true,
        ),
        (
            &of("trustDomains: [partner.example]"),
            "trustDomains: [partner.example], namespaces: [shop]",
            true,
        ),
    ] {
        assert_eq!(shadowed(wide, &of(narrow)), needless, "{wide} {narrow}");
    }
    let by_condition = "{rules: [{when: [{key: source.trustDomain, values: [partner.example]}]}]}";
    assert!(!shadowed("{rules: [{}]}", by_condition));
    assert!(shadowed(
        by_condition,
        &by_condition.replace("when", "to: [{operation: {methods: [GET]}}], when")
    ));
    // A DENY rule is for everybody.
    let found = codes(&["{action: DENY, rules: [{}]}", &of("trustDomains: [partner.example]")]);
    assert!(found.iter().any(|(code, ..)| *code == Code::Unreachable), "{found:?}");
}

#[test]
fn what_lets_in_more_than_it_seems_is_named() {
    for (spec, code) in [
        ("{rules: [{}]}", Code::TooBroad),
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", Code::TooBroad),
        ("{rules: [{from: [{source: {principals: ['*']}}]}]}", Code::TooBroad),
        ("{rules: [{from: [{source: {notNamespaces: [ops]}}]}]}", Code::TooBroad),
        (
            "{rules: [{when: [{key: 'request.headers[x-admin]', values: ['1']}]}]}",
            Code::TooBroad,
        ),
        (
            "{rules: [{from: [{source: {principals: [cluster.local/ns/shop*]}}]}]}",
            Code::LooseMatch,
        ),
        (
            "{rules: [{from: [{source: {principals: ['*web']}}]}]}",
            Code::LooseMatch,
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {hosts: ['example.com*']}}]}]}",
            Code::LooseMatch,
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {paths: ['*.css']}}]}]}",
            Code::LooseMatch,
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [get]}}]}]}",
            Code::NeverMatches,
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a], notNamespaces: [a]}}]}]}",
            Code::NeverMatches,
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a], notRequestPrincipals: ['*']}}]}]}",
            Code::NeverMatches,
        ),
    ] {
        let found = codes(&[spec]);
        assert!(
            found
                .iter()
                .any(|(found, level, _)| *found == code && *level == Level::Warning),
            "{spec}: {found:?}"
        );
    }
    let found = codes(&["{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}"]);
    assert!(matches!(&found[..], [(Code::NarrowDeny, Level::Note, _)]), "{found:?}");
}

#[test]
fn what_is_as_it_should_be_is_not_named() {
    for spec in [
        "{}",
        "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], to: [{operation: {methods: [GET], paths: [/items, /items/*]}}]}]}",
        "{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {hosts: ['shop:*', shop]}}]}]}",
        "{action: DENY, rules: [{}]}",
        "{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}",
        "{action: DENY, rules: [{to: [{operation: {paths: [/admin, /admin/*]}}]}]}",
        "{rules: [{from: [{source: {requestPrincipals: ['https://sso/*']}}]}]}",
    ] {
        assert_eq!(codes(&[spec]), [], "{spec}");
    }
}

#[test]
fn a_rule_about_http_on_an_opaque_port_is_named() {
    let all = policies(&[
        "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['3306'], methods: [GET]}}]}]}",
        "{action: DENY, rules: [{to: [{operation: {paths: [/admin/*]}}]}]}",
        "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['80'], methods: [GET]}}]}]}",
        "{rules: [{from: [{source: {namespaces: [a]}}]}]}",
        "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
    ]);
    let selected: Vec<&AuthorizationPolicy> = all.iter().collect();
    let found = opaque_port(&selected, "shop/db", 3306);
    let named: Vec<&str> = found.iter().map(|finding| &*finding.policy).collect();
    assert_eq!(named, ["shop/p0", "shop/p1", "shop/p4"]);
    assert!(
        found[0].says.contains("never matches on port 3306 of shop/db"),
        "{}",
        found[0]
    );
    assert!(found[1].says.contains("denies everything"), "{}", found[1]);
}

//! Lint: what it says of a rule is true of every request.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;

mod random;

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

fn codes(specs: &[&str]) -> Vec<(Code, Level, String)> {
    let found = lint(&policies(specs), "postern-system");
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
        let found = lint(&all, "postern-system");
        let full = Compiled::new(all.clone());
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
            let less = Compiled::new(less);
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

//! What an older proxy is sent: with any features masked it never allows what a full one denies.
#![allow(clippy::unwrap_used)]

mod random;

use std::sync::Arc;

use postern_policy::document::Place;
use postern_policy::{
    Action, AuthorizationPolicy, Compiled, Condition, Feature, FeatureSet, IpBlock, Operation, Request, Rule, Source,
    StringMatch, TextKey, UserMatch, Values, Verdict,
};
use proptest::prelude::*;
use random::{Choices, bytes};

/// Policy sets per run; each is masked in nine ways and asked four requests.
const CASES: u32 = 5_000;

fn masked(policies: &[AuthorizationPolicy], features: FeatureSet) -> Vec<AuthorizationPolicy> {
    policies.iter().filter_map(|policy| policy.masked(features)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_masked_proxy_never_allows_what_a_full_one_denies(bytes in bytes()) {
        let mut choices = Choices::new(&bytes);
        let any_set: FeatureSet = Feature::ALL.into_iter().filter(|_| choices.below(2) == 0).collect();
        let asked: Vec<_> = (0..4).map(|_| choices.asked()).collect();
        let policies = choices.policies();
        let full = Compiled::new(policies.clone());
        // Whom CUSTOM asks may say no: what an old proxy, which cannot ask, lets through must be asked of nobody.
        let denied: Vec<_> = asked.iter().filter(|a| {
            full.decide(&a.request()).verdict == Verdict::Deny || full.custom(&a.request()).next().is_some()
        }).collect();

        let each = Feature::ALL.into_iter().map(|feature| FeatureSet::all().without(feature));
        for features in each.chain([any_set, FeatureSet::default()]) {
            let sent = masked(&policies, features);
            for policy in &sent {
                prop_assert!(features.covers(policy.features()), "{:?} needs more than {:?}", policy, features);
            }
            let old = Compiled::new(sent);
            for asked in &denied {
                let request = asked.request();
                // A port that its rules no longer read HTTP on may be opaque to it.
                let opaque = (!old.needs_http(asked.port)).then_some(Request { http: None, ..request });
                for request in [Some(request), opaque].into_iter().flatten() {
                    let asks = old.custom(&request).next().is_some();
                    let verdict = if asks { Verdict::Deny } else { old.decide(&request).verdict };
                    prop_assert_eq!(verdict, Verdict::Deny, "{:#?}\n{:?}\n{:#?}\n{:#?}", asked, features, &policies, old.policies());
                }
            }
        }
    }

    #[test]
    fn with_every_feature_nothing_is_masked(bytes in bytes()) {
        let policies = Choices::new(&bytes).policies();
        prop_assert_eq!(&masked(&policies, FeatureSet::all()), &policies);
        for policy in &policies {
            prop_assert_eq!(&policy.masked(policy.features()).unwrap(), policy);
        }
    }
}

fn policy(action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    let mut policy = Choices::new(&[4; 400]).policies().remove(0);
    (policy.action, policy.rules) = (action, rules);
    policy
}

fn rule(from: Source, to: Operation) -> Rule {
    let (from, to) = (vec![Arc::new(from)], vec![Arc::new(to)]);
    Rule {
        place: Place::default(),
        index: 0,
        from,
        to,
        when: Vec::new(),
    }
}

/// A rule that needs `feature`, by its positive field and by its negation.
fn rules_with(feature: Feature) -> [Rule; 2] {
    let one = || vec![StringMatch::Exact("shop/web".to_owned())];
    let template = || vec![StringMatch::Template("/a/{*}".to_owned())];
    macro_rules! pair {
        ($kind:ident, $yes:ident, $no:ident, $values:expr) => {
            [
                $kind {
                    $yes: $values,
                    ..$kind::default()
                },
                $kind {
                    $no: $values,
                    ..$kind::default()
                },
            ]
        };
    }
    let user = || UserMatch {
        issuer: StringMatch::Present,
        subject: StringMatch::Exact("alice".to_owned()),
    };
    let block = || IpBlock::new([10, 0, 0, 0].into(), 8).unwrap();
    let when = |key: TextKey| {
        let any = Values {
            any: one(),
            ..Values::default()
        };
        let none = Values {
            none: one(),
            ..Values::default()
        };
        [any, none].map(|values| {
            let mut rule = rule(Source::default(), Operation::default());
            rule.when = vec![Condition::Text(key.clone(), values)];
            rule
        })
    };
    let from = |sources: [Source; 2]| sources.map(|source| rule(source, Operation::default()));
    let to = |operations: [Operation; 2]| operations.map(|operation| rule(Source::default(), operation));
    match feature {
        Feature::Principals => from(pair!(Source, principals, not_principals, one())),
        Feature::Namespaces => from(pair!(Source, namespaces, not_namespaces, one())),
        Feature::ServiceAccounts => from(pair!(Source, service_accounts, not_service_accounts, one())),
        Feature::Methods => to(pair!(Operation, methods, not_methods, one())),
        Feature::Paths => to(pair!(Operation, paths, not_paths, one())),
        Feature::Hosts => to(pair!(Operation, hosts, not_hosts, one())),
        Feature::Ports => to(pair!(Operation, ports, not_ports, vec![8080])),
        Feature::PathTemplates => to(pair!(Operation, paths, not_paths, template())),
        Feature::RequestPrincipals => from(pair!(Source, request_principals, not_request_principals, vec![user()])),
        Feature::IpBlocks => from(pair!(Source, remote_ip_blocks, not_ip_blocks, vec![block()])),
        Feature::TrustDomains => from(pair!(Source, trust_domains, not_trust_domains, one())),
        Feature::Conditions => when(TextKey::Header("x-role".to_owned())),
        Feature::UserConditions => when(TextKey::UserClaim(vec!["amr".to_owned()])),
        Feature::SourceLabels => when(TextKey::SourceLabel("app".to_owned())),
        Feature::Audit | Feature::Custom | Feature::PeerAuthentication => {
            unreachable!("of an action or of a port, not of a rule")
        }
    }
}

#[test]
fn a_field_and_its_negation_need_the_same_feature_and_go_together() {
    let of_rules =
        |feature: &Feature| !matches!(feature, Feature::Audit | Feature::Custom | Feature::PeerAuthentication);
    for feature in Feature::ALL.into_iter().filter(of_rules) {
        let lacks = FeatureSet::all().without(feature);
        for one in rules_with(feature) {
            let allow = policy(Action::Allow, vec![one.clone(), Rule::default()]);
            assert!(allow.features().has(feature), "{feature:?}");
            assert_eq!(
                allow.masked(lacks).unwrap().rules,
                [Rule::default()],
                "{feature:?}: the rule is left out"
            );
            let deny = policy(Action::Deny, vec![one]).masked(lacks).unwrap();
            let anything = rule(Source::default(), Operation::default());
            assert_eq!(deny.rules, [anything], "{feature:?}: the rule denies all");
        }
    }
}

#[test]
fn a_proxy_that_cannot_ask_denies_and_one_that_cannot_mark_is_not_told() {
    let all = || vec![rule(Source::default(), Operation::default())];
    let mut custom = policy(Action::Custom, all());
    custom.provider = "opa".to_owned();
    let masked = custom.masked(FeatureSet::all().without(Feature::Custom)).unwrap();
    assert_eq!((masked.action, masked.provider.as_str()), (Action::Deny, ""));
    assert_eq!(masked.rules, all());
    assert_eq!(
        policy(Action::Audit, all()).masked(FeatureSet::all().without(Feature::Audit)),
        None
    );
}

#[test]
fn an_allow_policy_that_loses_all_its_rules_still_denies_the_rest() {
    let [one, _] = rules_with(Feature::Methods);
    let none = policy(Action::Allow, vec![one]).masked(FeatureSet::default()).unwrap();
    assert_eq!(none.rules, []);
    let compiled = Compiled::new(vec![none]);
    let asked = Choices::new(&[]).asked();
    assert_eq!(
        compiled.decide(&asked.request()).reason,
        postern_policy::Reason::NoAllowRule
    );
}

#[test]
fn a_list_with_a_template_among_its_alternatives_goes_as_a_whole() {
    let paths = vec![
        StringMatch::Exact("/public".to_owned()),
        StringMatch::Template("/a/{**}".to_owned()),
    ];
    let operation = Operation {
        paths,
        ..Operation::default()
    };
    let deny = policy(Action::Deny, vec![rule(Source::default(), operation)]);
    let old = deny.masked(FeatureSet::all().without(Feature::PathTemplates)).unwrap();
    assert_eq!(
        old.rules[0].to,
        [Arc::new(Operation::default())],
        "without one alternative it would deny less"
    );
}

#[test]
fn rules_keep_the_index_that_the_document_gives_them() {
    let [mut first, _] = rules_with(Feature::Hosts);
    let [mut second, _] = rules_with(Feature::Ports);
    (first.index, second.index) = (0, 1);
    let allow = policy(Action::Allow, vec![first, second]);
    let old = allow.masked(FeatureSet::all().without(Feature::Hosts)).unwrap();
    assert_eq!(old.rules.iter().map(|rule| rule.index).collect::<Vec<_>>(), [1]);
}

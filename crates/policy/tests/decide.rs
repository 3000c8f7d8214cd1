//! Decisions: the compiled index against a naive evaluator (Z-12), and the rules that other meshes got wrong, by name.
#![allow(clippy::unwrap_used)]

mod random;
mod reference;

#[path = "decide/rows.rs"]
mod rows;

use std::cell::Cell;
use std::collections::BTreeMap;

use postern_identity::TrustDomain;
use postern_policy::{Action, Compiled, Reason, Verdict};
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use random::{Choices, bytes};

/// Policy sets tried by `cargo test`; each answers [`REQUESTS`] requests. `POSTERN_POLICY_CASES` raises it
/// (Z-12 wants 10^7 decisions, which 1,250,000 give).
const CASES: u32 = 20_000;
/// Requests asked of each policy set.
const REQUESTS: usize = 8;
/// A reason that fewer decisions than one in so many carry is not tested. The rarest is carried by one in 170, give or
/// take a twentieth.
const RARE: u64 = 1_000;

fn runner() -> TestRunner {
    let cases = std::env::var("POSTERN_POLICY_CASES").map_or(CASES, |text| text.parse().unwrap());
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

#[test]
fn z_12_the_index_decides_as_a_naive_evaluator_does() {
    let seen: [[Cell<u64>; 2]; 4] = Default::default();
    let marked: [Cell<u64>; 2] = Default::default();
    let total = Cell::new(0);
    let home = TrustDomain::parse(reference::HOME).unwrap();
    let outcome = runner().run(&bytes(), |bytes| {
        let mut choices = Choices::new(&bytes);
        let requests: Vec<_> = (0..REQUESTS).map(|_| choices.asked()).collect();
        let policies = choices.policies();
        let compiled = Compiled::at_home_in(&home, policies.clone());
        for asked in &requests {
            let request = asked.request();
            let decision = compiled.decide(&request);
            let (reason, at) = reference::evaluate(&policies, &request);
            let decided = (decision.reason, decision.policy_index.zip(decision.rule));
            if decided != (reason, at) {
                let what = format!("{decided:?}, not {:?}\n{asked:#?}\n{policies:#?}", (reason, at));
                return Err(TestCaseError::fail(what));
            }
            let allowed = decision.verdict == Verdict::Allow;
            if allowed != (reason == Reason::AllowRule) {
                return Err(TestCaseError::fail(format!("{decision:?}")));
            }
            let audit = decision.audit.map(|audit| (audit.policy_index, audit.rule));
            if audit != reference::any_match(&policies, &request, Action::Audit, "") {
                return Err(TestCaseError::fail(format!("{audit:?}\n{asked:#?}\n{policies:#?}")));
            }
            let custom: BTreeMap<&str, _> = compiled
                .custom(&request)
                .map(|(name, by)| (name, (by.policy_index, by.rule)))
                .collect();
            let providers = policies
                .iter()
                .filter(|policy| policy.action == Action::Custom)
                .map(|policy| &*policy.provider);
            let wanted = providers
                .filter_map(|name| Some((name, reference::any_match(&policies, &request, Action::Custom, name)?)));
            if custom != wanted.collect() {
                return Err(TestCaseError::fail(format!("{custom:?}\n{asked:#?}\n{policies:#?}")));
            }
            marked[0].set(marked[0].get() + u64::from(audit.is_some()));
            marked[1].set(marked[1].get() + u64::from(!custom.is_empty()));
            let count = &seen[reason as usize][usize::from(asked.http.is_none())];
            count.set(count.get() + 1);
            total.set(total.get() + 1);
        }
        Ok(())
    });
    outcome.unwrap();
    for (count, action) in marked.iter().zip(["AUDIT", "CUSTOM"]) {
        assert!(count.get() > total.get() / RARE, "{action}: {count:?} of {total:?}");
    }
    for reason in [
        Reason::AllowRule,
        Reason::DenyRule,
        Reason::NoAllowRule,
        Reason::NoPolicy,
    ] {
        for (count, kind) in seen[reason as usize].iter().zip(["HTTP", "opaque"]) {
            assert!(
                count.get() > total.get() / RARE,
                "{reason:?} on {kind}: {count:?} of {total:?}"
            );
        }
    }
}

#[test]
fn a_port_that_needs_no_http_decides_the_same_without_it() {
    let outcome = runner().run(&bytes(), |bytes| {
        let mut choices = Choices::new(&bytes);
        let asked = choices.asked();
        let compiled = Compiled::new(choices.policies());
        let with = asked.request();
        let without = postern_policy::Request { http: None, ..with };
        let (with, without) = (compiled.decide(&with).verdict, compiled.decide(&without).verdict);
        if compiled.needs_http(asked.port) || with == without {
            return Ok(());
        }
        Err(TestCaseError::fail(format!("{asked:#?}\n{:#?}", compiled.policies())))
    });
    outcome.unwrap();
}

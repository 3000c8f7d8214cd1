//! A decision takes no heap allocation, however many rules there are. In a binary of its own: the counting allocator is global.
#![allow(clippy::unwrap_used)]

mod random;

use std::sync::Arc;

use allocation_counter::measure;
use postern_policy::canonical::CanonicalPathRef;
use postern_policy::document::Place;
use postern_policy::{Action, Compiled, Operation, Request, Rule, StringMatch};
use proptest::prelude::*;
use random::{Choices, bytes};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decision_takes_no_heap_allocation(bytes in bytes()) {
        let mut choices = Choices::new(&bytes);
        let asked: Vec<_> = (0..8).map(|_| choices.asked()).collect();
        let compiled = Compiled::new(choices.policies());
        for asked in &asked {
            prop_assert_eq!(allocations(&compiled, &asked.request()), 0, "{:#?}\n{:#?}", asked, compiled.policies());
        }
    }
}

/// Of one decision and the look at the place of its rule.
fn allocations(compiled: &Compiled, request: &Request<'_>) -> u64 {
    let count = measure(|| {
        std::hint::black_box(compiled.decide(request).place());
    });
    count.count_total
}

#[test]
fn a_decision_among_thousands_of_rules_takes_no_heap_allocation() {
    let template = Choices::new(&[4; 400]).policies().remove(0);
    let rule = |i: u32| Rule {
        place: Place::default(),
        index: i,
        from: Vec::new(),
        to: vec![Arc::new(Operation {
            paths: vec![
                StringMatch::Exact(format!("/items/{i}")),
                StringMatch::Prefix(format!("/x/{i}/")),
            ],
            ..Operation::default()
        })],
        when: Vec::new(),
    };
    let policies = [Action::Allow, Action::Deny].map(|action| {
        let mut policy = template.clone();
        policy.action = action;
        policy.rules = (0..5_000).map(rule).collect();
        policy
    });
    let compiled = Compiled::new(policies.to_vec());
    for seed in 0..=255 {
        let asked = Choices::new(&[seed; 40]).asked();
        assert_eq!(allocations(&compiled, &asked.request()), 0, "{asked:?}");
    }
}

#[test]
fn a_path_that_is_canonical_is_checked_without_a_copy() {
    let count = measure(|| {
        assert!(CanonicalPathRef::check("/shop.v1.Payments/Pay").unwrap().is_some());
    });
    assert_eq!(count.count_total, 0);
    let counted = measure(|| drop(std::hint::black_box(String::from("this counts"))));
    assert_eq!(counted.count_total, 1, "the allocator that counts is in place");
}

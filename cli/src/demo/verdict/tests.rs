#![allow(clippy::unwrap_used)]
use postern_shop::canary::{Reached, Status};

use super::*;

fn attempt(nonce: &str) -> Attempt {
    Attempt {
        nonce: nonce.to_owned(),
        page: "",
        what: "HTTP to cart".to_owned(),
        heard: "connection reset".to_owned(),
    }
}

fn calls(kind: &str) -> Calls {
    let expect_denied = kind.starts_with("mallory") || kind.ends_with("admin");
    Calls {
        allowed: u64::from(!expect_denied) * 10,
        denied: u64::from(expect_denied) * 10,
        latencies_us: vec![100; 10],
        expect_denied,
        ..Calls::default()
    }
}

fn status(workload: &str) -> Status {
    let own = KINDS.iter().filter(|kind| kind.starts_with(&format!("{workload}>")));
    let reached = match workload {
        "cart" => Reached {
            by_caller: BTreeMap::from([("spiffe://cluster.local/ns/shop/sa/web".to_owned(), 10)]),
            nonces: [("nonce-allowed".to_owned(), "items".to_owned())].into(),
            ..Reached::default()
        },
        "ledger" => Reached {
            sessions: 10,
            ..Reached::default()
        },
        _ => Reached::default(),
    };
    Status {
        reached,
        calls: own.map(|kind| ((*kind).to_owned(), calls(kind))).collect(),
    }
}

/// A run in which everything is as it should be.
fn good() -> Facts {
    let workloads = crate::demo::documents::WORKLOADS;
    Facts {
        statuses: workloads.iter().map(|workload| (*workload, status(workload))).collect(),
        under_mutual_tls: BTreeMap::from([("cart", 10), ("ledger", 10)]),
        renewals: workloads.iter().map(|workload| ((*workload).to_owned(), 2)).collect(),
        denied_by_reason: Reasons::from([("no_allow_rule".to_owned(), 30)]),
        attacks: Attack::ALL
            .iter()
            .map(|attack| (*attack, vec![attempt(attack.name())]))
            .collect(),
        allowed_probe: Some(attempt("nonce-allowed")),
        troubles: Vec::new(),
    }
}

fn of_kind<'a>(facts: &'a mut Facts, workload: &str, kind: &str) -> &'a mut Calls {
    facts.statuses.get_mut(workload).unwrap().calls.get_mut(kind).unwrap()
}

fn only_why(facts: &Facts) -> String {
    let verdict = Verdict::of(facts);
    assert!(!verdict.ok);
    assert_eq!(verdict.why.len(), 1, "{:?}", verdict.why);
    verdict.why[0].clone()
}

#[test]
fn a_run_in_which_all_is_well_is_ok_and_counts_what_the_services_counted() {
    let verdict = Verdict::of(&good());
    assert!(verdict.ok, "{:?}", verdict.why);
    assert_eq!(
        verdict.requests,
        Requests {
            allowed: 50,
            denied: 40,
            failed: 0
        }
    );
    assert_eq!(verdict.renewals, 10);
    assert!((verdict.mutual_tls_percent - 100.0).abs() < f64::EPSILON);
    assert!(verdict.attacks.values().all(|fate| *fate == Fate::Refused));
}

#[test]
fn the_json_has_the_promised_shape() {
    let json = serde_json::to_value(Verdict::of(&good())).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["requests"]["allowed"], 50);
    assert_eq!(json["denied_by_reason"]["no_allow_rule"], 30);
    assert_eq!(json["attacks"]["plaintext"], "refused");
    for field in ["p50", "p99", "direct_p50", "direct_p99"] {
        assert!(json["latency_us"][field].is_u64(), "{json}");
    }
    assert!(!json.to_string().contains('\n'));
}

#[test]
fn an_attack_passes_by_the_services_word_whatever_the_attacker_heard() {
    let mut facts = good();
    let cart = facts.statuses.get_mut("cart").unwrap();
    cart.reached.nonces.insert(("plaintext".to_owned(), "items".to_owned()));
    assert!(only_why(&facts).contains("plaintext PASSED"));
    let json = serde_json::to_value(Verdict::of(&facts)).unwrap();
    assert_eq!(json["attacks"]["plaintext"], "PASSED");
}

#[test]
fn an_attack_that_was_not_tried_was_not_refused() {
    let mut facts = good();
    facts.attacks.remove(&Attack::ExpiredCertificate);
    assert!(only_why(&facts).contains("expired_certificate was not tried"));
}

#[test]
fn refusals_prove_nothing_if_even_an_allowed_probe_does_not_arrive() {
    let mut facts = good();
    facts.statuses.get_mut("cart").unwrap().reached.nonces.clear();
    assert!(only_why(&facts).contains("prove nothing"));
}

#[test]
fn one_request_that_nobody_vouched_for_keeps_mutual_tls_below_a_hundred() {
    let mut facts = good();
    let cart = facts.statuses.get_mut("cart").unwrap();
    *cart.reached.by_caller.values_mut().next().unwrap() = 99_999;
    cart.reached.by_caller.insert(String::new(), 1);
    facts.under_mutual_tls.insert("cart", 100_000);
    assert!(only_why(&facts).contains("99.99 %"));
}

#[test]
fn a_caller_that_claims_an_identity_unvouched_is_not_believed() {
    let mut facts = good();
    facts.under_mutual_tls.insert("cart", 4);
    assert!(only_why(&facts).contains("70 %"));
}

#[test]
fn failures_wrong_denials_and_wrong_answers_each_say_which_calls() {
    let mut facts = good();
    of_kind(&mut facts, "web", "web>cart").failed = 1;
    assert!(only_why(&facts).contains("web>cart: 1 of 11 calls failed"));
    let mut facts = good();
    of_kind(&mut facts, "web", "web>payments").denied = 1;
    assert!(only_why(&facts).contains("web>payments: 1 of 11 calls were denied that are allowed"));
    let mut facts = good();
    of_kind(&mut facts, "mallory", "mallory>ledger").allowed = 1;
    assert!(only_why(&facts).contains("mallory>ledger: 1 of 11 calls were answered that nobody allows"));
    let mut facts = good();
    facts
        .statuses
        .get_mut("web")
        .unwrap()
        .calls
        .remove("web>payments stream");
    assert!(only_why(&facts).contains("web>payments stream: not one call"));
}

#[test]
fn every_workload_must_have_renewed() {
    let mut facts = good();
    facts.renewals.insert("mallory".to_owned(), 0);
    assert!(only_why(&facts).contains("mallory's certificate was not renewed"));
}

#[test]
fn quantiles_are_samples() {
    assert_eq!(quantile(&[], 0.5), 0);
    assert_eq!(quantile(&[30, 10, 20], 0.5), 20);
    assert_eq!(quantile(&[30, 10, 20], 0.99), 30);
}

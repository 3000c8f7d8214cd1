#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const OWN: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn reporter() -> Name {
    ("shop".to_owned(), "cart".to_owned())
}

fn inbound(source: &str, allowed: u64) -> wire::Flow {
    wire::Flow {
        direction: wire::Direction::Inbound as i32,
        source: source.to_owned(),
        protocol: wire::Protocol::Http1 as i32,
        port: 8080,
        mutual_tls: true,
        allowed,
        latency_buckets: vec![allowed],
        ..wire::Flow::default()
    }
}

fn report(flows: Vec<wire::Flow>) -> wire::FlowReport {
    wire::FlowReport {
        flows,
        ..wire::FlowReport::default()
    }
}

#[test]
fn reports_of_one_edge_add_up() {
    let mut observed = Observed::default();
    for _ in 0..3 {
        assert_eq!(
            observed.take(&reporter(), OWN, report(vec![inbound("spiffe://td/web", 5)])),
            Overflow::default()
        );
    }
    let views = observed.flow_views().0;
    assert_eq!(views.len(), 1);
    let flow = views[0].flow.as_ref().unwrap();
    assert_eq!((flow.allowed, flow.latency_buckets[0]), (15, 15));
    assert_eq!(views[0].reporter, "shop/cart");
}

#[test]
fn a_proxy_reports_for_itself_only() {
    let mut observed = Observed::default();
    let mut forged = inbound("spiffe://td/web", 1);
    forged.destination = "spiffe://cluster.local/ns/shop/sa/payments".to_owned();
    let denial = wire::Denial {
        destination: "spiffe://cluster.local/ns/shop/sa/payments".to_owned(),
        ..wire::Denial::default()
    };
    let report = wire::FlowReport {
        flows: vec![forged],
        denials: vec![denial],
        ..wire::FlowReport::default()
    };
    observed.take(&reporter(), OWN, report);
    assert_eq!(observed.flow_views().0[0].flow.as_ref().unwrap().destination, OWN);
    assert_eq!(observed.denials[0].destination, OWN);
}

#[test]
fn a_flood_of_edges_is_counted_and_not_kept() {
    let mut observed = Observed::default();
    let mut dropped = 0;
    for batch in 0..8 {
        let flows = (0..300)
            .map(|i| inbound(&format!("spiffe://td/{batch}-{i}"), 1))
            .collect();
        dropped += observed.take(&reporter(), OWN, report(flows)).flows;
    }
    let kept = observed.flow_views().0.len();
    assert_eq!(kept, 512);
    assert_eq!(kept as u64 + dropped, 2400);
}

#[test]
fn rings_keep_the_newest_and_one_report_cannot_fill_the_events() {
    let mut observed = Observed::default();
    for i in 0..100 {
        observed.event("info", format!("event {i}"));
    }
    assert_eq!(observed.events.len(), 64);
    assert_eq!(observed.events.back().unwrap().text, "event 99");
    let event = wire::Event {
        text: "flood\u{1b}[2J".to_owned(),
        level: "shout".to_owned(),
        time_unix_ms: 1,
    };
    let denial = wire::Denial {
        path: "é".repeat(500),
        ..wire::Denial::default()
    };
    let report = wire::FlowReport {
        events: vec![event; 100],
        denials: vec![denial; 100],
        ..wire::FlowReport::default()
    };
    let overflow = observed.take(&reporter(), OWN, report);
    assert_eq!((overflow.events, overflow.denials), (92, 36));
    assert_eq!(observed.events.iter().filter(|e| e.text.contains("flood")).count(), 8);
    let event = observed.events.back().unwrap();
    assert_eq!(
        (event.level.as_str(), event.text.as_str()),
        ("info", "shop/cart: flood?[2J")
    );
    assert!(observed.denials.iter().all(|denial| denial.path.len() <= 128));
}

#[test]
fn a_forgotten_workload_makes_room() {
    let mut observed = Observed::default();
    observed.take(&reporter(), OWN, report(vec![inbound("spiffe://td/web", 1)]));
    observed.flows.forget(&reporter());
    assert!(observed.flow_views().0.is_empty());
}

proptest! {
    #[test]
    fn cutting_never_splits_a_character(text in "\\PC{0,80}", most in 0usize..64) {
        let mut cut_text = text.clone();
        cut(&mut cut_text, most);
        prop_assert!(cut_text.len() <= most.max(cut_text.len().min(most)));
        prop_assert!(text.starts_with(&cut_text));
    }
}

#![allow(clippy::unwrap_used)]

use super::*;
use crate::api::objects::Direction;

fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

fn flow(reporter: &str, direction: wire::Direction, source: &str, destination: &str, allowed: u64) -> wire::FlowView {
    wire::FlowView {
        reporter: reporter.to_owned(),
        flow: Some(wire::Flow {
            direction: direction as i32,
            source: source.to_owned(),
            destination: destination.to_owned(),
            service: "cart.shop".to_owned(),
            port: 80,
            protocol: wire::Protocol::Http1 as i32,
            mutual_tls: true,
            allowed,
            ..wire::Flow::default()
        }),
        recently_allowed: allowed,
        recently_denied: 3,
    }
}

fn picture(replica: &str, flows: Vec<wire::FlowView>) -> wire::Picture {
    wire::Picture {
        replica: replica.to_owned(),
        flows,
        recent_ms: 30_000,
        ..wire::Picture::default()
    }
}

#[test]
fn counts_and_rates_of_one_edge_add_up_over_pods_and_replicas() {
    let inbound = wire::Direction::Inbound;
    let pictures = [
        picture(
            "a",
            vec![
                flow("shop/cart-1", inbound, &id("web"), &id("cart"), 30),
                flow("shop/cart-2", inbound, &id("web"), &id("cart"), 60),
            ],
        ),
        // The first pod's proxy went over to this replica.
        picture("b", vec![flow("shop/cart-1", inbound, &id("web"), &id("cart"), 90)]),
    ];
    let edges = edges(&pictures);
    assert_eq!(edges.len(), 1);
    let edge = &edges[0].body;
    assert_eq!((edge.allowed, edge.reporters), (180, 2));
    assert!((edge.allowed_per_second - 6.0).abs() < 1e-9, "{edge:?}");
    assert!((edge.denied_per_second - 0.3).abs() < 1e-9, "{edge:?}");
}

#[test]
fn what_never_reached_the_called_side_is_the_callers_to_tell() {
    let mut unsent = flow("shop/web-1", wire::Direction::Outbound, &id("web"), &id("cart"), 5);
    unsent.flow.as_mut().unwrap().failed = 7;
    let pictures = [picture(
        "a",
        vec![
            unsent.clone(),
            flow("shop/cart-1", wire::Direction::Inbound, &id("web"), &id("cart"), 5),
        ],
    )];
    let both = edges(&pictures);
    assert_eq!(both.len(), 1);
    assert_eq!(
        (both[0].body.direction, both[0].body.allowed, both[0].body.failed),
        (Direction::Inbound, 5, 7)
    );
    // The called side is in another namespace: each namespace has what its own proxies saw.
    let mut elsewhere = flow("bank/ledger-1", wire::Direction::Inbound, &id("web"), &id("cart"), 5);
    elsewhere.reporter = "bank/ledger-1".to_owned();
    let apart = edges(&[picture("a", vec![unsent, elsewhere])]);
    let spaces: Vec<&str> = apart
        .iter()
        .map(|edge| edge.metadata.namespace.as_deref().unwrap())
        .collect();
    assert_eq!(spaces, ["bank", "shop"]);
}

#[test]
fn names_are_dns_names_and_tell_edges_apart() {
    let inbound = wire::Direction::Inbound;
    let mut other_port = flow("shop/cart-1", inbound, &id("web"), &id("cart"), 1);
    other_port.flow.as_mut().unwrap().port = 81;
    let pictures = [picture(
        "a",
        vec![
            flow("shop/cart-1", inbound, &id("web"), &id("cart"), 1),
            other_port,
            flow("shop/cart-1", inbound, "", &id("cart"), 1),
            flow("shop/cart-1", inbound, &id(&"long".repeat(60)), &id("cart"), 1),
            flow(
                "shop/cart-1",
                inbound,
                "spiffe://other.example/Whoever_Else",
                &id("cart"),
                1,
            ),
        ],
    )];
    let edges = edges(&pictures);
    let mut names: Vec<&str> = edges
        .iter()
        .map(|edge| edge.metadata.name.as_deref().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("web-cart-80-")), "{names:?}");
    for name in &names {
        assert!(
            name.len() <= 253
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "{name}"
        );
    }
    names.dedup();
    assert_eq!(names.len(), 5);
}

#[test]
fn a_workload_is_seen_where_it_is_connected() {
    let view = |connected, issued, version: &str| wire::WorkloadView {
        namespace: "shop".to_owned(),
        name: "cart-1".to_owned(),
        connected,
        proxy_version: version.to_owned(),
        policy_version_acknowledged: 7,
        certificate: Some(wire::Certificate {
            issued_unix_ms: issued,
            ..wire::Certificate::default()
        }),
        ..wire::WorkloadView::default()
    };
    let of = |replica: &str, view, policy_version| wire::Picture {
        workloads: vec![view],
        policy_version,
        ..picture(replica, Vec::new())
    };
    let pictures = [
        of("a", view(false, 9_000, "old"), 9),
        of("b", view(true, 1_000, "new"), 7),
        of("c", view(false, 2_000, "old"), 9),
    ];
    let proxies = proxies(&pictures);
    assert_eq!(proxies.len(), 1);
    let proxy = &proxies[0].body;
    assert_eq!((&*proxy.version, proxy.ready, &*proxy.replica), ("new", true, "b"));
    let behind = super::proxies(&[of("a", view(true, 1, "new"), 8)]);
    assert_eq!(behind[0].body.reason, "its policies are not the newest yet");
    let away = super::proxies(&[of("a", view(false, 1, "new"), 8)]);
    assert_eq!(
        (away[0].body.ready, &*away[0].body.reason),
        (false, "not connected to control")
    );
}

//! What proxies say back, and what a viewer sees of it.

use std::os::unix::fs::PermissionsExt as _;

use postern_api::control::v1 as wire;
use postern_api::control::v1::view_client::ViewClient;
use postern_api::transport;
use tonic::Code;
use wire::proxy_message::Message as ToControl;

use crate::world::{Proxy, World, hello, id, named, policy};

fn flow(port: u32) -> wire::Flow {
    wire::Flow {
        direction: wire::Direction::Inbound as i32,
        source: id("web"),
        // A lie: it speaks for itself only.
        destination: id("bank"),
        port,
        protocol: wire::Protocol::Http1 as i32,
        mutual_tls: true,
        allowed: 1,
        open_connections: 3,
        ..wire::Flow::default()
    }
}

async fn acknowledge(proxy: &mut Proxy, kind: wire::Kind, version: u64, refused: &str) {
    let refused = refused.to_owned();
    let kind = kind as i32;
    let acknowledge = wire::Acknowledge { kind, version, refused };
    proxy.send(ToControl::Acknowledge(acknowledge)).await;
}

fn view_of<'p>(picture: &'p wire::Picture, name: &str) -> &'p wire::WorkloadView {
    picture.workloads.iter().find(|workload| workload.name == name).unwrap()
}

fn open(picture: &wire::Picture) -> u64 {
    let flows = picture.flows.iter().filter_map(|view| view.flow.as_ref());
    flows.map(|flow| flow.open_connections).sum()
}

#[tokio::test]
async fn an_acknowledgement_shows_which_policies_are_in_force_where() {
    let world = World::shop().await;
    let mut viewer = world.viewer().await;
    let mut cart = world.proxy("cart").await.started().await;
    let current = |picture: &wire::Picture| {
        let cart = view_of(picture, "cart");
        cart.connected && cart.policy_version_acknowledged == picture.policy_version
    };
    let picture = viewer.until(|picture| view_of(picture, "cart").connected).await;
    assert_eq!(
        view_of(&picture, "cart").policy_version_acknowledged,
        0,
        "sent is not in force"
    );
    let first = cart.held.policies.as_ref().unwrap().version;
    acknowledge(&mut cart, wire::Kind::Policies, first, "").await;
    viewer.until(current).await;
    // For the other workload: what the cart holds is the newest without another message.
    world.write(
        "p.yaml",
        &policy("web", "{selector: {matchLabels: {app: web}}, rules: [{}]}"),
    );
    let version = picture.policy_version;
    viewer
        .until(|picture| picture.policy_version > version && current(picture))
        .await;
    // For it: not until it says so; a refusal is shown and counts for nothing, nor does an old acknowledgement.
    world.write("p.yaml", &policy("all", "{rules: [{}]}"));
    cart.until(|held| held.policy_names() == ["all"]).await;
    let second = cart.held.policies.as_ref().unwrap().version;
    acknowledge(&mut cart, wire::Kind::Policies, second, "why\u{7} not").await;
    acknowledge(&mut cart, wire::Kind::Policies, first, "").await;
    let event = viewer
        .event(&format!("shop/cart refuses policies {second}: why? not"))
        .await;
    assert_eq!(event.level, "error");
    let picture = viewer.until(|_| true).await;
    assert!(!current(&picture));
    acknowledge(&mut cart, wire::Kind::Policies, second, "").await;
    viewer.until(current).await;
}

/// One hostile proxy filled control's log, and pushed every other event out of the ring.
#[tokio::test]
async fn a_proxy_refuses_what_it_was_sent_last_once_and_more_of_it_is_only_counted() {
    let world = World::shop().await;
    let mut viewer = world.viewer().await;
    let mut cart = world.proxy("cart").await.started().await;
    cart.send(named(1, "cart", 80)).await;
    cart.until(|held| !held.versions(wire::Kind::Destination).is_empty())
        .await;
    for kind in [wire::Kind::Policies, wire::Kind::Destination] {
        let version = *cart.held.versions(kind).last().unwrap();
        for i in 0..50 {
            acknowledge(&mut cart, kind, version, "flood").await;
            acknowledge(&mut cart, kind, version + 1 + i, "flood").await;
        }
    }
    let last = wire::FlowReport {
        sequence: 1,
        flows: vec![flow(1)],
        ..wire::FlowReport::default()
    };
    cart.send(ToControl::Flows(last)).await;
    let picture = viewer.until(|picture| open(picture) == 3).await;
    let told = |kind: &str| {
        let says = format!("shop/cart refuses {kind} ");
        picture.events.iter().filter(|event| event.text.contains(&says)).count()
    };
    assert_eq!((told("policies"), told("destination")), (1, 1));
}

#[tokio::test]
async fn a_report_is_kept_up_to_its_bounds_and_counted_once() {
    let world = World::shop().await;
    let mut viewer = world.viewer().await;
    let mut cart = world.proxy("cart").await.started().await;
    let denial = wire::Denial {
        source: id("mallory"),
        destination: id("bank"),
        path: "/".repeat(500),
        ..wire::Denial::default()
    };
    let report = wire::FlowReport {
        sequence: 5,
        flows: (1..=257).map(flow).collect(),
        denials: vec![denial; 65],
        certificate: Some(wire::Certificate {
            spiffe_id: id("bank"),
            serial: "01".to_owned(),
            renewals: 2,
            ..wire::Certificate::default()
        }),
        ..wire::FlowReport::default()
    };
    // Again after a hiccup, and one that was overtaken.
    let older = wire::FlowReport {
        sequence: 4,
        ..report.clone()
    };
    for report in [report.clone(), report, older] {
        cart.send(ToControl::Flows(report)).await;
    }
    let last = wire::FlowReport {
        sequence: 6,
        flows: vec![flow(1)],
        ..wire::FlowReport::default()
    };
    cart.send(ToControl::Flows(last)).await;
    let picture = viewer
        .until(|picture| {
            picture
                .flows
                .first()
                .and_then(|view| view.flow.as_ref())
                .is_some_and(|flow| flow.allowed == 2)
        })
        .await;
    assert_eq!((picture.flows.len(), picture.denials.len()), (256, 64));
    for view in &picture.flows {
        let flow = view.flow.as_ref().unwrap();
        assert_eq!((&*view.reporter, &*flow.destination), ("shop/cart", &*id("cart")));
        assert_eq!(
            (flow.allowed, flow.open_connections),
            (1 + u64::from(flow.port == 1), 3)
        );
    }
    assert!(
        picture
            .denials
            .iter()
            .all(|denial| denial.destination == id("cart") && denial.path.len() == 128)
    );
    let certificate = view_of(&picture, "cart").certificate.clone().unwrap();
    assert_eq!((certificate.spiffe_id, certificate.renewals), (id("cart"), 2));
    // Who is gone has nothing open.
    drop(cart);
    let picture = viewer
        .until(|picture| !view_of(picture, "cart").connected && open(picture) == 0)
        .await;
    assert_eq!(picture.flows.len(), 256);
}

/// Every renewal of a proxy's SVID emptied the screen's column until the next report.
#[tokio::test]
async fn what_is_open_stays_open_while_a_newer_stream_of_the_workload_stands() {
    let world = World::shop().await;
    let mut viewer = world.viewer().await;
    let mut old = world.proxy("cart").await.started().await;
    let mut new = world.proxy("cart").await.started().await;
    let report = wire::FlowReport {
        sequence: 1,
        flows: vec![flow(1)],
        ..wire::FlowReport::default()
    };
    new.send(ToControl::Flows(report)).await;
    viewer.until(|picture| open(picture) == 3).await;
    old.out = None;
    old.ends().await;
    let now = world.viewer().await.until(|_| true).await;
    assert!(view_of(&now, "cart").connected);
    assert_eq!(open(&now), 3);
}

#[tokio::test]
async fn a_picture_shows_every_meshed_workload_and_who_is_connected() {
    let plain = "{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {name: plain, namespace: shop}, spec: {mesh: false}}";
    let world = World::with(&[("shop.yaml", crate::world::SHOP), ("plain.yaml", plain)]).await;
    let version = format!("{}-test", postern_api::VERSION);
    let mut viewer = world.viewer().await;
    let web = world
        .caller(
            &id("web"),
            Some("web"),
            wire::Hello {
                version: version.clone(),
                ..hello()
            },
        )
        .await;
    let _web = web.started().await;
    let picture = viewer.until(|picture| view_of(picture, "web").connected).await;
    let names: Vec<_> = picture
        .workloads
        .iter()
        .map(|w| (&*w.namespace, &*w.name, w.connected))
        .collect();
    assert_eq!(names, [("shop", "cart", false), ("shop", "web", true)]);
    let web = view_of(&picture, "web");
    assert_eq!(
        (&*web.spiffe_id, &*web.proxy_version, web.mode()),
        (&*id("web"), &*version, wire::Mode::Protect)
    );
    assert!(picture.time_unix_ms > 0 && picture.policy_version > 0 && !picture.ca_connected);
}

#[tokio::test]
async fn a_proxy_that_captures_otherwise_than_its_workload_says_is_served_and_told_of() {
    let world = World::shop().await;
    let mut viewer = world.viewer().await;
    // The cart's ports have a `listen` of their own: explicit.
    world.proxy("cart").await.started().await;
    let event = viewer
        .event("the proxy of shop/cart does not run with `capture: explicit`")
        .await;
    assert_eq!(event.level, "warning");
}

#[tokio::test]
async fn only_control_own_user_may_watch_and_at_a_bounded_interval() {
    let world = World::shop().await;
    let mode = std::fs::metadata(world.view_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let channel = transport::connect_unix(&world.view_socket()).await.unwrap();
    let mut client = ViewClient::new(channel);
    for (interval_ms, served) in [(0, true), (99, false), (100, true), (10_000, true), (10_001, false)] {
        let watched = client.watch(wire::WatchRequest { interval_ms }).await;
        assert_eq!(watched.is_ok(), served, "{interval_ms}");
        if let Err(status) = watched {
            assert_eq!(status.code(), Code::InvalidArgument);
        }
    }
}

//! What changes while a proxy is connected reaches it, and nothing else does.

use postern_api::control::v1 as wire;
use tonic::Code;
use wire::destination::State;
use wire::proxy_message::Message as ToControl;

use crate::world::{Proxy, SHOP, World, named, policies_of, policy, resolve};

const ADDITIONAL: &str = "
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: cart-2, namespace: shop, labels: {app: cart}}
spec: {serviceAccount: cart, address: 10.0.0.2}
";

#[tokio::test]
async fn an_edit_reaches_whom_it_concerns_and_nobody_else() {
    let world = World::shop().await;
    let (mut cart, mut web) = (
        world.proxy("cart").await.started().await,
        world.proxy("web").await.started().await,
    );
    let quiet = cart.held.heard.len();
    let for_web = "{selector: {matchLabels: {app: web}}, rules: [{}]}";
    world.write("p.yaml", &policy("web", for_web));
    web.until(|held| held.policy_names() == ["web"]).await;
    let versions = web.held.versions(wire::Kind::Policies);
    assert!(versions[0] < versions[1], "{versions:?}");
    // The cart hears of its own labels next, and of nothing in between.
    world.write(
        "shop.yaml",
        &SHOP.replace("labels: {app: cart}", "labels: {app: cart, tier: back}"),
    );
    cart.until(|held| held.workload.as_ref().is_some_and(|w| w.labels.contains_key("tier")))
        .await;
    assert_eq!(cart.held.heard[quiet..], [wire::Kind::Workload]);
    assert_eq!(web.held.versions(wire::Kind::Workload).len(), 1);
    world.remove("p.yaml");
    web.until(|held| held.policy_names().is_empty()).await;
}

#[tokio::test]
async fn a_broken_edit_reaches_nobody_and_is_shown_until_it_is_mended() {
    let world = World::with(&[("shop.yaml", SHOP), ("p.yaml", &policy("all", "{rules: [{}]}"))]).await;
    let mut viewer = world.viewer().await;
    let mut cart = world.proxy("cart").await.started().await;
    world.write("p.yaml", &policy("all", "{rulez: [{}]}"));
    let picture = viewer.until(|picture| !picture.bad_files.is_empty()).await;
    let bad = &picture.bad_files[0];
    assert_eq!(bad.file, "p.yaml");
    assert!(
        bad.errors[0].starts_with("p.yaml:2:") && bad.errors[0].ends_with("did you mean `rules`?"),
        "{bad:?}"
    );
    let event = viewer.event("p.yaml is refused, its last good state stays").await;
    assert_eq!(event.level, "error");
    world.write("p.yaml", &policy("all", "{rules: [{}, {}]}"));
    cart.until(|held| {
        held.policies
            .as_ref()
            .is_some_and(|set| policies_of(set)[0].rules.len() == 2)
    })
    .await;
    assert_eq!(
        cart.held.versions(wire::Kind::Policies).len(),
        2,
        "the broken one was no change"
    );
    viewer.until(|picture| picture.bad_files.is_empty()).await;
    viewer.event("p.yaml is good again").await;
}

#[tokio::test]
async fn a_destination_is_followed_from_its_question_to_its_release() {
    let world = World::shop().await;
    let mut web = world.proxy("web").await.started().await;
    web.send(named(7, "cart", 80)).await;
    web.until(|held| held.endpoints(7) == ["cart"]).await;
    let address = wire::AddressTarget {
        ip: vec![10, 96, 0, 1],
        port: 80,
    };
    web.send(resolve(8, Some(wire::resolve::Target::Address(address))))
        .await;
    web.until(|held| held.endpoints(8) == ["cart"]).await;
    assert_eq!(web.held.destinations[&7].state, web.held.destinations[&8].state);

    world.write("more.yaml", ADDITIONAL);
    web.until(|held| held.endpoints(7).len() == 2 && held.endpoints(8).len() == 2)
        .await;
    let versions = web.held.versions(wire::Kind::Destination);
    assert!(versions.is_sorted() && versions[1] < versions[2], "{versions:?}");

    web.send(ToControl::Release(wire::Release { id: 7 })).await;
    // Of an ID that was never asked for: nothing to release.
    web.send(ToControl::Release(wire::Release { id: 99 })).await;
    // The same number for another question: the answer is the new one's.
    web.send(named(8, "example.com", 443)).await;
    web.until(|held| matches!(held.destinations[&8].state, Some(State::Outside(_))))
        .await;
    let before = web.held.versions(wire::Kind::Destination).len();
    world.remove("more.yaml");
    // It shows in the ranges that the edit was looked at; and what is asked then comes after what is followed.
    web.until(|held| held.versions(wire::Kind::Ranges).len() == 3).await;
    web.send(named(100, "cart", 80)).await;
    web.until(|held| held.endpoints(100) == ["cart"]).await;
    assert_eq!(web.held.versions(wire::Kind::Destination).len(), before + 1);
}

#[tokio::test]
async fn a_question_that_cannot_be_one_ends_the_stream_and_says_which_part() {
    let world = World::shop().await;
    let address = |ip: Vec<u8>, port| Some(wire::resolve::Target::Address(wire::AddressTarget { ip, port }));
    let acknowledge = |kind| {
        ToControl::Acknowledge(wire::Acknowledge {
            kind,
            ..wire::Acknowledge::default()
        })
    };
    for (message, says) in [
        (named(1, "cart", 0), "resolve: port"),
        (named(1, "cart", 65_536), "resolve: port"),
        (resolve(1, None), "resolve: target"),
        (
            resolve(1, address(vec![10, 0, 0, 0, 1], 80)),
            "resolve: address of 4 or 16 bytes",
        ),
        (resolve(1, address(vec![10, 0, 0, 1], 0)), "resolve: port"),
        (acknowledge(0), "acknowledge: kind"),
        (acknowledge(999), "acknowledge: kind"),
    ] {
        let mut web = world.proxy("web").await.started().await;
        web.send(message).await;
        let status = web.ends().await.unwrap();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, says));
    }
    let web = world.proxy("web").await.started().await;
    let mut web: Proxy = web;
    let _ = web
        .out
        .as_ref()
        .unwrap()
        .send(wire::ProxyMessage { message: None })
        .await;
    assert_eq!(web.ends().await.unwrap().message(), "an empty message");
}

#[tokio::test]
async fn at_shutdown_streams_end_and_the_view_socket_is_gone() {
    let world = World::shop().await;
    let mut cart = world.proxy("cart").await.started().await;
    let socket = world.view_socket();
    assert!(socket.exists());
    let stopping = tokio::spawn(world.running.stop());
    cart.ends().await;
    drop(cart);
    stopping.await.unwrap();
    assert!(!socket.exists());
}

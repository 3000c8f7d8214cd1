//! What ports take reaches whom it concerns: the proxy that stands before them, and those that call.

use postern_api::control::v1 as wire;
use postern_api::policy_wire::features_to_wire;
use postern_policy::{Feature, FeatureSet};
use wire::MtlsMode::{Disable, Permissive, Strict};

use crate::world::{Held, SHOP, World, hello, id, named};

fn door(spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: door, namespace: shop}}, spec: {spec}}}\n"
    )
}

fn cart(spec: &str) -> String {
    door(&format!("{{selector: {{matchLabels: {{app: cart}}}}, {spec}}}"))
}

/// What the proxy's port 80 takes, and its others.
fn takes(held: &Held) -> Option<(wire::MtlsMode, wire::MtlsMode)> {
    let config = held.workload.as_ref()?;
    let at_80 = config.port_mtls.iter().find(|port| port.number == 80);
    let usual = config.mtls();
    Some((at_80.map_or(usual, wire::PortMtls::mode), usual))
}

/// Are the cart's endpoints called in clear?
fn in_clear(held: &Held, asked: u64) -> Option<bool> {
    match held.destinations.get(&asked)?.state.as_ref()? {
        wire::destination::State::Meshed(meshed) => Some(meshed.endpoints.iter().all(|end| end.alpn.is_empty())),
        _ => None,
    }
}

#[tokio::test]
async fn an_edit_reaches_the_proxy_and_its_callers_and_nobody_else() {
    let world = World::shop().await;
    let mut callee = world.proxy("cart").await.started().await;
    let mut web = world.proxy("web").await.started().await;
    assert_eq!(takes(&callee.held), Some((Strict, Strict)));
    web.send(named(1, "cart", 80)).await;
    web.until(|held| in_clear(held, 1) == Some(false)).await;
    for (document, taken, clear) in [
        (cart("portLevelMtls: {80: {mode: DISABLE}}"), (Disable, Strict), true),
        (
            cart("portLevelMtls: {80: {mode: PERMISSIVE}}"),
            (Permissive, Strict),
            false,
        ),
        (cart("mtls: {mode: DISABLE}"), (Disable, Disable), true),
        // For the whole namespace, which is protected: not in force.
        (door("{mtls: {mode: DISABLE}}"), (Strict, Strict), false),
    ] {
        world.write("door.yaml", &document);
        callee.until(|held| takes(held) == Some(taken)).await;
        web.until(|held| in_clear(held, 1) == Some(clear)).await;
    }
    assert_eq!(
        web.held.versions(wire::Kind::Workload).len(),
        1,
        "nothing of its own changed"
    );
    let mut viewer = world.viewer().await;
    let picture = viewer.until(|picture| !picture.conditions.is_empty()).await;
    let told = picture
        .conditions
        .iter()
        .find(|told| told.contains("PeerAuthentication shop/door"));
    assert!(
        told.unwrap().contains("is not in force at shop/cart, shop/web"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_document_that_breaks_keeps_its_last_good_state_and_a_new_one_that_is_broken_is_strict() {
    let world = World::with(&[("shop.yaml", SHOP), ("door.yaml", &cart("mtls: {mode: PERMISSIVE}"))]).await;
    let mut viewer = world.viewer().await;
    let mut callee = world.proxy("cart").await.started().await;
    assert_eq!(takes(&callee.held), Some((Permissive, Permissive)));
    world.write("door.yaml", &cart("mtls: {mode: PERMISIVE}"));
    let picture = viewer.until(|picture| !picture.bad_files.is_empty()).await;
    let error = &picture.bad_files[0].errors[0];
    assert!(
        error.starts_with("door.yaml:1:") && error.ends_with("did you mean `PERMISSIVE`?"),
        "{error}"
    );
    world.write("other.yaml", &cart("mtls: {mod: DISABLE}").replace("door", "other"));
    callee.until(|held| takes(held) == Some((Strict, Strict))).await;
    assert_eq!(callee.held.versions(wire::Kind::Workload).len(), 2);
}

#[tokio::test]
async fn a_proxy_that_knows_nothing_of_it_is_told_the_strictest_mode_where_a_document_is_stricter() {
    let monitor =
        "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {postern.dev/mode: monitor}}}\n";
    let shop = format!("{SHOP}{monitor}");
    let world = World::with(&[
        ("shop.yaml", &shop),
        ("door.yaml", &cart("portLevelMtls: {80: {mode: STRICT}}")),
    ])
    .await;
    let older = wire::Hello {
        features: features_to_wire(FeatureSet::all().without(Feature::PeerAuthentication)),
        ..hello()
    };
    let mut callee = world.caller(&id("cart"), Some("cart"), older).await.started().await;
    let told = |held: &Held| {
        held.workload
            .as_ref()
            .map(|config| (config.mode(), config.mtls, config.port_mtls.len()))
    };
    assert_eq!(told(&callee.held), Some((wire::Mode::Protect, 0, 0)));
    world.write("door.yaml", &cart("portLevelMtls: {80: {mode: DISABLE}}"));
    callee
        .until(|held| told(held) == Some((wire::Mode::Monitor, 0, 0)))
        .await;
    let newer = world.proxy("cart").await.started().await;
    assert_eq!(takes(&newer.held), Some((Disable, Permissive)));
}

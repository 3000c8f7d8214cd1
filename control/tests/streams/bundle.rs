//! With a CA that runs: control's own identity, and the bundle that it carries.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_api::ca::v1 as ca;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::ca_client::{self, JoinToken, control_id};
use postern_api::control::v1 as wire;
use postern_api::transport;
use postern_control::{IdentitySource, start};
use postern_identity::bundle::SignedBundle;
use postern_identity::bundle::advance;
use rustls::pki_types::UnixTime;
use tonic::transport::Channel;
use wire::proxy_message::Message as ToControl;

use crate::world::{Proxy, SHOP, Viewer, config, dial, domain, hello, id, trust_of};

async fn run_ca(dir: &Path) -> postern_ca::Running {
    let making = postern_ca::InitConfig {
        store: dir.join("ca"),
        trust_domain: "cluster.local".to_owned(),
        root_life: Duration::from_secs(24 * 3600),
        issuer_life: Duration::from_secs(12 * 3600),
    };
    postern_ca::init(&making, UnixTime::now()).unwrap();
    let config = postern_ca::ServeConfig {
        store: dir.join("ca"),
        listen: ([127, 0, 0, 1], 0).into(),
        admin_socket: dir.join("admin.sock"),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        ready_file: None,
        svid_life: Duration::from_secs(3600),
        insecure_short_life: false,
        kek: None,
        migrate: false,
        ledger: postern_ca::LedgerConfig::default(),
        root_acknowledge: postern_ca::RootPace::ACKNOWLEDGE,
        root_retire: None,
        issuer_dir: None,
    };
    postern_ca::start(config, Arc::new(UnixTime::now)).await.unwrap()
}

async fn token(admin: &mut AdminClient<Channel>, id: &str, instance: &str) -> JoinToken {
    let request = ca::CreateJoinTokenRequest {
        spiffe_id: id.to_owned(),
        instance: instance.to_owned(),
        life_seconds: 600,
    };
    let made = admin.create_join_token(request).await.unwrap().into_inner();
    JoinToken::parse(&made.token).unwrap()
}

#[tokio::test]
async fn the_cas_bundle_is_carried_as_it_was_signed_and_stays_when_the_ca_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let running_ca = run_ca(dir.path()).await;
    let address = running_ca.listen.to_string();
    let mut admin = AdminClient::new(transport::connect_unix(&dir.path().join("admin.sock")).await.unwrap());
    std::fs::create_dir(dir.path().join("mesh")).unwrap();
    std::fs::write(dir.path().join("mesh/shop.yaml"), SHOP).unwrap();
    let own = token(&mut admin, control_id(&domain()).unwrap().as_str(), "control-1").await;
    let identity = IdentitySource::Ca {
        address: address.clone(),
        evidence: postern_control::Evidence::JoinToken(own),
    };
    let control = start(config(&dir), identity).await.unwrap();
    let mut viewer = Viewer::of(&dir.path().join("view.sock")).await;

    let of_cart = token(&mut admin, &id("cart"), "cart").await;
    let issued = ca_client::first_issue(&address, &of_cart, &domain()).await.unwrap();
    let trust = trust_of(issued.bundle.clone());
    let client = dial(&control, Some(&issued.svid), &trust).await.unwrap();
    let mut cart = Proxy::open(client, Some(ToControl::Hello(hello()))).await;
    cart.until(|held| held.bundle.is_some() && held.ranges.is_some()).await;
    let bundle = cart.held.bundle.clone().unwrap();
    assert_eq!(bundle.issuer_epoch, issued.issuer_epoch);
    // Its signatures hold for whoever holds the one before.
    let links: Vec<SignedBundle> = bundle.bundles.iter().cloned().map(Into::into).collect();
    let carried = advance(&issued.bundle, &links, UnixTime::now()).unwrap();
    assert_eq!(carried.sequence(), issued.bundle.sequence());
    assert!(!links.is_empty());

    let acknowledge = wire::Acknowledge {
        kind: wire::Kind::Bundle as i32,
        version: bundle.version,
        refused: String::new(),
    };
    let acknowledged = |picture: &wire::Picture| {
        let cart = picture
            .workloads
            .iter()
            .find(|workload| workload.name == "cart")
            .unwrap();
        cart.bundle_sequence_acknowledged
    };
    let picture = viewer.until(|picture| picture.ca_connected).await;
    assert_eq!(
        (picture.bundle_sequence, acknowledged(&picture)),
        (carried.sequence(), 0)
    );
    cart.send(ToControl::Acknowledge(acknowledge)).await;
    viewer
        .until(|picture| acknowledged(picture) == picture.bundle_sequence)
        .await;

    // A new issuer is news for every proxy at once.
    admin.rotate_issuer(ca::RotateIssuerRequest {}).await.unwrap();
    cart.until(|held| {
        held.bundle
            .as_ref()
            .is_some_and(|b| b.issuer_epoch == bundle.issuer_epoch + 1)
    })
    .await;
    let versions = cart.held.versions(wire::Kind::Bundle);
    assert!(versions[0] < versions[1], "{versions:?}");

    drop(admin);
    running_ca.stop().await;
    let picture = viewer.until(|picture| !picture.ca_connected).await;
    // Each issuer brings a bundle, with the next key of JWT-SVIDs.
    assert!(picture.bundle_sequence > carried.sequence());
    assert_eq!(picture.issuer_epoch, bundle.issuer_epoch + 1);
    viewer.event("the CA is away; its last bundle stays in force").await;
    let client = dial(&control, Some(&issued.svid), &trust).await.unwrap();
    let mut again = Proxy::open(client, Some(ToControl::Hello(hello()))).await;
    again.until(|held| held.bundle.is_some()).await;
    let (before, after) = (cart.held.bundle.unwrap(), again.held.bundle.unwrap());
    assert!(before.bundles == after.bundles, "the last one stays");
}

#[tokio::test]
async fn a_join_token_for_somebody_else_gives_control_no_identity() {
    let dir = tempfile::tempdir().unwrap();
    let running_ca = run_ca(dir.path()).await;
    let mut admin = AdminClient::new(transport::connect_unix(&dir.path().join("admin.sock")).await.unwrap());
    std::fs::create_dir(dir.path().join("mesh")).unwrap();
    let address = running_ca.listen.to_string();
    let token = token(&mut admin, &id("cart"), "cart").await;
    let source = |token| IdentitySource::Ca {
        address: address.clone(),
        evidence: postern_control::Evidence::JoinToken(token),
    };
    let error = start(config(&dir), source(token.clone()))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the token is for spiffe://cluster.local/ns/shop/sa/cart"),
        "{error}"
    );
    // It is used up now: that answer is final, and control says so instead of asking for ever.
    let error = start(config(&dir), source(token)).await.unwrap_err().to_string();
    assert!(error.contains("the same join token can never give one"), "{error}");
}

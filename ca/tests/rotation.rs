//! Issuers come and go; the bundle reaches control, and nobody else.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postern_api::ca::v1 as pb;
use postern_api::ca_client::{self, Issued};
use postern_api::transport;
use postern_identity::TrustBundle;
use postern_identity::bundle::{self, SignedBundle};
use rustls_pki_types::UnixTime;
use tonic::{Status, Streaming};
use world::{CONTROL, WEB, World, csr, domain, new_key, reason, renewal, trust_of};

mod world;

async fn watch(world: &World, caller: &Issued, sequence: u64) -> Result<Streaming<pb::BundleUpdate>, Status> {
    let request = pb::WatchBundleRequest {
        bundle_sequence: sequence,
        ..pb::WatchBundleRequest::default()
    };
    let mut client = world.client_of(caller).await;
    client.watch_bundle(request).await.map(tonic::Response::into_inner)
}

async fn next(stream: &mut Streaming<pb::BundleUpdate>) -> Result<pb::BundleUpdate, Status> {
    stream.message().await.map(|update| update.expect("the stream goes on"))
}

#[tokio::test]
async fn control_gets_the_bundle_at_once_and_every_new_issuer() {
    let world = World::new().await;
    let control = world.first_issue(CONTROL, "control").await;
    let mut stream = watch(&world, &control, 0).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!((first.bundles.len(), first.issuer_epoch), (1, 1));
    let rotated = world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rotated.issuer_epoch, 2);
    let second = next(&mut stream).await.unwrap();
    assert_eq!(second.issuer_epoch, 2);
    // One link still, by the new signer: the same root, and the next key of JWT-SVIDs.
    assert_eq!(second.bundles.len(), 1);
    assert_ne!(second.bundles[0].signer_chain, first.bundles[0].signer_chain);
    let mut before = 0;
    for update in [first, second] {
        let pinned = TrustBundle::new(domain(), 0, control.bundle.roots().to_vec(), UnixTime::now());
        let links: Vec<SignedBundle> = update.bundles.into_iter().map(Into::into).collect();
        let walked = bundle::advance(&pinned, &links, UnixTime::now()).unwrap();
        assert_eq!(walked.roots(), control.bundle.roots());
        assert!(walked.sequence() > before);
        before = walked.sequence();
    }
}

#[tokio::test]
async fn whoever_holds_the_current_bundle_gets_no_link_but_the_epoch() {
    let world = World::new().await;
    let control = world.first_issue(CONTROL, "control").await;
    let mut stream = watch(&world, &control, control.bundle.sequence()).await.unwrap();
    let update = next(&mut stream).await.unwrap();
    assert_eq!((update.bundles.len(), update.issuer_epoch), (0, 1));
}

#[tokio::test]
async fn nobody_but_control_watches_the_bundle() {
    let world = World::new().await;
    let web = world.first_issue(WEB, "web-1").await;
    let lookalike = world
        .first_issue("spiffe://cluster.local/ns/shop/sa/postern-control", "control")
        .await;
    for caller in [web, lookalike] {
        let status = watch(&world, &caller, 0).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status)),
            (tonic::Code::PermissionDenied, "caller_identity")
        );
    }
    let anonymous = world
        .client
        .clone()
        .watch_bundle(pb::WatchBundleRequest::default())
        .await;
    assert_eq!(reason(&anonymous.unwrap_err()), "caller_identity");
}

#[tokio::test]
async fn the_stream_ends_when_the_svid_of_control_has_expired() {
    let world = World::with(|_, config| {
        config.svid_life = Duration::from_secs(2);
        config.insecure_short_life = true;
    })
    .await;
    let control = world.first_issue(CONTROL, "control").await;
    let mut stream = watch(&world, &control, 0).await.unwrap();
    next(&mut stream).await.unwrap();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(reason(&status), "caller_expired");
}

#[tokio::test]
async fn a_stopping_ca_ends_its_streams_and_says_why() {
    let world = World::new().await;
    let control = world.first_issue(CONTROL, "control").await;
    let mut stream = watch(&world, &control, 0).await.unwrap();
    next(&mut stream).await.unwrap();
    let World { running, .. } = world;
    let (stopped, ended) = tokio::join!(running.stop(), next(&mut stream));
    let () = stopped;
    assert_eq!(reason(&ended.unwrap_err()), "shutting_down");
}

#[tokio::test]
async fn after_a_rotation_both_issuers_leaves_hold_and_renewals_get_the_new_one() {
    let world = World::new().await;
    let before = world.first_issue(WEB, "web-1").await;
    world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap();
    let trust = trust_of(&before.bundle);
    let after = ca_client::renew(&world.address(), &before.svid, &trust).await.unwrap();
    assert_eq!((before.issuer_epoch, after.issuer_epoch), (1, 2));
    assert_ne!(before.svid.chain()[1], after.svid.chain()[1]);
    let world = world.restarted().await;
    let again = ca_client::renew(&world.address(), &after.svid, &trust).await.unwrap();
    assert_eq!(again.issuer_epoch, 2);
}

#[tokio::test]
async fn an_issuer_is_replaced_by_itself_at_two_thirds_of_its_life() {
    let world = World::with(|making, config| {
        making.issuer_life = Duration::from_secs(8);
        config.svid_life = Duration::from_secs(2);
        config.insecure_short_life = true;
    })
    .await;
    let control = world.first_issue(CONTROL, "control").await;
    let mut stream = watch(&world, &control, 0).await.unwrap();
    next(&mut stream).await.unwrap();
    // The stream ends with control's short SVID, perhaps before the new issuer: come back until it is there.
    let mut svid = control;
    let epoch = loop {
        match next(&mut stream).await {
            Ok(update) if update.issuer_epoch > 1 => break update.issuer_epoch,
            Ok(_) => {}
            Err(_) => {
                svid = ca_client::renew(&world.address(), &svid.svid, &trust_of(&svid.bundle))
                    .await
                    .unwrap();
                stream = watch(&world, &svid, 0).await.unwrap();
            }
        }
    };
    assert_eq!(epoch, 2);
}

#[tokio::test]
async fn an_issuer_that_ran_out_while_nobody_served_is_replaced_at_the_start() {
    let world = World::new().await;
    let (dir, shift, config) = world.stopped().await;
    shift.store(31 * 24 * 3600, std::sync::atomic::Ordering::SeqCst);
    let running = postern_ca::start(config, world::shifted(&shift)).await.unwrap();
    let admin = transport::connect_unix(&dir.path().join("admin.sock")).await.unwrap();
    let mut admin = pb::admin_client::AdminClient::new(admin);
    let status = admin.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.issuer_epoch, 2);
    running.stop().await;
}

#[tokio::test]
async fn without_the_root_key_it_serves_but_does_not_rotate_and_says_why() {
    let world = World::new().await;
    let root = world.store().join("root.json");
    let kept = std::fs::read(&root).unwrap();
    std::fs::remove_file(&root).unwrap();
    let world = world.restarted().await;
    world.first_issue(WEB, "web-1").await;
    let status = world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap_err();
    assert!(status.message().contains("root.json"), "{status}");
    // Back again, and private.
    std::fs::write(&root, kept).unwrap();
    std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap();
}

#[tokio::test]
async fn status_tells_what_the_ca_is_doing() {
    let world = World::new().await;
    world.first_issue(WEB, "web-1").await;
    let _ = world.issue_for(vec![]).await;
    let status = world
        .admin()
        .await
        .status(pb::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.trust_domain, "cluster.local");
    assert_eq!((status.issued, status.refused, status.svid_life_seconds), (1, 1, 3600));
    assert!(status.issuer_not_after_unix < status.root_not_after_unix);
}

#[tokio::test]
async fn c_09_renewals_go_on_through_rotations() {
    let world = World::new().await;
    let mut renewing = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (first, address) = (world.first_issue(WEB, &format!("web-{n}")).await, world.address());
        renewing.spawn(async move {
            let trust = trust_of(&first.bundle);
            let (mut issued, mut renewals) = (first, 0);
            while issued.issuer_epoch < 6 {
                issued = ca_client::renew(&address, &issued.svid, &trust).await.unwrap();
                renewals += 1;
            }
            renewals
        });
    }
    for _ in 0..5 {
        world
            .admin()
            .await
            .rotate_issuer(pb::RotateIssuerRequest {})
            .await
            .unwrap();
    }
    for renewals in renewing.join_all().await {
        assert!(renewals > 0);
    }
}

#[tokio::test]
async fn keys_of_every_kind_sign_their_renewals() {
    let world = World::new().await;
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let first = world.issue_for(csr(&key)).await.unwrap();
        let fresh = csr(&new_key());
        world
            .issue(fresh.clone(), renewal(&first.chain, &key, &fresh))
            .await
            .unwrap();
    }
}

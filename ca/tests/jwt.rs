//! JWT-SVIDs: who gets one, for how long, and by which key.
#![allow(clippy::unwrap_used)]

use postern_api::ca::v1 as pb;
use postern_api::ca_client::{self, CaError, Issued};
use postern_api::refusal::RefusalReason;
use postern_identity::{BundleSet, Role, verify};
use postern_token::svid;
use rustls_pki_types::UnixTime;
use world::{CONTROL, WEB, World, reason, trust_of};

mod world;

fn now() -> u64 {
    UnixTime::now().as_secs()
}

fn of(audience: &[&str]) -> Vec<String> {
    audience.iter().map(ToString::to_string).collect()
}

async fn token(world: &World, who: &Issued, audience: &[&str]) -> Result<(String, u64), CaError> {
    let issued = ca_client::issue_jwt(&world.address(), &who.svid, &trust_of(&who.bundle), &of(audience)).await;
    issued.map(|(token, expires)| (token.to_string(), expires))
}

fn refusal<T>(outcome: Result<T, CaError>) -> RefusalReason {
    match outcome.err().unwrap() {
        CaError::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn bundles(issued: &Issued) -> BundleSet {
    BundleSet::default().with(issued.bundle.clone())
}

#[tokio::test]
async fn a_token_is_of_the_callers_identity_for_its_audiences_and_five_minutes() {
    let world = World::new().await;
    let web = world.first_issue(WEB, "web-1").await;
    let (text, expires) = token(&world, &web, &["spiffe://cluster.local/ns/shop/sa/db", "cache"])
        .await
        .unwrap();
    let verified = svid::verify(&text, "cache", &bundles(&web), now()).unwrap();
    assert_eq!(verified.id.as_str(), WEB);
    assert_eq!(verified.claims["exp"], expires);
    assert!((now() + 290..=now() + 300).contains(&expires), "{expires}");
    assert!(svid::verify(&text, "other", &bundles(&web), now()).is_err());
    let mut names: Vec<&String> = verified.claims.keys().collect();
    names.sort();
    assert_eq!(names, ["aud", "exp", "iat", "sub"], "and nothing else");
}

#[tokio::test]
async fn a_token_never_outlives_the_svid_that_it_was_asked_for_with() {
    let world = World::with(|_, config| {
        config.svid_life = std::time::Duration::from_secs(30);
        config.insecure_short_life = true;
    })
    .await;
    let web = world.first_issue(WEB, "web-1").await;
    let (_, expires) = token(&world, &web, &["db"]).await.unwrap();
    assert!(expires <= web.svid.not_after().as_secs(), "{expires}");
}

#[tokio::test]
async fn who_shows_no_svid_gets_no_token_and_an_audience_must_be_named() {
    let world = World::new().await;
    let anonymous = world
        .client
        .clone()
        .issue_jwt(pb::IssueJwtRequest { audience: of(&["db"]) })
        .await;
    assert_eq!(reason(&anonymous.unwrap_err()), "caller_identity");
    let web = world.first_issue(WEB, "web-1").await;
    let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "a".repeat(2_049);
    for bad in [&[][..], &[""], &["db", ""], &many, &[long.as_str()]] {
        assert_eq!(
            refusal(token(&world, &web, bad).await),
            RefusalReason::JwtAudience,
            "{} audiences",
            bad.len()
        );
    }
    assert!(token(&world, &web, &many[..16]).await.is_ok() && token(&world, &web, &[&long[..2_048]]).await.is_ok());
}

#[tokio::test]
async fn the_key_of_tokens_is_replaced_with_the_issuer_and_each_holder_of_an_old_bundle_knows_the_next() {
    let world = World::new().await;
    let web = world.first_issue(WEB, "web-1").await;
    let (before, _) = token(&world, &web, &["db"]).await.unwrap();
    let rotate = async || {
        world
            .admin()
            .await
            .rotate_issuer(pb::RotateIssuerRequest {})
            .await
            .unwrap()
    };
    rotate().await;
    let (after, _) = token(&world, &web, &["db"]).await.unwrap();
    // Whoever has not heard of the rotation yet verifies tokens of the new key.
    assert!(svid::verify(&after, "db", &bundles(&web), now()).is_ok());
    let renewed = ca_client::renew(&world.address(), &web.svid, &trust_of(&web.bundle))
        .await
        .unwrap();
    assert!(renewed.bundle.sequence() > web.bundle.sequence());
    assert_eq!(renewed.bundle.jwt_keys().len(), 3);
    for text in [&before, &after] {
        assert!(svid::verify(text, "db", &bundles(&renewed), now()).is_ok());
    }
    let kid = |text: &str| {
        web.bundle
            .jwt_keys()
            .iter()
            .position(|key| text_has_key(text, key.id()))
    };
    assert_eq!((kid(&before), kid(&after)), (Some(0), Some(1)));
    // Its keys survive a restart.
    let world = world.restarted().await;
    let (again, _) = token(&world, &renewed, &["db"]).await.unwrap();
    assert_eq!(kid(&again), Some(1));
    assert!(svid::verify(&again, "db", &bundles(&web), now()).is_ok());
}

/// Ten rotations later no key of the backup is published any more.
#[tokio::test]
async fn c_06_tokens_of_a_ca_that_was_put_back_verify_at_holders_of_bundles_that_it_has_forgotten() {
    let world = World::new().await;
    let web = world.first_issue(WEB, "web-1").await;
    let backup = world.dir.path().join("backup");
    copied(&world.store(), &backup);
    for _ in 0..10 {
        let mut admin = world.admin().await;
        admin.rotate_issuer(pb::RotateIssuerRequest {}).await.unwrap();
    }
    let held = ca_client::renew(&world.address(), &web.svid, &trust_of(&web.bundle))
        .await
        .unwrap();
    let (dir, shift, config) = world.stopped().await;
    copied(&backup, &config.store);
    // More seconds than there were rotations.
    shift.store(20, std::sync::atomic::Ordering::SeqCst);
    let world = World::over(dir, shift, config).await;
    let (text, _) = token(&world, &held, &["db"]).await.unwrap();
    let later = now() + 20;
    assert!(svid::verify(&text, "db", &bundles(&held), later).is_err());
    let told = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
        .await
        .unwrap();
    assert!(told.bundle.sequence() > held.bundle.sequence());
    assert!(svid::verify(&text, "db", &bundles(&told), later).is_ok());
    // What it had signed as newest before it was lost is older now.
    assert_eq!(told.bundle.jwt_keys(), web.bundle.jwt_keys());
}

fn copied(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A record that is not there, and one that a kill left ahead of what publishes it.
#[tokio::test]
async fn a_ca_that_starts_without_keys_of_jwt_svids_or_with_keys_that_its_bundle_has_not_signs_and_voids_no_token() {
    for ahead in [false, true] {
        let world = World::new().await;
        let before = world.first_issue(WEB, "web-1").await;
        let (old, _) = token(&world, &before, &["db"]).await.unwrap();
        let (dir, shift, config) = world.stopped().await;
        let keys = config.store.join("jwt.json");
        if ahead {
            let authority = std::fs::read(config.store.join("authority.json")).unwrap();
            postern_ca::rotate_store(&config.store, None, postern_ca::clock::system())
                .await
                .unwrap();
            std::fs::write(config.store.join("authority.json"), authority).unwrap();
        } else {
            std::fs::remove_file(&keys).unwrap();
        }
        let world = World::over(dir, shift, config).await;
        let held = ca_client::renew(&world.address(), &before.svid, &trust_of(&before.bundle))
            .await
            .unwrap();
        assert!(held.bundle.sequence() > before.bundle.sequence());
        assert!(svid::verify(&old, "db", &bundles(&held), now()).is_ok());
        let (text, _) = token(&world, &held, &["db"]).await.unwrap();
        assert!(svid::verify(&text, "db", &bundles(&held), now()).is_ok());
        // Also by who has not heard yet, if its key was published ahead and not lost.
        assert_eq!(svid::verify(&text, "db", &bundles(&before), now()).is_ok(), ahead);
        let world = world.restarted().await;
        let (text, _) = token(&world, &held, &["db"]).await.unwrap();
        assert!(svid::verify(&text, "db", &bundles(&held), now()).is_ok());
    }
}

fn text_has_key(token: &str, id: &str) -> bool {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    String::from_utf8(header).unwrap().contains(id)
}

#[tokio::test]
async fn control_may_have_one_as_well_and_the_store_shows_no_key() {
    let world = World::new().await;
    let control = world.first_issue(CONTROL, "control").await;
    assert!(token(&world, &control, &["db"]).await.is_ok());
    for entry in std::fs::read_dir(world.dir.path().join("ca")).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains("jwt_keys"), "sealed");
    }
}

#[tokio::test]
async fn an_apps_svid_is_the_workloads_and_says_that_it_is_not_the_proxys() {
    let world = World::new().await;
    let web = world.first_issue(WEB, "web-1").await;
    let trust = trust_of(&web.bundle);
    let (app, _) = ca_client::issue_for_app(&world.address(), &web.svid, &trust)
        .await
        .unwrap();
    assert!(app.svid.is_of_app() && !web.svid.is_of_app());
    assert_eq!(
        (app.svid.id(), app.svid.instance()),
        (web.svid.id(), web.svid.instance())
    );
    // Peers believe it like any other.
    let peer = verify::verify_peer(app.svid.chain(), Role::Client, &trust.load(), UnixTime::now()).unwrap();
    assert!(peer.is_app());
    // What is the proxy's, it does not get: an SVID without the mark, another app's, a token.
    let address = world.address();
    assert_eq!(
        refusal(ca_client::renew(&address, &app.svid, &trust).await),
        RefusalReason::RenewalIdentity
    );
    assert_eq!(
        refusal(ca_client::issue_for_app(&address, &app.svid, &trust).await),
        RefusalReason::RenewalIdentity
    );
    assert_eq!(
        refusal(token(&world, &app, &["db"]).await),
        RefusalReason::CallerIdentity
    );
    assert!(token(&world, &web, &["db"]).await.is_ok());
}

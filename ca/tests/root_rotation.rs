//! The root is replaced under everybody's feet: nobody who is connected, or comes back, is lost.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use postern_api::ca_client::{self, CaError, JoinToken};
use postern_identity::TrustBundle;
use postern_identity::bundle::{self, SignedBundle};
use rustls_pki_types::UnixTime;
use tonic::Streaming;
use tonic::transport::Channel;
use world::program::{done, failed, initialised, path, serve, serve_by, token};
use world::{CONTROL, WEB, World, domain, trust_of};

mod world;

/// Generous: two busy cores.
const PATIENCE: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(3600);

async fn status(world: &World) -> pb::StatusResponse {
    world
        .admin()
        .await
        .status(pb::StatusRequest {})
        .await
        .unwrap()
        .into_inner()
}

async fn stage(world: &World) -> String {
    status(world)
        .await
        .root_rotation
        .map_or_else(String::new, |rotation| rotation.stage)
}

async fn comes_to(world: &World, wanted: &str) {
    let since = Instant::now();
    while stage(world).await != wanted {
        assert!(
            since.elapsed() < PATIENCE,
            "not {wanted}: {:?}",
            status(world).await.root_rotation
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn begin(world: &World, taint: bool) -> Result<pb::RootRotation, tonic::Status> {
    let answer = world.admin().await.rotate_root(pb::RotateRootRequest { taint }).await?;
    Ok(answer.into_inner().rotation.unwrap())
}

/// Leaves of seconds; the new root signs at once, unless somebody changes that.
async fn quick(change: impl FnOnce(&mut postern_ca::ServeConfig)) -> World {
    World::with(|_, config| {
        config.svid_life = Duration::from_secs(2);
        config.insecure_short_life = true;
        config.root_acknowledge = Duration::ZERO;
        config.root_retire = Some(NEVER);
        change(config);
    })
    .await
}

async fn watch(client: &mut CertificateAuthorityClient<Channel>) -> Streaming<pb::BundleUpdate> {
    let request = pb::WatchBundleRequest::default();
    client.watch_bundle(request).await.unwrap().into_inner()
}

async fn walked(stream: &mut Streaming<pb::BundleUpdate>, held: &TrustBundle) -> TrustBundle {
    let update = stream.message().await.unwrap().unwrap();
    let links: Vec<SignedBundle> = update.bundles.into_iter().map(Into::into).collect();
    bundle::advance(held, &links, UnixTime::now()).unwrap()
}

#[tokio::test]
async fn the_new_root_signs_once_every_control_has_reported_that_its_proxies_know_it() {
    let world = World::with(|_, config| {
        // Twice the patience; what is said counts once nobody has come or gone for a twentieth of that.
        config.root_acknowledge = PATIENCE * 2;
        config.root_retire = Some(NEVER);
    })
    .await;
    let first = world.first_issue(CONTROL, "control-1").await;
    let second = world.first_issue(CONTROL, "control-2").await;
    let (mut one, mut two) = (world.client_of(&first).await, world.client_of(&second).await);
    let (mut stream, mut other) = (watch(&mut one).await, watch(&mut two).await);
    let (founded, _) = (
        walked(&mut stream, &first.bundle).await,
        walked(&mut other, &second.bundle).await,
    );
    begin(&world, false).await.unwrap();
    comes_to(&world, "published").await;
    let published = loop {
        let published = walked(&mut stream, &founded).await;
        if published.roots().len() == 2 {
            break published;
        }
    };
    let awaited = status(&world).await.root_rotation.unwrap().awaited_sequence;
    assert_eq!(awaited, published.sequence());
    let report = |lowest_sequence| pb::ReportBundleRequest {
        lowest_sequence,
        proxies: 3,
    };
    one.report_bundle(report(awaited)).await.unwrap();
    assert_eq!(stage(&world).await, "published", "the other control has said nothing");
    two.report_bundle(report(awaited - 1)).await.unwrap();
    let reports = status(&world).await.bundle_reports;
    assert_eq!(
        reports
            .iter()
            .filter(|report| report.reports && report.proxies == 3)
            .count(),
        2
    );
    // It holds back one proxy; and another CA's control is not asked.
    let web = world.first_issue(WEB, "web-1").await;
    assert_eq!(web.bundle.sequence(), awaited);
    let mut stranger = world.client_of(&web).await;
    assert!(stranger.report_bundle(report(awaited)).await.is_err());
    assert_eq!(stage(&world).await, "published");
    two.report_bundle(report(awaited)).await.unwrap();
    comes_to(&world, "activated").await;
    let activated = loop {
        let activated = walked(&mut stream, &published).await;
        if activated.sequence() > published.sequence() {
            break activated;
        }
    };
    assert_eq!(activated.roots(), published.roots());
    let after = ca_client::renew(&world.address(), &web.svid, &trust_of(&web.bundle))
        .await
        .unwrap();
    assert_eq!((web.issuer_epoch, after.issuer_epoch), (1, 2));
    // What either root signed holds for either holder.
    assert_eq!(status(&world).await.root_sha256, world_root(&world).await);
}

/// As a program sees it that trusts `root.pem`.
async fn world_root(world: &World) -> String {
    status(world).await.root_rotation.unwrap().new_root_sha256
}

#[tokio::test]
async fn a_join_token_of_the_old_root_a_proxy_that_knows_it_alone_and_a_new_token_all_get_in_meanwhile() {
    let world = quick(|_| {}).await;
    let waiting = world.token(WEB, "web-1").await;
    let away = world.first_issue(WEB, "web-2").await;
    begin(&world, false).await.unwrap();
    comes_to(&world, "activated").await;
    let by_old = ca_client::first_issue(&world.address(), &waiting, &domain())
        .await
        .unwrap();
    let by_new = world.first_issue(WEB, "web-3").await;
    assert_ne!(waiting.root_sha256(), world.token(WEB, "web-4").await.root_sha256());
    let renewed = ca_client::renew(&world.address(), &away.svid, &trust_of(&away.bundle))
        .await
        .unwrap();
    for issued in [&by_old, &by_new, &renewed] {
        assert_eq!((issued.bundle.roots().len(), issued.issuer_epoch), (2, 2));
    }
    // A restart keeps all of this.
    let waiting = world.token(WEB, "web-5").await;
    let world = world.restarted().await;
    assert_eq!(stage(&world).await, "activated");
    ca_client::first_issue(&world.address(), &waiting, &domain())
        .await
        .unwrap();
    ca_client::renew(&world.address(), &away.svid, &trust_of(&away.bundle))
        .await
        .unwrap();
}

#[tokio::test]
async fn c_09_a_proxy_that_was_away_through_the_whole_overlap_is_told_so_and_comes_back_by_a_new_token() {
    let world = quick(|config| config.root_retire = Some(config.svid_life)).await;
    let away = world.first_issue(WEB, "web-1").await;
    let connected = world.first_issue(WEB, "web-2").await;
    begin(&world, false).await.unwrap();
    comes_to(&world, "activated").await;
    let connected = ca_client::renew(&world.address(), &connected.svid, &trust_of(&connected.bundle))
        .await
        .unwrap();
    comes_to(&world, "retired").await;
    let after = ca_client::renew(&world.address(), &connected.svid, &trust_of(&connected.bundle))
        .await
        .unwrap();
    assert_eq!(after.bundle.roots().len(), 1);
    // It still believes the CA, which says what is wrong.
    let error = ca_client::renew(&world.address(), &away.svid, &trust_of(&away.bundle))
        .await
        .unwrap_err();
    assert!(error.is_final(), "{error}");
    let text = error.to_string();
    assert!(text.contains("no path from the peer's leaf to a root"), "{text}");
    world.first_issue(WEB, "web-1").await;
    // And another replacement can follow.
    let World { dir, running, .. } = world;
    let store = dir.path().join("ca");
    running.stop().await;
    let pem = std::fs::read_to_string(store.join("root.pem")).unwrap();
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 1);
}

#[tokio::test]
async fn a_taint_signs_by_a_new_root_at_once_and_nothing_of_the_old_one_is_left() {
    let world = quick(|config| {
        config.root_acknowledge = Duration::from_secs(1);
        config.root_retire = Some(config.svid_life);
    })
    .await;
    let (away, connected) = (
        world.first_issue(WEB, "web-1").await,
        world.first_issue(WEB, "web-2").await,
    );
    let control = world.first_issue(CONTROL, "control").await;
    let mut client = world.client_of(&control).await;
    let mut stream = watch(&mut client).await;
    let held = walked(&mut stream, &connected.bundle).await;
    let rotation = begin(&world, true).await.unwrap();
    assert_eq!((rotation.stage.as_str(), rotation.tainted), ("published", true));
    let both = walked(&mut stream, &held).await;
    assert_eq!(both.roots().len(), 2);
    comes_to(&world, "activated").await;
    let connected = ca_client::renew(&world.address(), &connected.svid, &trust_of(&both))
        .await
        .unwrap();
    comes_to(&world, "retired").await;
    ca_client::renew(&world.address(), &connected.svid, &trust_of(&connected.bundle))
        .await
        .unwrap();
    // Not even the CA is vouched for by it.
    let error = ca_client::renew(&world.address(), &away.svid, &trust_of(&away.bundle))
        .await
        .unwrap_err();
    assert!(matches!(error, CaError::Untrusted(_)), "{error}");
}

#[tokio::test]
async fn a_root_key_that_is_kept_elsewhere_is_asked_for_and_a_second_replacement_is_refused() {
    let world = World::with(|_, config| config.root_acknowledge = NEVER).await;
    let root = world.store().join("root.json");
    let kept = std::fs::read(&root).unwrap();
    std::fs::remove_file(&root).unwrap();
    let world = world.restarted().await;
    let error = begin(&world, false).await.unwrap_err();
    assert!(error.message().contains("the root key is not in the store"), "{error}");
    assert_eq!(stage(&world).await, "");
    std::fs::write(&root, kept).unwrap();
    std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    begin(&world, false).await.unwrap();
    comes_to(&world, "published").await;
    let error = begin(&world, false).await.unwrap_err();
    assert!(error.message().contains("replaced already (it is published"), "{error}");
    // A new issuer of the old root meanwhile takes nothing away.
    world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap();
    assert_eq!(stage(&world).await, "published");
    assert_eq!(begin(&world, true).await.unwrap().stage, "published");
    comes_to(&world, "activated").await;
    let error = world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap_err();
    assert!(error.message().contains("signs already"), "{error}");
}

/// Short lives and stages, for the real program.
const QUICK: &str =
    "exec \"$0\" \"$@\" --svid-life 1s --insecure-short-life --root-acknowledge-timeout 0s --root-retire-after 1s";

fn quickly() -> std::process::Command {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", QUICK, env!("CARGO_BIN_EXE_postern-ca")]);
    shell
}

#[tokio::test]
async fn c_06_a_ca_that_is_killed_at_any_stage_starts_again_issues_and_goes_on_with_it() {
    let dir = initialised();
    let socket = path(dir.path(), "admin.sock");
    let mut roots = std::collections::BTreeSet::new();
    let mut stages = std::collections::BTreeSet::new();
    for round in 0..40_u64 {
        let since = Instant::now();
        let serving = serve_by(quickly(), dir.path(), "info");
        assert!(since.elapsed() < PATIENCE, "{}", serving.log());
        let status: serde_json::Value =
            serde_json::from_str(&done(&["status", "--admin-socket", &socket, "--output", "json"])).unwrap();
        roots.insert(status["root_sha256"].as_str().unwrap().to_owned());
        if let Some(stage) = status["root_rotation"]["stage"].as_str() {
            stages.insert(stage.to_owned());
        }
        let fresh: JoinToken = token(dir.path(), &format!("web-{round}"));
        ca_client::first_issue(&serving.listen, &fresh, &domain())
            .await
            .unwrap();
        // Under way already, perhaps.
        let mut rotating = std::process::Command::new(env!("CARGO_BIN_EXE_postern-ca"))
            .args(["rotate", "--root", "--admin-socket", &socket])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_micros(round * 7_919 % 120_000)).await;
        serving.signal(rustix::process::Signal::KILL);
        drop(serving);
        rotating.wait().unwrap();
    }
    assert!(roots.len() >= 3 && !stages.is_empty(), "{roots:?} {stages:?}");
    // Left alone it comes to its end.
    let _serving = serve_by(quickly(), dir.path(), "info");
    let since = Instant::now();
    loop {
        let text = done(&["rotate", "--dry-run", "--admin-socket", &socket]);
        if text.contains("signs; the last replacement") {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_operator_sees_the_stages_before_while_and_after() {
    let dir = initialised();
    let socket = path(dir.path(), "admin.sock");
    let serving = serve(dir.path(), "info");
    let before = done(&["rotate", "--dry-run", "--admin-socket", &socket]);
    assert!(before.contains("was never replaced"), "{before}");
    let shown = |stage: &str, value| {
        let metrics = serving.get("/metrics");
        let line = format!("postern_ca_root_replacement{{stage=\"{stage}\"}} {value}\n");
        assert!(metrics.contains(&line), "{metrics}");
    };
    shown("published", 0);
    assert!(done(&["rotate", "--root", "--admin-socket", &socket]).contains("prepared"));
    let since = Instant::now();
    let text = loop {
        let text = done(&["rotate", "--dry-run", "--admin-socket", &socket]);
        if text.contains("waiting for bundle ") {
            break text;
        }
        assert!(since.elapsed() < PATIENCE, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(text.contains("no control watches the bundle here"), "{text}");
    shown("published", 1);
    shown("prepared", 0);
    let status = done(&["status", "--admin-socket", &socket]);
    assert!(status.contains("root rotation published"), "{status}");
    let error = failed(&["rotate", "--root", "--taint", "--admin-socket", &socket]);
    assert!(error.contains("cannot be used with"), "{error}");
    let text = done(&["rotate", "--taint", "--admin-socket", &socket]);
    assert!(text.contains("published, tainted"), "{text}");
    assert!(text.contains("still believed until"), "{text}");
}

/// A fresh CA each time: the kill comes at another moment of its taint.
#[tokio::test]
async fn c_06_a_ca_that_is_killed_in_the_middle_of_a_taint_is_no_stranger_to_whoever_had_not_heard_of_it() {
    for round in 0..6_u64 {
        let dir = initialised();
        let socket = path(dir.path(), "admin.sock");
        let serving = serve(dir.path(), "info");
        let web = ca_client::first_issue(&serving.listen, &token(dir.path(), "web"), &domain())
            .await
            .unwrap();
        let mut tainting = std::process::Command::new(env!("CARGO_BIN_EXE_postern-ca"))
            .args(["rotate", "--taint", "--admin-socket", &socket])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The last rounds after it has answered.
        if round < 4 {
            tokio::time::sleep(Duration::from_micros(round * 7_919)).await;
        } else {
            tainting.wait().unwrap();
        }
        serving.signal(rustix::process::Signal::KILL);
        drop(serving);
        tainting.wait().unwrap();
        let serving = serve(dir.path(), "info");
        let renewed = ca_client::renew(&serving.listen, &web.svid, &trust_of(&web.bundle)).await;
        let renewed = renewed.unwrap_or_else(|error| panic!("round {round}: {error}: {}", serving.log()));
        // And who has come back hears of what follows, and is believed after it.
        let since = Instant::now();
        let mut held = renewed;
        while held.bundle.roots().len() == 2 && held.issuer_epoch == 1 {
            assert!(since.elapsed() < PATIENCE, "{}", serving.log());
            tokio::time::sleep(Duration::from_millis(500)).await;
            held = ca_client::renew(&serving.listen, &held.svid, &trust_of(&held.bundle))
                .await
                .unwrap();
        }
    }
}

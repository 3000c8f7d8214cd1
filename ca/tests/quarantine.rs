//! Who is cut off gets no certificate, whatever it shows; that survives restarts, and only an operator's word ends it.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::sync::Arc;
use std::time::Duration;

use postern_api::ca::v1 as pb;
use postern_api::ca_client::{self, CaError, Issued};
use postern_api::quarantine_wire::subject_to_wire;
use postern_ca::store::Kind;
use postern_identity::quarantine::{Serial, Subject};
use postern_identity::{Instance, SpiffeId};
use tonic::{Code, Status, Streaming};
use world::{CONTROL, WEB, World, domain, stored, trust_of};

/// A change is told when it is made; the CA looks by itself only after 30 s.
const AT_ONCE: Duration = Duration::from_secs(10);

fn id(text: &str) -> Subject {
    Subject::Id(SpiffeId::parse(text).unwrap())
}

fn entry(subject: &Subject) -> Option<pb::Quarantined> {
    Some(pb::Quarantined {
        subject: Some(subject_to_wire(subject)),
        reason: "CVE-2026-1".to_owned(),
        by: "ada".to_owned(),
        ..pb::Quarantined::default()
    })
}

async fn add(world: &World, subject: &Subject) -> pb::QuarantineState {
    try_add(world, subject, false).await.unwrap()
}

async fn try_add(world: &World, subject: &Subject, force: bool) -> Result<pb::QuarantineState, Status> {
    let request = pb::AddQuarantineRequest {
        entry: entry(subject),
        force,
    };
    let answer = world.admin().await.add_quarantine(request).await;
    answer.map(tonic::Response::into_inner)
}

async fn lift(world: &World, subject: &Subject) -> Result<pb::QuarantineState, Status> {
    let request = pb::LiftQuarantineRequest { entry: entry(subject) };
    let answer = world.admin().await.lift_quarantine(request).await;
    answer.map(tonic::Response::into_inner)
}

async fn renew(world: &World, held: &Issued) -> Result<Issued, CaError> {
    ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle)).await
}

/// The caller hears no reason.
fn is_opaque(error: &CaError) -> bool {
    let text = error.to_string();
    error.reason() == "refused" && !error.is_final() && !text.contains("quarantine")
}

/// By the CA's own metrics.
async fn refused(world: &World) -> u64 {
    let text = world.metrics().await;
    let line = "postern_ca_refused_total{reason=\"quarantined\"} ";
    let found = text.lines().find_map(|found| found.strip_prefix(line));
    found.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn who_is_cut_off_by_id_instance_or_serial_gets_no_certificate_and_hears_no_reason() {
    let world = World::new().await;
    let web = world.first_issue(WEB, "web-1").await;
    let other = world.first_issue(WEB, "web-2").await;
    let serial = Subject::Serial(Serial::of(&web.svid.leaf().serial));
    let of_web = |id: Option<&str>| {
        let id = id.map(|id| SpiffeId::parse(id).unwrap());
        Subject::Instance(Instance::parse("web-1").unwrap(), id)
    };
    for subject in [serial.clone(), of_web(None), of_web(Some(WEB)), id(WEB)] {
        add(&world, &subject).await;
        let before = refused(&world).await;
        let error = renew(&world, &web).await.unwrap_err();
        assert!(is_opaque(&error), "{subject}: {error}");
        assert_eq!(
            refused(&world).await,
            before + 1,
            "{subject}: the CA says to its operators why"
        );
        assert_eq!(
            renew(&world, &other).await.is_ok(),
            subject != id(WEB),
            "{subject}: its sibling"
        );
        // A token in the hand of who is cut off is no way in; another certificate has another serial number.
        let token = world.token(WEB, "web-1").await;
        let first = ca_client::first_issue(&world.address(), &token, &domain()).await;
        assert_eq!(first.is_ok(), subject == serial, "{subject}: with a token");
        lift(&world, &subject).await.unwrap();
        if subject != serial {
            let first = ca_client::first_issue(&world.address(), &token, &domain()).await;
            assert!(first.is_ok(), "{subject}: the token was not used up");
        }
        renew(&world, &web).await.unwrap();
    }
    // A namesake of another identity is somebody else.
    add(&world, &of_web(Some("spiffe://cluster.local/ns/lab/sa/web"))).await;
    renew(&world, &web).await.unwrap();
}

#[tokio::test]
async fn it_survives_a_restart_and_a_new_issuer_and_is_sealed_on_disk() {
    let world = World::new().await;
    let web = world.first_issue(WEB, "web-1").await;
    let version = add(&world, &id(WEB)).await.version;
    let store = world.store();
    let bytes = std::fs::read(store.join("quarantine.json")).unwrap();
    for secret in ["shop", "CVE", "ada"] {
        assert!(
            !bytes.windows(secret.len()).any(|part| part == secret.as_bytes()),
            "{secret} in clear"
        );
    }
    let world = world.restarted().await;
    world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap();
    assert!(is_opaque(&renew(&world, &web).await.unwrap_err()));
    let answer = world.admin().await.list_quarantine(pb::ListQuarantineRequest {}).await;
    let state = answer.unwrap().into_inner();
    assert_eq!(state.version, version);
    let [listed] = state.entries.as_slice() else {
        panic!("{state:?}")
    };
    assert_eq!((listed.reason.as_str(), listed.by.as_str()), ("CVE-2026-1", "ada"));
    assert!(listed.since_unix > 1_700_000_000);
    world.running.stop().await;
    assert_eq!(stored(&store, Kind::Quarantine)["version"], version);
}

#[tokio::test]
async fn an_answer_carries_the_set_to_who_lacks_it_signed_by_the_issuer_of_now() {
    let world = World::new().await;
    let cart = "spiffe://cluster.local/ns/shop/sa/cart";
    assert!(
        world.first_issue(cart, "cart-1").await.quarantine.is_none(),
        "nobody was ever cut off"
    );
    add(&world, &id(WEB)).await;
    world
        .admin()
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap();
    let first = world.first_issue(cart, "cart-1").await;
    let came = first.quarantine.as_ref().unwrap();
    assert!(came.set.subjects().contains(&id(WEB)));
    let trust = trust_of(&first.bundle);
    trust.store(Arc::new(trust.load().with_quarantine(&came.set).unwrap()));
    let again = ca_client::renew(&world.address(), &first.svid, &trust).await.unwrap();
    assert!(again.quarantine.is_none(), "it is held already");
}

#[tokio::test]
async fn what_the_mesh_stands_on_is_cut_off_by_force_alone() {
    let world = World::new().await;
    for account in ["postern-ca", "postern-control", "postern-injector"] {
        let own = id(&format!("spiffe://cluster.local/ns/postern-system/sa/{account}"));
        let status = try_add(&world, &own, false).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("--force"), "{status}");
        assert!(try_add(&world, &own, true).await.unwrap().changed);
        lift(&world, &own).await.unwrap();
    }
    let nobody = lift(&world, &id(WEB)).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
    let empty = pb::AddQuarantineRequest::default();
    let status = world.admin().await.add_quarantine(empty).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let long = pb::AddQuarantineRequest {
        entry: entry(&id(WEB)).map(|entry| pb::Quarantined {
            reason: "x".repeat(257),
            ..entry
        }),
        force: false,
    };
    let status = world.admin().await.add_quarantine(long).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

async fn watch(world: &World, control: &Issued, held: Option<pb::SignedQuarantine>) -> Streaming<pb::BundleUpdate> {
    let request = pb::WatchBundleRequest {
        bundle_sequence: 0,
        quarantine: held,
    };
    let watched = world.client_of(control).await.watch_bundle(request).await;
    watched.unwrap().into_inner()
}

/// What comes next, at once: nothing of this is waited for by a timer of the CA's.
async fn heard(updates: &mut Streaming<pb::BundleUpdate>) -> pb::BundleUpdate {
    let next = tokio::time::timeout(AT_ONCE, updates.message()).await;
    next.expect("it was told at once").unwrap().unwrap()
}

#[tokio::test]
async fn control_hears_of_each_change_at_once() {
    let world = World::new().await;
    let control = world.first_issue(CONTROL, "postern-control").await;
    let mut updates = watch(&world, &control, None).await;
    assert!(heard(&mut updates).await.quarantine.is_none());
    let added = add(&world, &id(WEB)).await;
    let update = heard(&mut updates).await;
    assert_eq!((update.quarantine, update.quarantined.len()), (added.signed, 1));
    lift(&world, &id(WEB)).await.unwrap();
    let update = heard(&mut updates).await;
    assert!(update.quarantine.is_some() && update.quarantined.is_empty());
}

#[tokio::test]
async fn a_ca_put_back_from_an_older_backup_learns_from_control_what_it_had_signed_and_nothing_else() {
    let world = World::new().await;
    let control = world.first_issue(CONTROL, "postern-control").await;
    let web = world.first_issue(WEB, "web-1").await;
    let first = add(&world, &id("spiffe://cluster.local/ns/shop/sa/cart")).await;
    let backup = std::fs::read(world.store().join("quarantine.json")).unwrap();
    let held = add(&world, &id(WEB)).await;
    let (dir, shift, config) = world.stopped().await;
    std::fs::write(config.store.join("quarantine.json"), backup).unwrap();
    let world = World::over(dir, shift, config).await;
    renew(&world, &web).await.unwrap();
    // What is not of this CA's making is not taken.
    let mut forged = held.signed.clone().unwrap();
    forged.document = String::from_utf8(forged.document)
        .unwrap()
        .replace("web", "abc")
        .into_bytes();
    let update = watch(&world, &control, Some(forged))
        .await
        .message()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(update.quarantined.len(), 1);
    let update = watch(&world, &control, held.signed.clone())
        .await
        .message()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(update.quarantined.len(), 2);
    assert!(is_opaque(&renew(&world, &web).await.unwrap_err()));
    // An older one changes nothing.
    let update = watch(&world, &control, first.signed)
        .await
        .message()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(update.quarantined.len(), 2);
}

#[tokio::test]
async fn nobody_operates_over_the_callers_port_of_a_ca_that_attests_by_tokens_not_even_control() {
    let world = World::new().await;
    let control = world.first_issue(CONTROL, "postern-control").await;
    let request = pb::OperateQuarantineRequest {
        operation: Some(pb::operate_quarantine_request::Operation::Add(
            pb::AddQuarantineRequest {
                entry: entry(&id(WEB)),
                force: false,
            },
        )),
        operator_token: String::new(),
    };
    let mut client = world.client_of(&control).await;
    let status = client.operate_quarantine(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let answer = world.admin().await.list_quarantine(pb::ListQuarantineRequest {}).await;
    assert!(answer.unwrap().into_inner().entries.is_empty());
}

#[tokio::test]
async fn a_damaged_set_is_not_guessed_at() {
    let world = World::new().await;
    add(&world, &id(WEB)).await;
    let (_dir, shift, config) = world.stopped().await;
    let path = config.store.join("quarantine.json");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = postern_ca::start(config, world::shifted(&shift))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("quarantine.json is damaged") && error.contains("backup"),
        "{error}"
    );
}

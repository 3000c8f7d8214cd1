//! The SPIFFE checklist, rows 28 to 33: the certificates that sign, and what happens when they are not in order.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_ca::store::Kind;
use postern_ca::{init, rotate_store, start};
use postern_identity::{Role, bundle, verify};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use world::{WEB, World, csr, init_config, new_key, opened, reason, serve_config, shifted, stored, trust_of};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

mod world;

/// Writes a record as the store would: what it says is then wrong, but not damaged.
fn put(store: &Path, kind: Kind, value: &Value) {
    opened(store).write(kind, value).unwrap();
}

fn der(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn made() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    init(&init_config(dir.path()), UnixTime::now()).unwrap();
    dir
}

async fn start_error(dir: &Path, shift: i64) -> String {
    let shift = std::sync::Arc::new(shift.into());
    let error = start(serve_config(dir), shifted(&shift)).await.unwrap_err();
    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[tokio::test]
async fn spec_028_a_key_that_is_not_the_certificates_is_refused_at_the_start() {
    let (ours, theirs) = (made(), made());
    let (store, other) = (ours.path().join("ca"), theirs.path().join("ca"));
    let mut authority = stored(&store, Kind::Authority);
    authority["issuer"]["private_key"] = stored(&other, Kind::Authority)["issuer"]["private_key"].clone();
    put(&store, Kind::Authority, &authority);
    let error = start_error(ours.path(), 0).await;
    assert!(
        error.contains("do not belong together") && error.contains("backup"),
        "{error}"
    );

    let mut root = stored(&other, Kind::Root);
    root["private_key"] = stored(&store, Kind::Root)["private_key"].clone();
    put(&other, Kind::Root, &root);
    let error = start_error(theirs.path(), 0).await;
    assert!(
        error.contains("root.json") && error.contains("do not belong together"),
        "{error}"
    );
}

#[tokio::test]
async fn spec_028_an_expired_issuer_without_the_root_key_refuses_to_start() {
    let dir = made();
    std::fs::remove_file(dir.path().join("ca/root.json")).unwrap();
    let error = start_error(dir.path(), 31 * 24 * 3600).await;
    assert!(error.contains("cannot issue") && error.contains("root.json"), "{error}");
}

#[tokio::test]
async fn spec_028_an_issuer_that_is_not_valid_yet_refuses_to_start() {
    let dir = made();
    let error = start_error(dir.path(), -3600).await;
    assert!(
        error.contains("clock says") && error.contains("postern-ca rotate"),
        "{error}"
    );
}

#[tokio::test]
async fn spec_028_an_expired_root_refuses_to_start() {
    let dir = made();
    let error = start_error(dir.path(), 11 * 365 * 24 * 3600).await;
    assert!(error.contains("outside the root's validity"), "{error}");
}

#[test]
fn spec_029_and_030_root_and_issuer_are_cas_of_the_trust_domain_itself() {
    let dir = made();
    let authority = stored(&dir.path().join("ca"), Kind::Authority);
    for (cert, path_len) in [
        (&authority["root_certificate"], 1),
        (&authority["issuer"]["certificate"], 0),
    ] {
        let cert = der(cert);
        let (_, cert) = X509Certificate::from_der(&cert).unwrap();
        let constraints = cert.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(path_len));
        let usage = cert.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
        let san = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(san.value.general_names, [GeneralName::URI("spiffe://cluster.local")]);
        assert!(
            cert.name_constraints().unwrap().is_none(),
            "webpki refuses chains with URI name constraints"
        );
    }
}

#[tokio::test]
async fn spec_031_a_signing_certificate_is_nobodys_identity() {
    let world = World::new().await;
    let issued = world.first_issue(WEB, "web-1").await;
    let trust = trust_of(&issued.bundle);
    let issuer = issued.svid.chain()[1].clone();
    let root = issued.bundle.roots()[0].clone();
    for role in [Role::Client, Role::Server] {
        assert!(verify::verify_peer(std::slice::from_ref(&issuer), role, &trust.load(), UnixTime::now()).is_err());
        assert!(verify::verify_peer(std::slice::from_ref(&root), role, &trust.load(), UnixTime::now()).is_err());
    }
}

#[tokio::test]
async fn spec_032_an_authority_whose_leaves_do_not_verify_is_not_used() {
    let (ours, theirs) = (made(), made());
    let (store, other) = (ours.path().join("ca"), theirs.path().join("ca"));
    // A sound issuer under another root.
    let mut authority = stored(&store, Kind::Authority);
    authority["issuer"] = stored(&other, Kind::Authority)["issuer"].clone();
    put(&store, Kind::Authority, &authority);
    let error = start_error(ours.path(), 0).await;
    assert!(error.contains("self-test failed"), "{error}");
    // A bundle that was signed by somebody else.
    let mut authority = stored(&other, Kind::Authority);
    authority["bundles"][0]["signature"] = stored(&store, Kind::Authority)["bundles"][0]["signature"].clone();
    put(&other, Kind::Authority, &authority);
    let error = start_error(theirs.path(), 0).await;
    assert!(error.contains("self-test failed"), "{error}");
}

#[tokio::test]
async fn spec_032_a_store_of_another_trust_domain_is_not_used() {
    let dir = made();
    let store = dir.path().join("ca");
    let mut authority = stored(&store, Kind::Authority);
    authority["trust_domain"] = "other.local".into();
    put(&store, Kind::Authority, &authority);
    let error = start_error(dir.path(), 0).await;
    assert!(error.contains("self-test failed"), "{error}");
}

#[test]
fn spec_033_every_ca_has_its_own_self_signed_root_and_keys() {
    let (first, second) = (made(), made());
    let mut keys = Vec::new();
    for dir in [&first, &second] {
        let (root, authority) = (
            stored(&dir.path().join("ca"), Kind::Root),
            stored(&dir.path().join("ca"), Kind::Authority),
        );
        let cert = der(&root["certificate"]);
        let (_, parsed) = X509Certificate::from_der(&cert).unwrap();
        assert_eq!(parsed.subject(), parsed.issuer());
        assert_eq!(root["certificate"], authority["root_certificate"]);
        keys.extend([root["private_key"].clone(), authority["issuer"]["private_key"].clone()]);
    }
    keys.sort_by_key(ToString::to_string);
    keys.dedup();
    assert_eq!(keys.len(), 4);
}

#[test]
fn init_prints_the_hash_that_tokens_pin() {
    let dir = tempfile::tempdir().unwrap();
    let made = init(&init_config(dir.path()), UnixTime::now()).unwrap();
    let root = der(&stored(&dir.path().join("ca"), Kind::Root)["certificate"]);
    let sha256 = bundle::fingerprint(&CertificateDer::from(root));
    let hex: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(made.root_sha256, hex);
    assert_eq!(world::root_of(&dir.path().join("ca")), sha256);
}

#[test]
fn init_overwrites_nothing_and_refuses_what_makes_no_sense() {
    let dir = made();
    let before = stored(&dir.path().join("ca"), Kind::Root);
    let error = init(&init_config(dir.path()), UnixTime::now()).unwrap_err().to_string();
    assert!(error.contains("never overwritten"), "{error}");
    assert_eq!(stored(&dir.path().join("ca"), Kind::Root), before);
    let elsewhere = tempfile::tempdir().unwrap();
    let mut config = init_config(elsewhere.path());
    config.trust_domain = "Cluster.Local".to_owned();
    assert!(init(&config, UnixTime::now()).is_err());
    config = init_config(elsewhere.path());
    config.root_life = Duration::from_secs(3600);
    assert!(init(&config, UnixTime::now()).is_err());
    assert!(!elsewhere.path().join("ca").exists());
}

#[tokio::test]
async fn c_08_a_clock_that_was_moved_makes_no_certificates() {
    let world = World::new().await;
    let month = 30 * 24 * 3600;
    for shift in [-3600, month + 3600, 365 * 24 * 3600] {
        world.move_clock(0);
        let token = world.try_token(WEB, "web-1", 3600).await.unwrap();
        world.move_clock(shift);
        let attestation = postern_api::ca::v1::issue_request::Attestation::JoinToken(token.expose().to_owned());
        let status = world.issue(csr(&new_key()), attestation).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status)),
            (tonic::Code::Unavailable, "clock"),
            "{shift}"
        );
    }
    world.move_clock(0);
    world.issue_for(csr(&new_key())).await.unwrap();
}

#[tokio::test]
async fn c_08_an_issuer_that_was_made_under_a_wrong_clock_is_replaced_by_hand() {
    let dir = made();
    let store = dir.path().join("ca");
    let next_year = shifted(&std::sync::Arc::new((365 * 24 * 3600).into()));
    assert_eq!(rotate_store(&store, None, next_year).await.unwrap(), 2);
    assert!(start_error(dir.path(), 0).await.contains("clock says"));
    assert_eq!(
        rotate_store(&store, None, postern_ca::clock::system()).await.unwrap(),
        3
    );
    start(serve_config(dir.path()), postern_ca::clock::system())
        .await
        .unwrap()
        .stop()
        .await;
}

#[tokio::test]
async fn svid_lives_are_bounded_and_seconds_need_the_insecure_switch() {
    let dir = made();
    for (life, insecure, good) in [
        (300, false, true),
        (299, false, false),
        (24 * 3600, false, true),
        (24 * 3600 + 1, false, false),
        (1, true, true),
        (0, true, false),
    ] {
        let mut config = serve_config(dir.path());
        config.svid_life = Duration::from_secs(life);
        config.insecure_short_life = insecure;
        let outcome = start(config, postern_ca::clock::system()).await;
        assert_eq!(outcome.is_ok(), good, "{life} {insecure}");
        if let Ok(running) = outcome {
            running.stop().await;
        }
    }
}

//! A root or an issuer that was made elsewhere: by openssl as the document says, or mounted and swapped.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use postern_api::ca::v1 as pb;
use postern_api::ca_client;
use postern_ca::{RootSource, init_from};
use rustls_pki_types::UnixTime;
use world::pki::{
    Files, Mount, Party, authority, cacerts, issues_under, openssl, openssl_root, openssl_signs, p256, tls,
};
use world::program::{done, failed, path, serve, serve_by};
use world::{WEB, World, init_config, serve_config, trust_of};

mod world;

const PATIENCE: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn a_root_with_its_key_makes_issuers_and_openssl_believes_what_they_sign() {
    for (kind, key) in [
        ("P-256 in SEC1", "openssl ecparam -genkey -name prime256v1 -noout"),
        (
            "P-384 in PKCS#8",
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
        ),
        ("RSA in PKCS#1", "openssl genrsa -traditional"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| path(dir.path(), name);
        openssl_root(dir.path(), key);
        let init = [
            "init",
            "--store",
            &at("ca"),
            "--root-cert",
            &at("root.pem"),
            "--root-key",
            &at("root.key"),
        ];
        let printed = done(&init);
        let sum = openssl(dir.path(), "openssl x509 -in root.pem -outform DER | sha256sum");
        assert!(sum.starts_with(printed.trim()), "{kind}");
        let serving = serve(dir.path(), "info");
        issues_under(&serving, dir.path(), "web-1", "root.pem");
        done(&["rotate", "--admin-socket", &at("admin.sock")]);
        issues_under(&serving, dir.path(), "web-2", "root.pem");
        drop(serving);
        issues_under(&serve(dir.path(), "info"), dir.path(), "web-3", "root.pem");
    }
}

#[test]
fn with_the_root_offline_a_person_signs_each_issuer_and_its_key_never_leaves_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| path(dir.path(), name);
    openssl_root(
        dir.path(),
        "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
    );
    done(&["init", "--store", &at("ca"), "--root-cert", &at("root.pem")]);
    // Nothing can be issued yet, and that is said with what to do.
    let error = failed(&["serve", "--store", &at("ca"), "--admin-socket", &at("admin.sock")]);
    assert!(
        error.contains("no issuing certificate yet") && error.contains("issuer request"),
        "{error}"
    );
    let stopped = ["issuer", "request", "--store", &at("ca"), "--out", &at("issuer.csr")];
    done(&stopped);
    let first = fs::read(at("issuer.csr")).unwrap();
    done(&stopped);
    let key = |file: &str| openssl(dir.path(), &format!("openssl req -in {file} -noout -pubkey"));
    let asked = key("issuer.csr");
    fs::write(at("first.csr"), first).unwrap();
    assert_eq!(asked, key("first.csr"), "the same key until it is certified");
    let shown = openssl(dir.path(), "openssl req -in issuer.csr -noout -text -verify 2>&1");
    for says in [
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign",
        "URI:spiffe://cluster.local",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    openssl_signs(dir.path());
    done(&["issuer", "import", "--store", &at("ca"), &at("issuer.pem")]);
    let serving = serve(dir.path(), "info");
    issues_under(&serving, dir.path(), "web-1", "root.pem");

    // The next one, while it runs.
    let socket = at("admin.sock");
    let error = failed(&["issuer", "import", "--admin-socket", &socket, &at("issuer.pem")]);
    assert!(error.contains("no request is waiting"), "{error}");
    let running = [
        "issuer",
        "request",
        "--admin-socket",
        &socket,
        "--out",
        &at("issuer.csr"),
    ];
    done(&running);
    assert_ne!(asked, key("issuer.csr"));
    let error = failed(&["issuer", "import", "--admin-socket", &socket, &at("issuer.pem")]);
    assert!(error.contains("the key is not that of the certificate in"), "{error}");
    let error = failed(&["rotate", "--admin-socket", &socket]);
    assert!(error.contains("issuer request"), "{error}");
    openssl_signs(dir.path());
    let told = done(&["issuer", "import", "--admin-socket", &socket, &at("issuer.pem")]);
    assert_eq!(told, "issuer 2 signs\n");
    issues_under(&serving, dir.path(), "web-2", "root.pem");
    drop(serving);
    let serving = serve(dir.path(), "info");
    issues_under(&serving, dir.path(), "web-3", "root.pem");
    assert!(!Path::new(&at("ca/request.json")).exists() && !Path::new(&at("ca/root.json")).exists());
}

#[test]
fn an_issuer_under_another_root_is_handed_in_and_its_root_is_published_first() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| path(dir.path(), name);
    for dir in [&dir, &other] {
        openssl_root(dir.path(), "openssl ecparam -genkey -name prime256v1 -noout");
    }
    done(&["init", "--store", &at("ca"), "--root-cert", &at("root.pem")]);
    done(&["issuer", "request", "--store", &at("ca"), "--out", &at("issuer.csr")]);
    fs::copy(at("issuer.csr"), other.path().join("issuer.csr")).unwrap();
    openssl_signs(other.path());
    let error = failed(&[
        "issuer",
        "import",
        "--store",
        &at("ca"),
        &path(other.path(), "issuer.pem"),
    ]);
    assert!(
        error.contains("which no certificate in the root of this CA is"),
        "{error}"
    );
    openssl_signs(dir.path());
    done(&["issuer", "import", "--store", &at("ca"), &at("issuer.pem")]);
    let quickly = || {
        let mut shell = Command::new("sh");
        let bin = env!("CARGO_BIN_EXE_postern-ca");
        shell.args(["-c", &format!("exec {bin} \"$@\" --root-acknowledge-timeout 2s"), "sh"]);
        shell
    };
    let serving = serve_by(quickly(), dir.path(), "info");
    let socket = at("admin.sock");
    done(&[
        "issuer",
        "request",
        "--admin-socket",
        &socket,
        "--out",
        &path(other.path(), "issuer.csr"),
    ]);
    openssl_signs(other.path());
    let both = format!(
        "{}{}",
        fs::read_to_string(other.path().join("issuer.pem")).unwrap(),
        fs::read_to_string(other.path().join("root.pem")).unwrap()
    );
    fs::write(at("both.pem"), both).unwrap();
    let told = done(&["issuer", "import", "--admin-socket", &socket, &at("both.pem")]);
    assert!(told.starts_with("prepared") || told.starts_with("published"), "{told}");
    let since = Instant::now();
    // Killed on the way, and started again.
    serving.signal(rustix::process::Signal::KILL);
    drop(serving);
    let serving = serve_by(quickly(), dir.path(), "info");
    while !done(&["status", "--admin-socket", &socket]).contains("root rotation activated") {
        assert!(since.elapsed() < PATIENCE, "{}", serving.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::copy(other.path().join("root.pem"), at("other.pem")).unwrap();
    issues_under(&serving, dir.path(), "web-1", "other.pem");
    let error = failed(&["rotate", "--root", "--admin-socket", &socket]);
    assert!(error.contains("replaced already"), "{error}");
}

/// A CA whose issuers are in `mount`.
async fn mounted(files: &Files, change: impl FnOnce(&mut postern_ca::ServeConfig)) -> (World, Mount) {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::new(dir.path().join("issuer"), files);
    let source = RootSource::Issuer(mount.dir.clone());
    init_from(&init_config(dir.path()), &source, UnixTime::now()).unwrap();
    let mut config = serve_config(dir.path());
    config.issuer_dir = Some(mount.dir.clone());
    config.svid_life = Duration::from_secs(2);
    config.insecure_short_life = true;
    config.root_acknowledge = Duration::ZERO;
    config.root_retire = Some(NEVER);
    change(&mut config);
    (World::over(dir, Arc::new(AtomicI64::new(0)), config).await, mount)
}

async fn status(world: &World) -> pb::StatusResponse {
    let mut admin = world.admin().await;
    admin.status(pb::StatusRequest {}).await.unwrap().into_inner()
}

async fn comes_to(world: &World, wanted: impl Fn(&pb::StatusResponse) -> bool) -> pb::StatusResponse {
    let since = Instant::now();
    loop {
        let status = status(world).await;
        if wanted(&status) {
            return status;
        }
        assert!(since.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn stage(status: &pb::StatusResponse) -> &str {
    status.root_rotation.as_ref().map_or("", |rotation| &rotation.stage)
}

fn state(status: &pb::StatusResponse) -> (&str, &str) {
    let brought = status.brought_issuer.as_ref().unwrap();
    (&brought.state, &brought.why)
}

#[tokio::test]
async fn a_swap_under_the_same_root_signs_at_once_and_renewals_go_on() {
    let root = Party::root(&authority("root", None), p256());
    let between = root.sign(&authority("between", Some(1)));
    let issuer = |above: &Party| above.sign(&authority("issuer", Some(0)));
    let (world, mut mount) = mounted(&tls(&[&issuer(&root)], &root), |_| {}).await;
    let mut held = world.first_issue(WEB, "web-1").await;
    let mut world = world;
    // Under an intermediate; with the root in tls.crt as well; by Istio's names, in a directory of their own; and restarted after each.
    let next = issuer(&between);
    let mut repeated = tls(&[&next, &between], &root);
    repeated.get_mut("tls.crt").unwrap().push_str(&root.pem());
    for (n, files) in [tls(&[&issuer(&root)], &root), repeated].iter().enumerate() {
        mount.swap(files);
        let epoch = n as u64 + 2;
        comes_to(&world, |status| {
            status.issuer_epoch == epoch && state(status).0 == "in_force"
        })
        .await;
        held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
            .await
            .unwrap();
        assert_eq!((held.issuer_epoch, held.bundle.roots().len()), (epoch, 1));
        world = world.restarted().await;
        assert_eq!(status(&world).await.issuer_epoch, epoch);
        held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
            .await
            .unwrap();
    }
    assert_eq!(held.svid.chain().len(), 3, "the intermediate goes along");
    assert_eq!(stage(&status(&world).await), "");
}

#[tokio::test]
async fn a_swap_to_another_root_goes_through_all_stages_and_loses_nobody_who_is_there() {
    let old = Party::root(&authority("old root", None), p256());
    let rsa = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let new = Party::root(&authority("new root", None), rsa);
    let (world, mut mount) = mounted(&tls(&[&old.sign(&authority("issuer", Some(0)))], &old), |config| {
        config.root_acknowledge = NEVER;
    })
    .await;
    let first = world.first_issue(WEB, "web-1").await;
    let rsa = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let next_key = rsa.serialize_der();
    let next = tls(&[&new.sign_for(&authority("new issuer", Some(0)), rsa)], &new);
    mount.swap(&next);
    comes_to(&world, |status| {
        stage(status) == "published" && state(status).0 == "waiting"
    })
    .await;
    // No issuer has followed another yet.
    let counted = world.metrics().await;
    assert!(
        counted.contains("postern_ca_issuer_rotations_total{outcome=\"done\"} 0\n"),
        "{counted}"
    );
    // The old issuer signs, also after a restart, though its files are gone.
    let world = world.restarted().await;
    let held = ca_client::renew(&world.address(), &first.svid, &trust_of(&first.bundle))
        .await
        .unwrap();
    assert_eq!((held.issuer_epoch, held.bundle.roots().len()), (1, 2));
    // Its key is kept for then, sealed.
    nowhere_in_clear(&world.store(), &next_key);
    // Meanwhile a third one waits.
    let late = Party::root(&authority("late root", None), p256());
    mount.swap(&tls(&[&late.sign(&authority("issuer", Some(0)))], &late));
    let waiting = comes_to(&world, |status| state(status).0 == "waiting").await;
    assert!(state(&waiting).1.contains("published"), "{waiting:?}");
    // And another issuer under the root that is on its way takes the place of the one that was to sign first.
    let rsa = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let other = new.sign_for(&authority("other issuer", Some(0)), rsa);
    mount.swap(&tls(&[&other], &new));
    let mut world = world.restarted().await;
    assert_eq!(
        state(&status(&world).await),
        ("waiting", "the root is being replaced, and that is published")
    );
    world.config.root_acknowledge = Duration::ZERO;
    let world = world.restarted().await;
    comes_to(&world, |status| {
        stage(status) == "activated" && state(status).0 == "in_force"
    })
    .await;
    let mut held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
        .await
        .unwrap();
    assert_eq!((held.issuer_epoch, held.bundle.roots().len()), (2, 2));
    assert_eq!(held.svid.chain()[1], other.der);
    // A new issuer under the root that signs now does not wait.
    mount.swap(&tls(&[&new.sign(&authority("newer issuer", Some(0)))], &new));
    comes_to(&world, |status| status.issuer_epoch == 3).await;
    let mut world = world.restarted().await;
    held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
        .await
        .unwrap();
    world.config.root_retire = Some(world.config.svid_life);
    let world = world.restarted().await;
    comes_to(&world, |status| stage(status) == "retired").await;
    held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
        .await
        .unwrap();
    assert_eq!(held.bundle.roots(), std::slice::from_ref(&new.der));
}

#[tokio::test]
async fn a_bad_swap_is_refused_with_the_reason_and_the_issuer_before_goes_on() {
    let root = Party::root(&authority("root", None), p256());
    let (one, two) = (
        root.sign(&authority("one", Some(0))),
        root.sign(&authority("two", Some(0))),
    );
    let (world, mut mount) = mounted(&tls(&[&one], &root), |_| {}).await;
    let mut mixed = tls(&[&two], &root);
    mixed.insert("tls.key", one.key_pem());
    mount.swap(&mixed);
    let refused = comes_to(&world, |status| state(status).0 == "refused").await;
    let why = state(&refused).1;
    assert!(
        why.contains("tls.key: the key is not that of the certificate in") && why.contains("bring the"),
        "{why}"
    );
    assert!(
        world
            .metrics()
            .await
            .contains("\npostern_ca_brought_issuer_refused 1\n")
    );
    let held = world.first_issue(WEB, "web-1").await;
    assert_eq!(held.issuer_epoch, 1);
    // A restart changes nothing of it, nor does a directory that is gone.
    let world = world.restarted().await;
    comes_to(&world, |status| state(status).0 == "refused").await;
    world.first_issue(WEB, "web-2").await;
    fs::remove_dir_all(&mount.dir).unwrap();
    comes_to(&world, |status| state(status).1.contains("cannot be read")).await;
    let world = world.restarted().await;
    world.first_issue(WEB, "web-3").await;
    // Whole again, it is taken; and what was replaced does not come back.
    let mut mount = Mount::new(mount.dir.clone(), &tls(&[&two], &root));
    comes_to(&world, |status| {
        status.issuer_epoch == 2 && state(status).0 == "in_force"
    })
    .await;
    assert!(
        world
            .metrics()
            .await
            .contains("\npostern_ca_brought_issuer_refused 0\n")
    );
    mount.swap(&tls(&[&one], &root));
    let back = comes_to(&world, |status| state(status).0 == "refused").await;
    assert!(state(&back).1.contains("was replaced before"), "{back:?}");
    assert_eq!(back.issuer_epoch, 2);
    let world = world.restarted().await;
    let back = comes_to(&world, |status| state(status).0 == "refused").await;
    assert!(state(&back).1.contains("was replaced before"), "{back:?}");
}

fn nowhere_in_clear(store: &Path, key: &[u8]) {
    // What is secret of a key is in its middle, whatever is around it.
    let middle = &key[key.len() / 2..][..24];
    // In base64 it has one of three alignments.
    let encoded =
        |from: usize| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &middle[from..from + 12]);
    let texts = [0, 1, 2].map(encoded);
    for file in fs::read_dir(store).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert!(
            !has(middle) && !texts.iter().any(|text| has(text.as_bytes())),
            "{}",
            path.display()
        );
    }
}

#[tokio::test]
async fn after_a_compromise_the_replacement_by_a_mounted_issuer_is_hurried_and_never_by_a_root_of_our_own() {
    let old = Party::root(&authority("old root", None), p256());
    let new = Party::root(&authority("new root", None), p256());
    let (world, mut mount) = mounted(&cacerts(&[&old.sign(&authority("issuer", Some(0)))], &old), |config| {
        config.root_acknowledge = NEVER;
    })
    .await;
    let taint = pb::RotateRootRequest { taint: true };
    let error = world.admin().await.rotate_root(taint).await.unwrap_err();
    assert!(
        error.message().contains("no issuer under another root is on its way"),
        "{error}"
    );
    for change in [pb::RotateRootRequest { taint: false }] {
        let error = world.admin().await.rotate_root(change).await.unwrap_err();
        assert!(error.message().contains("--issuer-dir"), "{error}");
    }
    mount.swap(&cacerts(&[&new.sign(&authority("issuer", Some(0)))], &new));
    comes_to(&world, |status| stage(status) == "published").await;
    world.admin().await.rotate_root(taint).await.unwrap();
    let after = comes_to(&world, |status| stage(status) == "activated").await;
    assert!(after.root_rotation.unwrap().tainted);
}

#[test]
fn after_a_compromise_the_replacement_by_an_issuer_that_was_handed_in_is_hurried_and_that_one_is_not_thrown_away() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| path(dir.path(), name);
    for dir in [&dir, &other] {
        openssl_root(dir.path(), "openssl ecparam -genkey -name prime256v1 -noout");
    }
    done(&["init", "--store", &at("ca"), "--root-cert", &at("root.pem")]);
    done(&["issuer", "request", "--store", &at("ca"), "--out", &at("issuer.csr")]);
    openssl_signs(dir.path());
    done(&["issuer", "import", "--store", &at("ca"), &at("issuer.pem")]);
    // It waits ten minutes for an acknowledgement.
    let serving = serve(dir.path(), "info");
    let socket = at("admin.sock");
    let csr = path(other.path(), "issuer.csr");
    done(&["issuer", "request", "--admin-socket", &socket, "--out", &csr]);
    openssl_signs(other.path());
    openssl(other.path(), "cat issuer.pem root.pem > both.pem");
    let both = path(other.path(), "both.pem");
    done(&["issuer", "import", "--admin-socket", &socket, &both]);
    done(&["rotate", "--taint", "--admin-socket", &socket]);
    let since = Instant::now();
    while !done(&["status", "--admin-socket", &socket]).contains("root rotation activated") {
        assert!(since.elapsed() < PATIENCE, "{}", serving.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::copy(other.path().join("root.pem"), at("other.pem")).unwrap();
    issues_under(&serving, dir.path(), "web-1", "other.pem");
    assert!(!Path::new(&at("ca/root.json")).exists());
}

#[tokio::test]
async fn a_ca_that_makes_its_own_issuers_takes_none_until_its_roots_key_is_taken_out() {
    let root = Party::root(&authority("root", None), p256());
    let files = tls(&[&root.sign(&authority("issuer", Some(0)))], &root);
    let world = World::with(|_, config| config.root_acknowledge = Duration::ZERO).await;
    let held = world.first_issue(WEB, "web-1").await;
    let mut admin = world.admin().await;
    let error = admin.request_issuer(pb::RequestIssuerRequest {}).await.unwrap_err();
    assert!(error.message().contains("take root.json out of it"), "{error}");
    let mount = Mount::new(world.dir.path().join("issuer"), &files);
    let (dir, shift, mut config) = world.stopped().await;
    config.issuer_dir = Some(mount.dir.clone());
    let error = postern_ca::start(config.clone(), world::shifted(&shift))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("root.json is the root's key"), "{error}");
    fs::remove_file(config.store.join("root.json")).unwrap();
    let world = World::over(dir, shift, config).await;
    let error = world
        .admin()
        .await
        .request_issuer(pb::RequestIssuerRequest {})
        .await
        .unwrap_err();
    assert!(
        error.message().contains("come from") && error.message().contains("--issuer-dir"),
        "{error}"
    );
    // The own root is followed through all stages.
    comes_to(&world, |status| stage(status) == "activated").await;
    let after = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle)).await;
    // Without its root's key nothing vouches for the new issuer to who has not heard of it.
    assert!(after.is_err());
    assert_eq!(world.first_issue(WEB, "web-2").await.bundle.roots().len(), 2);
}

/// What renewals of one workload go by; control would push bundles besides.
#[tokio::test]
async fn c_09_renewals_go_on_while_mounted_issuers_and_roots_are_swapped() {
    let old = Party::root(&authority("old root", None), p256());
    let new = Party::root(&authority("new root", None), p256());
    let issuer = |root: &Party| tls(&[&root.sign(&authority("issuer", Some(0)))], root);
    let (world, mut mount) = mounted(&issuer(&old), |config| {
        config.root_acknowledge = Duration::from_secs(4);
        config.root_retire = Some(config.svid_life * 2);
    })
    .await;
    let mut renewing = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (first, address) = (world.first_issue(WEB, &format!("web-{n}")).await, world.address());
        renewing.spawn(async move {
            let (mut held, mut renewals) = (first, 0);
            while held.issuer_epoch < 4 || held.bundle.roots().len() > 1 {
                held = ca_client::renew(&address, &held.svid, &trust_of(&held.bundle))
                    .await
                    .unwrap();
                renewals += 1;
                // One identity is given 256 certificates, and then one a second.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            renewals
        });
    }
    mount.swap(&issuer(&old));
    comes_to(&world, |status| status.issuer_epoch == 2).await;
    mount.swap(&issuer(&new));
    comes_to(&world, |status| status.issuer_epoch == 3).await;
    mount.swap(&issuer(&new));
    comes_to(&world, |status| status.issuer_epoch == 4).await;
    for renewals in renewing.join_all().await {
        assert!(renewals > 8, "{renewals}");
    }
}

/// A mount that is late and a hand that has the wrong file: one rule.
#[test]
fn an_issuer_that_is_handed_in_and_was_made_before_the_one_that_signs_is_refused_as_a_mounted_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| path(dir.path(), name);
    let root = Party::root(&authority("root", None), p256());
    fs::write(at("root.pem"), root.pem()).unwrap();
    done(&["init", "--store", &at("ca"), "--root-cert", &at("root.pem")]);
    // So many seconds before or after the usual beginning.
    let certified = |request: &str, seconds: i64| {
        let mut asked = rcgen::CertificateSigningRequestParams::from_pem(request).unwrap();
        let usual = authority("issuer", Some(0));
        asked.params.not_before = usual.not_before + time::Duration::seconds(seconds);
        asked.params.not_after = usual.not_after;
        asked.params.is_ca = usual.is_ca;
        asked.params.key_usages = usual.key_usages;
        asked.params.use_authority_key_identifier_extension = true;
        let above = rcgen::Issuer::from_ca_cert_der(&root.der, &root.key).unwrap();
        world::pki::pem("CERTIFICATE", asked.signed_by(&above).unwrap().der())
    };
    let hand_in = |by: &[&str], seconds: i64| {
        let csr = at("issuer.csr");
        done(&[&["issuer", "request", "--out", &csr][..], by].concat());
        fs::write(at("issuer.pem"), certified(&fs::read_to_string(&csr).unwrap(), seconds)).unwrap();
        world::program::postern_ca(&[&["issuer", "import", &at("issuer.pem")][..], by].concat())
    };
    let store = at("ca");
    assert!(hand_in(&["--store", &store], 0).status.success());
    let socket = at("admin.sock");
    let mut serving = serve(dir.path(), "info");
    for stopped in [false, true] {
        let by = match stopped {
            true => ["--store", &store],
            false => ["--admin-socket", &socket],
        };
        let refused = hand_in(&by, -30);
        let said = world::program::text(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("was made before the one that signs"),
            "{said}"
        );
        if !stopped {
            serving.signal(rustix::process::Signal::TERM);
            assert!(serving.child.wait().unwrap().success());
        }
    }
    // The request still waits, and nothing else has changed.
    assert!(hand_in(&["--store", &store], 30).status.success());
    let _serving = serve(dir.path(), "info");
    assert!(done(&["status", "--admin-socket", &socket]).contains("issuer        2 until"));
}

/// As many days later, with no caller: TLS goes by the clock of this machine.
async fn started(
    config: &postern_ca::ServeConfig,
    shift: &Arc<AtomicI64>,
) -> (postern_ca::Running, pb::StatusResponse) {
    let running = loop {
        match postern_ca::start(config.clone(), world::shifted(shift)).await {
            // As in `World::over`.
            Err(postern_ca::ServeError::Store(postern_ca::store::StoreError::Locked { .. })) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            started => break started.unwrap(),
        }
    };
    let admin = postern_api::transport::connect_unix(&config.admin_socket)
        .await
        .unwrap();
    let mut admin = pb::admin_client::AdminClient::new(admin);
    let status = admin.status(pb::StatusRequest {}).await.unwrap().into_inner();
    (running, status)
}

const DAY: i64 = 24 * 3600;

fn lasting(name: &str, path_len: Option<u8>, days: i64) -> rcgen::CertificateParams {
    let mut params = authority(name, path_len);
    params.not_after += time::Duration::days(days);
    params
}

#[tokio::test]
async fn a_ca_whose_issuer_ended_while_it_was_down_starts_with_the_next_one_that_is_mounted_or_says_where_to_put_it() {
    let root = Party::root(&lasting("root", None, 30), p256());
    let (world, mut mount) = mounted(&tls(&[&root.sign(&authority("one", Some(0)))], &root), |_| {}).await;
    let (dir, shift, config) = world.stopped().await;
    shift.store(3 * DAY, std::sync::atomic::Ordering::SeqCst);
    let error = postern_ca::start(config.clone(), world::shifted(&shift))
        .await
        .unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains(mount.path()) && said.contains("put the next one there"),
        "{said}"
    );
    mount.swap(&tls(&[&root.sign(&lasting("two", Some(0), 9))], &root));
    let (running, status) = started(&config, &shift).await;
    assert_eq!((status.issuer_epoch, state(&status)), (2, ("in_force", "")));
    running.stop().await;
    drop(dir);
}

#[tokio::test]
async fn only_what_signed_itself_becomes_a_root_and_what_stands_beside_it_goes_into_the_chain() {
    let root = Party::root(&authority("root", None), p256());
    let between = root.sign(&authority("between", None));
    let next = || between.sign(&authority("issuer", Some(0)));
    let both = |mut files: Files| {
        files.insert("ca.crt", between.pem() + &root.pem());
        files
    };
    let (world, mut mount) = mounted(&both(tls(&[&next()], &root)), |_| {}).await;
    let held = world.first_issue(WEB, "web-1").await;
    assert_eq!(held.bundle.roots(), std::slice::from_ref(&root.der));
    assert_eq!(held.svid.chain()[2..], *std::slice::from_ref(&between.der));
    let below = next();
    mount.swap(&both(tls(&[&below, &between], &root)));
    comes_to(&world, |status| status.issuer_epoch == 2).await;
    let held = world.restarted().await.first_issue(WEB, "web-2").await;
    assert_eq!(held.bundle.roots(), std::slice::from_ref(&root.der));
    assert_eq!(held.svid.chain()[1..], [below.der, between.der.clone()]);
}

#[tokio::test]
async fn leaves_end_with_the_root_above_their_issuer_also_after_a_restart_and_what_ends_sooner_yet_is_refused() {
    let lasting = |name, path_len, minutes| {
        let mut params = authority(name, path_len);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::minutes(minutes);
        params
    };
    let root = Party::root(&lasting("root", None, 40), p256());
    let end = |status: &pb::StatusResponse| (status.issuer_not_after_unix, status.root_not_after_unix);
    let issuer = |minutes| tls(&[&root.sign(&lasting("issuer", Some(0), minutes))], &root);
    let (world, mut mount) = mounted(&issuer(80), |config| config.svid_life = NEVER).await;
    let mut world = world;
    for instance in ["web-1", "web-2"] {
        let (issuer, root) = end(&status(&world).await);
        assert_eq!(issuer, root);
        let held = world.first_issue(WEB, instance).await;
        let leaf = x509_parser::parse_x509_certificate(&held.svid.chain()[0]).unwrap().1;
        assert_eq!(leaf.validity().not_after.timestamp(), root);
        world = world.restarted().await;
    }
    mount.swap(&issuer(20));
    let refused = comes_to(&world, |status| state(status).0 == "refused").await;
    let why = state(&refused).1;
    assert!(
        why.contains("ends at") && why.contains("have it signed for longer"),
        "{why}"
    );
    // As long as the one that signs will do: the root is the one to be replaced.
    mount.swap(&issuer(60));
    comes_to(&world, |status| status.issuer_epoch == 2).await;
}

#[test]
fn a_mounted_issuer_that_expired_is_in_the_log_once_however_often_it_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| path(dir.path(), name);
    let root = Party::root(&authority("root", None), p256());
    let mut expired = authority("issuer", Some(0));
    expired.not_before -= time::Duration::days(3);
    expired.not_after -= time::Duration::days(2);
    let good = tls(&[&root.sign(&authority("issuer", Some(0)))], &root);
    let mut mount = Mount::new(dir.path().join("issuer"), &good);
    done(&["init", "--store", &at("ca"), "--issuer-dir", mount.path()]);
    mount.swap(&tls(&[&root.sign(&expired)], &root));
    let mut shell = Command::new("sh");
    let bin = env!("CARGO_BIN_EXE_postern-ca");
    let line = format!("exec {bin} \"$@\" --issuer-dir {}", mount.path());
    shell.args(["-c", &line, "sh"]);
    let serving = serve_by(shell, dir.path(), "info");
    // The status has the time of each look in it.
    let (mut looks, since) = (std::collections::BTreeSet::new(), Instant::now());
    while looks.len() < 3 {
        let status = done(&["status", "--admin-socket", &at("admin.sock")]);
        looks.extend(
            status
                .lines()
                .find(|line| line.contains("expired at"))
                .map(str::to_owned),
        );
        assert!(since.elapsed() < PATIENCE, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = serving.log();
    assert_eq!(log.matches("the mounted issuer is refused").count(), 1, "{log}");
}

#[tokio::test]
async fn a_ca_whose_issuer_ended_while_it_was_down_goes_on_under_another_root_whatever_stage_that_had_reached() {
    for (published, mounted_then) in [(false, "new"), (true, "new"), (true, "old")] {
        let old = Party::root(&lasting("old root", None, 30), p256());
        let new = Party::root(&lasting("new root", None, 30), p256());
        let (world, mut mount) = mounted(&tls(&[&old.sign(&authority("one", Some(0)))], &old), |config| {
            config.root_acknowledge = NEVER;
        })
        .await;
        let before = status(&world).await.root_sha256;
        let next = tls(&[&new.sign(&lasting("two", Some(0), 9))], &new);
        if published {
            mount.swap(&next);
            comes_to(&world, |status| stage(status) == "published").await;
        }
        let (dir, shift, config) = world.stopped().await;
        shift.store(3 * DAY, std::sync::atomic::Ordering::SeqCst);
        if mounted_then == "old" {
            mount.swap(&tls(&[&old.sign(&lasting("two", Some(0), 9))], &old));
        } else {
            mount.swap(&next);
        }
        let (running, status) = started(&config, &shift).await;
        assert_eq!((status.issuer_epoch, state(&status)), (2, ("in_force", "")));
        let (wanted, same) = if mounted_then == "old" {
            ("", true)
        } else {
            ("activated", false)
        };
        assert_eq!(
            (stage(&status), status.root_sha256 == before),
            (wanted, same),
            "{published}"
        );
        running.stop().await;
        // What was stored is read back.
        let (running, again) = started(&config, &shift).await;
        assert_eq!((stage(&again), &again.root_sha256), (wanted, &status.root_sha256));
        assert!(again.bundle_sequence >= status.bundle_sequence);
        running.stop().await;
        drop(dir);
    }
}

/// Once nobody has the store: a process that another test is starting may, for a moment.
async fn unlocked<T, E: std::fmt::Debug>(work: impl AsyncFn() -> Result<T, E>) -> T {
    loop {
        match work().await {
            Err(error) if format!("{error:?}").contains("Locked") => tokio::time::sleep(Duration::from_millis(1)).await,
            done => break done.unwrap(),
        }
    }
}

#[tokio::test]
async fn an_issuer_under_another_root_that_is_handed_in_after_the_one_before_had_ended_signs_at_the_next_start() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&dir, &other] {
        openssl_root(dir.path(), "openssl ecparam -genkey -name prime256v1 -noout");
    }
    let source = RootSource::Files {
        cert: dir.path().join("root.pem"),
        key: None,
    };
    init_from(&init_config(dir.path()), &source, UnixTime::now()).unwrap();
    let (config, shift) = (serve_config(dir.path()), Arc::new(AtomicI64::new(0)));
    let request = async |to: &Path| {
        let csr = unlocked(async || postern_ca::request_issuer_from(&config.store, None, world::shifted(&shift)).await);
        fs::write(to.join("issuer.csr"), csr.await).unwrap();
    };
    let import = async |pem: String| {
        unlocked(async || {
            let file = (pem.clone(), "issuer.pem".to_owned());
            postern_ca::import_issuer_into(&config.store, None, file, world::shifted(&shift)).await
        })
        .await
    };
    request(dir.path()).await;
    openssl_signs(dir.path());
    assert_eq!(
        import(fs::read_to_string(dir.path().join("issuer.pem")).unwrap()).await,
        "issuer 1 signs"
    );
    shift.store(91 * DAY, std::sync::atomic::Ordering::SeqCst);
    request(other.path()).await;
    fs::write(other.path().join("issuer.ext"), world::pki::EXTENSIONS).unwrap();
    let both = openssl(
        other.path(),
        "openssl x509 -req -in issuer.csr -CA root.pem -CAkey root.key -days 180 -extfile issuer.ext 2>/dev/null; cat root.pem",
    );
    let told = import(both).await;
    assert!(told.contains("once the CA runs"), "{told}");
    let (running, status) = started(&config, &shift).await;
    assert_eq!((status.issuer_epoch, stage(&status)), (2, "activated"));
    running.stop().await;
}

#[tokio::test]
async fn a_swap_to_another_root_is_undone_by_the_issuer_that_signs_until_the_other_does() {
    let old = Party::root(&authority("old root", None), p256());
    let new = Party::root(&authority("new root", None), p256());
    let (one, two) = (
        tls(&[&old.sign(&authority("one", Some(0)))], &old),
        tls(&[&new.sign(&authority("two", Some(0)))], &new),
    );
    let (world, mut mount) = mounted(&one, |config| config.root_acknowledge = NEVER).await;
    let held = world.first_issue(WEB, "web-1").await;
    mount.swap(&two);
    comes_to(&world, |status| stage(status) == "published").await;
    let held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
        .await
        .unwrap();
    assert_eq!(held.bundle.roots().len(), 2);
    mount.swap(&one);
    let undone = comes_to(&world, |status| {
        stage(status).is_empty() && state(status).0 == "in_force"
    })
    .await;
    assert_eq!(undone.issuer_epoch, 1);
    let mut world = world.restarted().await;
    let held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle))
        .await
        .unwrap();
    assert_eq!(held.bundle.roots(), std::slice::from_ref(&old.der));
    assert_eq!(stage(&status(&world).await), "");
    // Nothing was signed by the other: it can come again.
    mount.swap(&two);
    comes_to(&world, |status| stage(status) == "published").await;
    world.config.root_acknowledge = Duration::ZERO;
    let world = world.restarted().await;
    comes_to(&world, |status| stage(status) == "activated").await;
    let held = ca_client::renew(&world.address(), &held.svid, &trust_of(&held.bundle)).await;
    // The other root was known to whoever renewed meanwhile; this one did not.
    assert!(held.is_err());
    assert_eq!(world.first_issue(WEB, "web-2").await.issuer_epoch, 2);
}

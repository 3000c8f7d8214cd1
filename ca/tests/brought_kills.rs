//! `kill -9` while an issuer that was made elsewhere is handed in, or taken from a mount: after each the old one is there in full or
//! the new one is, and never a part of both.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_ca::store::Kind;
use rcgen::{KeyPair, PublicKeyData as _};
use rustix::process::Signal;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use world::pki::{Mount, Party, authority, issues_under, openssl_root, openssl_signs, p256, tls};
use world::program::{Serving, done, path, postern_ca, serve, serve_by, text};

mod world;

/// An issuer by its number and its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct InForce {
    epoch: u64,
    cert: Vec<u8>,
}

/// The public key of a private one, or of a certificate.
fn public(key: &KeyPair) -> Vec<u8> {
    key.subject_public_key_info()
}
fn public_of(cert: &[u8]) -> Vec<u8> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).unwrap();
    parsed.public_key().raw.to_vec()
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// What the store of a CA that does not run holds, which is one issuer in full: its key is its certificate's, and it signs the bundle.
fn in_store(store: &Path) -> InForce {
    let authority = world::stored(store, Kind::Authority);
    let issuer = &authority["issuer"];
    let (cert, key) = (bytes(&issuer["certificate"]), bytes(&issuer["private_key"]));
    assert_eq!(public(&KeyPair::try_from(key.as_slice()).unwrap()), public_of(&cert));
    let newest = authority["bundles"].as_array().unwrap().last().unwrap();
    assert_eq!(bytes(&newest["signer_chain"][0]), cert, "another one signs the bundle");
    InForce {
        epoch: issuer["epoch"].as_u64().unwrap(),
        cert,
    }
}

/// The public key of the request that waits.
fn requested(store: &Path) -> Option<Vec<u8>> {
    let request: Option<Value> = world::opened(store).read(Kind::Request).unwrap();
    request.map(|request| public(&KeyPair::try_from(bytes(&request["private_key"]).as_slice()).unwrap()))
}

/// It is ready, and signs by this issuer and no other; `serials`: of all leaves so far.
fn signs_by(serving: &Serving, dir: &Path, now: &InForce, serials: &mut BTreeSet<Vec<u8>>) {
    assert!(serving.get("/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(epoch(dir), now.epoch);
    let name = format!("web-{}", serials.len());
    issues_under(serving, dir, &name, "root.pem");
    let chain = CertificateDer::pem_file_iter(dir.join(&name).join("svid.pem")).unwrap();
    let chain: Vec<CertificateDer<'_>> = chain.map(Result::unwrap).collect();
    assert_eq!(chain[1].as_ref(), now.cert, "the leaf is of another issuer");
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert!(serials.insert(leaf.raw_serial().to_vec()), "a serial was used twice");
}

fn epoch(dir: &Path) -> u64 {
    let socket = path(dir, "admin.sock");
    let status: Value =
        serde_json::from_str(&done(&["status", "--admin-socket", &socket, "--output", "json"])).unwrap();
    status["issuer_epoch"].as_u64().unwrap()
}

/// No serial is in the ledger twice, and none is missing there.
fn all_recorded(dir: &Path, serials: &BTreeSet<Vec<u8>>) {
    let socket = path(dir, "admin.sock");
    let lines = done(&["ledger", "list", "--admin-socket", &socket, "--output", "json"]);
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let issued = records.filter(|record| record["event"] == "issued");
    let recorded: Vec<String> = issued
        .map(|record| record["serial"].as_str().unwrap().to_owned())
        .collect();
    let distinct: BTreeSet<&str> = recorded.iter().map(String::as_str).collect();
    assert_eq!(distinct.len(), recorded.len(), "a serial was recorded twice");
    for serial in serials {
        let zeros = serial.iter().take_while(|byte| **byte == 0).count();
        let shown: String = serial[zeros..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(distinct.contains(shown.as_str()), "{shown} left, and is not recorded");
    }
    let verified = postern_ca(&["ledger", "verify", "--admin-socket", &socket]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
}

/// A part of how long it takes on this machine, and a bit more, each round another one.
fn wait(round: u64, whole: Duration) {
    let longest = u64::try_from(whole.mul_f64(1.2).as_micros()).unwrap();
    std::thread::sleep(Duration::from_micros(round * (longest * 13 / 100) % longest));
}

/// Each round another kill: while the certificate of a request is handed in, and just after.
#[test]
fn c_06_a_ca_that_is_killed_while_an_issuer_is_handed_in_has_the_old_one_or_the_new_one_in_full() {
    const ROUNDS: u64 = 24;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| path(dir.path(), name);
    let store = dir.path().join("ca");
    openssl_root(dir.path(), "openssl ecparam -genkey -name prime256v1 -noout");
    done(&["init", "--store", &at("ca"), "--root-cert", &at("root.pem")]);
    done(&["issuer", "request", "--store", &at("ca"), "--out", &at("issuer.csr")]);
    openssl_signs(dir.path());
    done(&["issuer", "import", "--store", &at("ca"), &at("issuer.pem")]);
    let socket = at("admin.sock");
    let mut held = in_store(&store);
    let mut serving = serve(dir.path(), "info");
    let request = [
        "issuer",
        "request",
        "--admin-socket",
        &socket,
        "--out",
        &at("issuer.csr"),
    ];
    let import = ["issuer", "import", "--admin-socket", &socket, &at("issuer.pem")];
    // One that nobody kills tells how long it takes here; later ones may take longer.
    done(&request);
    openssl_signs(dir.path());
    let began = Instant::now();
    done(&import);
    let mut whole = began.elapsed();
    held = InForce {
        epoch: held.epoch + 1,
        cert: CertificateDer::from_pem_file(at("issuer.pem")).unwrap().to_vec(),
    };
    let (mut serials, mut told, mut new_after_kill) = (BTreeSet::new(), 0, 0);
    for round in 0..ROUNDS {
        done(&request);
        openssl_signs(dir.path());
        let next = InForce {
            epoch: held.epoch + 1,
            cert: CertificateDer::from_pem_file(at("issuer.pem")).unwrap().to_vec(),
        };
        let importing = Command::new(env!("CARGO_BIN_EXE_postern-ca"))
            .args(import)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait(round, whole);
        serving.signal(Signal::KILL);
        drop(serving);
        let said = importing.wait_with_output().unwrap();

        let now = in_store(&store);
        assert!(now == held || now == next, "{round}: {now:?}");
        let is_new = now == next;
        new_after_kill += u64::from(is_new);
        if said.status.success() {
            assert_eq!(text(&said.stdout), format!("issuer {} signs\n", next.epoch));
            assert!(is_new, "{round}: it was told, and is not so");
            told += 1;
        }
        // The one key that waits is of what was handed in, until that signs; then it is none that could sign beside it.
        match requested(&store) {
            Some(waits) => assert_eq!(waits, public_of(&next.cert), "{round}"),
            None => assert!(is_new, "{round}: the request is lost, and its certificate is of no use"),
        }

        serving = serve(dir.path(), "info");
        signs_by(&serving, dir.path(), &now, &mut serials);
        // What was handed in signs, or can be handed in still; a third there is not.
        let began = Instant::now();
        let again = postern_ca(&import);
        let why = text(&again.stderr);
        assert_eq!(again.status.success(), !is_new, "{round}: {why}");
        assert!(!is_new || why.contains("no request is waiting"), "{round}: {why}");
        if !is_new {
            whole = whole.max(began.elapsed());
            signs_by(&serving, dir.path(), &next, &mut serials);
        }
        held = next;
    }
    assert_eq!(epoch(dir.path()), ROUNDS + 2, "each signed once");
    all_recorded(dir.path(), &serials);
    eprintln!("{ROUNDS} kills: {new_after_kill} left the new issuer, {told} of them told");
    assert!(
        0 < new_after_kill && new_after_kill < ROUNDS,
        "all kills were on one side"
    );
}

/// A CA that takes what is mounted as it starts; nobody waits until it is ready.
fn begins(dir: &Path, mount: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_postern-ca"))
        .args(["serve", "--store", &path(dir, "ca"), "--issuer-dir", mount])
        .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
        .args(["--admin-socket", &path(dir, "killed.sock")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn c_06_a_ca_that_is_killed_while_it_takes_a_mounted_issuer_has_the_old_one_or_the_new_one_in_full() {
    const ROUNDS: u64 = 16;
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("ca");
    let root = Party::root(&authority("root", None), p256());
    fs::write(dir.path().join("root.pem"), root.pem()).unwrap();
    let made = |n: u64| root.sign(&authority(&format!("issuer {n}"), Some(0)));
    let first = made(1);
    let mut mount = Mount::new(dir.path().join("issuer"), &tls(&[&first], &root));
    let at = mount.path().to_owned();
    done(&["init", "--store", &path(dir.path(), "ca"), "--issuer-dir", &at]);
    let mut held = InForce {
        epoch: 1,
        cert: first.der.to_vec(),
    };
    assert_eq!(in_store(&store), held);
    let runs = || {
        let mut shell = Command::new("sh");
        let bin = env!("CARGO_BIN_EXE_postern-ca");
        shell.args(["-c", &format!("exec {bin} \"$@\" --issuer-dir {at}"), "sh"]);
        let began = Instant::now();
        let serving = serve_by(shell, dir.path(), "info");
        (serving, began.elapsed())
    };
    // One that nobody kills tells how long a start takes here; later ones may take longer.
    let (serving, mut whole) = runs();
    serving.signal(Signal::KILL);
    drop(serving);
    let (mut serials, mut new_after_kill) = (BTreeSet::new(), 0);
    for round in 0..ROUNDS {
        let next = made(held.epoch + 1);
        mount.swap(&tls(&[&next], &root));
        let next = InForce {
            epoch: held.epoch + 1,
            cert: next.der.to_vec(),
        };
        let mut killed = begins(dir.path(), &at);
        wait(round, whole);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let now = in_store(&store);
        assert!(now == held || now == next, "{round}: {now:?}");
        new_after_kill += u64::from(now == next);
        // The mount still says so: it is taken once, whether it was before or not.
        let (serving, took) = runs();
        whole = whole.max(took);
        signs_by(&serving, dir.path(), &next, &mut serials);
        if round + 1 == ROUNDS {
            all_recorded(dir.path(), &serials);
        }
        serving.signal(Signal::KILL);
        drop(serving);
        held = next;
    }
    assert_eq!(in_store(&store), held);
    eprintln!("{ROUNDS} kills: {new_after_kill} left the new issuer");
    assert!(
        0 < new_after_kill && new_after_kill < ROUNDS,
        "all kills were on one side"
    );
}

//! `postern-ca` as an operator meets it: the real program, its output, its signals, its files.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postern_api::ca_client::{self, JoinToken};
use postern_ca::init;
use postern_ca::store::Kind;
use postern_identity::{Svid, bundle};
use rustix::process::Signal;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use world::program::{done, failed, initialised, path, serve, token};
use world::{WEB, domain, init_config, stored, trust_of};

mod world;

#[tokio::test]
async fn init_serve_token_issue_status_rotate_and_a_quick_end() {
    let dir = initialised();
    let mut serving = serve(dir.path(), "info");
    let socket = path(dir.path(), "admin.sock");
    let token = token(dir.path(), "web-1");
    ca_client::first_issue(&serving.listen, &token, &domain())
        .await
        .unwrap();
    let listed: serde_json::Value =
        serde_json::from_str(&done(&["token", "list", "--admin-socket", &socket, "--output", "json"])).unwrap();
    assert_eq!(
        (listed[0]["id"].as_str().unwrap(), listed[0]["redeemed"].as_bool()),
        (token.id(), Some(true))
    );
    assert!(done(&["token", "list", "--admin-socket", &socket]).contains("used"));
    done(&["token", "revoke", "--admin-socket", &socket, token.id()]);
    assert_eq!(done(&["rotate", "--admin-socket", &socket]), "issuer 2 signs\n");
    let status: serde_json::Value =
        serde_json::from_str(&done(&["status", "--admin-socket", &socket, "--output", "json"])).unwrap();
    assert_eq!(
        (status["issued"].as_u64(), status["issuer_epoch"].as_u64()),
        (Some(1), Some(2))
    );
    assert!(done(&["status", "--admin-socket", &socket]).contains("SVID life     4h"));
    serving.signal(Signal::TERM);
    let ended = serving.child.wait().unwrap();
    assert!(ended.success(), "{ended}: {}", serving.log());
    assert!(!dir.path().join("admin.sock").exists());
    let error = failed(&["status", "--admin-socket", &socket]);
    assert!(error.contains("is `postern-ca serve` running?"), "{error}");
}

#[test]
fn two_processes_never_own_one_store() {
    let dir = initialised();
    let _serving = serve(dir.path(), "info");
    let error = failed(&[
        "serve",
        "--store",
        &path(dir.path(), "ca"),
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--admin-socket",
        &path(dir.path(), "other.sock"),
    ]);
    assert!(error.contains("owned by another postern-ca process"), "{error}");
    let error = failed(&["rotate", "--store", &path(dir.path(), "ca")]);
    assert!(error.contains("owned by another"), "{error}");
    let error = failed(&["init", "--store", &path(dir.path(), "ca")]);
    assert!(error.contains("never overwritten"), "{error}");
}

#[tokio::test]
async fn c_06_a_killed_ca_starts_again_with_what_it_had_promised() {
    let dir = initialised();
    let serving = serve(dir.path(), "info");
    let (used, unused) = (token(dir.path(), "web-1"), token(dir.path(), "web-2"));
    let issued = ca_client::first_issue(&serving.listen, &used, &domain()).await.unwrap();
    done(&["rotate", "--admin-socket", &path(dir.path(), "admin.sock")]);
    serving.signal(Signal::KILL);
    drop(serving);
    // The socket that it left behind is no obstacle.
    let serving = serve(dir.path(), "info");
    let error = ca_client::first_issue(&serving.listen, &used, &domain())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "token_redeemed");
    assert_eq!(
        ca_client::first_issue(&serving.listen, &unused, &domain())
            .await
            .unwrap()
            .issuer_epoch,
        2
    );
    ca_client::renew(&serving.listen, &issued.svid, &trust_of(&issued.bundle))
        .await
        .unwrap();
}

#[test]
fn c_06_a_damaged_store_refuses_to_start_and_says_the_remedy() {
    for (file, remedy) in [
        ("authority.json", "put this one file back from a backup"),
        ("root.json", "or move it away"),
        ("tokens.json", "make new ones"),
    ] {
        let dir = initialised();
        // A token, so that there is a token book.
        let serving = serve(dir.path(), "info");
        token(dir.path(), "web-1");
        drop(serving);
        let damaged = dir.path().join("ca").join(file);
        let mut bytes = std::fs::read(&damaged).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        let arguments = |store: &str| {
            ["serve", "--store", store, "--listen", "127.0.0.1:0", "--admin-socket"]
                .map(str::to_owned)
                .to_vec()
        };
        let mut arguments = arguments(&path(dir.path(), "ca"));
        arguments.extend([
            path(dir.path(), "admin.sock"),
            "--metrics-listen".to_owned(),
            "127.0.0.1:0".to_owned(),
        ]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let error = failed(&arguments);
        assert!(
            error.contains(file) && error.contains("damaged") && error.contains(remedy),
            "{error}"
        );
        if file != "authority.json" {
            // The remedy works.
            std::fs::rename(&damaged, dir.path().join("moved")).unwrap();
            drop(serve(dir.path(), "info"));
        }
    }
}

#[tokio::test]
async fn metrics_and_readiness_are_served() {
    let dir = initialised();
    let serving = serve(dir.path(), "info");
    let waiting = token(dir.path(), "web-0");
    ca_client::first_issue(&serving.listen, &token(dir.path(), "web-1"), &domain())
        .await
        .unwrap();
    let forged = JoinToken::assemble([1; 16], &[2; 32], waiting.root_sha256());
    ca_client::first_issue(&serving.listen, &forged, &domain())
        .await
        .unwrap_err();
    // Somebody who speaks no TLS.
    TcpStream::connect(&serving.listen)
        .unwrap()
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    assert!(serving.get("/readyz").starts_with("HTTP/1.1 200"));
    let mut metrics = serving.get("/metrics");
    let given_up = Instant::now() + Duration::from_secs(30);
    while !metrics.contains("postern_ca_handshakes_failed_total{reason=\"tls\"} 1") {
        assert!(Instant::now() < given_up, "{metrics}");
        metrics = serving.get("/metrics");
    }
    for line in [
        "# TYPE postern_ca_certificates_issued_total counter",
        "postern_ca_certificates_issued_total{attestation=\"join_token\"} 1",
        "postern_ca_certificates_issued_total{attestation=\"renewal\"} 0",
        "postern_ca_refused_total{reason=\"token_unknown\"} 1",
        "postern_ca_refused_total{reason=\"csr_signature\"} 0",
        "postern_ca_issuer_epoch 1",
        "postern_ca_join_tokens_outstanding 1",
        "postern_ca_bundle_watchers 0",
        "postern_ca_issue_duration_seconds_count 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is not in\n{metrics}"
        );
    }
    for name in [
        "postern_ca_bundle_sequence ",
        "postern_ca_issuer_not_after_timestamp_seconds ",
        "postern_ca_root_not_after_timestamp_seconds ",
    ] {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line[name.len()..].parse::<f64>().unwrap() > 1.7e9, "{line}");
    }
}

#[test]
fn svid_writes_files_that_a_foreign_program_can_use() {
    let dir = initialised();
    let serving = serve(dir.path(), "info");
    let file = dir.path().join("token");
    std::fs::write(&file, token(dir.path(), "curl").expose()).unwrap();
    let (file, out) = (file.to_str().unwrap(), path(dir.path(), "out"));
    let arguments = [
        "svid",
        "--ca",
        &serving.listen,
        "--join-token-file",
        file,
        "--out",
        &out,
    ];
    assert!(done(&arguments).starts_with(&format!("{WEB} until ")));
    let pem = |name: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(dir.path().join("out").join(name))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    let key = PrivateKeyDer::from_pem_file(dir.path().join("out/key.pem")).unwrap();
    let svid = Svid::new(pem("svid.pem"), key).unwrap();
    assert_eq!(svid.instance().unwrap().as_str(), "curl");
    assert_eq!(
        bundle::fingerprint(&pem("bundle.pem")[0]),
        world::root_of(&dir.path().join("ca"))
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("out/key.pem")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    assert!(failed(&arguments).contains("token_redeemed"));
}

/// All ways in which secret bytes could be written down.
fn spellings(secret: &[u8]) -> Vec<String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = secret.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let standard: Vec<String> = (0..3).map(|skip| STANDARD_NO_PAD.encode(&secret[skip..])).collect();
    let middle = |text: &String| text[2..text.len() - 2].to_owned();
    let mut all: Vec<String> = standard.iter().map(middle).collect();
    all.extend([URL_SAFE_NO_PAD.encode(secret), hex.to_uppercase(), hex, list]);
    all
}

#[tokio::test]
async fn c_10_no_key_and_no_token_is_in_any_log_metric_answer_or_the_token_book() {
    let dir = initialised();
    let mut serving = serve(dir.path(), "trace");
    let socket = path(dir.path(), "admin.sock");
    let (used, waiting) = (token(dir.path(), "web-1"), token(dir.path(), "web-2"));
    let issued = ca_client::first_issue(&serving.listen, &used, &domain()).await.unwrap();
    ca_client::renew(&serving.listen, &issued.svid, &trust_of(&issued.bundle))
        .await
        .unwrap();
    let error = ca_client::first_issue(&serving.listen, &used, &domain())
        .await
        .unwrap_err();
    done(&["rotate", "--admin-socket", &socket]);
    let mut seen = format!("{error} {error:?}");
    seen += &done(&["token", "list", "--admin-socket", &socket]);
    seen += &done(&["status", "--admin-socket", &socket]);
    seen += &failed(&["token", "revoke", "--admin-socket", &socket, waiting.expose()]);
    seen += &serving.get("/metrics");
    serving.signal(Signal::TERM);
    assert!(serving.child.wait().unwrap().success());
    let log = serving.log();
    assert!(
        !log.contains("/ns/shop/sa/web"),
        "whose certificates they are is in the ledger alone"
    );
    seen += &log;
    assert!(
        seen.contains("\"level\":\"TRACE\""),
        "the log was as talkative as it gets"
    );
    seen += &std::fs::read_to_string(dir.path().join("ca/tokens.json")).unwrap();

    let mut secrets = vec![used.secret().to_vec(), waiting.secret().to_vec()];
    for (kind, place) in [(Kind::Root, "/private_key"), (Kind::Authority, "/issuer/private_key")] {
        let stored = stored(&dir.path().join("ca"), kind);
        let key = stored.pointer(place).unwrap().as_str().unwrap();
        let key = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key).unwrap();
        // PKCS#8 of a P-256 key: the scalar stands at 36.
        secrets.push(key[36..68].to_vec());
    }
    for secret in secrets {
        for spelling in spellings(&secret) {
            assert!(!seen.contains(&spelling), "{spelling} was written down");
        }
    }
}

/// Kills at random moments; each time every record is whole, under the old key or the new one.
#[test]
fn c_06_a_rewrap_that_is_killed_anywhere_leaves_every_record_whole() {
    let dir = tempfile::tempdir().unwrap();
    init(&init_config(dir.path()), UnixTime::now()).unwrap();
    let (store, keys) = (dir.path().join("ca"), dir.path().join("ca.kek"));
    let before = [Kind::Authority, Kind::Root].map(|kind| stored(&store, kind));
    let new_key = || {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).unwrap();
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
    };
    let mut killed = 0;
    for round in 0..200_u64 {
        let text = std::fs::read_to_string(&keys).unwrap();
        // Two keys at a time: the one that wraps, and those that something may still be sealed under.
        let kept: Vec<&str> = text.lines().take(8).collect();
        std::fs::write(&keys, format!("{}\n{}\n", new_key(), kept.join("\n"))).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_postern-ca"))
            .args(["rewrap", "--store"])
            .arg(&store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(round * 97 % 12_000));
        child.kill().unwrap();
        killed += u64::from(!child.wait().unwrap().success());
        if round % 4 == 3 {
            // One that goes to its end: nothing is left under the old keys.
            let done = Command::new(env!("CARGO_BIN_EXE_postern-ca"))
                .args(["rewrap", "--store"])
                .arg(&store)
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        assert_eq!(
            [Kind::Authority, Kind::Root].map(|kind| stored(&store, kind)),
            before,
            "{round}"
        );
    }
    assert!(killed > 0, "none of 200 was killed before its end");
}

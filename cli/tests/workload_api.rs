//! The SPIFFE Workload API as apps meet it: real processes, and the clients of the `spiffe` crate.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use postern_api::workload_api::X509svidRequest;
use postern_api::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use postern_identity::{BundleSet, Role, Trust, TrustBundle, TrustDomain, leaf, verify};
use rustls::pki_types::{CertificateDer, UnixTime};
use spiffe::{BundleSource as _, JwtSource, JwtSvid, WorkloadApiClient, X509Context, X509Source};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Processes that end with their test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A CA, and proxies beside apps; without control, of which the Workload API asks nothing.
struct World {
    directory: tempfile::TempDir,
    ca_address: String,
    _ca: Process,
}

impl World {
    fn new(svid_life: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let store = at("ca");
        run(&["ca", "init", "--trust-domain", "cluster.local", "--store", text(&store)]);
        let life = ["--svid-life", svid_life, "--insecure-short-life"];
        let ports = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        let (socket, ready) = (at("ca.sock"), at("ca.json"));
        let mut arguments = vec!["ca", "serve", "--store", text(&store), "--admin-socket", text(&socket)];
        arguments.extend(life.iter().chain(&ports).chain(&["--ready-file", text(&ready)]));
        let ca = start(&arguments, &at("ca.log"));
        let addresses = eventually("a CA", || fs::read(&ready).ok());
        let addresses: serde_json::Value = serde_json::from_slice(&addresses).unwrap();
        Self {
            ca_address: addresses["listen"].as_str().unwrap().to_owned(),
            _ca: ca,
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn token(&self) {
        let socket = self.path("ca.sock");
        let arguments = ["--id", WEB, "--instance", "web-1", "--admin-socket", text(&socket)];
        let token = run(&[&["ca", "token", "create"], arguments.as_slice()].concat());
        fs::write(self.path("token"), token).unwrap();
    }

    /// The workload's proxy.
    fn proxy(&self) -> Process {
        self.token();
        let (token, socket, log) = (self.path("token"), self.socket(), self.path("access.log"));
        let mut arguments = vec!["proxy", "run", "--ca", &self.ca_address, "--control", "127.0.0.1:1"];
        arguments.extend([
            "--join-token-file",
            text(&token),
            "--workload-api-socket",
            text(&socket),
        ]);
        arguments.extend(["--explicit-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
        arguments.extend(["--access-log-file", text(&log)]);
        start(&arguments, &self.path("proxy.log"))
    }

    fn socket(&self) -> PathBuf {
        self.path("workload.sock")
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    async fn source(&self) -> X509Source {
        let built = X509Source::builder()
            .endpoint(self.endpoint())
            .reconnect_backoff(Duration::from_millis(20), Duration::from_millis(200))
            .build();
        tokio::time::timeout(PATIENCE, built).await.unwrap().unwrap()
    }

    /// What the CA has issued, as JSON lines.
    fn ledger(&self) -> String {
        let socket = self.path("ca.sock");
        run(&[
            "ca",
            "ledger",
            "list",
            "--admin-socket",
            text(&socket),
            "--output",
            "json",
        ])
    }

    fn said(&self, log: &str) -> String {
        fs::read_to_string(self.path(log)).unwrap_or_default()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn start(arguments: &[&str], log: &Path) -> Process {
    let log = fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Process(command.spawn().unwrap())
}

fn eventually<T>(what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = state() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Serial of the SVID that a client holds, which must verify, by our own verifier, under the bundle that came with it.
fn serial_of(context: &X509Context) -> Vec<u8> {
    let svid = context.default_svid().unwrap();
    assert_eq!(svid.spiffe_id().to_string(), WEB);
    let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
    let chain: Vec<_> = svid
        .cert_chain()
        .iter()
        .map(|certificate| der(certificate.as_bytes()))
        .collect();
    let roots = context.bundle_set().get(svid.spiffe_id().trust_domain()).unwrap();
    let roots: Vec<_> = roots.authorities().iter().map(|root| der(root.as_bytes())).collect();
    assert!(!chain.contains(&roots[0]), "the chain goes without the root");
    let trust_domain = TrustDomain::parse("cluster.local").unwrap();
    let bundle = TrustBundle::new(trust_domain, 1, roots, UnixTime::now());
    let trust = Trust {
        bundles: BundleSet::default().with(bundle),
        ..Trust::default()
    };
    let at = leaf::inspect(&chain[0]).unwrap().not_before;
    let peer = verify::verify_peer(&chain, Role::Client, &trust, at.max(UnixTime::now())).unwrap();
    assert_eq!(peer.instance().unwrap().as_str(), "web-1");
    peer.serial().to_vec()
}

#[tokio::test]
async fn the_spiffe_crates_x509_source_follows_rotation_and_two_clients_hold_the_same() {
    let world = World::new("6s");
    let _proxy = world.proxy();
    let (one, two) = (world.source().await, world.source().await);
    let (mut updates, mut others) = (one.updated(), two.updated());
    let mut serials = vec![serial_of(&one.x509_context().unwrap())];
    while serials.len() < 4 {
        tokio::time::timeout(PATIENCE, updates.changed())
            .await
            .unwrap()
            .unwrap();
        let serial = serial_of(&one.x509_context().unwrap());
        if serials.last() != Some(&serial) {
            serials.push(serial);
        }
    }
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 4, "each is another");
    // The other client comes to the same.
    let wanted = serial_of(&one.x509_context().unwrap());
    while serial_of(&two.x509_context().unwrap()) != wanted {
        tokio::time::timeout(PATIENCE, others.changed()).await.unwrap().unwrap();
        if serial_of(&one.x509_context().unwrap()) != wanted {
            break;
        }
    }
    let bundle = one
        .bundle_for_trust_domain(&spiffe::TrustDomain::new("cluster.local").unwrap())
        .unwrap()
        .unwrap();
    assert_eq!(bundle.authorities().len(), 1);
}

#[tokio::test]
async fn the_apps_key_is_its_own_and_no_key_is_in_a_file_or_a_log() {
    let world = World::new("1h");
    let _proxy = world.proxy();
    let source = world.source().await;
    let svid = source.svid().unwrap();
    let app = leaf::inspect(&CertificateDer::from(svid.leaf().as_bytes().to_vec())).unwrap();
    let said = world.said("ca.log");
    let issued: Vec<&str> = said.lines().filter(|line| line.contains("\"issued\"")).collect();
    assert_eq!(issued.len(), 2, "the proxy's and the app's: {said}");
    let ledger = world.ledger();
    let keys: std::collections::BTreeSet<&str> = ledger
        .lines()
        .filter(|line| line.contains(WEB))
        .filter_map(|line| line.split_once("key_sha256\":\"")?.1.split('"').next())
        .collect();
    assert_eq!(keys.len(), 2, "over two keys: {ledger}");
    assert!(app.not_after > UnixTime::now());
    let key = svid.private_key().as_bytes();
    for entry in fs::read_dir(world.directory.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let content = fs::read(&path).unwrap();
            assert!(
                !content.windows(32).any(|part| key.windows(32).any(|of| of == part)),
                "{}",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn a_client_without_the_header_is_refused_and_one_of_the_crate_is_served() {
    let world = World::new("1h");
    let _proxy = world.proxy();
    let source = world.source().await;
    let channel = postern_api::transport::connect_unix(&world.socket()).await.unwrap();
    let mut bare = SpiffeWorkloadApiClient::new(channel);
    let refused = bare.fetch_x509svid(X509svidRequest {}).await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let client = WorkloadApiClient::connect_to(world.endpoint()).await.unwrap();
    assert_eq!(client.fetch_x509_svid().await.unwrap().spiffe_id().to_string(), WEB);
    let bundles = client.fetch_x509_bundles().await.unwrap();
    let own = spiffe::TrustDomain::new("cluster.local").unwrap();
    assert_eq!((bundles.len(), bundles.get(&own).unwrap().authorities().len()), (1, 1));
    assert!(source.is_healthy());
}

#[tokio::test]
async fn the_socket_goes_with_the_proxy_and_clients_find_the_next_one() {
    let world = World::new("1h");
    let mut proxy = world.proxy();
    let source = world.source().await;
    let before = serial_of(&source.x509_context().unwrap());
    let mode = fs::metadata(world.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // An orderly end takes the socket away.
    run_kill(&proxy);
    proxy.0.wait().unwrap();
    assert!(!world.socket().exists());
    let mut updates = source.updated();
    let mut proxy = world.proxy();
    tokio::time::timeout(PATIENCE, updates.changed())
        .await
        .unwrap()
        .unwrap();
    let after = serial_of(&source.x509_context().unwrap());
    assert_ne!(before, after);

    // One that was killed leaves it behind, and the next takes its place.
    proxy.0.kill().unwrap();
    proxy.0.wait().unwrap();
    assert!(fs::symlink_metadata(world.socket()).unwrap().file_type().is_socket());
    let _proxy = world.proxy();
    tokio::time::timeout(PATIENCE, updates.changed())
        .await
        .unwrap()
        .unwrap();
    assert_ne!(serial_of(&source.x509_context().unwrap()), after);
}

/// A proxy that asks another's Workload API is its client as it would be SPIRE's.
#[cfg(feature = "workload-client")]
#[tokio::test]
async fn a_proxy_takes_identity_and_trust_from_a_workload_api_and_keeps_what_it_has_while_that_is_away() {
    let world = World::new("8s");
    let server = world.proxy();
    let _app = world.source().await;
    let (admin, log, endpoint) = (
        world.path("client.admin"),
        world.path("client.access"),
        world.endpoint(),
    );
    let mut arguments = vec!["proxy", "run", "--workload-api", &endpoint, "--control", "127.0.0.1:1"];
    arguments.extend(["--explicit-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    arguments.extend(["--admin-socket", text(&admin), "--access-log-file", text(&log)]);
    let _client = start(&arguments, &world.path("client.log"));
    let certificates = || -> Option<serde_json::Value> {
        let asked = Command::new("curl")
            .args(["-s", "--unix-socket", text(&admin), "http://admin/certs"])
            .output()
            .unwrap();
        let told: serde_json::Value = serde_json::from_slice(&asked.stdout).ok()?;
        told["svid"].is_object().then_some(told)
    };
    let first = eventually("an identity", certificates);
    assert_eq!(first["svid"]["spiffe_id"], WEB);
    assert_eq!(first["svid"]["instance"], "web-1");
    assert_eq!(first["bundle"]["roots_sha256"].as_array().unwrap().len(), 1);
    let serial = |told: &serde_json::Value| told["svid"]["serial"].as_str().unwrap().to_owned();
    let second = eventually("a renewal", || {
        certificates().filter(|told| serial(told) != serial(&first))
    });
    assert_eq!(second["bundle"]["roots_sha256"], first["bundle"]["roots_sha256"]);
    // Away: what is held stays, past when it would have been renewed.
    drop(server);
    eventually("a renewal that does not come", || {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let held = certificates()?;
        // Backdated by a minute, and renewed at about four of its eight seconds.
        (now >= held["svid"]["not_before_unix"].as_i64()? + 60 + 6).then_some(())
    });
    let held = certificates().unwrap();
    let _server = world.proxy();
    eventually("another", || {
        certificates().filter(|told| serial(told) != serial(&held))
    });
}

#[cfg(feature = "workload-client")]
#[test]
fn a_workload_api_stands_in_place_of_the_ca_and_never_beside_it() {
    let base = ["proxy", "run", "--control", "127.0.0.1:1", "--workload-api"];
    for (more, says) in [
        (&["unix:///a", "--ca", "127.0.0.1:1"][..], "cannot be used with"),
        (&["unix:///a", "--join-token-file", "/t"], "cannot be used with"),
        (&["unix:///a", "--workload-api-socket", "/s"], "cannot be used with"),
        (&["/a"], "expected unix:///absolute/path"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_postern"))
            .args(base)
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{more:?}: {said}");
    }
}

#[tokio::test]
async fn the_spiffe_crates_jwt_source_verifies_tokens_over_rotations_of_the_key() {
    let world = World::new("6s");
    let _proxy = world.proxy();
    let built = JwtSource::builder()
        .endpoint(world.endpoint())
        .reconnect_backoff(Duration::from_millis(20), Duration::from_millis(200))
        .build();
    let source = tokio::time::timeout(PATIENCE, built).await.unwrap().unwrap();
    let mut updates = source.updated();
    let own = spiffe::TrustDomain::new("cluster.local").unwrap();
    let keys = || {
        source
            .bundle_for_trust_domain(&own)
            .unwrap()
            .unwrap()
            .jwt_authorities()
            .count()
    };
    assert_eq!(keys(), 2, "the one that signs, and the next");
    let valid = |token: &JwtSvid, audience: &str| {
        JwtSvid::parse_and_validate(token.token(), &source, &[audience]).map(|svid| svid.spiffe_id().to_string())
    };
    let first = source.fetch_jwt_svid(["db", "cache"]).await.unwrap();
    assert_eq!(valid(&first, "db").unwrap(), WEB);
    assert_eq!(valid(&first, "cache").unwrap(), WEB);
    assert!(valid(&first, "other").is_err());
    // Never longer than the SVID that it was asked for with.
    assert!(first.expiry().unix_timestamp() <= time::OffsetDateTime::now_utc().unix_timestamp() + 6);
    let twice = source.fetch_jwt_svid(["db", "cache"]).await.unwrap();
    let _same_or_renewed = twice;

    let client = WorkloadApiClient::connect_to(world.endpoint()).await.unwrap();
    let validated = client.validate_jwt_token("db", first.token()).await.unwrap();
    assert_eq!(validated.spiffe_id().to_string(), WEB);
    assert!(client.validate_jwt_token("other", first.token()).await.is_err());
    assert!(
        client
            .validate_jwt_token("db", &format!("{}x", first.token()))
            .await
            .is_err()
    );

    // The next key signs, and was in everybody's bundle before; the one before stays.
    let socket = world.path("ca.sock");
    run(&["ca", "rotate", "--admin-socket", text(&socket)]);
    tokio::time::timeout(PATIENCE, async {
        while keys() != 3 {
            updates.changed().await.unwrap();
        }
    })
    .await
    .unwrap();
    let second = tokio::time::timeout(PATIENCE, async {
        loop {
            let token = source.fetch_jwt_svid(["db"]).await.unwrap();
            if token.key_id() != first.key_id() {
                return token;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(valid(&second, "db").unwrap(), WEB);
    let said = ["ca.log", "proxy.log"].map(|log| world.said(log)).concat();
    for token in [&first, &second] {
        let signature = token.token().rsplit('.').next().unwrap();
        assert!(!said.contains(signature), "no token is logged");
    }
}

fn run_kill(process: &Process) {
    let killed = Command::new("kill").arg(process.0.id().to_string()).status().unwrap();
    assert!(killed.success());
}

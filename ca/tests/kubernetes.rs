//! A CA in a cluster, from the outside: pods get SVIDs from replicas that share one Secret.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::ca_client::{self, CaError, Issued, JoinToken, KubernetesToken, RootPins};
use postern_api::refusal::RefusalReason;
use postern_api::transport;
use postern_ca::{Founding, InCluster, Pace, Running, SecretState, ServeConfig, init, start_in_cluster};
use postern_cluster::testing::{ApiServer, Reaction, status};
use postern_identity::{SharedTrust, Trust};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use world::{domain, init_config, serve_config};

mod world;

const SECRET: &str = "/api/v1/namespaces/postern-system/secrets/postern-ca";
const ROOTS: &str = "/api/v1/namespaces/postern-system/configmaps/postern-ca-roots";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/postern-system/leases/postern-ca";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const UID: &str = "7f2c9a52-13a5-4c0e-9d8f-1b2f0f6f7a11";
const PATIENCE: Duration = Duration::from_secs(60);

/// What the chart creates, and an API server that knows one pod.
async fn api_server() -> ApiServer {
    let server = ApiServer::start().await;
    for (path, name) in [
        (SECRET, "postern-ca"),
        (ROOTS, "postern-ca-roots"),
        (LEASE, "postern-ca"),
    ] {
        server.put(path, json!({"metadata": {"name": name, "namespace": "postern-system"}}));
    }
    server.react(|call| {
        if call.path == REVIEWS {
            review(&call.body)
        } else {
            Reaction::Pass
        }
    });
    server
}

fn review(body: &Value) -> Reaction {
    let known = body["spec"]["token"] == token().expose() && body["spec"]["audiences"] == json!(["postern-ca"]);
    let status = if known {
        json!({"authenticated": true, "audiences": ["postern-ca"], "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": {"authentication.kubernetes.io/pod-uid": [UID]}}})
    } else {
        json!({"error": "no such pod"})
    };
    Reaction::Answer(201, json!({"metadata": {}, "spec": {}, "status": status}))
}

fn token() -> KubernetesToken {
    let claims = URL_SAFE_NO_PAD.encode(json!({"exp": 4_000_000_000_u64}).to_string());
    KubernetesToken::parse(&format!("e30.{claims}.c2ln")).unwrap()
}

fn config(dir: &tempfile::TempDir, name: &str) -> ServeConfig {
    ServeConfig {
        // Its parent is not there yet.
        admin_socket: dir.path().join(name).join("admin.sock"),
        ..serve_config(dir.path())
    }
}

fn cluster(server: &ApiServer) -> InCluster {
    InCluster {
        client: server.client(),
        state: Some(SecretState {
            namespace: "postern-system".to_owned(),
            name: "postern-ca".to_owned(),
            founding: Founding {
                trust_domain: domain(),
                root_life: Duration::from_secs(365 * 24 * 3600),
                issuer_life: Duration::from_secs(30 * 24 * 3600),
            },
        }),
        roots: Some(("postern-system".to_owned(), "postern-ca-roots".to_owned())),
        holder: "test".to_owned(),
        pace: Pace {
            poll: Duration::from_millis(20),
            lease: Duration::from_secs(1),
        },
    }
}

async fn run(config: ServeConfig, cluster: InCluster) -> Running {
    start_in_cluster(config, cluster, postern_ca::clock::system())
        .await
        .unwrap()
}

/// The pins that the injector would read.
async fn pins(server: &ApiServer) -> RootPins {
    let published = async {
        loop {
            if let Some(text) = server.object(ROOTS).unwrap()["data"]["roots.sha256"].as_str() {
                return RootPins::parse(text).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, published)
        .await
        .expect("the roots are published")
}

async fn issue(running: &Running, pins: &RootPins, trust: &SharedTrust) -> Result<Issued, CaError> {
    ca_client::issue_by_kubernetes_token(&running.listen.to_string(), &token(), pins, trust, &domain()).await
}

fn refused(outcome: Result<Issued, CaError>) -> RefusalReason {
    match outcome.unwrap_err() {
        CaError::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

async fn admin(dir: &tempfile::TempDir, name: &str) -> AdminClient<tonic::transport::Channel> {
    AdminClient::new(
        transport::connect_unix(&dir.path().join(name).join("admin.sock"))
            .await
            .unwrap(),
    )
}

#[tokio::test]
async fn a_pod_gets_its_identity_from_every_replica_by_the_published_roots() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let (one, two) = tokio::join!(
        run(config(&dir, "a"), cluster(&server)),
        run(config(&dir, "b"), cluster(&server))
    );
    let pins = pins(&server).await;
    for replica in [&one, &two] {
        let trust = SharedTrust::default();
        let issued = issue(replica, &pins, &trust).await.unwrap();
        assert_eq!(issued.svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(issued.svid.instance().unwrap().as_str(), UID);
        // A renewal is the same, under the trust that is held by then.
        trust.store(Arc::new(world::trust_of(&issued.bundle).load().as_ref().clone()));
        let nobody = RootPins::parse(&"00".repeat(32)).unwrap();
        issue(replica, &nobody, &trust).await.unwrap();
    }
    let published = server.object(ROOTS).unwrap();
    assert_eq!(published["data"]["trust-domain"], "cluster.local");
    assert!(
        published["data"]["roots.pem"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    // A CA whose root is not pinned is not believed.
    let error = issue(
        &one,
        &RootPins::parse(&"00".repeat(32)).unwrap(),
        &SharedTrust::default(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, CaError::Untrusted(_)), "{error:?}");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn an_issuer_that_one_replica_makes_signs_in_the_others_and_after_a_restart() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let one = run(config(&dir, "a"), cluster(&server)).await;
    let two = run(config(&dir, "b"), cluster(&server)).await;
    let pins = pins(&server).await;
    let rotated = admin(&dir, "a")
        .await
        .rotate_issuer(pb::RotateIssuerRequest {})
        .await
        .unwrap();
    assert_eq!(rotated.into_inner().issuer_epoch, 2);
    let followed = async {
        while issue(&two, &pins, &SharedTrust::default()).await.unwrap().issuer_epoch != 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, followed).await.unwrap();
    one.stop().await;
    two.stop().await;
    let again = run(config(&dir, "a"), cluster(&server)).await;
    assert_eq!(
        issue(&again, &pins, &SharedTrust::default())
            .await
            .unwrap()
            .issuer_epoch,
        2
    );
    again.stop().await;
}

#[tokio::test]
async fn the_leader_replaces_issuers_in_time_and_every_replica_issues_throughout() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let short = |name| ServeConfig {
        svid_life: Duration::from_secs(2),
        insecure_short_life: true,
        ..config(&dir, name)
    };
    let mut cluster = cluster(&server);
    cluster.state.as_mut().unwrap().founding.issuer_life = Duration::from_secs(6);
    let (one, two) = tokio::join!(run(short("a"), cluster.clone()), run(short("b"), cluster));
    let pins = pins(&server).await;
    let throughout = async {
        loop {
            let mut least = u64::MAX;
            for replica in [&one, &two] {
                least = least.min(
                    issue(replica, &pins, &SharedTrust::default())
                        .await
                        .unwrap()
                        .issuer_epoch,
                );
            }
            if least >= 3 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, throughout)
        .await
        .expect("issuers follow each other");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_ca_that_attests_pods_takes_no_join_token_and_renews_no_svid_by_itself() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let ca = run(config(&dir, "a"), cluster(&server)).await;
    let pins = pins(&server).await;
    let issued = issue(&ca, &pins, &SharedTrust::default()).await.unwrap();
    let address = ca.listen.to_string();
    let trust: SharedTrust = Arc::new(ArcSwap::from_pointee(Trust::clone(
        &world::trust_of(&issued.bundle).load(),
    )));
    let renewed = ca_client::renew(&address, &issued.svid, &trust).await;
    assert_eq!(refused(renewed), RefusalReason::AttestationMissing);
    let root = postern_identity::bundle::fingerprint(&issued.bundle.roots()[0]);
    let token = JoinToken::assemble([1; 16], &[2; 32], root);
    let joined = ca_client::first_issue(&address, &token, &domain()).await;
    assert_eq!(refused(joined), RefusalReason::AttestationMissing);
    let mut admin = admin(&dir, "a").await;
    let asked = pb::CreateJoinTokenRequest {
        spiffe_id: world::WEB.to_owned(),
        instance: "web-1".to_owned(),
        life_seconds: 60,
    };
    let error = admin.create_join_token(asked).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(error.message().contains("the one process that owns a store"), "{error}");
    assert!(admin.list_join_tokens(pb::ListJoinTokensRequest {}).await.is_err());
    ca.stop().await;
}

#[tokio::test]
async fn c_03_while_no_token_can_be_reviewed_nobody_gets_a_certificate_and_is_told_to_come_again() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let ca = run(config(&dir, "a"), cluster(&server)).await;
    let pins = pins(&server).await;
    server.react(|call| match call.path == REVIEWS {
        true => Reaction::Answer(503, status(503, "ServiceUnavailable", "shutting down")),
        false => Reaction::Pass,
    });
    let reason = refused(issue(&ca, &pins, &SharedTrust::default()).await);
    assert_eq!(reason, RefusalReason::TokenReviewUnavailable);
    server.react(|call| {
        if call.path == REVIEWS {
            review(&call.body)
        } else {
            Reaction::Pass
        }
    });
    issue(&ca, &pins, &SharedTrust::default()).await.unwrap();
    ca.stop().await;
}

#[tokio::test]
async fn a_store_in_a_volume_serves_pods_as_well_and_publishes_its_roots() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    init(&init_config(dir.path()), UnixTime::now()).unwrap();
    let in_volume = InCluster {
        state: None,
        ..cluster(&server)
    };
    let ca = run(config(&dir, "a"), in_volume).await;
    let issued = issue(&ca, &pins(&server).await, &SharedTrust::default()).await.unwrap();
    assert_eq!(issued.svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(
        postern_identity::bundle::fingerprint(&issued.bundle.roots()[0]),
        world::root_of(&dir.path().join("ca"))
    );
    assert!(server.object(SECRET).unwrap()["data"].is_null());
    ca.stop().await;
}

/// A process that does not outlive its test.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As the chart starts it; `POSTERN_LOG=trace`.
async fn process(server: &ApiServer, dir: &std::path::Path) -> (Process, String) {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    std::fs::write(dir.join("kubeconfig"), server.kubeconfig()).unwrap();
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_postern-ca"))
        .args([
            "serve",
            "--state-secret=postern-system/postern-ca",
            "--roots-config-map=postern-ca-roots",
        ])
        .args([
            "--kubernetes-attestation",
            "--trust-domain=cluster.local",
            "--root-life=10y",
            "--issuer-life=30d",
        ])
        .args(["--svid-life=4h", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"])
        .args(["--admin-socket", &at("run/admin.sock"), "--ready-file", &at("ready")])
        .env("KUBECONFIG", at("kubeconfig"))
        .env("POSTERN_LOG", "trace")
        .stderr(log)
        .spawn()
        .map(Process)
        .unwrap();
    let ready = async {
        while !dir.join("ready").exists() {
            let ended = child.0.try_wait().unwrap();
            assert!(ended.is_none(), "{}", std::fs::read_to_string(dir.join("log")).unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    let addresses: Value = serde_json::from_slice(&std::fs::read(dir.join("ready")).unwrap()).unwrap();
    (child, addresses["listen"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn c_10_the_program_with_the_charts_flags_serves_pods_and_shows_no_token_and_no_key() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let (mut child, address) = process(&server, dir.path()).await;
    let pins = pins(&server).await;
    let trust = SharedTrust::default();
    let issued = ca_client::issue_by_kubernetes_token(&address, &token(), &pins, &trust, &domain())
        .await
        .unwrap();
    assert_eq!(issued.svid.instance().unwrap().as_str(), UID);
    // Answers that cannot be read, with everything secret in them.
    let state = server.object(SECRET).unwrap();
    let (secret, data) = (
        json!({"data": {"authority.json": {"k": state["data"].clone()}}}),
        state["data"].clone(),
    );
    server.react(move |call| match call.path.as_str() {
        REVIEWS => Reaction::Answer(201, json!({"spec": {"token": [token().expose()]}})),
        SECRET => Reaction::Answer(200, secret.clone()),
        _ => Reaction::Pass,
    });
    let again = ca_client::issue_by_kubernetes_token(&address, &token(), &pins, &trust, &domain()).await;
    let mut seen = format!("{:?}", again.as_ref().unwrap_err());
    assert_eq!(refused(again), RefusalReason::TokenReviewUnavailable);
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    let read = async {
        while !log().contains("this replica goes on with the issuer that it has") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the Secret is read again");
    let id = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    // The API server must go on answering meanwhile.
    let ended = tokio::task::spawn_blocking(move || child.0.wait().unwrap().success());
    assert!(ended.await.unwrap());
    seen += &log();
    assert!(
        seen.contains("\"level\":\"TRACE\""),
        "the log was as talkative as it gets"
    );
    let mut secrets = vec![token().expose().split('.').nth(1).unwrap().to_owned()];
    for (key, place) in [("root.json", "/private_key"), ("authority.json", "/issuer/private_key")] {
        let sealed = data[key].as_str().unwrap();
        // As the API has it, and as the record has it.
        secrets.push(sealed[sealed.len() / 2..sealed.len() / 2 + 40].to_owned());
        let record = base64::engine::general_purpose::STANDARD.decode(sealed).unwrap();
        let record = String::from_utf8(record).unwrap();
        let record: Value = serde_json::from_str(record.split_once('\n').unwrap().1).unwrap();
        secrets.push(record.pointer(place).unwrap().as_str().unwrap()[48..90].to_owned());
    }
    for secret in secrets {
        assert!(!seen.contains(&secret), "{secret} was written down");
    }
}

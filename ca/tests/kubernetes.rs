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
use postern_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use postern_api::ca::v1::operate_quarantine_request::Operation;
use postern_api::ca_client::{self, CaError, Issued, JoinToken, KubernetesToken, RootPins};
use postern_api::quarantine_wire::subject_to_wire;
use postern_api::refusal::RefusalReason;
use postern_api::transport;
use postern_ca::{
    Founding, InCluster, KekConfig, LedgerConfig, Lines, Pace, Running, SecretState, ServeConfig, init,
    start_in_cluster,
};
use postern_cluster::testing::{ApiServer, Reaction, status};
use postern_identity::quarantine::Subject;
use postern_identity::{Instance, SharedTrust, Trust, tls};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use world::{domain, init_config, serve_config};

use world::pki::{Mount, Party, authority, p256, tls};

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
            // One identity is given 256 certificates, and then one a second.
            tokio::time::sleep(Duration::from_millis(100)).await;
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

/// The records of the Secret, as they are kept.
fn kept(server: &ApiServer) -> Vec<String> {
    let data = server.object(SECRET).unwrap()["data"].clone();
    let records = data.as_object().unwrap().values();
    let text = |value: &Value| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap());
        String::from_utf8(bytes.unwrap()).unwrap()
    };
    records.map(text).collect()
}

fn with_key(dir: &tempfile::TempDir, name: &str, key: &[u8; 32]) -> std::path::PathBuf {
    let path = dir.path().join(name);
    let held = std::fs::read_to_string(&path).unwrap_or_default();
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    std::fs::write(&path, format!("{key}\n{held}")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    path
}

#[tokio::test]
async fn replicas_that_share_a_sealed_secret_open_each_others_records_and_follow_another_key() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let keys = with_key(&dir, "keys", &[1; 32]);
    let sealed = |name: &str, keys: &std::path::Path| ServeConfig {
        kek: Some(KekConfig::File(keys.to_owned())),
        ..config(&dir, name)
    };
    let (one, two) = tokio::join!(
        run(sealed("a", &keys), cluster(&server)),
        run(sealed("b", &keys), cluster(&server))
    );
    let pins = pins(&server).await;
    for replica in [&one, &two] {
        issue(replica, &pins, &SharedTrust::default()).await.unwrap();
    }
    let epoch = async |running: &Running| {
        let issued = issue(running, &pins, &SharedTrust::default()).await.unwrap();
        issued.issuer_epoch
    };
    for (by, other, wanted) in [("a", &two, 2), ("b", &one, 3)] {
        let request = pb::RotateIssuerRequest {};
        admin(&dir, by).await.rotate_issuer(request).await.unwrap();
        let followed = async {
            while epoch(other).await != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, followed).await.unwrap();
    }
    for record in kept(&server) {
        assert!(record.starts_with("postern-ca-store 2 "), "{record}");
        assert!(!record.contains("private_key"), "{record}");
    }
    one.stop().await;
    two.stop().await;

    // Another key: sealed anew at the next start, and the old one can go.
    with_key(&dir, "keys", &[2; 32]);
    run(sealed("a", &keys), cluster(&server)).await.stop().await;
    let new_alone = with_key(&dir, "new", &[2; 32]);
    let again = run(sealed("a", &new_alone), cluster(&server)).await;
    assert_eq!(epoch(&again).await, 3);
    again.stop().await;
    // With the old one alone, or none, it refuses, says which is missing, and changes nothing.
    let before = kept(&server);
    let old_alone = with_key(&dir, "old", &[1; 32]);
    for (config, says) in [
        (sealed("b", &old_alone), "does not have"),
        (config(&dir, "b"), "no key was given"),
    ] {
        let error = start_in_cluster(config, cluster(&server), postern_ca::clock::system()).await;
        let said = error.unwrap_err().to_string();
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(kept(&server), before);
}

#[tokio::test]
async fn a_secret_in_clear_is_sealed_once_that_is_asked_for() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    run(config(&dir, "a"), cluster(&server)).await.stop().await;
    let sealed = ServeConfig {
        kek: Some(KekConfig::File(with_key(&dir, "keys", &[1; 32]))),
        ..config(&dir, "a")
    };
    let refused = start_in_cluster(sealed.clone(), cluster(&server), postern_ca::clock::system()).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("in clear") && said.contains("--migrate"), "{said}");
    let migrating = ServeConfig {
        migrate: true,
        ..sealed.clone()
    };
    run(migrating, cluster(&server)).await.stop().await;
    assert!(
        kept(&server)
            .iter()
            .all(|record| record.starts_with("postern-ca-store 2 "))
    );
    run(sealed, cluster(&server)).await.stop().await;
}

/// An API server that knows an operator's token as well.
async fn with_operator() -> ApiServer {
    let server = api_server().await;
    server.react(|call| match call.path.as_str() {
        REVIEWS if call.body["spec"]["audiences"] == json!(["postern-ca-operator"]) => {
            let status = json!({"authenticated": true, "audiences": ["postern-ca-operator"], "user": {
                "username": "system:serviceaccount:postern-system:postern-responder"}});
            Reaction::Answer(201, json!({"metadata": {}, "spec": {}, "status": status}))
        }
        REVIEWS => review(&call.body),
        _ => Reaction::Pass,
    });
    server
}

/// As the CLI comes, by the published roots.
async fn operate(running: &Running, pins: &RootPins, operation: Operation, token: &str) -> Result<u64, tonic::Status> {
    let ca = ca_client::ca_id(&domain()).unwrap();
    let pinned = tls::pinned_client_config(pins.iter().next().unwrap(), ca, ca_client::ALPN).unwrap();
    let address = running.listen.to_string();
    let tcp = tokio::net::TcpStream::connect(&address).await.unwrap();
    let stream = transport::secure(&address, tcp, pinned).await.unwrap();
    let channel = transport::channel_over(&address, stream).await.unwrap();
    let request = pb::OperateQuarantineRequest {
        operation: Some(operation),
        operator_token: token.to_owned(),
    };
    let answer = CertificateAuthorityClient::new(channel)
        .operate_quarantine(request)
        .await;
    answer.map(|state| state.into_inner().version)
}

fn the_pod() -> Option<pb::Quarantined> {
    let instance = Instance::parse(UID).unwrap();
    Some(pb::Quarantined {
        subject: Some(subject_to_wire(&Subject::Instance(instance, None))),
        ..pb::Quarantined::default()
    })
}

async fn until_refused(running: &Running, pins: &RootPins) {
    let cut_off = async {
        while issue(running, pins, &SharedTrust::default()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, cut_off).await.expect("it is cut off");
    assert_eq!(
        refused(issue(running, pins, &SharedTrust::default()).await),
        RefusalReason::Refused
    );
}

#[tokio::test]
async fn a_pod_that_is_cut_off_at_one_replica_is_so_at_all_after_a_restart_and_with_a_secret_that_was_put_back() {
    let (server, dir) = (with_operator().await, tempfile::tempdir().unwrap());
    let (one, two) = tokio::join!(
        run(config(&dir, "a"), cluster(&server)),
        run(config(&dir, "b"), cluster(&server))
    );
    let pins = pins(&server).await;
    let before = server.object(SECRET).unwrap();
    let add = || {
        Operation::Add(pb::AddQuarantineRequest {
            entry: the_pod(),
            force: false,
        })
    };
    // A pod's own token, and what is none, are no operator's.
    for wrong in ["", "a.b.c"] {
        let status = operate(&one, &pins, add(), wrong).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
    }
    let version = operate(&one, &pins, add(), token().expose()).await.unwrap();
    until_refused(&one, &pins).await;
    until_refused(&two, &pins).await;
    let mut old = server.object(SECRET).unwrap();
    old["data"] = before["data"].clone();
    server.put(SECRET, old);
    let back = async {
        while server.object(SECRET).unwrap()["data"]["quarantine.json"].is_null() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("it is written again");
    one.stop().await;
    two.stop().await;
    let three = run(config(&dir, "c"), cluster(&server)).await;
    until_refused(&three, &pins).await;
    let list = Operation::List(pb::ListQuarantineRequest {});
    assert_eq!(operate(&three, &pins, list, token().expose()).await.unwrap(), version);
    let lift = Operation::Lift(pb::LiftQuarantineRequest { entry: the_pod() });
    assert!(operate(&three, &pins, lift, token().expose()).await.unwrap() > version);
    issue(&three, &pins, &SharedTrust::default()).await.unwrap();
    three.stop().await;
}

/// Takes lines as a collector of standard output does.
fn collected(into: &Arc<std::sync::Mutex<String>>) -> LedgerConfig {
    let into = Arc::clone(into);
    LedgerConfig {
        lines: Lines::to(move |line| {
            into.lock().unwrap().push_str(&format!("{line}\n"));
            Ok(())
        }),
        ..LedgerConfig::default()
    }
}

#[tokio::test]
async fn replicas_without_a_volume_write_their_ledgers_as_sealed_lines_that_verify_together() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let keys = with_key(&dir, "keys", &[1; 32]);
    let out = Arc::new(std::sync::Mutex::new(
        "{\"level\":\"INFO\",\"message\":\"a log's line\"}\n".to_owned(),
    ));
    let of = |name: &str| ServeConfig {
        kek: Some(KekConfig::File(keys.clone())),
        ledger: collected(&out),
        ..config(&dir, name)
    };
    let (one, two) = tokio::join!(run(of("a"), cluster(&server)), run(of("b"), cluster(&server)));
    let pins = pins(&server).await;
    for replica in [&one, &two, &one] {
        issue(replica, &pins, &SharedTrust::default()).await.unwrap();
    }
    let refused = admin(&dir, "a")
        .await
        .read_ledger(pb::ReadLedgerRequest::default())
        .await;
    assert!(refused.unwrap_err().message().contains("standard output"));
    one.stop().await;
    two.stop().await;
    let lines = out.lock().unwrap().clone();
    assert!(
        !lines.contains("shop") && !lines.contains("spiffe") && !lines.contains(UID),
        "{lines}"
    );
    let (file, key) = (dir.path().join("lines"), dir.path().join("ledger.json"));
    std::fs::write(&file, &lines).unwrap();
    let record = server.object(SECRET).unwrap()["data"]["ledger.json"]
        .as_str()
        .unwrap()
        .to_owned();
    let record = base64::engine::general_purpose::STANDARD.decode(record).unwrap();
    std::fs::write(&key, record).unwrap();
    let ledger = |what: &str, more: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_postern-ca"))
            .args(["ledger", what])
            .arg(&file)
            .arg("--key-record")
            .arg(&key)
            .arg("--kek-file")
            .arg(&keys)
            .args(more)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = ledger("verify", &[]);
    assert!(code == Some(0) && said.lines().count() == 2, "{said}");
    assert!(
        said.lines()
            .all(|line| line.contains("/test/") && line.contains("order and content hold")),
        "{said}"
    );
    let (code, said) = ledger("list", &["--identity", "spiffe://cluster.local/ns/shop/sa/web"]);
    assert_eq!((code, said.lines().count()), (Some(0), 3), "{said}");
    assert!(said.contains(&format!("pod {UID}")), "{said}");
    // One line less, and it is said which.
    let without: Vec<&str> = lines
        .lines()
        .enumerate()
        .filter(|(at, _)| *at != 2)
        .map(|(_, line)| line)
        .collect();
    std::fs::write(&file, without.join("\n") + "\n").unwrap();
    let (code, said) = ledger("verify", &[]);
    assert!(code == Some(1) && said.contains("first broken link"), "{said}");
}

#[tokio::test]
async fn a_replica_whose_lines_are_not_taken_issues_nothing_until_they_are() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&full);
    let lines = Lines::to(move |_| match seen.load(std::sync::atomic::Ordering::SeqCst) {
        true => Err(std::io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    });
    let ledger = LedgerConfig {
        lines,
        ..LedgerConfig::default()
    };
    let running = run(
        ServeConfig {
            ledger,
            ..config(&dir, "a")
        },
        cluster(&server),
    )
    .await;
    let pins = pins(&server).await;
    issue(&running, &pins, &SharedTrust::default()).await.unwrap();
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let reason = self::refused(issue(&running, &pins, &SharedTrust::default()).await);
    assert_eq!(reason, RefusalReason::Ledger);
    assert!(!reason.is_final() && reason.retry_after().is_some());
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    issue(&running, &pins, &SharedTrust::default()).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn replicas_found_a_ca_by_a_mounted_issuer_and_a_swap_that_the_leader_sees_signs_in_all_of_them() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    let root = Party::root(&authority("root", None), p256());
    let of = |name: &str| tls(&[&root.sign(&authority(name, Some(0)))], &root);
    let mut mount = Mount::new(dir.path().join("issuer"), &of("one"));
    let mounted = |name: &str| ServeConfig {
        issuer_dir: Some(mount.dir.clone()),
        root_acknowledge: Duration::ZERO,
        ..config(&dir, name)
    };
    let configs = [mounted("a"), mounted("b")];
    let [a, b] = configs.clone();
    let (one, two) = tokio::join!(run(a, cluster(&server)), run(b, cluster(&server)));
    let pins_of_now = pins(&server).await;
    let secret = server.object(SECRET).unwrap();
    assert!(secret["data"]["authority.json"].is_string() && secret["data"]["root.json"].is_null());
    let reaches = async |replica: &Running, pins: &RootPins, epoch: u64| {
        let reached = async {
            loop {
                let issued = issue(replica, pins, &SharedTrust::default()).await;
                if issued.is_ok_and(|issued| issued.issuer_epoch == epoch) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached.unwrap_or_else(|_| panic!("not {epoch}"));
    };
    for replica in [&one, &two] {
        reaches(replica, &pins_of_now, 1).await;
    }
    mount.swap(&of("two"));
    for replica in [&one, &two] {
        reaches(replica, &pins_of_now, 2).await;
    }
    // Another root: both are published, then the new one signs, in every replica, and after a restart.
    let other = Party::root(&authority("other root", None), p256());
    mount.swap(&tls(&[&other.sign(&authority("three", Some(0)))], &other));
    let published = async {
        while server.object(ROOTS).unwrap()["data"]["roots.sha256"]
            .as_str()
            .is_none_or(|sums| !sums.contains(','))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, published)
        .await
        .expect("both roots are published");
    let both = pins(&server).await;
    for replica in [&one, &two] {
        reaches(replica, &both, 3).await;
    }
    one.stop().await;
    two.stop().await;
    let [a, _] = configs;
    let again = run(a.clone(), cluster(&server)).await;
    reaches(&again, &both, 3).await;
    // By hand nothing is brought to what replicas share.
    let mut by_hand = admin(&dir, "a").await;
    let error = by_hand.request_issuer(pb::RequestIssuerRequest {}).await.unwrap_err();
    assert!(error.message().contains("--issuer-dir"), "{error}");
    again.stop().await;
    let without = ServeConfig { issuer_dir: None, ..a };
    let again = run(without, cluster(&server)).await;
    let mut by_hand = admin(&dir, "a").await;
    let error = by_hand.request_issuer(pb::RequestIssuerRequest {}).await.unwrap_err();
    assert!(
        error.message().contains("over a Secret") && error.message().contains("ca.broughtIssuer"),
        "{error}"
    );
    again.stop().await;
}

#[tokio::test]
async fn a_secret_with_its_own_roots_key_takes_no_mounted_issuer_until_that_is_taken_out() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    run(config(&dir, "a"), cluster(&server)).await.stop().await;
    let root = Party::root(&authority("root", None), p256());
    let files = tls(&[&root.sign(&authority("one", Some(0)))], &root);
    let mount = Mount::new(dir.path().join("issuer"), &files);
    let mounted = ServeConfig {
        issuer_dir: Some(mount.dir.clone()),
        root_acknowledge: Duration::ZERO,
        ..config(&dir, "a")
    };
    let started = start_in_cluster(mounted.clone(), cluster(&server), postern_ca::clock::system()).await;
    let error = started.err().unwrap().to_string();
    assert!(
        error.contains("Secret postern-system/postern-ca has the root's key"),
        "{error}"
    );
    let mut secret = server.object(SECRET).unwrap();
    secret["data"].as_object_mut().unwrap().remove("root.json");
    server.put(SECRET, secret);
    let ca = run(mounted, cluster(&server)).await;
    let both = async {
        loop {
            let sums = server.object(ROOTS).unwrap()["data"]["roots.sha256"].clone();
            if sums.as_str().is_some_and(|sums| sums.contains(',')) {
                return RootPins::parse(sums.as_str().unwrap()).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let both = tokio::time::timeout(PATIENCE, both)
        .await
        .expect("the root that was brought is published");
    let follows = async {
        while issue(&ca, &both, &SharedTrust::default())
            .await
            .map_or(0, |issued| issued.issuer_epoch)
            != 2
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, follows)
        .await
        .expect("it follows the own one");
    // A mount that is bad founds nothing, and says why.
    let (empty, other) = (api_server().await, tempfile::tempdir().unwrap());
    let bad = ServeConfig {
        issuer_dir: Some(other.path().to_owned()),
        ..config(&other, "a")
    };
    let started = start_in_cluster(bad, cluster(&empty), postern_ca::clock::system()).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("tls.crt: it cannot be read"), "{error}");
    assert!(empty.object(SECRET).unwrap()["data"]["authority.json"].is_null());
    ca.stop().await;
}

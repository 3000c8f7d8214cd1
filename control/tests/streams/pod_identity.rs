//! In a pod: control's own identity comes from a CA that has its state in a Secret, by a service-account token.

use std::path::Path;
use std::time::Duration;

use postern_cluster::testing::{ApiServer, Reaction};
use postern_control::{Evidence, IdentitySource, start};
use serde_json::json;

use crate::world::{PATIENCE, SHOP, Viewer, config, domain};

const SECRET: &str = "/api/v1/namespaces/postern-system/secrets/postern-ca";
const ROOTS: &str = "/api/v1/namespaces/postern-system/configmaps/postern-ca-roots";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/postern-system/leases/postern-ca";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// `{"alg":"RS256"}`, `{"exp":4000000000}` and a signature: the first word tells tokens apart.
fn token(signature: &str) -> String {
    format!("eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjQwMDAwMDAwMDB9.{signature}")
}

/// Says that `token(good)` is of a pod of this service account of `postern-system`, and no other.
fn review(server: &ApiServer, good: &'static str, account: &'static str) {
    server.react(move |call| {
        if call.path != REVIEWS {
            return Reaction::Pass;
        }
        let status = if call.body["spec"]["token"] == token(good) {
            json!({"authenticated": true, "audiences": ["postern-ca"], "user": {
                "username": format!("system:serviceaccount:postern-system:{account}"),
                "extra": {"authentication.kubernetes.io/pod-uid": ["7f2c9a52-13a5-4c0e-9d8f-1b2f0f6f7a11"]}}})
        } else {
            json!({"error": "token has been invalidated"})
        };
        Reaction::Answer(201, json!({"metadata": {}, "spec": {}, "status": status}))
    });
}

async fn api_server() -> ApiServer {
    let server = ApiServer::start().await;
    for (path, name) in [
        (SECRET, "postern-ca"),
        (ROOTS, "postern-ca-roots"),
        (LEASE, "postern-ca"),
    ] {
        server.put(path, json!({"metadata": {"name": name, "namespace": "postern-system"}}));
    }
    server
}

async fn run_ca(server: &ApiServer, dir: &Path) -> postern_ca::Running {
    let config = postern_ca::ServeConfig {
        store: dir.join("none"),
        listen: ([127, 0, 0, 1], 0).into(),
        admin_socket: dir.join("admin.sock"),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        ready_file: None,
        svid_life: Duration::from_secs(4),
        insecure_short_life: true,
        kek: None,
        migrate: false,
        ledger: postern_ca::LedgerConfig::default(),
        root_acknowledge: postern_ca::RootPace::ACKNOWLEDGE,
        root_retire: None,
        issuer_dir: None,
    };
    let cluster = postern_ca::InCluster {
        client: server.client(),
        state: Some(postern_ca::SecretState {
            namespace: "postern-system".to_owned(),
            name: "postern-ca".to_owned(),
            founding: postern_ca::Founding {
                trust_domain: domain(),
                root_life: Duration::from_secs(24 * 3600),
                issuer_life: Duration::from_secs(12 * 3600),
            },
        }),
        roots: Some(("postern-system".to_owned(), "postern-ca-roots".to_owned())),
        holder: "test".to_owned(),
        pace: postern_ca::Pace::default(),
    };
    postern_ca::start_in_cluster(config, cluster, postern_ca::clock::system())
        .await
        .unwrap()
}

/// As the kubelet does, once the CA has published them.
async fn mount_pins(server: &ApiServer, file: &Path) {
    let mounted = async {
        loop {
            if let Some(text) = server.object(ROOTS).unwrap()["data"]["roots.sha256"].as_str() {
                return std::fs::write(file, text).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, mounted)
        .await
        .expect("the roots are published");
}

#[tokio::test]
async fn control_waits_for_pins_and_token_and_renews_by_the_token_that_is_in_the_file_by_then() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    review(&server, "one", "postern-control");
    let ca = run_ca(&server, dir.path()).await;
    std::fs::create_dir(dir.path().join("mesh")).unwrap();
    std::fs::write(dir.path().join("mesh/shop.yaml"), SHOP).unwrap();
    let (token_file, pins_file) = (dir.path().join("token"), dir.path().join("roots.sha256"));
    let identity = IdentitySource::Ca {
        address: ca.listen.to_string(),
        evidence: Evidence::Pod {
            token_file: token_file.clone(),
            pins_file: pins_file.clone(),
        },
    };
    // A wrong token, then no pins, then both.
    std::fs::write(&token_file, token("zero")).unwrap();
    let starting = tokio::spawn(start(config(&dir), identity));
    mount_pins(&server, &pins_file).await;
    std::fs::write(&token_file, token("one")).unwrap();
    let control = tokio::time::timeout(PATIENCE, starting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();

    let mut viewer = Viewer::of(&dir.path().join("view.sock")).await;
    let expiry = |picture: &postern_api::control::v1::Picture| {
        picture
            .certificate
            .as_ref()
            .map_or(0, |certificate| certificate.not_after_unix_ms)
    };
    let first = expiry(&viewer.until(|picture| expiry(picture) > 0).await);
    // The kubelet puts another token there; the first one is worth nothing any more.
    review(&server, "two", "postern-control");
    std::fs::write(&token_file, token("two")).unwrap();
    viewer.until(|picture| expiry(picture) > first).await;
    control.stop().await;
    ca.stop().await;
}

#[tokio::test]
async fn a_pod_of_another_service_account_is_not_control() {
    let (server, dir) = (api_server().await, tempfile::tempdir().unwrap());
    review(&server, "one", "default");
    let ca = run_ca(&server, dir.path()).await;
    std::fs::create_dir(dir.path().join("mesh")).unwrap();
    let (token_file, pins_file) = (dir.path().join("token"), dir.path().join("roots.sha256"));
    mount_pins(&server, &pins_file).await;
    std::fs::write(&token_file, token("one")).unwrap();
    let identity = IdentitySource::Ca {
        address: ca.listen.to_string(),
        evidence: Evidence::Pod { token_file, pins_file },
    };
    let error = start(config(&dir), identity).await.unwrap_err().to_string();
    assert!(
        error.contains("the token is for spiffe://cluster.local/ns/postern-system/sa/default"),
        "{error}"
    );
    ca.stop().await;
}

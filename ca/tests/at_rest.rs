//! Nothing that the CA keeps is readable without its key, and no bad day of that key costs what is kept.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kms::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use postern_ca::store::Kind;
use postern_ca::{KekConfig, ServeConfig, init, init_sealed, rewrap_store, start};
use rustls_pki_types::UnixTime;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use world::{CONTROL, WEB, World, init_config, serve_config, stored};

mod world;

const PATIENCE: Duration = Duration::from_secs(20);

#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_docs)]
mod kms {
    include!("../src/gen/v2.rs");
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => {
                let bytes = std::fs::read(&path).unwrap();
                vec![(path, bytes)]
            }
        })
        .collect()
}

fn key_of(record: &serde_json::Value) -> Vec<u8> {
    STANDARD.decode(record["private_key"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn no_key_token_or_identity_is_readable_in_the_store() {
    let world = World::new().await;
    let store = world.store();
    let token = world.token(WEB, "web-0").await;
    let svid = world.first_issue(CONTROL, "control-7").await;
    let secrets_of_memory = [
        token.expose().as_bytes().to_vec(),
        token.secret().to_vec(),
        token.id().as_bytes().to_vec(),
        b"shop/sa/web".to_vec(),
        b"postern-control".to_vec(),
        b"control-7".to_vec(),
        b"PRIVATE KEY".to_vec(),
    ];
    drop(svid);
    let (dir, ..) = world.stopped().await;
    let mut secrets = secrets_of_memory.to_vec();
    for key in [
        key_of(&stored(&store, Kind::Root)),
        key_of(&stored(&store, Kind::Authority)["issuer"]),
    ] {
        // PKCS#8 of P-256: the scalar stands at byte 36 (RFC 5915).
        secrets.push(key[36..68].to_vec());
        secrets.push(key);
    }
    let seen = files(dir.path());
    assert!(seen.len() > 4, "{seen:?}");
    for (path, bytes) in seen {
        for secret in &secrets {
            let forms = [
                secret.clone(),
                STANDARD.encode(secret).into_bytes(),
                base64::engine::general_purpose::STANDARD_NO_PAD
                    .encode(secret)
                    .into_bytes(),
                secret
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<String>()
                    .into_bytes(),
            ];
            for form in forms {
                let found = bytes.windows(form.len()).any(|window| window == form);
                assert!(!found, "{} holds {:?}", path.display(), String::from_utf8_lossy(secret));
            }
        }
    }
}

#[tokio::test]
async fn a_store_without_its_key_or_with_another_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    init(&init_config(dir.path()), UnixTime::now()).unwrap();
    let keys = dir.path().join("ca.kek");
    let error = async |config: ServeConfig| {
        let error = start(config, postern_ca::clock::system()).await.unwrap_err();
        std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    };
    let held = std::fs::read(&keys).unwrap();
    std::fs::remove_file(&keys).unwrap();
    let said = error(serve_config(dir.path())).await;
    assert!(said.contains("ca.kek") && said.contains("put it back"), "{said}");
    let other = tempfile::tempdir().unwrap();
    init(&init_config(other.path()), UnixTime::now()).unwrap();
    let others = KekConfig::File(other.path().join("ca.kek"));
    let said = error(ServeConfig {
        kek: Some(others),
        ..serve_config(dir.path())
    })
    .await;
    assert!(
        said.contains("authority.json") && said.contains("does not have"),
        "{said}"
    );
    // A record of another store under the same key is another CA's.
    std::fs::write(&keys, held).unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let tokens = dir.path().join("ca/tokens.json");
    std::fs::copy(dir.path().join("ca/root.json"), &tokens).unwrap();
    let said = error(serve_config(dir.path())).await;
    assert!(said.contains("tokens.json") && said.contains("another kind"), "{said}");
    let text = std::fs::read_to_string(&tokens).unwrap();
    std::fs::write(&tokens, text.replacen(" root\n", " tokens\n", 1)).unwrap();
    let said = error(serve_config(dir.path())).await;
    assert!(
        said.contains("tokens.json") && said.contains("another record"),
        "{said}"
    );
    std::fs::remove_file(&tokens).unwrap();
    start(serve_config(dir.path()), postern_ca::clock::system())
        .await
        .unwrap()
        .stop()
        .await;
}

#[test]
fn an_init_that_fails_leaves_no_key_and_takes_none_away() {
    let dir = tempfile::tempdir().unwrap();
    let (config, keys) = (init_config(dir.path()), dir.path().join("ca.kek"));
    let bad = postern_ca::InitConfig {
        trust_domain: "Not One".to_owned(),
        ..config.clone()
    };
    assert!(init(&bad, UnixTime::now()).is_err());
    assert!(!keys.exists());
    init(&config, UnixTime::now()).unwrap();
    let held = std::fs::read(&keys).unwrap();
    assert!(init(&config, UnixTime::now()).is_err());
    assert_eq!(std::fs::read(&keys).unwrap(), held);
}

/// A store of a version that did not seal.
fn in_clear(store: &Path) {
    for kind in [Kind::Authority, Kind::Root] {
        let name = kind.file().trim_end_matches(".json");
        let body = serde_json::to_string_pretty(&stored(store, kind)).unwrap();
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body.as_bytes());
        let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("postern-ca-store 1 {name} sha256={hex}\n{body}");
        std::fs::write(store.join(kind.file()), text).unwrap();
    }
    // Such a version knew no key, gave no JWT-SVIDs, and kept no ledger.
    std::fs::remove_file(store.with_extension("kek")).unwrap();
    for file in [
        "jwt.json",
        "ledger.json",
        "ledger.redb",
        "ledger-jwt.json",
        "ledger-jwt.redb",
    ] {
        let _ = std::fs::remove_file(store.join(file));
    }
}

#[tokio::test]
async fn a_store_in_clear_is_refused_until_it_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    init(&init_config(dir.path()), UnixTime::now()).unwrap();
    let store = dir.path().join("ca");
    in_clear(&store);
    let error = start(serve_config(dir.path()), postern_ca::clock::system())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("rewrap --migrate"), "{error}");
    let error = rewrap_store(&store, None, false).await.unwrap_err();
    assert!(error.to_string().contains("rewrap --migrate"), "{error}");
    assert!(!store.with_extension("kek").exists());
    let sealed = rewrap_store(&store, None, true).await.unwrap();
    assert_eq!(sealed, [Kind::Authority, Kind::Root]);
    assert_eq!(rewrap_store(&store, None, true).await.unwrap(), []);
    start(serve_config(dir.path()), postern_ca::clock::system())
        .await
        .unwrap()
        .stop()
        .await;
    // Or by the CA itself, if it is told to.
    in_clear(&store);
    let config = ServeConfig {
        migrate: true,
        ..serve_config(dir.path())
    };
    let running = start(config, postern_ca::clock::system()).await.unwrap();
    // Before it answers anybody.
    let root = std::fs::read_to_string(store.join("root.json")).unwrap();
    assert!(root.starts_with("postern-ca-store 2 "), "{root}");
    running.stop().await;
}

/// A KMS plugin as Kubernetes' own library serves it: keys by their IDs, the newest encrypts.
#[derive(Clone, Default)]
struct Plugin {
    keys: Arc<Mutex<Vec<String>>>,
    ill: Arc<Mutex<Option<String>>>,
    /// Gives back what it should encrypt.
    identity: Arc<Mutex<bool>>,
    /// Empty: v2.
    version: Arc<Mutex<String>>,
}

impl Plugin {
    fn with(key: &str) -> Self {
        let plugin = Self::default();
        plugin.rotate(key);
        plugin
    }

    fn rotate(&self, key: &str) {
        self.keys.lock().unwrap().push(key.to_owned());
    }

    fn says(&self, ill: Option<&str>) {
        *self.ill.lock().unwrap() = ill.map(str::to_owned);
    }

    fn serve(&self, socket: &Path) -> tokio::task::JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        let service = KeyManagementServiceServer::new(self.clone());
        tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        })
    }
}

/// Of a key's ID and the bytes; good enough to tell keys apart.
fn masked(key: &str, bytes: &[u8]) -> Vec<u8> {
    let pad = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    bytes.iter().zip(pad.as_ref()).map(|(byte, pad)| byte ^ pad).collect()
}

#[tonic::async_trait]
impl KeyManagementService for Plugin {
    async fn status(&self, _: Request<kms::StatusRequest>) -> Result<Response<kms::StatusResponse>, Status> {
        let ill = self.ill.lock().unwrap().clone();
        Ok(Response::new(kms::StatusResponse {
            version: Some(self.version.lock().unwrap().clone())
                .filter(|it| !it.is_empty())
                .unwrap_or_else(|| "v2".to_owned()),
            healthz: ill.unwrap_or_else(|| "ok".to_owned()),
            key_id: self.keys.lock().unwrap().last().unwrap().clone(),
        }))
    }

    async fn encrypt(&self, request: Request<kms::EncryptRequest>) -> Result<Response<kms::EncryptResponse>, Status> {
        let key_id = self.keys.lock().unwrap().last().unwrap().clone();
        Ok(Response::new(kms::EncryptResponse {
            ciphertext: match *self.identity.lock().unwrap() {
                true => request.into_inner().plaintext,
                false => masked(&key_id, &request.into_inner().plaintext),
            },
            annotations: BTreeMap::from([("version.kms.test".to_owned(), key_id.clone().into_bytes())]),
            key_id,
        }))
    }

    async fn decrypt(&self, request: Request<kms::DecryptRequest>) -> Result<Response<kms::DecryptResponse>, Status> {
        let request = request.into_inner();
        if !self.keys.lock().unwrap().contains(&request.key_id) {
            return Err(Status::not_found("no such key"));
        }
        assert_eq!(request.annotations["version.kms.test"], request.key_id.as_bytes());
        Ok(Response::new(kms::DecryptResponse {
            plaintext: masked(&request.key_id, &request.ciphertext),
        }))
    }
}

/// What `/readyz` says.
async fn readiness(address: std::net::SocketAddr) -> String {
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n")
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    });
    asked.await.unwrap().unwrap_or_default()
}

/// What `/readyz` says once it says this.
async fn readiness_with(address: std::net::SocketAddr, wanted: &str) -> String {
    let asked = async {
        loop {
            let said = readiness(address).await;
            if said.contains(wanted) {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect(wanted)
}

#[tokio::test]
async fn a_ca_whose_kms_is_away_is_sealed_says_so_and_issues_once_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let kek = KekConfig::Kms(socket.clone());
    let plugin = Plugin::with("one");
    let served = plugin.serve(&socket);
    let sealer = postern_ca::Sealer::unseal(&kek).await.unwrap();
    init_sealed(&init_config(dir.path()), sealer, UnixTime::now()).unwrap();
    served.abort();
    std::fs::remove_file(&socket).unwrap();

    let metrics = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = ServeConfig {
        kek: Some(kek.clone()),
        metrics_listen: metrics,
        ..serve_config(dir.path())
    };
    let watching = async {
        let sealed = readiness_with(metrics, "sealed").await;
        assert!(
            sealed.starts_with("HTTP/1.1 503") && sealed.contains("kms.sock"),
            "{sealed}"
        );
        // It is there, and not well: as good as away.
        plugin.says(Some("the HSM is locked"));
        let served = plugin.serve(&socket);
        readiness_with(metrics, "the HSM is locked").await;
        plugin.says(None);
        [served]
    };
    let (running, [served]) = tokio::join!(start(config, postern_ca::clock::system()), watching);
    let running = running.unwrap();
    assert!(readiness(metrics).await.starts_with("HTTP/1.1 200"));
    running.stop().await;

    // Another key: what was sealed under the first is sealed anew, and the first can go.
    plugin.rotate("two");
    let store = dir.path().join("ca");
    let sealed = rewrap_store(&store, Some(&kek), false).await.unwrap();
    assert_eq!(
        sealed,
        [
            Kind::Authority,
            Kind::JwtKeys,
            Kind::Root,
            Kind::Ledger,
            Kind::JwtLedger
        ]
    );
    plugin.keys.lock().unwrap().remove(0);
    assert_eq!(rewrap_store(&store, Some(&kek), false).await.unwrap(), []);
    // A key that is gone while something is sealed under it is named.
    plugin.rotate("three");
    plugin.keys.lock().unwrap().remove(0);
    let error = rewrap_store(&store, Some(&kek), false).await.unwrap_err();
    let said = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let said: Vec<String> = said.map(ToString::to_string).collect();
    assert!(said.join(": ").contains("no such key"), "{said:?}");
    served.abort();
}

#[tokio::test]
async fn a_kms_that_does_not_encrypt_or_speaks_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let kek = KekConfig::Kms(socket.clone());
    let plugin = Plugin::with("");
    let _served = plugin.serve(&socket);
    let error = postern_ca::Sealer::unseal(&kek).await.unwrap_err();
    assert!(
        error.to_string().contains("its key has no ID") && !error.is_outage(),
        "{error}"
    );
    let long = "k".repeat(2000);
    plugin.rotate(&long);
    let error = postern_ca::Sealer::unseal(&kek).await.unwrap_err();
    assert!(error.to_string().contains("2000 bytes"), "{error}");
    plugin.rotate("one");
    *plugin.identity.lock().unwrap() = true;
    let error = postern_ca::Sealer::unseal(&kek).await.unwrap_err();
    assert!(
        error.to_string().contains("does not encrypt") && !error.is_outage(),
        "{error}"
    );
    *plugin.version.lock().unwrap() = "v1beta1".to_owned();
    let error = postern_ca::Sealer::unseal(&kek).await.unwrap_err();
    assert!(error.to_string().contains("v1beta1") && !error.is_outage(), "{error}");
}

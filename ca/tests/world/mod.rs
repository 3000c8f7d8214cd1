//! A CA that runs for one test: its own store, loopback ports, a clock that can be moved.
#![allow(dead_code, missing_docs, unreachable_pub)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use postern_api::ca::v1::issue_request::Attestation;
use postern_api::ca_client::{self, ALPN, Issued, JoinToken, RENEWAL_CONTEXT, ca_id};
use postern_api::transport;
use postern_ca::clock::Clock;
use postern_ca::store::{Kind, Seals, Store, StoreError};
use postern_ca::{InitConfig, KekConfig, LedgerConfig, Lines, Running, Sealer, ServeConfig, ServeError, init, start};
use postern_identity::{BundleSet, Expected, SharedTrust, Trust, TrustBundle, TrustDomain, tls};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::Channel;

pub mod pki;
pub mod program;

pub const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub const CONTROL: &str = "spiffe://cluster.local/ns/postern-system/sa/postern-control";

pub struct World {
    pub dir: tempfile::TempDir,
    pub running: Running,
    pub shift: Arc<AtomicI64>,
    pub config: ServeConfig,
    /// Opened while the clock was right, so that TLS is not what a moved clock breaks.
    pub client: CertificateAuthorityClient<Channel>,
}

pub fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

pub fn init_config(dir: &Path) -> InitConfig {
    InitConfig {
        store: dir.join("ca"),
        trust_domain: "cluster.local".to_owned(),
        root_life: Duration::from_secs(10 * 365 * 24 * 3600),
        issuer_life: Duration::from_secs(30 * 24 * 3600),
    }
}

pub fn serve_config(dir: &Path) -> ServeConfig {
    ServeConfig {
        store: dir.join("ca"),
        listen: ([127, 0, 0, 1], 0).into(),
        admin_socket: dir.join("admin.sock"),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        ready_file: None,
        svid_life: Duration::from_secs(3600),
        insecure_short_life: false,
        kek: None,
        migrate: false,
        ledger: LedgerConfig {
            lines: Lines::to(|_| Ok(())),
            ..LedgerConfig::default()
        },
        root_acknowledge: postern_ca::RootPace::ACKNOWLEDGE,
        root_retire: None,
        issuer_dir: None,
    }
}

/// The system's clock, moved by `shift` seconds.
pub fn shifted(shift: &Arc<AtomicI64>) -> Clock {
    let shift = Arc::clone(shift);
    Arc::new(move || {
        let now = UnixTime::now()
            .as_secs()
            .saturating_add_signed(shift.load(Ordering::SeqCst));
        UnixTime::since_unix_epoch(Duration::from_secs(now))
    })
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut InitConfig, &mut ServeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut making, mut config) = (init_config(dir.path()), serve_config(dir.path()));
        change(&mut making, &mut config);
        init(&making, UnixTime::now()).unwrap();
        let shift = Arc::new(AtomicI64::new(0));
        Self::over(dir, shift, config).await
    }

    pub async fn over(dir: tempfile::TempDir, shift: Arc<AtomicI64>, config: ServeConfig) -> Self {
        let running = loop {
            match start(config.clone(), shifted(&shift)).await {
                // A write that was on its way when the one before stopped; or a process that another test is starting: see `opened`.
                Err(ServeError::Store(StoreError::Locked { .. })) => tokio::time::sleep(Duration::from_millis(1)).await,
                started => break started.unwrap(),
            }
        };
        let address = running.listen.to_string();
        // The old root first; of one whose key is elsewhere only the new one leads to the CA.
        let dial = async |root| {
            let pinned = tls::pinned_client_config(root, ca_id(&domain()).unwrap(), ALPN).unwrap();
            transport::dial(&address, pinned).await
        };
        let roots = roots_of(&config.store);
        let stream = match (dial(roots[0]).await, roots.get(1)) {
            (Err(_), Some(other)) => dial(*other).await.unwrap(),
            (dialled, _) => dialled.unwrap(),
        };
        let client = CertificateAuthorityClient::new(transport::channel_over(&address, stream).await.unwrap());
        Self {
            dir,
            running,
            shift,
            config,
            client,
        }
    }

    /// Stops the CA and starts it again over the same store, at the same address.
    pub async fn restarted(self) -> Self {
        let listen = self.running.listen;
        let (dir, shift, mut config) = self.stopped().await;
        config.listen = listen;
        Self::over(dir, shift, config).await
    }

    /// Stops the CA; what is left may be changed, and another one started over it.
    pub async fn stopped(self) -> (tempfile::TempDir, Arc<AtomicI64>, ServeConfig) {
        drop(self.client);
        self.running.stop().await;
        (self.dir, self.shift, self.config)
    }

    /// What it answers to Prometheus.
    pub async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.running.metrics).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub fn store(&self) -> PathBuf {
        self.config.store.clone()
    }

    pub fn address(&self) -> String {
        self.running.listen.to_string()
    }

    pub fn move_clock(&self, seconds: i64) {
        self.shift.store(seconds, Ordering::SeqCst);
    }

    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(transport::connect_unix(&self.config.admin_socket).await.unwrap())
    }

    pub async fn try_token(&self, id: &str, instance: &str, life_seconds: u32) -> Result<JoinToken, Status> {
        let request = pb::CreateJoinTokenRequest {
            spiffe_id: id.to_owned(),
            instance: instance.to_owned(),
            life_seconds,
        };
        let made = self.admin().await.create_join_token(request).await?.into_inner();
        Ok(JoinToken::parse(&made.token).unwrap())
    }

    pub async fn token(&self, id: &str, instance: &str) -> JoinToken {
        self.try_token(id, instance, 600).await.unwrap()
    }

    /// Called by who shows this SVID.
    pub async fn client_of(&self, caller: &Issued) -> CertificateAuthorityClient<Channel> {
        let trust = trust_of(&caller.bundle);
        let config = tls::client_config(Some(&caller.svid), Arc::clone(&trust), ALPN).unwrap();
        let expected = Expected {
            ids: vec![ca_id(&domain()).unwrap()],
            instance: None,
        };
        let channel = transport::connect(&self.address(), config, &trust, &expected).await;
        CertificateAuthorityClient::new(channel.unwrap())
    }

    /// What a process with a token gets through the client that the components use.
    pub async fn first_issue(&self, id: &str, instance: &str) -> Issued {
        let token = self.token(id, instance).await;
        ca_client::first_issue(&self.address(), &token, &domain())
            .await
            .unwrap()
    }

    pub async fn issue(&self, csr: Vec<u8>, attestation: Attestation) -> Result<pb::IssueResponse, Status> {
        let request = pb::IssueRequest {
            csr,
            attestation: Some(attestation),
            bundle_sequence: 0,
            ..pb::IssueRequest::default()
        };
        self.client
            .clone()
            .issue(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Issues for this CSR with a fresh token of the web workload.
    pub async fn issue_for(&self, csr: Vec<u8>) -> Result<pb::IssueResponse, Status> {
        let token = self.token(WEB, "web-1").await;
        self.issue(csr, Attestation::JoinToken(token.expose().to_owned())).await
    }
}

/// The store of a CA that does not run, with the key beside it.
pub fn opened(dir: &Path) -> Store {
    let KekConfig::File(keys) = KekConfig::beside(dir) else {
        panic!()
    };
    let seals = Seals::Sealed(Arc::new(Sealer::by_file(&keys).unwrap()));
    let store = loop {
        match Store::open(dir, seals.clone()) {
            // A process that another test is starting has all our files until it becomes another program.
            Err(StoreError::Locked { .. }) => std::thread::sleep(Duration::from_millis(1)),
            opened => break opened.unwrap(),
        }
    };
    // A file is not waited for.
    store.learn().now_or_never().unwrap().unwrap();
    store
}

/// What a record says.
pub fn stored(dir: &Path, kind: Kind) -> Value {
    opened(dir).read(kind).unwrap().unwrap()
}

/// SHA-256 of the root of a store.
pub fn root_of(store: &Path) -> [u8; 32] {
    roots_of(store)[0]
}

/// While it is replaced there are two, and the old one first.
pub fn roots_of(store: &Path) -> Vec<[u8; 32]> {
    let roots = CertificateDer::pem_file_iter(store.join("root.pem")).unwrap();
    roots
        .map(|root| postern_identity::bundle::fingerprint(&root.unwrap()))
        .collect()
}

pub fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

pub fn csr(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().der().to_vec()
}

/// A renewal by hand, so that a test can bend it.
pub fn renewal(chain: &[Vec<u8>], previous: &KeyPair, csr: &[u8]) -> Attestation {
    let signature = previous.sign(&[RENEWAL_CONTEXT, csr].concat()).unwrap();
    Attestation::Renewal(pb::Renewal {
        chain: chain.to_vec(),
        signature,
    })
}

pub fn trust_of(bundle: &TrustBundle) -> SharedTrust {
    let bundles = BundleSet::default().with(bundle.clone());
    Arc::new(ArcSwap::from_pointee(Trust {
        bundles,
        ..Trust::default()
    }))
}

/// The stable word of a refusal.
pub fn reason(status: &Status) -> &str {
    status
        .metadata()
        .get("postern-reason")
        .map_or("none", |word| word.to_str().unwrap())
}

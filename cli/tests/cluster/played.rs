//! A cluster: control's API over a directory, and an API server that knows its users by their tokens, says what they may, and
//! passes on what is for control as its front proxy does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use postern_api::ca_client::control_id;
use postern_control::api::{ApiConfig, Certificate};
use postern_control::{FederationConfig, FetchConfig, IdentitySource, Mesh, ServeConfig, Source, start};
use postern_identity::{TrustDomain, tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

#[path = "../../../control/tests/streams/world/authority.rs"]
mod authority;

/// Any wait for a state ends; only a fault takes this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// As the API server calls control.
const NAME: &str = "postern-control.postern-system.svc";

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

/// Runs until the test's process ends.
pub(super) struct Cluster {
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Control has these files. User `ann` may all, `frank` nothing; a context for each, and two that lead to no mesh.
    pub(super) fn with(files: &[(&str, &str)]) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let cluster = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(cluster.mesh()).unwrap();
        for (name, text) in files {
            std::fs::write(cluster.mesh().join(name), text).unwrap();
        }
        let (served, shown) = serving_certificate();
        let front = Arc::new(Front::new(shown));
        let (address, bare) = (serve(Arc::clone(&front)), serve(Arc::new(Front::new(served.0.clone()))));
        front.control.set(control(cluster.mesh(), address, served)).unwrap();
        // Until control has read who the front proxy is.
        let started = Instant::now();
        while front.pass_on("GET", "/apis", "ann", b"").starts_with(b"HTTP/1.1 503") {
            assert!(started.elapsed() < PATIENCE, "control does not hear of the front proxy");
            thread::sleep(Duration::from_millis(10));
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let kubeconfig = kubeconfig(&[("ann", address), ("frank", address), ("away", closed), ("bare", bare)]);
        std::fs::write(cluster.directory.path().join("kubeconfig"), kubeconfig).unwrap();
        cluster
    }

    /// Where control's files are; the kubeconfig is beside it.
    pub(super) fn mesh(&self) -> PathBuf {
        self.directory.path().join("mesh")
    }
}

/// The first one is the current context; each has its name as its user's token.
fn kubeconfig(contexts: &[(&str, SocketAddr)]) -> String {
    let each = |entry: &dyn Fn(&str, SocketAddr) -> Value| -> Vec<Value> {
        contexts.iter().map(|(name, address)| entry(name, *address)).collect()
    };
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": contexts[0].0,
        "clusters": each(&|name, address| json!({"name": name, "cluster": {"server": format!("http://{address}")}})),
        "users": each(&|name, _| json!({"name": name, "user": {"token": name}})),
        "contexts": each(&|name, _| json!({"name": name, "context": {"cluster": name, "user": name}})),
    })
    .to_string()
}

type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// With its key, and alone.
fn serving_certificate() -> (Pair, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let leaf = params.self_signed(&key).unwrap().der().clone();
    ((leaf.clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into())), leaf)
}

/// Starts control; where its API is.
fn control(mesh: PathBuf, api_server: SocketAddr, (leaf, key): Pair) -> SocketAddr {
    let (found, address) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async move {
            let authority = authority::Authority::new();
            let key = CertifiedKey::from_der(vec![leaf], key, &tls::provider()).unwrap();
            let client = kube::Config::new(format!("http://{api_server}").parse().unwrap());
            let api = ApiConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                replicas: None,
                own_address: None,
                client: kube::Client::try_from(client).unwrap(),
                certificate: Certificate::Given(Arc::new(SingleCertAndKey::from(key))),
            };
            let config = ServeConfig {
                source: Source::Directory(mesh),
                mesh: Mesh::named(authority.domain().clone()),
                listen: ([127, 0, 0, 1], 0).into(),
                metrics_listen: ([127, 0, 0, 1], 0).into(),
                view_socket: None,
                max_proxies: 16,
                keys: FetchConfig::default(),
                federation: FederationConfig::default(),
                bundle_endpoints: Vec::new(),
                ready_file: None,
                api: Some(api),
            };
            let identity = IdentitySource::Given {
                svid: authority.svid(control_id(&domain()).unwrap().as_str(), None, 3600),
                bundle: authority.bundle(),
            };
            let running = start(config, identity).await.unwrap();
            found.send(running.api.unwrap()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    address.recv_timeout(PATIENCE).unwrap()
}

/// The API server's front proxy.
struct Front {
    ca_pem: String,
    tls: Arc<ClientConfig>,
    /// None: there is no mesh in the cluster.
    control: OnceLock<SocketAddr>,
}

impl Front {
    /// Who believes whoever shows this.
    fn new(control: CertificateDer<'static>) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "front-proxy-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "front-proxy-client");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(control).unwrap();
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![leaf], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        Self {
            ca_pem,
            tls: Arc::new(config),
            control: OnceLock::new(),
        }
    }

    /// The whole answer, as it came.
    fn pass_on(&self, method: &str, path: &str, user: &str, body: &[u8]) -> Vec<u8> {
        let Some(control) = self.control.get() else {
            return b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 18\r\n\r\n404 page not found".to_vec();
        };
        let session = ClientConnection::new(Arc::clone(&self.tls), NAME.try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(session, TcpStream::connect(control).unwrap());
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {NAME}\r\nx-remote-user: {user}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        // Control may end without a last word of TLS.
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    fn config_maps(&self) -> Value {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": "extension-apiserver-authentication", "namespace": "kube-system", "resourceVersion": "1", "uid": "u",
            },
            "data": {
                "requestheader-client-ca-file": self.ca_pem,
                "requestheader-allowed-names": "[\"front-proxy-client\"]",
                "requestheader-username-headers": "[\"X-Remote-User\"]",
            },
        });
        json!({ "apiVersion": "v1", "kind": "ConfigMapList", "metadata": { "resourceVersion": "1" }, "items": [map] })
    }
}

fn serve(front: Arc<Front>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let front = Arc::clone(&front);
            thread::spawn(move || answer(&front, connection.unwrap()));
        }
    });
    address
}

/// One request, then the connection ends.
fn answer(front: &Front, stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|_| line.ends_with("\r\n"))?;
        Some(line.trim_end().to_owned())
    });
    let first = lines.next()?;
    let (method, rest) = first.split_once(' ')?;
    let (target, _) = rest.split_once(' ')?;
    let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    let field = |name: &str| {
        let found = head.iter().filter_map(|line| line.split_once(':'));
        let mut found = found.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        found.next().map_or("", |(_, value)| value.trim())
    };
    let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let user = field("authorization").trim_start_matches("Bearer ");
    let mut stream = stream;
    let answer = match target.split('?').next()? {
        "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
            let mut review: Value = serde_json::from_slice(&body).ok()?;
            review["status"] = json!({ "allowed": review["spec"]["user"] == "ann" });
            whole(&review)
        }
        "/api/v1/namespaces/kube-system/configmaps" if target.contains("watch=true") => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head).ok()?;
            // Nothing changes, until whoever watches goes.
            let _ = reader.read(&mut [0]);
            return None;
        }
        "/api/v1/namespaces/kube-system/configmaps" => whole(&front.config_maps()),
        path if path.starts_with("/apis/view.postern.dev/") => front.pass_on(method, target, user, &body),
        path => panic!("somebody asks for {path}"),
    };
    stream.write_all(&answer).ok()
}

fn whole(document: &Value) -> Vec<u8> {
    let text = document.to_string();
    let length = text.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
    .into_bytes()
}

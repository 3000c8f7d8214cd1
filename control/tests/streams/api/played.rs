//! The API server, as control sees it: who calls the aggregated API, the ConfigMap that says how to know it, and reviews.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use postern_control::api::{ApiConfig, Certificate};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use crate::world::World;

/// What `kubectl get` accepts.
pub(super) const TABLE: &str =
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
/// Any wait for a state ends; only a fault takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

type PlayedBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// Answers as the API server does.
#[derive(Default)]
pub(super) struct Played {
    /// Users, and where: `None`, everywhere.
    allowed: Mutex<Vec<(String, Option<String>)>>,
    reviews: Mutex<Vec<Value>>,
    broken: Mutex<bool>,
    /// The ConfigMap, and how often it changed.
    map: watch::Sender<(u64, Value)>,
}

impl Played {
    pub(super) fn allowing(user: &str) -> Self {
        let played = Self::default();
        played.allow(user);
        played
    }
    pub(super) fn allow(&self, user: &str) {
        self.allowed.lock().unwrap().push((user.to_owned(), None));
    }
    pub(super) fn allow_in(&self, namespace: &str, user: &str) {
        let allowed = (user.to_owned(), Some(namespace.to_owned()));
        self.allowed.lock().unwrap().push(allowed);
    }
    pub(super) fn break_reviews(&self) {
        *self.broken.lock().unwrap() = true;
    }
    /// The specs of all that were asked for.
    pub(super) fn reviews(&self) -> Vec<Value> {
        self.reviews.lock().unwrap().clone()
    }

    fn publish(&self, ca_pem: &str) {
        self.map.send_modify(|(version, map)| {
            *version += 1;
            *map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": "extension-apiserver-authentication",
                    "namespace": "kube-system",
                    "resourceVersion": version.to_string(),
                    "uid": "u",
                },
                "data": {
                    "requestheader-client-ca-file": ca_pem,
                    "requestheader-allowed-names": "[\"front-proxy-client\"]",
                    "requestheader-username-headers": "[\"X-Remote-User\"]",
                    "requestheader-group-headers": "[\"X-Remote-Group\"]",
                    "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
                },
            });
        });
    }

    async fn answer(self: Arc<Self>, request: Request<kube::client::Body>) -> Response<PlayedBody> {
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default();
        match head.uri.path() {
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                let bytes = body.collect().await.unwrap().to_bytes();
                self.review(&serde_json::from_slice(&bytes).unwrap())
            }
            "/api/v1/namespaces/kube-system/configmaps" if query.contains("watch=true") => self.watched(),
            "/api/v1/namespaces/kube-system/configmaps" => {
                let (version, map) = self.map.borrow().clone();
                document(
                    StatusCode::OK,
                    &json!({
                        "apiVersion": "v1",
                        "kind": "ConfigMapList",
                        "metadata": { "resourceVersion": version.to_string() },
                        "items": [map],
                    }),
                )
            }
            path => panic!("control asks for {path}"),
        }
    }

    fn review(&self, review: &Value) -> Response<PlayedBody> {
        self.reviews.lock().unwrap().push(review["spec"].clone());
        if *self.broken.lock().unwrap() {
            let status =
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "no etcd" });
            return document(StatusCode::INTERNAL_SERVER_ERROR, &status);
        }
        let user = review["spec"]["user"].as_str().unwrap();
        let place = review["spec"]["resourceAttributes"]["namespace"].as_str();
        let allowed = self.allowed.lock().unwrap();
        let allowed = allowed
            .iter()
            .any(|(who, namespace)| who == user && (namespace.is_none() || namespace.as_deref() == place));
        let mut answer = review.clone();
        answer["status"] = json!({ "allowed": allowed, "reason": if allowed { "" } else { "RBAC says no" } });
        document(StatusCode::CREATED, &answer)
    }

    /// A watch that ends with the test.
    fn watched(&self) -> Response<PlayedBody> {
        let events = futures_util::stream::unfold(self.map.subscribe(), |mut map| async move {
            map.changed().await.ok()?;
            let object = map.borrow_and_update().1.clone();
            let line = format!("{}\n", json!({ "type": "MODIFIED", "object": object }));
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), map))
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }
}

fn document(code: StatusCode, document: &Value) -> Response<PlayedBody> {
    let body = Full::new(Bytes::from(document.to_string())).boxed_unsync();
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

/// Certificates that somebody shows.
pub(super) struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The front proxy, its CA, and a stranger's.
pub(super) struct Front {
    pub(super) played: Arc<Played>,
    ca: Authority,
    stranger: Authority,
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, name: &str) -> Shown {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Shown {
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }
}

impl Front {
    pub(super) fn new(played: Played) -> Self {
        let ca = Authority::new("front-proxy-ca");
        played.publish(&ca.pem);
        Self {
            played: Arc::new(played),
            ca,
            stranger: Authority::new("front-proxy-ca"),
        }
    }

    /// The API server's own.
    pub(super) fn proxy(&self) -> Shown {
        self.ca.sign("front-proxy-client")
    }
    /// Of the right CA.
    pub(super) fn genuine(&self, name: &str) -> Shown {
        self.ca.sign(name)
    }
    /// Of another CA.
    pub(super) fn foreign(&self, name: &str) -> Shown {
        self.stranger.sign(name)
    }
    /// A new CA takes the place of the old one; its front proxy.
    pub(super) fn rotate(&self) -> Shown {
        let next = Authority::new("front-proxy-ca-2");
        self.played.publish(&next.pem);
        next.sign("front-proxy-client")
    }

    pub(super) fn config(&self) -> ApiConfig {
        let played = Arc::clone(&self.played);
        let service = tower::service_fn(move |request| {
            let played = Arc::clone(&played);
            async move { Ok::<_, Infallible>(played.answer(request).await) }
        });
        ApiConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            replicas: None,
            own_address: None,
            client: kube::Client::new(service, "default"),
            certificate: Certificate::Given(Arc::new(Fixed(served()))),
        }
    }

    pub(super) async fn dial(&self, world: &World, shown: Option<&Shown>) -> Client {
        self.dial_to(world.running.api.unwrap(), shown).await
    }

    /// Once the ConfigMap has been read.
    pub(super) async fn dial_to(&self, address: SocketAddr, shown: Option<&Shown>) -> Client {
        let mut client = connect(address, shown).await;
        client.until_not("/apis", StatusCode::SERVICE_UNAVAILABLE).await;
        client
    }
}

/// An HTTP/1.1 connection.
pub(super) struct Client {
    requests: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Code, document, warnings.
    pub(super) async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> (StatusCode, Value, Vec<String>) {
        self.send("GET", path, headers).await
    }

    pub(super) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, Value, Vec<String>) {
        self.send_body(method, path, headers, Bytes::new()).await
    }

    /// Code and document.
    pub(super) async fn post(&mut self, path: &str, headers: &[(&str, &str)], body: &Value) -> (StatusCode, Value) {
        let (code, document, _) = self
            .send_body("POST", path, headers, Bytes::from(body.to_string()))
            .await;
        (code, document)
    }

    pub(super) async fn send_body(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> (StatusCode, Value, Vec<String>) {
        let mut request = Request::builder().method(method).uri(path).header("host", "control");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.requests.ready().await.unwrap();
        let answer = self
            .requests
            .send_request(request.body(Full::new(body)).unwrap())
            .await
            .unwrap();
        let code = answer.status();
        let warnings = answer
            .headers()
            .get_all("warning")
            .iter()
            .map(|w| w.to_str().unwrap().to_owned())
            .collect();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null), warnings)
    }

    pub(super) async fn until(&mut self, path: &str, headers: &[(&str, &str)], wanted: StatusCode) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.get(path, headers).await.0 != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap();
    }

    async fn until_not(&mut self, path: &str, unwanted: StatusCode) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.get(path, &[]).await.0 == unwanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap();
    }

    pub(super) async fn until_warned(&mut self, path: &str, headers: &[(&str, &str)]) -> Vec<String> {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let (_, _, warnings) = self.get(path, headers).await;
                if !warnings.is_empty() {
                    return warnings;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        waited.await.unwrap()
    }
}

async fn connect(address: SocketAddr, shown: Option<&Shown>) -> Client {
    let provider = postern_identity::tls::provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let config = match shown {
        Some(shown) => builder
            .with_client_auth_cert(shown.chain.clone(), shown.key.clone_key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("postern-control.postern-system.svc").unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let (requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    Client { requests }
}

fn served() -> Arc<CertifiedKey> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["postern-control.postern-system.svc".to_owned()]).unwrap();
    let leaf = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = postern_identity::tls::provider();
    Arc::new(CertifiedKey::from_der(vec![leaf.der().clone()], key, &provider).unwrap())
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Fixed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// The server's certificate is another test's matter.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        postern_identity::tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

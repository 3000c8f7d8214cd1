//! A caller as an API server is one: TLS with a bundle, HTTP/1.1 or 2.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::NAME;

pub(crate) const JSON: &str = "application/json";

#[derive(Clone)]
pub(crate) struct Caller {
    address: SocketAddr,
    /// From where it calls.
    from: IpAddr,
    roots: Arc<RootCertStore>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn response(&self) -> Value {
        let review = self.json();
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(review["kind"], "AdmissionReview");
        review["response"].clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection of HTTP/2.
pub(crate) struct Connection(conn::http2::SendRequest<Full<Bytes>>);

impl Connection {
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> Result<Answer, String> {
        let uri = format!("https://{NAME}{path}");
        let request = Request::post(uri)
            .header(header::CONTENT_TYPE, JSON)
            .body(Full::new(body))
            .unwrap();
        self.0.ready().await.map_err(|error| error.to_string())?;
        answer(self.0.send_request(request).await).await
    }
}

async fn answer(response: hyper::Result<hyper::Response<hyper::body::Incoming>>) -> Result<Answer, String> {
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    Ok(Answer {
        status,
        body: body.to_bytes().to_vec(),
    })
}

impl Caller {
    pub(crate) fn new(address: SocketAddr, bundle: &[CertificateDer<'static>]) -> Self {
        let mut roots = RootCertStore::empty();
        for root in bundle {
            roots.add(root.clone()).unwrap();
        }
        Self {
            address,
            from: IpAddr::V4(Ipv4Addr::LOCALHOST),
            roots: Arc::new(roots),
        }
    }

    /// From another address of this machine.
    pub(crate) fn from(mut self, address: [u8; 4]) -> Self {
        self.from = address.into();
        self
    }

    pub(crate) async fn tls(&self, alpn: &[u8]) -> Result<TlsStream<TcpStream>, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.from, 0).into()).unwrap();
        let tcp = socket.connect(self.address).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(NAME).unwrap();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        connected.map_err(|error| error.to_string())
    }

    pub(crate) async fn http2(&self) -> Result<Connection, String> {
        let io = TokioIo::new(self.tls(b"h2").await?);
        let connected = conn::http2::handshake(TokioExecutor::new(), io).await;
        let (sender, connection) = connected.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(Connection(sender))
    }

    /// Any request over a connection of HTTP/1.1 of its own.
    pub(crate) async fn send<B>(&self, request: Request<B>) -> Result<Answer, String>
    where
        B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let io = TokioIo::new(self.tls(b"http/1.1").await?);
        let connected = conn::http1::handshake(io).await;
        let (mut sender, connection) = connected.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        answer(sender.send_request(request).await).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::post(path)
            .header(header::HOST, NAME)
            .header(header::CONTENT_TYPE, JSON);
        self.send(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    pub(crate) async fn review(&self, path: &str, review: &Value) -> Answer {
        self.post(path, review.to_string()).await
    }
}

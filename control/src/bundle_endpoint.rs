//! Our own bundle, for other trust domains (SPIFFE Federation section 5): served to whoever asks, over TLS, and nothing else. It
//! is what the CA signed; whoever fetches it believes it for who serves it.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_identity::{Svid, tls};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::error_chain;
use crate::hub::Hub;
use crate::identity::Own;

/// Callers at once; each asks every few minutes, and is gone after one answer.
const MAX_CONNECTIONS: usize = 64;
/// From its first byte to its last.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// A request's head; a few hundred bytes are usual.
const MAX_HEAD: usize = 16 * 1024;
/// A certificate that was replaced on disk is served after this.
const RELOAD: Duration = Duration::from_secs(30);

/// What an endpoint proves itself by.
#[derive(Debug, Clone)]
pub enum EndpointProof {
    /// Profile https_spiffe: control's own SVID.
    Svid,
    /// Profile https_web: a certificate (chain) and its key, PEM; read again when they are replaced.
    Web {
        /// Leaf first.
        certificate: PathBuf,
        /// PKCS#8, PKCS#1 or SEC 1.
        key: PathBuf,
    },
}

/// A certificate that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the bundle with the certificate {certificate} and the key {key}: {why}")]
pub struct WebCertificateError {
    certificate: String,
    key: String,
    why: String,
}

/// Makes what is handshaken with.
pub(crate) struct Handshakes {
    own: Arc<Own>,
    proof: EndpointProof,
    made: Option<Made>,
}

struct Made {
    config: Arc<ServerConfig>,
    /// That it was made of.
    svid: Option<Arc<Svid>>,
    at: Instant,
}

impl Handshakes {
    /// Fails where the first cannot be made.
    pub(crate) fn new(own: Arc<Own>, proof: EndpointProof) -> Result<Self, WebCertificateError> {
        let mut handshakes = Self { own, proof, made: None };
        handshakes.make()?;
        Ok(handshakes)
    }

    /// The newest; where that cannot be made, the one before.
    fn now(&mut self) -> Option<Arc<ServerConfig>> {
        let current = match (&self.made, &self.proof) {
            (Some(made), EndpointProof::Svid) => made
                .svid
                .as_ref()
                .is_some_and(|svid| Arc::ptr_eq(svid, &self.own.svid())),
            (Some(made), EndpointProof::Web { .. }) => made.at.elapsed() < RELOAD,
            (None, _) => false,
        };
        if !current && let Err(error) = self.make() {
            tracing::error!(reason = "bundle_endpoint", "{}", error_chain(&error));
            self.made.iter_mut().for_each(|made| made.at = Instant::now());
        }
        self.made.as_ref().map(|made| Arc::clone(&made.config))
    }

    fn make(&mut self) -> Result<(), WebCertificateError> {
        let (config, svid) = match &self.proof {
            EndpointProof::Svid => {
                let svid = self.own.svid();
                let config = tls::anonymous_server_config(&svid, &[tls::alpn::HTTP_1_1]);
                let config = config.map_err(|error| WebCertificateError {
                    certificate: svid.id().to_string(),
                    key: "of that SVID".to_owned(),
                    why: error.to_string(),
                })?;
                (config, Some(svid))
            }
            EndpointProof::Web { certificate, key } => {
                let config = web(certificate, key).map_err(|why| WebCertificateError {
                    certificate: certificate.display().to_string(),
                    key: key.display().to_string(),
                    why,
                })?;
                (config, None)
            }
        };
        self.made = Some(Made {
            config,
            svid,
            at: Instant::now(),
        });
        Ok(())
    }
}

fn web(certificate: &PathBuf, key: &PathBuf) -> Result<Arc<ServerConfig>, String> {
    // Its own words for what is no PEM are the bytes that it met, and those may be the key's.
    let text = |error: pem::Error| match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "nothing of the kind is in the file".to_owned(),
        _ => "it is no PEM: are its line breaks as they were?".to_owned(),
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).map_err(text)?.collect();
    let key = PrivateKeyDer::from_pem_file(key).map_err(text)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // TLS 1.2 as well: who asks is not ours.
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain.map_err(text)?, key);
    let mut config = config.map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![tls::alpn::HTTP_1_1.to_vec()];
    Ok(Arc::new(config))
}

/// Answers for ever.
pub(crate) async fn serve(hub: Arc<Hub>, listener: TcpListener, mut handshakes: Handshakes) -> Infallible {
    // Ends with this function.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match (accepted, handshakes.now()) {
            (Ok((tcp, _)), Some(config)) => {
                let hub = Arc::clone(&hub);
                connections.spawn(async move {
                    // What a stranger does with its connection is its own affair.
                    let _ = timeout(CONNECTION_DEADLINE, connection(&hub, tcp, config)).await;
                });
            }
            (Ok(_), None) => {}
            // Out of descriptors or memory: the backlog waits, we do not spin.
            (Err(_), _) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(hub: &Hub, tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    let stream = TlsAcceptor::from(config).accept(tcp).await?;
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(hub, &request))));
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

fn answer(hub: &Hub, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let empty = |status| {
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = status;
        answer
    };
    if request.uri().path() != "/" {
        return empty(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut answer = empty(StatusCode::METHOD_NOT_ALLOWED);
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let trust = hub.trust.load();
    let Some(bundle) = trust.bundles.get(hub.mesh.trust_domain.as_str()) else {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    };
    let mut answer = Response::new(Full::from(bundle.to_document()));
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn c_10_a_key_that_lost_its_line_breaks_is_refused_and_nothing_of_it_is_said() {
        const BODY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg";
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("tls.key");
        for between in ["\\n", "", " "] {
            let text = format!("-----BEGIN PRIVATE KEY-----{between}{BODY}{between}-----END PRIVATE KEY-----");
            std::fs::write(&key, text).unwrap();
            // Also where the two files were taken for one another.
            for (certificate, key) in [(&key, &key), (&key, &directory.path().join("none"))] {
                let why = web(certificate, key).unwrap_err();
                let decimal: Vec<String> = BODY.bytes().map(|byte| byte.to_string()).collect();
                assert!(
                    !why.contains(&BODY[..8]) && !why.contains(&decimal[..4].join(", ")),
                    "{why}"
                );
            }
        }
    }
}

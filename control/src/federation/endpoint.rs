//! One fetch of a bundle, by either profile (SPIFFE Federation section 5): bounded in size and hops; its caller bounds the time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::{StatusCode, Uri};
use postern_identity::bundle::BundleError;
use postern_identity::federation::{self, Document};
use postern_identity::{Expected, Role, SharedTrust, SpiffeId, Trust, VerifyError, tls};
use rustls::client::Resumption;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::relationship;
use crate::get::{self, GetError, Said};

/// Redirects that are followed within one fetch; none is remembered.
const MAX_REDIRECTS: usize = 3;
/// Past it the answer is no bundle, and its reader would say so.
const MAX_ANSWER: usize = 256 * 1024;

/// Roots that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read root certificates of bundle endpoints from {path}: {why}")]
pub struct RootsError {
    path: String,
    why: String,
}

/// Fetches bundles.
pub(crate) struct Fetcher {
    web: Arc<ClientConfig>,
}

/// Whom to believe at an endpoint.
pub(super) enum Prover {
    Web,
    /// This identity, under the bundles of this trust.
    Spiffe(SpiffeId, Arc<Trust>),
}

/// Why a bundle was not fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0} is no URL that can be called")]
    Url(Uri),
    #[error("cannot connect to {host}")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("TLS with {host} failed")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare TLS")]
    Config(#[source] rustls::Error),
    #[error("whoever answers at {host} is not believed")]
    Peer {
        host: String,
        #[source]
        source: VerifyError,
    },
    #[error("{host} answers as {got}, expected {expected}")]
    WrongPeer {
        host: String,
        got: SpiffeId,
        expected: SpiffeId,
    },
    #[error("HTTP with {host} failed")]
    Http {
        host: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{url} answers {status}")]
    Status { url: Uri, status: StatusCode },
    #[error("{url} leads to `{to}`: {why}")]
    Redirect { url: String, to: String, why: String },
    #[error("{url} answers with more than {MAX_ANSWER} bytes, or breaks off: {why}")]
    Body { url: Uri, why: String },
    #[error("what {url} answers is refused")]
    Document {
        url: String,
        #[source]
        source: BundleError,
    },
}

impl FetchError {
    fn of(error: GetError, url: &Uri, host: &str) -> Self {
        let (url, host) = (url.clone(), host.to_owned());
        match error {
            GetError::Uri => Self::Url(url),
            GetError::Http(source) => Self::Http { host, source },
            GetError::Status(status) => Self::Status { url, status },
            GetError::Body(why) => Self::Body { url, why },
        }
    }

    /// Did whoever answers fail to prove who they are?
    pub(super) fn is_of_proof(&self) -> bool {
        match self {
            Self::Tls { .. } | Self::Peer { .. } => true,
            Self::Url(_)
            | Self::Connect { .. }
            | Self::Config(_)
            | Self::WrongPeer { .. }
            | Self::Http { .. }
            | Self::Status { .. }
            | Self::Redirect { .. }
            | Self::Body { .. }
            | Self::Document { .. } => false,
        }
    }
}

impl Fetcher {
    pub(crate) fn new(roots: Option<&PathBuf>) -> Result<Self, RootsError> {
        let mut store = RootCertStore::empty();
        match roots {
            None => {
                store.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
            }
            Some(path) => get::add_roots(path, &mut store).map_err(|why| RootsError {
                path: path.display().to_string(),
                why,
            })?,
        }
        // The one cryptographic backend, and not whatever the process was set up with.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| RootsError {
            path: String::new(),
            why: error.to_string(),
        })?;
        let mut web = config.with_root_certificates(store).with_no_client_auth();
        web.resumption = Resumption::disabled();
        web.alpn_protocols = vec![tls::alpn::HTTP_1_1.to_vec()];
        Ok(Self { web: Arc::new(web) })
    }

    /// The document behind a URL. Every hop is one to whom all the same is asked.
    pub(super) async fn fetch(&self, url: &Uri, prover: &Prover) -> Result<Document, FetchError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            match self.ask(&at, prover).await? {
                Said::Text(text) => {
                    return federation::parse_document(&text).map_err(|source| FetchError::Document {
                        url: at.to_string(),
                        source,
                    });
                }
                Said::Elsewhere(to) => at = leads(&at, &to)?,
            }
        }
        Err(FetchError::Redirect {
            url: at.to_string(),
            to: String::new(),
            why: "it was led on too often".to_owned(),
        })
    }

    async fn ask(&self, url: &Uri, prover: &Prover) -> Result<Said, FetchError> {
        let host = url.host().ok_or_else(|| FetchError::Url(url.clone()))?;
        // An IPv6 address stands in brackets.
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(plain.to_owned()).map_err(|_| FetchError::Url(url.clone()))?;
        let stream = TcpStream::connect((plain, url.port_u16().unwrap_or(443)))
            .await
            .map_err(|source| FetchError::Connect {
                host: host.to_owned(),
                source,
            })?;
        let handshake = async |config: Arc<ClientConfig>| {
            let shaken = TlsConnector::from(config).connect(name, stream).await;
            shaken.map_err(|source| FetchError::Tls {
                host: host.to_owned(),
                source,
            })
        };
        let stream = match prover {
            Prover::Web => handshake(Arc::clone(&self.web)).await?,
            Prover::Spiffe(id, trust) => {
                let stream = handshake(spiffe(trust)?).await?;
                is(&stream, host, id, trust)?;
                stream
            }
        };
        let got = get::get(stream, url, host, MAX_ANSWER).await;
        got.map_err(|error| FetchError::of(error, url, host))
    }
}

/// Our verifier, and a server's name for whatever stands before the endpoint: it plays no part in who is believed.
fn spiffe(trust: &Arc<Trust>) -> Result<Arc<ClientConfig>, FetchError> {
    let shared = SharedTrust::default();
    shared.store(Arc::clone(trust));
    let config = tls::client_config(None, shared, &[tls::alpn::HTTP_1_1]).map_err(FetchError::Config)?;
    let mut config = ClientConfig::clone(&config);
    config.enable_sni = true;
    Ok(Arc::new(config))
}

/// Before a byte is sent.
fn is(stream: &TlsStream<TcpStream>, host: &str, id: &SpiffeId, trust: &Trust) -> Result<(), FetchError> {
    let peer = tls::peer_of(stream.get_ref().1, Role::Server, trust, UnixTime::now());
    let peer = peer.map_err(|source| FetchError::Peer {
        host: host.to_owned(),
        source,
    })?;
    let expected = Expected {
        ids: vec![id.clone()],
        instance: None,
    };
    if expected.admits(&peer) {
        return Ok(());
    }
    Err(FetchError::WrongPeer {
        host: host.to_owned(),
        got: peer.id().clone(),
        expected: id.clone(),
    })
}

/// Where a redirect leads: to a URL that could stand in the file as well, wherever that is.
fn leads(from: &Uri, to: &str) -> Result<Uri, FetchError> {
    let absolute = match (to.starts_with('/') && !to.starts_with("//"), from.authority()) {
        (true, Some(authority)) => format!("https://{authority}{to}"),
        (_, _) => to.to_owned(),
    };
    relationship::url(&absolute).map_err(|why| FetchError::Redirect {
        url: from.to_string(),
        to: to.chars().filter(|c| !c.is_control()).take(200).collect(),
        why: why.chars().filter(|c| !c.is_control()).take(300).collect(),
    })
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

//! One fetch of a provider's keys: bounded in size and hops (its caller bounds the time), and only from where control may
//! call.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, Uri};
use postern_token::key_set::MAX_SET;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::address::{Cidr, Standing, standing};
use crate::get::{self, GetError, Said};

mod discovery;

/// Redirects that are followed, within one host.
const MAX_REDIRECTS: usize = 3;

/// Issuers publish a key long before they sign with it, and withdraw one when it is stolen: that is heard within this.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Between two fetches, however many tokens name keys that nobody knows: whoever can send a token can ask for a fetch.
const AT_MOST_EVERY: Duration = Duration::from_secs(10);

/// How keys are fetched.
#[derive(Debug, Clone)]
pub struct FetchConfig {
    /// Private and other special addresses that may be called, also without TLS.
    pub allowed: Vec<Cidr>,
    /// Roots (PEM) of the providers' certificates; `None`: Mozilla's.
    pub roots: Option<PathBuf>,
    /// Until keys are fetched anew though nobody misses one; default 5 minutes.
    pub refresh: Duration,
    /// Between two fetches from one provider; default 10 s.
    pub at_most_every: Duration,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            allowed: Vec::new(),
            roots: None,
            refresh: REFRESH,
            at_most_every: AT_MOST_EVERY,
        }
    }
}

/// A file of roots that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read root certificates from {path}: {why}")]
pub struct FetchConfigError {
    path: String,
    why: String,
}

/// Fetches keys.
pub(crate) struct Fetcher {
    tls: TlsConnector,
    allowed: Vec<Cidr>,
    pub(super) refresh: Duration,
    pub(super) at_most_every: Duration,
}

/// Why keys were not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0} is no URI that can be called")]
    Uri(String),
    #[error("cannot resolve {host}")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("{host} is at {ip}, which is not called; --jwks-allow-cidr would allow it")]
    Forbidden { host: String, ip: IpAddr },
    #[error("{host} is called over TLS only: its keys could be anybody's; --jwks-allow-cidr would allow its address")]
    Clear { host: String },
    #[error("cannot connect to {host}")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("HTTP with {host} failed")]
    Http {
        host: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{uri} answers {status}")]
    Status { uri: Uri, status: StatusCode },
    #[error("{uri} leads to {to}, another host or none: a redirect is followed only within its host")]
    Redirect { uri: Uri, to: String },
    #[error("{uri} answers with more than {MAX_SET} bytes, or breaks off: {why}")]
    Body { uri: Uri, why: String },
    #[error("{uri} is not this issuer's configuration: {why}")]
    Discovery { uri: Uri, why: &'static str },
}

impl FetchError {
    fn of(error: GetError, uri: &Uri, host: &str) -> Self {
        let (uri, host) = (uri.clone(), host.to_owned());
        match error {
            GetError::Uri => Self::Uri(uri.to_string()),
            GetError::Http(source) => Self::Http { host, source },
            GetError::Status(status) => Self::Status { uri, status },
            GetError::Body(why) => Self::Body { uri, why },
        }
    }
}

impl Fetcher {
    pub(crate) fn new(config: &FetchConfig) -> Result<Self, FetchConfigError> {
        let mut roots = RootCertStore::empty();
        match &config.roots {
            None => {
                roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
            }
            Some(path) => get::add_roots(path, &mut roots).map_err(|why| FetchConfigError {
                path: path.display().to_string(),
                why,
            })?,
        }
        // The one cryptographic backend, and not whatever the process was set up with.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config_of = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| FetchConfigError {
                path: String::new(),
                why: error.to_string(),
            })?;
        let tls = config_of.with_root_certificates(roots).with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            allowed: config.allowed.clone(),
            refresh: config.refresh,
            at_most_every: config.at_most_every,
        })
    }

    /// The text of a provider's key set.
    pub(crate) async fn keys(&self, provider: &str) -> Result<Vec<u8>, FetchError> {
        let uri = match provider.strip_prefix("discovery:") {
            None => parsed(provider)?,
            Some(issuer) => {
                let configuration = parsed(&discovery::address_of(issuer))?;
                let text = self.get(configuration.clone()).await?;
                let found = discovery::keys_of(&text, issuer, configuration.scheme_str() == Some("https"));
                parsed(&found.map_err(|why| FetchError::Discovery {
                    uri: configuration,
                    why,
                })?)?
            }
        };
        self.get(uri).await
    }

    async fn get(&self, mut uri: Uri) -> Result<Vec<u8>, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            match self.ask(&uri).await? {
                Said::Text(text) => return Ok(text),
                Said::Elsewhere(to) => uri = within(&uri, &to)?,
            }
        }
        Err(FetchError::Redirect {
            to: "itself, again and again".to_owned(),
            uri,
        })
    }

    /// One request on a connection of its own: it is made every few minutes.
    async fn ask(&self, uri: &Uri) -> Result<Said, FetchError> {
        let bad = || FetchError::Uri(uri.to_string());
        let host = uri.host().ok_or_else(bad)?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(bad()),
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        // An IPv6 address stands in brackets.
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = self.addresses(plain, port, secure).await?;
        let failed = |source| FetchError::Connect {
            host: host.to_owned(),
            source,
        };
        let refused = |error| FetchError::of(error, uri, host);
        let stream = TcpStream::connect(&addresses[..]).await.map_err(failed)?;
        if !secure {
            return get::get(stream, uri, host, MAX_SET).await.map_err(refused);
        }
        let name = ServerName::try_from(plain.to_owned()).map_err(|_| bad())?;
        let stream = self.tls.connect(name, stream).await.map_err(failed)?;
        get::get(stream, uri, host, MAX_SET).await.map_err(refused)
    }

    /// Where a host is, if all of it may be called: of several addresses the one that is forbidden might be taken. What is
    /// looked at here is what is called; no second look-up can say something else.
    async fn addresses(&self, host: &str, port: u16, secure: bool) -> Result<Vec<SocketAddr>, FetchError> {
        let failed = |source| FetchError::Resolve {
            host: host.to_owned(),
            source,
        };
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect();
        if found.is_empty() {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        for address in &found {
            match standing(address.ip(), &self.allowed) {
                Standing::Allowed => {}
                Standing::Public if secure => {}
                Standing::Public => return Err(FetchError::Clear { host: host.to_owned() }),
                Standing::Special => {
                    return Err(FetchError::Forbidden {
                        host: host.to_owned(),
                        ip: address.ip(),
                    });
                }
            }
        }
        Ok(found)
    }
}

/// Where a redirect leads, if that is on the same host and not from TLS to clear.
fn within(from: &Uri, to: &str) -> Result<Uri, FetchError> {
    let refused = || FetchError::Redirect {
        uri: from.clone(),
        to: to.chars().filter(|c| !c.is_control()).take(200).collect(),
    };
    let target: Uri = if to.starts_with('/') && !to.starts_with("//") {
        let scheme = from.scheme_str().unwrap_or_default();
        let authority = from.authority().ok_or_else(refused)?;
        format!("{scheme}://{authority}{to}").parse().map_err(|_| refused())?
    } else {
        to.parse().map_err(|_| refused())?
    };
    let same_host = target
        .host()
        .is_some_and(|host| from.host().is_some_and(|own| host.eq_ignore_ascii_case(own)));
    let downgrade = from.scheme_str() == Some("https") && target.scheme_str() != Some("https");
    let user = target
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'));
    if same_host && !downgrade && !user {
        Ok(target)
    } else {
        Err(refused())
    }
}

fn parsed(uri: &str) -> Result<Uri, FetchError> {
    uri.parse().map_err(|_| FetchError::Uri(uri.to_owned()))
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher")
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

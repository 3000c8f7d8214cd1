//! One question of the proxy itself to our own app, at the pod's own address and not through the mesh: what a kubelet or
//! a scraper would have asked the app directly.
//!
//! Redirects are followed as a kubelet follows them (pkg/probe/http): to the same host only, ten requests at most; one to
//! another host is itself the answer. The caller sets the deadline of it all.

mod location;
mod unverified;

use std::io;
use std::net::IpAddr;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use self::location::Location;

/// Requests of one question, with those that follow redirects.
const MAX_REQUESTS: usize = 10;
/// Answer heads are the app's own; apps that set many cookies stay far below.
const MAX_HEAD: usize = 64 * 1024;
/// Fields of an answer's head.
const MAX_FIELDS: usize = 256;

/// A host of the pod: what it is called, and where it is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// As in a URL.
    name: String,
    ip: IpAddr,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) scheme: Scheme,
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) path: PathAndQuery,
    /// `host` among them takes the place of the authority, as in a probe's `httpHeaders`.
    pub(crate) headers: HeaderMap,
    /// Body bytes that are read.
    pub(crate) most: usize,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// False: there was more than was wanted.
    pub(crate) whole: bool,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("cannot connect to port {port}")]
    Connect {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("TLS with port {port} failed")]
    Tls {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("no HTTP answer")]
    Http(#[from] hyper::Error),
    #[error("stopped after {MAX_REQUESTS} requests that were each redirected to another")]
    Redirects,
    #[error("a redirect leads to what is no URL")]
    Location,
}

impl Host {
    /// The pod itself.
    pub(crate) fn pod(ip: IpAddr) -> Self {
        let name = match ip {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        Self { name, ip }
    }

    /// The pod by another of its names: its own address or a loopback one. Anything else would make the proxy a
    /// forwarder to whatever a manifest names.
    pub(crate) fn named(name: &str, pod: IpAddr) -> Option<Self> {
        if name == "localhost" {
            return Some(Self {
                name: name.to_owned(),
                ip: std::net::Ipv4Addr::LOCALHOST.into(),
            });
        }
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let ip: IpAddr = bare.unwrap_or(name).parse().ok()?;
        (ip == pod || ip.is_loopback()).then(|| Self::pod(ip))
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }

    /// `host:port`, as a kubelet writes it: the port always there.
    pub(crate) fn authority(&self, port: u16) -> String {
        format!("{}:{port}", self.name)
    }
}

/// Asks, and follows redirects. Dropped, it leaves nothing behind.
pub(crate) async fn ask(question: &Question) -> Result<Answer, AskError> {
    let mut at = Location {
        scheme: question.scheme.clone(),
        port: question.port,
        path: question.path.clone(),
    };
    let mut custom_host = question.headers.get(header::HOST).cloned();
    for _ in 0..MAX_REQUESTS {
        let answer = request(question, &at, custom_host.as_ref()).await?;
        let redirects = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        let Some(location) = answer.headers.get(header::LOCATION).filter(|_| redirects) else {
            return Ok(answer);
        };
        let location = location.to_str().map_err(|_| AskError::Location)?;
        match location::follow(&at, &question.host.name, location) {
            Ok(Some(next)) => {
                // A custom Host header goes on with relative redirects only (net/http does the same).
                if location::is_absolute(location) {
                    custom_host = None;
                }
                at = next;
            }
            Ok(None) => return Ok(answer),
            Err(location::NoUrl) => return Err(AskError::Location),
        }
    }
    Err(AskError::Redirects)
}

async fn request(question: &Question, at: &Location, custom_host: Option<&HeaderValue>) -> Result<Answer, AskError> {
    let port = at.port;
    let tcp = TcpStream::connect((question.host.ip, port))
        .await
        .map_err(|source| AskError::Connect { port, source })?;
    let authority = question.host.authority(port);
    let host = custom_host.cloned().or_else(|| HeaderValue::from_str(&authority).ok());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from(at.path.clone());
    *request.headers_mut() = question.headers.clone();
    request.headers_mut().remove(header::HOST);
    if at.scheme != Scheme::HTTPS {
        return over_http1(request, host, tcp, question.most).await;
    }
    let server = match question.host.name.as_str() {
        "localhost" => ServerName::try_from("localhost").map_err(|_| AskError::Location)?,
        // No server name is sent for an address.
        _ => ServerName::IpAddress(question.host.ip.into()),
    };
    let tls = TlsConnector::from(unverified::config())
        .connect(server, tcp)
        .await
        .map_err(|source| AskError::Tls { port, source })?;
    if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
        over_http2(request, host, &authority, tls, question.most).await
    } else {
        over_http1(request, host, tls, question.most).await
    }
}

async fn over_http1(
    mut request: Request<Empty<Bytes>>,
    host: Option<HeaderValue>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    most: usize,
) -> Result<Answer, AskError> {
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    let close = HeaderValue::from_static("close");
    request.headers_mut().insert(header::CONNECTION, close);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .handshake(TokioIo::new(stream))
        .await?;
    // Ends with this future.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    read(sender.send_request(request).await?, most).await
}

async fn over_http2(
    mut request: Request<Empty<Bytes>>,
    host: Option<HeaderValue>,
    authority: &str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    most: usize,
) -> Result<Answer, AskError> {
    let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(authority);
    *request.uri_mut() = Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority(authority)
        .path_and_query(request.uri().path_and_query().map_or("/", PathAndQuery::as_str))
        .build()
        .map_err(|_| AskError::Location)?;
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(MAX_HEAD as u32)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    read(sender.send_request(request).await?, most).await
}

async fn read(response: Response<Incoming>, most: usize) -> Result<Answer, AskError> {
    let (head, mut incoming) = response.into_parts();
    let (mut body, mut whole) = (Vec::new(), true);
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = most - body.len();
        body.extend(data.iter().take(room));
        if data.len() > room {
            whole = false;
            break;
        }
    }
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body,
        whole,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_pod_itself_is_a_host() {
        let pod: IpAddr = "10.1.2.3".parse().unwrap();
        for (name, authority) in [
            ("10.1.2.3", "10.1.2.3:80"),
            ("127.0.0.1", "127.0.0.1:80"),
            ("127.9.9.9", "127.9.9.9:80"),
            ("::1", "[::1]:80"),
            ("[::1]", "[::1]:80"),
            ("localhost", "localhost:80"),
        ] {
            assert_eq!(Host::named(name, pod).unwrap().authority(80), authority);
        }
        for name in ["10.1.2.4", "169.254.169.254", "shop", "LOCALHOST", "0.0.0.0", "::", ""] {
            assert_eq!(Host::named(name, pod), None, "{name}");
        }
        assert_eq!(Host::pod("fd00::1".parse().unwrap()).authority(8_080), "[fd00::1]:8080");
    }
}

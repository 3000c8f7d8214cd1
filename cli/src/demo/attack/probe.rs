//! One request by hand: what is sent is exactly what stands here, and whatever comes back is taken down as it is.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use postern_api::transport;
use postern_identity::{SharedTrust, Svid, tls};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Attack, Attempt};

/// Longer than any proxy of ours lets a stranger wait for a refusal.
const DEADLINE: Duration = Duration::from_secs(6);
/// After what an answer begins with, nothing more is of interest.
const MAX_ANSWER: usize = 4_096;

/// No TLS configuration.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub(in crate::demo) struct ProbeError(String);

/// How the attacked door is approached.
#[derive(Debug)]
pub(super) struct Door {
    address: SocketAddr,
    how: How,
}

enum How {
    Plain,
    /// An explicit proxy: the target is named in full.
    Proxy,
    /// TLS to `address`, by this function: `rustls` types stay inside `postern_identity` and the transport.
    Tls(Tls),
}

type Tls = std::sync::Arc<dyn Fn() -> Dial + Send + Sync>;
type Dial = std::pin::Pin<Box<dyn Future<Output = io::Result<Box<dyn Both>>> + Send>>;

trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

impl std::fmt::Debug for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Proxy => "Proxy",
            Self::Tls(_) => "Tls",
        })
    }
}

impl Door {
    pub(super) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            how: How::Plain,
        }
    }

    pub(super) fn proxy(address: SocketAddr) -> Self {
        Self {
            address,
            how: How::Proxy,
        }
    }

    /// With `svid`, or without any certificate.
    pub(super) fn tls(
        address: SocketAddr,
        svid: Option<&Svid>,
        trust: &SharedTrust,
        alpn: &'static [u8],
    ) -> Result<Self, ProbeError> {
        let config = tls::client_config(svid, SharedTrust::clone(trust), &[alpn])
            .map_err(|error| ProbeError(error.to_string()))?;
        let dial: Tls = std::sync::Arc::new(move || {
            let config = std::sync::Arc::clone(&config);
            Box::pin(async move {
                let stream = transport::dial(&address.to_string(), config)
                    .await
                    .map_err(io::Error::other)?;
                Ok(Box::new(stream) as Box<dyn Both>)
            })
        });
        Ok(Self {
            address,
            how: How::Tls(dial),
        })
    }

    async fn open(&self) -> io::Result<Box<dyn Both>> {
        match &self.how {
            How::Plain | How::Proxy => Ok(Box::new(TcpStream::connect(self.address).await?)),
            How::Tls(dial) => dial().await,
        }
    }
}

/// A request that is ready to be sent.
#[derive(Debug)]
pub(in crate::demo) struct Probe {
    door: Door,
    attempt: Attempt,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Http {
        path: String,
        headers: String,
    },
    /// A line of ledger's protocol.
    Line,
}

impl Probe {
    /// cart's page that web may read.
    pub(super) fn items(what: &str, door: Door, attack: Attack) -> Self {
        Self::http(what.to_owned(), "/items", "", door, attack.name())
    }

    /// The same by somebody who may.
    pub(super) fn allowed(what: &str, door: Door) -> Self {
        Self::http(what.to_owned(), "/items", "items", door, "allowed")
    }

    /// cart's page that nobody may read.
    pub(super) fn admin(spelling: &str, door: Door, attack: Attack) -> Self {
        Self::http(format!("GET {spelling}"), spelling, "admin", door, attack.name())
    }

    /// A line to ledger.
    pub(super) fn entry(what: &str, door: Door, attack: Attack) -> Self {
        Self {
            door,
            attempt: attempt(what.to_owned(), "", attack.name()),
            body: Body::Line,
        }
    }

    fn http(what: String, path: &str, page: &'static str, door: Door, name: &str) -> Self {
        Self {
            door,
            attempt: attempt(what, page, name),
            body: Body::Http {
                path: path.to_owned(),
                headers: String::new(),
            },
        }
    }

    /// Further lines of the head, each with its CRLF.
    pub(super) fn with_headers(mut self, more: &str) -> Self {
        if let Body::Http { headers, .. } = &mut self.body {
            headers.push_str(more);
        }
        self
    }

    /// Sends it and takes down what comes back.
    pub(in crate::demo) async fn send(self) -> Attempt {
        let heard = match timeout(DEADLINE, self.exchange()).await {
            Ok(Ok(answer)) => first_words(&answer, matches!(self.body, Body::Line)),
            Ok(Err(error)) => said(&error),
            Err(_) => format!("no answer in {} s", DEADLINE.as_secs()),
        };
        Attempt { heard, ..self.attempt }
    }

    async fn exchange(&self) -> io::Result<Vec<u8>> {
        let mut stream = self.door.open().await?;
        stream.write_all(self.bytes().as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        let mut piece = [0; 1_024];
        while answer.len() < MAX_ANSWER && !whole(&answer) {
            match stream.read(&mut piece).await {
                Ok(0) => break,
                Ok(read) => answer.extend_from_slice(&piece[..read]),
                // What came before the end is what was heard.
                Err(_) if !answer.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    fn bytes(&self) -> String {
        let nonce = &self.attempt.nonce;
        match &self.body {
            Body::Line => format!("{nonce}\n"),
            Body::Http { path, headers } => {
                let whole = match self.door.how {
                    How::Proxy => "http://cart.shop",
                    How::Plain | How::Tls(_) => "",
                };
                format!("GET {whole}{path}?{nonce} HTTP/1.1\r\nhost: cart.shop\r\n{headers}connection: close\r\n\r\n")
            }
        }
    }
}

fn attempt(what: String, page: &'static str, name: &str) -> Attempt {
    Attempt {
        nonce: format!("nonce-{name}-{:016x}", fastrand::u64(..)),
        page,
        what,
        heard: String::new(),
    }
}

/// The head of an HTTP answer says all that we want to know; a session of ledger's ends after its confirmation.
fn whole(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/") && answer.windows(4).any(|four| four == b"\r\n\r\n")
        || answer.windows(8).any(|eight| eight == b"entered ")
}

fn first_words(answer: &[u8], line: bool) -> String {
    let text = String::from_utf8_lossy(answer);
    let first = text.lines().next().unwrap_or_default();
    match first.strip_prefix("HTTP/1.1 ") {
        Some(status) => format!("answered {status}"),
        None if answer.is_empty() => "closed without a word".to_owned(),
        None if line => format!("greeted: {first}"),
        None => "answered something that is not HTTP".to_owned(),
    }
}

/// The innermost cause: what the other side did.
fn said(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    match text.strip_prefix("received fatal alert: ") {
        Some(alert) => format!("TLS alert: {alert}"),
        // rustls adds an address to read on at.
        None if text.contains("close_notify") => "the connection was cut".to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_heard_is_told_in_the_other_sides_words() {
        assert_eq!(
            first_words(b"HTTP/1.1 403 Forbidden\r\n\r\n", false),
            "answered 403 Forbidden"
        );
        assert_eq!(first_words(b"", false), "closed without a word");
        assert_eq!(first_words(b"ledger ready\n", true), "greeted: ledger ready");
        let alert = io::Error::other("received fatal alert: CertificateRequired");
        assert_eq!(said(&alert), "TLS alert: CertificateRequired");
    }

    #[tokio::test]
    async fn a_probe_sends_its_bytes_as_they_are_spelled() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 1_024];
            let read = socket.read(&mut bytes).await.unwrap();
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            String::from_utf8(bytes[..read].to_vec()).unwrap()
        });
        let probe = Probe::admin("/items\\..\\admin", Door::proxy(address), Attack::EncodedPath);
        let attempt = probe.send().await;
        assert_eq!(attempt.heard, "answered 400 Bad Request");
        let seen = seen.await.unwrap();
        assert!(
            seen.starts_with("GET http://cart.shop/items\\..\\admin?nonce-encoded_path-"),
            "{seen}"
        );
    }
}

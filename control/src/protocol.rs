//! What is spoken on a port: declared by `appProtocol`, `protocol` or the port's name, else detected.

use postern_api::control::v1 as wire;
use postern_identity::tls::alpn;

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Detect,
    Http1,
    /// gRPC included.
    Http2,
    /// Opaque; TLS of the app's own included.
    Tcp,
}

/// A Workload port's `protocol`.
pub(crate) const WORDS: [&str; 6] = ["HTTP", "HTTP1", "HTTP2", "GRPC", "TCP", "DETECT"];

/// By a word of [`WORDS`].
pub(crate) fn of_word(word: &str) -> Option<Protocol> {
    Some(match word {
        "HTTP" | "HTTP1" => Protocol::Http1,
        "HTTP2" | "GRPC" => Protocol::Http2,
        "TCP" => Protocol::Tcp,
        "DETECT" => Protocol::Detect,
        _ => return None,
    })
}

/// By a Service port's `appProtocol`; Kubernetes lets anything stand there, so what we do not know is detected.
pub(crate) fn of_app_protocol(text: &str) -> Option<Protocol> {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix("kubernetes.io/").unwrap_or(&text) {
        "h2c" => Some(Protocol::Http2),
        "ws" => Some(Protocol::Http1),
        "wss" => Some(Protocol::Tcp),
        plain => of_name(plain),
    }
}

/// By a port's name: `http`, `http-metrics`, `grpc-api`.
pub(crate) fn of_port_name(name: &str) -> Option<Protocol> {
    let name = name.to_ascii_lowercase();
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return Some(Protocol::Http1);
    }
    of_name(name.split('-').next().unwrap_or_default())
}

fn of_name(name: &str) -> Option<Protocol> {
    match name {
        "http" | "http1" | "grpc-web" => Some(Protocol::Http1),
        "http2" | "grpc" => Some(Protocol::Http2),
        // Bytes that we do not look into, some of them spoken by the server first.
        "https" | "tls" | "tcp" | "redis" | "mysql" | "mongo" | "postgres" | "postgresql" | "smtp" => {
            Some(Protocol::Tcp)
        }
        _ => None,
    }
}

/// One protocol for a port from all that declare it; `Err` if they disagree.
pub(crate) fn agreed(declared: impl IntoIterator<Item = Protocol>) -> Result<Option<Protocol>, ()> {
    let mut declared = declared.into_iter();
    let Some(first) = declared.next() else { return Ok(None) };
    if declared.all(|other| other == first) {
        Ok(Some(first))
    } else {
        Err(())
    }
}

impl Protocol {
    pub(crate) fn to_wire(self) -> wire::Protocol {
        match self {
            Self::Detect => wire::Protocol::Detect,
            Self::Http1 => wire::Protocol::Http1,
            Self::Http2 => wire::Protocol::Http2,
            Self::Tcp => wire::Protocol::Tcp,
        }
    }

    /// What a client offers to a peer that is not ours; nothing for what such a peer is not asked for.
    pub(crate) fn foreign_alpn(self) -> Vec<String> {
        let protocols: &[&[u8]] = match self {
            Self::Detect => &[alpn::HTTP_1_1, alpn::H2],
            Self::Http1 => &[alpn::HTTP_1_1],
            Self::Http2 => &[alpn::H2],
            Self::Tcp => &[],
        };
        words(protocols)
    }

    /// What a client offers to a proxy of ours. One that is too old for the last refuses it in the handshake.
    pub(crate) fn alpn(self) -> Vec<String> {
        let protocols: &[&[u8]] = match self {
            Self::Detect => &[
                alpn::POSTERN_H1,
                alpn::POSTERN_H2,
                alpn::POSTERN_TCP,
                alpn::POSTERN_RENEW,
            ],
            Self::Http1 => &[alpn::POSTERN_H1, alpn::POSTERN_RENEW],
            Self::Http2 => &[alpn::POSTERN_H2, alpn::POSTERN_RENEW],
            Self::Tcp => &[alpn::POSTERN_TCP, alpn::POSTERN_RENEW],
        };
        words(protocols)
    }
}

fn words(protocols: &[&[u8]]) -> Vec<String> {
    protocols
        .iter()
        .map(|p| String::from_utf8_lossy(p).into_owned())
        .collect()
}

//! What a connection's first bytes say.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits::{DETECT_BYTES, MAX_CLIENT_HELLO};

/// The verdict on first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// A TLS handshake record.
    Tls,
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// Anything else.
    Other,
    /// Nothing within the deadline: the server may speak first.
    Silence,
    /// Closed without a byte.
    Closed,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Judges what has come so far; `None` if more is needed.
#[must_use]
pub fn classify(bytes: &[u8]) -> Option<First> {
    match bytes {
        [] => return None,
        [0x16] => return None,
        // RFC 8446 section 5.1: a handshake record of legacy version 3.x.
        [0x16, 0x03, ..] => return Some(First::Tls),
        _ => {}
    }
    if PREFACE.starts_with(bytes.get(..PREFACE.len()).unwrap_or(bytes)) {
        return (bytes.len() >= PREFACE.len()).then_some(First::Http2);
    }
    let method = bytes
        .iter()
        .take_while(|b| b.is_ascii_uppercase() || **b == b'-')
        .count();
    if method == 0 || method > 32 {
        return Some(First::Other);
    }
    match bytes.get(method..) {
        None | Some([]) => (bytes.len() >= DETECT_BYTES).then_some(First::Other),
        Some([b' ']) => None,
        Some([b' ', b'/' | b'*', ..]) => Some(First::Http1),
        Some([b' ', rest @ ..]) if method_is_connect(bytes) && !rest.is_empty() => Some(First::Http1),
        Some([b' ', rest @ ..]) => {
            let scheme = rest.get(..4).unwrap_or(rest);
            if !b"http"[..scheme.len()].eq_ignore_ascii_case(scheme) {
                Some(First::Other)
            } else if scheme.len() == 4 {
                Some(First::Http1)
            } else {
                None
            }
        }
        Some(_) => Some(First::Other),
    }
}

fn method_is_connect(bytes: &[u8]) -> bool {
    bytes.starts_with(b"CONNECT ")
}

/// Reads until a verdict, the deadline, or [`DETECT_BYTES`]; what was read is in `buf` and has to be replayed.
pub async fn first<IO>(io: &mut IO, buf: &mut BytesMut, deadline: Duration) -> io::Result<First>
where
    IO: AsyncRead + Unpin,
{
    let reading = async {
        loop {
            if let Some(verdict) = classify(buf) {
                return Ok(verdict);
            }
            if buf.len() >= DETECT_BYTES {
                return Ok(First::Other);
            }
            // Cancel-safe: bytes are in `buf` or still in the stream.
            if io.read_buf(buf).await? == 0 {
                return Ok(if buf.is_empty() { First::Closed } else { First::Other });
            }
        }
    };
    match tokio::time::timeout(deadline, reading).await {
        Ok(verdict) => verdict,
        Err(_) if buf.is_empty() => Ok(First::Silence),
        Err(_) => Ok(First::Other),
    }
}

/// The protocols that a ClientHello offers, reading on until it is whole (at most [`MAX_CLIENT_HELLO`]). `None`: not
/// a ClientHello that rustls can read; its bytes are in `buf` all the same.
pub async fn offered<IO>(io: &mut IO, buf: &mut BytesMut) -> io::Result<Option<Vec<Bytes>>>
where
    IO: AsyncRead + Unpin,
{
    loop {
        let mut acceptor = rustls::server::Acceptor::default();
        let mut unread: &[u8] = buf;
        while !unread.is_empty() {
            if acceptor.read_tls(&mut unread).is_err() {
                return Ok(None);
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello.alpn().into_iter().flatten();
                return Ok(Some(alpn.map(Bytes::copy_from_slice).collect()));
            }
            Ok(None) if buf.len() < MAX_CLIENT_HELLO => {
                if io.read_buf(buf).await? == 0 {
                    return Ok(None);
                }
            }
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_told_apart_and_short_ones_wait() {
        for (bytes, verdict) in [
            (&b""[..], None),
            (b"\x16", None),
            (b"\x16\x03\x01", Some(First::Tls)),
            (b"PRI * HT", None),
            (PREFACE, Some(First::Http2)),
            (b"GET", None),
            (b"GET ", None),
            (b"GET /", Some(First::Http1)),
            (b"GET http://a/", Some(First::Http1)),
            (b"GET ht", None),
            (b"OPTIONS * HTTP/1.1", Some(First::Http1)),
            (b"CONNECT a:1 HTTP/1.1", Some(First::Http1)),
            (b"PROPFIND /x", Some(First::Http1)),
            (b"EHLO mail", Some(First::Other)),
            (b"EHLO host", Some(First::Other)),
            (b"get /", Some(First::Other)),
            (b"\x00\x01", Some(First::Other)),
            (b"*1\r\n$4\r\nPING", Some(First::Other)),
        ] {
            assert_eq!(classify(bytes), verdict, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn every_prefix_of_a_preface_waits_for_the_whole() {
        for n in 1..PREFACE.len() {
            assert_eq!(classify(&PREFACE[..n]), None, "{n}");
        }
    }
}

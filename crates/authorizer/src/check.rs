//! The question, as plain data: made once of a request, whoever is asked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use serde_json::{Map, Value};

/// One request or stream. Field by field what Envoy's `AttributeContext` holds.
#[derive(Debug, Clone)]
pub struct Check {
    /// Who calls.
    pub source: Peer,
    /// Whom: the workload.
    pub destination: Peer,
    /// When the request began.
    pub time: SystemTime,
    /// `None` on an opaque stream.
    pub http: Option<Http>,
    /// The server name of the TLS handshake.
    pub sni: Option<String>,
    /// The provider's `contextExtensions`.
    pub context: BTreeMap<String, String>,
    /// What the mesh knows of both ends: `metadataContext.filterMetadata.postern`.
    pub facts: Map<String, Value>,
}

/// One end.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// The transport's.
    pub address: Option<SocketAddr>,
    /// Its SPIFFE ID, `spiffe://` included, as Envoy gives the URI SAN.
    pub principal: Option<String>,
}

/// The HTTP part.
#[derive(Debug, Clone)]
pub struct Http {
    /// Finds the request in the access log.
    pub id: String,
    /// Case-sensitive.
    pub method: String,
    /// Names in lower case, each once.
    pub headers: BTreeMap<String, String>,
    /// As forwarded, with the query.
    pub path: String,
    /// The one effective authority.
    pub host: String,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Declared length of the body in bytes; -1: not known.
    pub size: i64,
    /// If the provider asks for it.
    pub body: Option<Body>,
}

/// As much of a body as the provider takes.
#[derive(Debug, Clone)]
pub struct Body {
    /// From its beginning.
    pub bytes: Vec<u8>,
    /// Is there more?
    pub cut: bool,
}

/// Tells the authorizer whether the body is whole (Envoy's name for it).
pub(crate) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

impl Http {
    /// Adds a field, as Envoy does: a repeated one is joined with a comma, bytes that are not UTF-8 become `!`.
    /// `name` is lower case.
    pub fn add_header(&mut self, name: &str, value: &[u8]) {
        let value = text_of(value);
        match self.headers.get_mut(name) {
            Some(known) => {
                known.push(',');
                known.push_str(&value);
            }
            None => {
                self.headers.insert(name.to_owned(), value.into_owned());
            }
        }
    }

    /// Adds the pseudo-headers, which Envoy lists among the fields, and whether the body is whole.
    pub fn finish(&mut self) {
        for (name, value) in [
            (":method", self.method.as_str()),
            (":path", self.path.as_str()),
            (":authority", self.host.as_str()),
            (":scheme", self.scheme),
        ] {
            self.headers.insert(name.to_owned(), value.to_owned());
        }
        // Theirs, if they sent one, would lie about the body.
        self.headers.remove(PARTIAL_BODY);
        if let Some(body) = &self.body {
            self.headers.insert(PARTIAL_BODY.to_owned(), body.cut.to_string());
        }
    }
}

impl Body {
    /// The body as text, if it is.
    pub(crate) fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }
}

/// Envoy's way with bytes that protobuf's strings cannot hold.
fn text_of(value: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(value) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Http {
        Http {
            id: "1".into(),
            method: "GET".into(),
            headers: BTreeMap::new(),
            path: "/a?b=c".into(),
            host: "orders".into(),
            scheme: "https",
            protocol: "HTTP/1.1",
            size: -1,
            body: None,
        }
    }

    #[test]
    fn repeated_fields_are_joined_and_bytes_that_are_no_text_are_marked() {
        let mut http = http();
        http.add_header("x-a", b"1");
        http.add_header("x-a", b"2");
        http.add_header("x-b", b"caf\xe9 \xff\xfe!");
        http.add_header("x-c", "café".as_bytes());
        assert_eq!(http.headers["x-a"], "1,2");
        assert_eq!(http.headers["x-b"], "caf! !!!");
        assert_eq!(http.headers["x-c"], "café");
    }

    #[test]
    fn only_the_proxy_says_whether_a_body_is_whole() {
        let mut http = http();
        http.add_header(PARTIAL_BODY, b"false");
        http.finish();
        assert!(!http.headers.contains_key(PARTIAL_BODY));
        http.body = Some(Body {
            bytes: b"x".to_vec(),
            cut: true,
        });
        http.finish();
        assert_eq!(http.headers[PARTIAL_BODY], "true");
        assert_eq!(http.headers[":path"], "/a?b=c");
    }
}

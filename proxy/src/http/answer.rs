//! What a refused caller is told: status, reason and decision ID; never which policy, rule or address is behind it. (Our
//! own app, outbound, is also told a detail for people.)

use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use postern_authorizer::Refusal;

use crate::exchange::Exchange;
use crate::http::Version;
use crate::http::body::Body;
use crate::http::h1::fields;
use crate::http::headers::DECISION_ID;
use crate::outcome::Failure;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What an answer says of one decision.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told<'a> {
    /// Finds its line in the access log.
    pub decision_id: Option<&'a str>,
    /// What to bring, for `WWW-Authenticate`.
    pub challenge: Option<&'a str>,
}

impl<'a> Told<'a> {
    /// As an exchange has it.
    #[must_use]
    pub fn of(exchange: &'a Exchange) -> Self {
        Self {
            decision_id: exchange.decision_id(),
            challenge: exchange.challenge(),
        }
    }
}

/// The answer to a request that failed. gRPC callers get it as trailers-only (HTTP 200).
#[must_use]
pub fn refusal(failure: Failure, grpc: bool, version: Version, told: Told<'_>) -> Response<Body> {
    let reason = failure.facts().reason;
    let text = match told.decision_id {
        Some(id) => format!("{reason} (decision {id})"),
        None => reason.to_owned(),
    };
    refusal_saying(failure, grpc, version, told, &text)
}

/// The same with a text of the caller's choice.
#[must_use]
pub fn refusal_saying(failure: Failure, grpc: bool, version: Version, told: Told<'_>, text: &str) -> Response<Body> {
    let facts = failure.facts();
    let mut response = if grpc {
        let mut response = Response::new(Body::empty());
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(GRPC_STATUS, HeaderValue::from(u16::from(facts.grpc)));
        fields.insert(GRPC_MESSAGE, status_message(text));
        response
    } else {
        let mut response = Response::new(Body::full(format!("{text}\n").into()));
        *response.status_mut() = StatusCode::from_u16(facts.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        response
    };
    let mut tell = |name: HeaderName, value: Option<&str>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    };
    tell(DECISION_ID, told.decision_id);
    tell(WWW_AUTHENTICATE, told.challenge);
    if let Some(seconds) = failure.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if facts.close && version == Version::H1 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The answer in the words of whom a CUSTOM policy asked. gRPC callers get a status that says the same, and the fields.
#[must_use]
pub fn of_authorizer(refusal: Refusal, grpc: bool, decision_id: Option<&str>) -> Response<Body> {
    let Refusal { status, headers, body } = refusal;
    let mut response = if grpc {
        Response::new(Body::empty())
    } else if body.is_empty() {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        response
    } else {
        let mut response = Response::new(Body::full(body));
        *response.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        response
    };
    let fields = response.headers_mut();
    for (name, value) in headers {
        if name == CONTENT_TYPE {
            fields.insert(name, value);
        } else {
            fields.append(name, value);
        }
    }
    if grpc {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(GRPC_STATUS, HeaderValue::from(grpc_of(status)));
        fields.insert(GRPC_MESSAGE, HeaderValue::from_static(CUSTOM_DENIED));
    }
    if let Some(id) = decision_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        fields.insert(DECISION_ID, id);
    }
    response
}

const CUSTOM_DENIED: &str = "custom_denied";

/// gRPC's own table for answers of HTTP alone (`http-grpc-status-mapping.md`). A denial never looks like OK.
fn grpc_of(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 7,
    }
}

/// The trailers of a gRPC answer that we end in the middle.
pub(crate) fn grpc_status(failure: Failure, decision_id: Option<&str>) -> HeaderMap {
    let facts = failure.facts();
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, HeaderValue::from(u16::from(facts.grpc)));
    trailers.insert(GRPC_MESSAGE, HeaderValue::from_static(facts.reason));
    if let Some(id) = decision_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        trailers.insert(DECISION_ID, id);
    }
    trailers
}

/// gRPC over HTTP/2, `Status-Message`: printable ASCII but for `%`; the rest is percent-encoded.
fn status_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | ..=0x1f | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static("refused"))
}

/// The bytes of one of our own answers on HTTP/1.1.
#[must_use]
pub(crate) fn as_h1(response: Response<Body>, close: bool, to_head: bool) -> Vec<u8> {
    let (parts, body) = response.into_parts();
    let body = body.into_full();
    let mut out = Vec::with_capacity(256 + body.len());
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in parts.headers.iter().filter(|(name, _)| **name != CONNECTION) {
        fields::write(&mut out, name.as_str().as_bytes(), value.as_bytes());
    }
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"content-length: ");
    fields::write_number(&mut out, body.len() as u64);
    out.extend_from_slice(b"\r\n\r\n");
    if !to_head {
        out.extend_from_slice(&body);
    }
    out
}

//! What a refused caller is told: status, reason and decision ID; never which policy, rule or address is behind it.

use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::http::Version;
use crate::http::body::Body;
use crate::http::headers::DECISION_ID;
use crate::outcome::Failure;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The answer to a request that failed. gRPC callers get it as trailers-only (HTTP 200).
#[must_use]
pub fn refusal(failure: Failure, grpc: bool, version: Version, decision_id: Option<&str>) -> Response<Body> {
    let facts = failure.facts();
    let text = match decision_id {
        Some(id) => format!("{} (decision {id})", facts.reason),
        None => facts.reason.to_owned(),
    };
    let mut response = if grpc {
        let mut response = Response::new(Body::empty());
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert(GRPC_STATUS, HeaderValue::from(u16::from(facts.grpc)));
        // Reasons and IDs are printable ASCII without `%`: no escaping is due (gRPC over HTTP/2, Status-Message).
        if let Ok(message) = HeaderValue::from_str(&text) {
            fields.insert(GRPC_MESSAGE, message);
        }
        response
    } else {
        let mut response = Response::new(Body::full(format!("{text}\n").into()));
        *response.status_mut() = StatusCode::from_u16(facts.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        response
    };
    if let Some(id) = decision_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        response.headers_mut().insert(DECISION_ID, id);
    }
    if facts.close && version == Version::H1 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

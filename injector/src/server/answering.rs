//! One HTTP request to one answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Cluster;
use super::webhook::{Deciding, Webhook};
use crate::inject::Settings;
use crate::metrics::{Metrics, Outcome};
use crate::review;

/// A review holds an object twice at an update, and an API server takes objects of 3 MiB.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Bodies in memory at once, in KiB: what is read of them takes up to ten times as much. Others wait.
const BODIES: u32 = 8 * 1024;
const KIB: u64 = 1024;
/// From the head to the whole body, and waiting for room: API servers send it at once.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
/// The body, and a read of the namespace; below the API server's own deadline of ten seconds, so that it hears why.
const ANSWER_DEADLINE: Duration = Duration::from_secs(9);
/// Reading a longer body takes milliseconds, in which others would wait.
const LONG_BODY: usize = 128 * 1024;

/// Answers requests.
pub(super) struct Answering {
    deciding: Deciding,
    room: Arc<Semaphore>,
}

/// Why there is no answer but a status and a line of text.
struct Fault(StatusCode, String);

impl Answering {
    pub(super) fn new(cluster: Cluster, settings: Settings, metrics: Metrics) -> Self {
        Self {
            deciding: Deciding {
                cluster,
                settings,
                metrics,
            },
            room: Arc::new(Semaphore::new(BODIES as usize)),
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.deciding.metrics
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(webhook) = Webhook::at(request.uri().path()) else {
            return plain(StatusCode::NOT_FOUND, "there is nothing here\n".to_owned());
        };
        if request.method() != Method::POST {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only POST\n".to_owned());
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let begun = Instant::now();
        let late = || Fault(StatusCode::GATEWAY_TIMEOUT, "it took too long".to_owned());
        let answered = timeout(ANSWER_DEADLINE, self.review(webhook, request)).await;
        let (response, outcome) = match answered.unwrap_or_else(|_| Err(late())) {
            Ok((body, outcome)) => (json(body), outcome),
            Err(Fault(status, why)) => {
                tracing::warn!(
                    reason = "malformed",
                    webhook = webhook.as_str(),
                    status = status.as_u16(),
                    "{why}"
                );
                let outcome = match status.is_server_error() {
                    true => Outcome::Later,
                    false => Outcome::Malformed,
                };
                (plain(status, format!("{why}\n")), outcome)
            }
        };
        self.deciding.metrics.answered(webhook, outcome, begun.elapsed());
        response
    }

    async fn review(&self, webhook: Webhook, request: Request<Incoming>) -> Result<(Vec<u8>, Outcome), Fault> {
        if !is_json(request.headers()) {
            let what = "Content-Type: only application/json is understood";
            return Err(Fault(StatusCode::UNSUPPORTED_MEDIA_TYPE, what.to_owned()));
        }
        let slow = |_| Fault(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned());
        let reading = timeout(BODY_DEADLINE, self.body(request.into_body()));
        let (body, room) = reading.await.map_err(slow)??;
        let request = match body.len() > LONG_BODY {
            false => review::Request::parse(&body),
            true => {
                let failed = |_| Fault(StatusCode::INTERNAL_SERVER_ERROR, "it could not be read".to_owned());
                let parsing = tokio::task::spawn_blocking(move || review::Request::parse(&body));
                parsing.await.map_err(failed)?
            }
        };
        let bad = |why: String| Fault(StatusCode::BAD_REQUEST, why);
        let request = request.map_err(|error| bad(error.to_string()))?;
        let uid = request.uid.clone();
        let (verdict, outcome) = self.deciding.decide(webhook, request).await.map_err(bad)?;
        drop(room);
        let answer = verdict.answer(&uid);
        let answer = answer.map_err(|error| Fault(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok((answer, outcome))
    }

    /// The whole body, and the room that it takes.
    async fn body(&self, body: Incoming) -> Result<(Bytes, tokio::sync::SemaphorePermit<'_>), Fault> {
        let long = || {
            let what = format!("the body has more than {MAX_BODY} bytes");
            Fault(StatusCode::PAYLOAD_TOO_LARGE, what)
        };
        let most = u64::try_from(MAX_BODY).unwrap_or(u64::MAX);
        let length = body.size_hint().upper().unwrap_or(most);
        if length > most {
            return Err(long());
        }
        let room = u32::try_from(length.div_ceil(KIB).max(1)).unwrap_or(BODIES).min(BODIES);
        let closed = |_| Fault(StatusCode::SERVICE_UNAVAILABLE, "it goes down".to_owned());
        let room = self.room.acquire_many(room).await.map_err(closed)?;
        match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => Ok((body.to_bytes(), room)),
            Err(error) if error.is::<LengthLimitError>() => Err(long()),
            Err(error) => Err(Fault(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
        }
    }
}

/// `application/json`, with any parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = value.and_then(|value| value.split(';').next()).map(str::trim);
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
}

fn json(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

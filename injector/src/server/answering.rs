//! One HTTP request to one answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use tokio::sync::AcquireError;
use tokio::time::timeout;

use super::Cluster;
use super::room::{Held, MAX_BODY, Room, Share};
use super::webhook::{Deciding, Webhook};
use crate::inject::Settings;
use crate::metrics::{Metrics, Outcome};
use crate::review;

/// From the head to the whole body, and waiting for room: API servers send it at once.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
/// The body, and a read of the namespace; below the API server's own deadline of ten seconds, so that it hears why.
const ANSWER_DEADLINE: Duration = Duration::from_secs(9);
/// Reading a longer body takes milliseconds, in which others would wait.
const LONG_BODY: usize = 128 * 1024;

/// Answers requests.
pub(super) struct Answering {
    deciding: Deciding,
    room: Arc<Room>,
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
            room: Arc::default(),
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.deciding.metrics
    }

    /// The room that a connection from this address has for bodies.
    pub(super) fn share(&self, address: IpAddr) -> Share {
        self.room.share(address)
    }

    pub(super) async fn answer(&self, share: &Share, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
        let answered = timeout(ANSWER_DEADLINE, self.review(webhook, share, request)).await;
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

    async fn review(
        &self,
        webhook: Webhook,
        share: &Share,
        request: Request<Incoming>,
    ) -> Result<(Vec<u8>, Outcome), Fault> {
        if !is_json(request.headers()) {
            let what = "Content-Type: only application/json is understood";
            return Err(Fault(StatusCode::UNSUPPORTED_MEDIA_TYPE, what.to_owned()));
        }
        let slow = |_| Fault(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned());
        let reading = timeout(BODY_DEADLINE, body(share, request.into_body()));
        let (body, held) = reading.await.map_err(slow)??;
        let judged = held.judged(body.len()).await.map_err(going)?;
        let room = (held, judged);
        let (request, room) = match body.len() > LONG_BODY {
            false => (review::Request::parse(&body), room),
            true => {
                let failed = |_| Fault(StatusCode::INTERNAL_SERVER_ERROR, "it could not be read".to_owned());
                // It takes its room along: it reads on if nobody waits for the answer any more.
                let parsing = tokio::task::spawn_blocking(move || (review::Request::parse(&body), room));
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
}

/// The whole body, and the room that it takes.
async fn body(share: &Share, mut body: Incoming) -> Result<(Bytes, Held), Fault> {
    let long = || {
        let what = format!("the body has more than {MAX_BODY} bytes");
        Fault(StatusCode::PAYLOAD_TOO_LARGE, what)
    };
    let announced = body.size_hint().upper().map(usize::try_from);
    let most = announced.map_or(MAX_BODY, |length| length.unwrap_or(usize::MAX));
    if most > MAX_BODY {
        return Err(long());
    }
    let mut held = share.body(most);
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let broken = |error| Fault(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"));
        // What else a body may have are trailers.
        let Ok(data) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        if data.len() > MAX_BODY - whole.len() {
            return Err(long());
        }
        held.take(data.len()).await.map_err(going)?;
        whole.extend_from_slice(&data);
    }
    Ok((whole.freeze(), held))
}

fn going(_: AcquireError) -> Fault {
    Fault(StatusCode::SERVICE_UNAVAILABLE, "it goes down".to_owned())
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

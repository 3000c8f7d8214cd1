//! The HTTP endpoint for scrapers and probes: `/metrics`, `/readyz`, `/livez`, and what a component adds; anything else
//! is 404.
//!
//! Whoever can reach the port may ask, so everything is bounded: connections, those of one address, heads and time.

mod bounds;
mod chunks;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use self::bounds::Bounds;
use self::chunks::Chunks;
use crate::exposition::{self, Foreign, Format};

/// A scraper or a kubelet sends its whole head at once.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// A scrape answer is read at once; an idle or slow connection is given up after this.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(120);
/// Heads of scrapers and kubelets have a few hundred bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Out of descriptors or memory: the backlog waits, we do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// `Ok` when ready, else why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// An answer that is being made: a status and a line of text.
pub type Pending = Pin<Box<dyn Future<Output = Result<(StatusCode, String), HangUp>> + Send>>;

/// The connection ends without an answer: for callers that take any answer for a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection ends without an answer")]
pub struct HangUp;

/// Paths that a component serves beside the endpoint's own.
pub trait More: Send + Sync {
    /// The answer to a GET, or `None` where there is no such path.
    fn answer(&self, request: &Parts) -> Option<Pending>;
    /// The longest that an answer may take.
    fn longest(&self) -> Duration;
}

/// What is served.
#[derive(Clone)]
pub struct Endpoint {
    registry: Arc<Registry>,
    readiness: Readiness,
    before_scrape: Arc<dyn Fn() + Send + Sync>,
    metrics: bool,
    states: bool,
    liveness: bool,
    more: Option<Arc<dyn More>>,
    foreign: Option<Arc<dyn Foreign>>,
}

impl Endpoint {
    /// Metrics of `registry`; `readiness` answers `/readyz`; `before_scrape` refreshes gauges that are read rather than counted.
    #[must_use]
    pub fn new(registry: Registry, readiness: Readiness, before_scrape: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            registry: Arc::new(registry),
            readiness,
            before_scrape: Arc::new(before_scrape),
            metrics: true,
            states: true,
            liveness: true,
            more: None,
            foreign: None,
        }
    }

    /// `/livez` is 404.
    #[must_use]
    pub fn without_liveness(mut self) -> Self {
        self.liveness = false;
        self
    }

    /// `/metrics` is 404.
    #[must_use]
    pub fn without_metrics(mut self) -> Self {
        self.metrics = false;
        self
    }

    /// Everything but `/metrics` is 404.
    #[must_use]
    pub fn only_metrics(mut self) -> Self {
        (self.metrics, self.states, self.more) = (true, false, None);
        self
    }

    /// Answers to further paths.
    #[must_use]
    pub fn and(mut self, more: Arc<dyn More>) -> Self {
        self.more = Some(more);
        self
    }

    /// `/metrics` goes on with what `foreign` gives.
    #[must_use]
    pub fn with_foreign(mut self, foreign: Arc<dyn Foreign>) -> Self {
        self.foreign = Some(foreign);
        self
    }

    /// Serves until dropped.
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let bounds = Bounds::default();
        let deadline = self.more.as_ref().map_or(CONNECTION_DEADLINE, |more| {
            CONNECTION_DEADLINE.max(more.longest() + HEAD_DEADLINE)
        });
        loop {
            let Ok((socket, peer)) = listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Closed at once past the bounds: waiting would let one address hold up a kubelet's probes.
            let Some(place) = bounds.admit(peer.ip()) else { continue };
            let endpoint = self.clone();
            tokio::spawn(async move {
                // Whoever goes away early, or sends no request, is its own affair.
                let _ = timeout(deadline, endpoint.connection(socket)).await;
                drop(place);
            });
        }
    }

    async fn connection(self, socket: TcpStream) -> Result<(), hyper::Error> {
        let endpoint = Arc::new(self);
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(MAX_HEAD)
            .serve_connection(
                TokioIo::new(socket),
                service_fn(move |request| Arc::clone(&endpoint).answer(request)),
            )
            .await
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Chunks>, HangUp> {
        let (request, _) = request.into_parts();
        if request.method != Method::GET && request.method != Method::HEAD {
            return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
        }
        Ok(match request.uri.path() {
            "/metrics" if self.metrics => self.scrape(&request).await,
            "/readyz" if self.states => match (self.readiness)() {
                Ok(()) => plain(StatusCode::OK, "ready\n"),
                Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            },
            "/livez" if self.states && self.liveness => plain(StatusCode::OK, "alive\n"),
            _ => match self.more.as_ref().and_then(|more| more.answer(&request)) {
                Some(pending) => {
                    let (status, text) = pending.await?;
                    plain(status, text)
                }
                None => plain(StatusCode::NOT_FOUND, "there is nothing here\n"),
            },
        })
    }

    async fn scrape(&self, request: &Parts) -> Response<Chunks> {
        let accept = request.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
        let mut format = Format::accepted(accept);
        // First, so that what our own figures say of it is of this scrape.
        let foreign = match &self.foreign {
            Some(foreign) => foreign.scrape(format).await,
            None => None,
        };
        (self.before_scrape)();
        if let Some(foreign) = &foreign {
            format = foreign.format;
        }
        let own = Bytes::from(exposition::render(&self.registry, format));
        let end = Bytes::from_static(format.end().as_bytes());
        let body = [own, foreign.map_or_else(Bytes::new, |foreign| foreign.body), end];
        let mut response = Response::new(Chunks::from_iter(body));
        let content_type = header::HeaderValue::from_static(format.content_type());
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

/// Listens for scrapers and probes. `[::]` takes IPv4 as well, and where the kernel has no IPv6 it means `0.0.0.0`.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    bounds::bind(address)
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Chunks> {
    let mut response = Response::new(Chunks::from_iter([body.into()]));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

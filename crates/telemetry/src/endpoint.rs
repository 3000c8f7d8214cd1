//! The HTTP endpoint for scrapers and probes: `/metrics`, `/readyz`, `/livez`; anything else is 404.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::exposition;

/// Scrapers and probes are few; more at once is a mistake or an attack.
const MAX_CONNECTIONS: usize = 32;
/// A scraper sends its whole head at once.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// A scrape answer is read at once; an idle or slow connection is given up after this.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(120);

/// `Ok` when ready, else why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What is served.
#[derive(Clone)]
pub struct Endpoint {
    registry: Arc<Registry>,
    readiness: Readiness,
    before_scrape: Arc<dyn Fn() + Send + Sync>,
}

impl Endpoint {
    /// Metrics of `registry`; `readiness` answers `/readyz`; `before_scrape` refreshes gauges that are read rather than counted.
    #[must_use]
    pub fn new(registry: Registry, readiness: Readiness, before_scrape: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            registry: Arc::new(registry),
            readiness,
            before_scrape: Arc::new(before_scrape),
        }
    }

    /// Serves until dropped.
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                std::future::pending().await
            };
            let Ok((socket, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let endpoint = self.clone();
            tokio::spawn(async move {
                let service =
                    service_fn(move |request| std::future::ready(Ok::<_, Infallible>(endpoint.answer(&request))));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_DEADLINE)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(socket), service);
                // A scraper that goes away early is its own affair.
                let _ = tokio::time::timeout(CONNECTION_DEADLINE, connection).await;
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => {
                (self.before_scrape)();
                let accept = request
                    .headers()
                    .get(header::ACCEPT)
                    .and_then(|value| value.to_str().ok());
                let (content_type, body) = exposition::render(&self.registry, accept);
                let mut response = plain(StatusCode::OK, body);
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
                response
            }
            "/readyz" => match (self.readiness)() {
                Ok(()) => plain(StatusCode::OK, "ready\n".to_owned()),
                Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            },
            "/livez" => plain(StatusCode::OK, "alive\n".to_owned()),
            _ => plain(
                StatusCode::NOT_FOUND,
                "here are /metrics, /readyz and /livez\n".to_owned(),
            ),
        }
    }
}

fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

//! The app's own metrics, behind ours: scrapers have no certificate, so under default deny they cannot ask the app.
//!
//! ```text
//! scraper --GET /metrics--> endpoint (15020) -> AppMetrics (one fetch for all who ask within a second) -> app
//!                                            '-> our own, then the app's lines, each of which has been read
//! ```
//!
//! An app that does not answer, or not in the format, costs its own metrics and a count; ours are always served.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use postern_telemetry::exposition::foreign::{Part, adopt};
use postern_telemetry::exposition::{Foreign, Format};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::app_client::{AskError, Host, Question, ask};
use crate::metrics::Metrics;
use crate::probes::parse::{parse_path, parse_port, parse_scheme};

/// Prometheus gives a scrape 10 s by default: an app that is stuck leaves half of them for ours.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// Some fifty thousand samples. It is held twice while it is read, in a process that needs 20 MiB otherwise.
pub(crate) const MAX_EXPOSITION: usize = 8 * 1024 * 1024;
/// Whoever can reach the port may ask; the app is asked once for all who ask within this.
const KEPT: Duration = Duration::from_secs(1);
/// Reading a body past this size is done beside the main thread, which answers probes too.
const READ_HERE: usize = 64 * 1024;
/// `POSTERN_APP_METRICS` is one short object.
const MAX_TEXT: usize = 8 * 1024;

/// Where the app's metrics are.
#[derive(Debug)]
pub(crate) struct AppMetrics {
    question: Question,
    metrics: Arc<Metrics>,
    kept: Arc<Mutex<Option<Kept>>>,
}

#[derive(Debug, Clone)]
struct Kept {
    wanted: Format,
    at: Instant,
    part: Option<Part>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    port: u16,
    path: String,
    scheme: String,
}

impl AppMetrics {
    /// Reads `POSTERN_APP_METRICS`.
    pub(crate) fn parse(text: &str, pod: IpAddr, metrics: Arc<Metrics>) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("it has {} bytes, more than {MAX_TEXT}", text.len()));
        }
        let document: Document =
            serde_json::from_str(text).map_err(|error| format!("it is not the JSON that is expected: {error}"))?;
        Ok(Self {
            question: Question {
                scheme: parse_scheme(&document.scheme)?,
                host: Host::pod(pod),
                port: parse_port(document.port)?,
                path: parse_path(&document.path)?,
                headers: HeaderMap::new(),
                most: MAX_EXPOSITION,
            },
            metrics,
            kept: Arc::default(),
        })
    }

    async fn part(&self, wanted: Format) -> Option<Part> {
        // Whoever comes while it is being fetched waits here, and finds it.
        let mut kept = self.kept.lock().await;
        let fresh = |kept: &&Kept| kept.wanted == wanted && kept.at.elapsed() < KEPT;
        if let Some(kept) = kept.as_ref().filter(fresh) {
            return kept.part.clone();
        }
        let fetched = timeout(DEADLINE, self.fetch(wanted)).await.unwrap_or(Err("timeout"));
        let part = fetched
            .inspect_err(|reason| self.metrics.app_scrape_failed(reason))
            .ok();
        let at = Instant::now();
        *kept = Some(Kept {
            wanted,
            at,
            part: part.clone(),
        });
        drop(kept);
        let kept = Arc::clone(&self.kept);
        tokio::spawn(async move {
            sleep(KEPT).await;
            // Megabytes are not kept until the next scrape.
            let mut kept = kept.lock().await;
            if kept.as_ref().is_some_and(|kept| kept.at == at) {
                *kept = None;
            }
        });
        part
    }

    /// An error is a word of a closed set.
    async fn fetch(&self, wanted: Format) -> Result<Part, &'static str> {
        let mut question = self.question.clone();
        let accept = match wanted {
            Format::Text => "text/plain;version=0.0.4,*/*;q=0.1",
            Format::OpenMetrics => {
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
            }
        };
        let agent = HeaderValue::from_static(concat!("postern-proxy/", env!("CARGO_PKG_VERSION")));
        question
            .headers
            .insert(header::ACCEPT, HeaderValue::from_static(accept));
        question.headers.insert(header::USER_AGENT, agent);
        let answer = ask(&question).await.map_err(|error| match error {
            AskError::Connect { .. } => "connect",
            AskError::Tls { .. } => "tls",
            AskError::Http(_) => "http",
            AskError::Redirects | AskError::Location => "redirect",
        })?;
        if answer.status != StatusCode::OK {
            return Err("status");
        }
        if !answer.whole {
            return Err("too_large");
        }
        // None was asked for.
        if answer.headers.contains_key(header::CONTENT_ENCODING) {
            return Err("encoding");
        }
        let content_type = answer.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let format = Format::accepted(content_type);
        let long = answer.body.len() > READ_HERE;
        let read = move || {
            let body = std::str::from_utf8(&answer.body).map_err(|_| "malformed")?;
            let adopted = adopt(body, format, wanted).map_err(|_| "malformed")?;
            Ok((adopted, if format == Format::Text { format } else { wanted }))
        };
        let (adopted, format) = if long {
            tokio::task::spawn_blocking(read).await.unwrap_or(Err("malformed"))?
        } else {
            read()?
        };
        let dropped = &self.metrics.app_scrape_dropped;
        dropped.fetch_add(adopted.dropped, Ordering::Relaxed);
        Ok(Part {
            format,
            body: Bytes::from(adopted.text),
        })
    }
}

impl Foreign for AppMetrics {
    fn scrape(&self, wanted: Format) -> Pin<Box<dyn Future<Output = Option<Part>> + Send + '_>> {
        Box::pin(self.part(wanted))
    }
}

#[cfg(test)]
mod tests;

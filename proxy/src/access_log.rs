//! One JSON line per denied or failed request (or per request, if asked for); never blocks the data path.
//!
//! ```text
//! worker: wants? -> format -> bounded channel (full: dropped, counted) -> writer thread -> file or standard output
//!                 \-> denials: a bounded list that the next flow report takes
//! ```

mod denials;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;

use serde::Serialize;

pub(crate) use self::denials::unix_ms;
pub use self::denials::{Denials, MAX_DENIALS};
use crate::exchange::Audited;
use crate::limits::{LOG_QUEUE, MAX_LOGGED_TEXT};
use crate::metrics::{Finished, Metrics, Outcome, RouteKey};

/// Which ends get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Wanted {
    /// None.
    Off,
    /// What was denied, failed, or would have been denied in protect.
    #[default]
    Denied,
    /// Every request.
    All,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

/// A worker's end of the log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    wanted: Wanted,
    lines: Option<SyncSender<Vec<u8>>>,
    metrics: Arc<Metrics>,
    denials: Arc<Denials>,
}

/// One line. Client-chosen text is cut to MAX_LOGGED_TEXT and JSON-escaped.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The route.
    pub route: &'a RouteKey,
    /// Where the peer is.
    pub peer_address: Option<SocketAddr>,
    /// Empty on an opaque stream.
    pub method: &'a str,
    /// Empty on an opaque stream; without query.
    pub path: &'a str,
    /// The effective authority.
    pub host: &'a str,
    /// For a denial: its ID, also in the answer.
    pub decision_id: Option<&'a str>,
    /// namespace/name of the policy that decided.
    pub policy: Option<&'a str>,
    /// `file:line` of the rule that decided.
    pub rule: Option<&'a str>,
    /// Why policy said no, or would have.
    pub would_deny: Option<&'static str>,
    /// What an AUDIT rule marked.
    pub audited: Option<&'a Audited>,
    /// How it ended.
    pub finished: &'a Finished,
}

impl Entry<'_> {
    fn reason(&self) -> Option<&'static str> {
        let failed = self.finished.failure.map(|failure| failure.facts().reason);
        failed.or(self.would_deny)
    }
}

impl AccessLog {
    /// Opens the sink and starts its writer thread (none if nothing is wanted).
    pub fn open(wanted: Wanted, sink: &Sink, metrics: Arc<Metrics>) -> io::Result<Self> {
        let mut log = Self::off(metrics);
        if wanted == Wanted::Off {
            return Ok(log);
        }
        let out: Box<dyn Write + Send> = match sink {
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (lines, queue) = sync_channel(LOG_QUEUE);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || drain(&queue, out))?;
        log.wanted = wanted;
        log.lines = Some(lines);
        Ok(log)
    }

    /// Writes nothing; denials still reach the flow reports.
    #[must_use]
    pub fn off(metrics: Arc<Metrics>) -> Self {
        Self {
            wanted: Wanted::Off,
            lines: None,
            metrics,
            denials: Arc::default(),
        }
    }

    /// What was denied since the last flow report.
    #[must_use]
    pub fn denials(&self) -> &Arc<Denials> {
        &self.denials
    }

    /// Is a line wanted for this end? (Denials and failures always: they also go into flow reports.)
    #[must_use]
    pub fn wants(&self, finished: &Finished) -> bool {
        self.wanted == Wanted::All || finished.failure.is_some() || finished.would_deny
    }

    /// Queues a line, or drops and counts it. Denials also go into the next flow report.
    pub fn write(&self, entry: &Entry<'_>) {
        let now = SystemTime::now();
        let outcome = entry.finished.outcome();
        if matches!(outcome, Outcome::Denied | Outcome::WouldDeny) {
            self.denials.note(entry, now);
        }
        let Some(lines) = &self.lines else { return };
        if self.wanted == Wanted::Denied && outcome == Outcome::Allowed && entry.audited.is_none() {
            return;
        }
        let mut line = Vec::with_capacity(512);
        // Serializing strings and numbers into memory does not fail.
        if serde_json::to_writer(&mut line, &Line::new(entry, outcome, now)).is_err() {
            return;
        }
        line.push(b'\n');
        if lines.try_send(line).is_err() {
            self.metrics.access_log_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// As much of a client-chosen text as is logged; cut at a character.
#[must_use]
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_LOGGED_TEXT)]
}

/// What a line holds, in its order. Empty texts are left out.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    source: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    destination: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    port: u16,
    protocol: &'static str,
    tls: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    host: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_rule: Option<&'a str>,
    latency_us: u64,
    sent: u64,
    received: u64,
}

fn is_zero(status: &u16) -> bool {
    *status == 0
}

impl<'a> Line<'a> {
    fn new(entry: &Entry<'a>, outcome: Outcome, now: SystemTime) -> Self {
        let Entry { route, finished, .. } = entry;
        Self {
            time: humantime::format_rfc3339_millis(now).to_string(),
            direction: route.direction.as_str(),
            outcome: outcome.as_str(),
            reason: entry.reason(),
            source: &route.source,
            destination: &route.destination,
            service: &route.service,
            port: route.port,
            protocol: route.protocol.as_str(),
            tls: if route.mutual_tls { "mutual" } else { "none" },
            peer_address: entry.peer_address,
            method: cut(entry.method),
            host: cut(entry.host),
            path: cut(entry.path),
            status: finished.status,
            decision_id: entry.decision_id,
            policy: entry.policy,
            rule: entry.rule,
            audit_policy: entry.audited.map(|audited| &*audited.policy),
            audit_rule: entry.audited.map(|audited| &*audited.rule),
            latency_us: u64::try_from(finished.latency.as_micros()).unwrap_or(u64::MAX),
            sent: finished.sent,
            received: finished.received,
        }
    }
}

/// Writes until every sender is gone; what has queued up leaves in one write. A sink that fails (a full disk, a closed
/// pipe) loses lines, never requests.
fn drain(queue: &Receiver<Vec<u8>>, mut out: Box<dyn Write + Send>) {
    const MAX_BATCH: usize = 64 * 1024;
    while let Ok(mut batch) = queue.recv() {
        while batch.len() < MAX_BATCH
            && let Ok(line) = queue.try_recv()
        {
            batch.extend_from_slice(&line);
        }
        let _ = out.write_all(&batch).and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests;

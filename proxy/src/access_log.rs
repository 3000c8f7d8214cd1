//! One JSON line per denied or failed request (or per request, if asked for); never blocks the data path.

use std::net::SocketAddr;

use crate::metrics::{Finished, RouteKey};

/// A worker's end of the log.
#[derive(Debug, Clone)]
pub struct AccessLog {}

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
    /// How it ended.
    pub finished: &'a Finished,
}

impl AccessLog {
    /// Is a line wanted for this end? (Denials and failures always.)
    #[must_use]
    pub fn wants(&self, finished: &Finished) -> bool {
        let _ = finished;
        todo!()
    }
    /// Queues a line, or drops and counts it. Denials also go into the next flow report.
    pub fn write(&self, entry: &Entry<'_>) {
        let _ = entry;
        todo!()
    }
}

//! Every metric of the proxy: names, labels and bounds in one place.
//!
//! ```text
//! connection + route --Metrics::route (one lock)--> Arc<Route>   per worker, so that no two threads share a counter
//! request ends ------Route::finished--------------> a few relaxed adds
//! scrape ------------exposition::Collector--------> sums over workers, as Prometheus families
//! each second -------flows::Reporter--------------> what changed since, as a FlowReport
//! ```

mod counters;
mod exposition;
mod route;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_identity::Svid;
use prometheus_client::registry::Registry;

use crate::limits::MAX_ROUTES;
use crate::outcome::{Blame, Failure};
use crate::snapshot::Protocol;
use counters::Counters;
pub use route::{Counts, Route};

/// Distinct (policy, reason, enforced) of `denials_total`; past it the policy is `other`. A workload with more policies
/// that all deny is a misconfiguration, and the access log names each.
pub const MAX_DENIAL_SERIES: usize = 256;
/// Distinct (direction, reason) of a failure counter. Reasons are words of our own code; this is a backstop.
const MAX_REASON_SERIES: usize = 128;

/// Which way a route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From a peer to our app.
    Inbound,
    /// From our app to a peer.
    Outbound,
}

/// What a route's series are labelled with: resolved once per (connection, route).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Which way.
    pub direction: Direction,
    /// The peer's ID (inbound) or ours (outbound); empty for plaintext.
    pub source: Arc<str>,
    /// Ours (inbound) or the destination service's first ID (outbound).
    pub destination: Arc<str>,
    /// Inbound: the port's name. Outbound: `service.namespace`, or `outside`.
    pub service: Arc<str>,
    /// The workload's port (inbound) or the service's (outbound).
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Is it mutual TLS?
    pub mutual_tls: bool,
}

/// A finished request or stream.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// HTTP status; 0 on an opaque stream.
    pub status: u16,
    /// `None`: it went well.
    pub failure: Option<Failure>,
    /// Would have been denied in protect.
    pub would_deny: bool,
    /// From the first byte of the head to the last byte of the answer.
    pub latency: Duration,
    /// Body bytes towards the upstream.
    pub sent: u64,
    /// Body bytes from the upstream.
    pub received: u64,
}

/// The closed set of ends that requests are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Forwarded, and the answer came.
    Allowed,
    /// Forwarded, but `protect` would have refused it.
    WouldDeny,
    /// Refused: by policy, or because the caller or its request is not acceptable.
    Denied,
    /// Let through or tried, and then something broke.
    Failed,
}

/// All metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    /// Per key one [`Route`] per worker that met it.
    routes: Mutex<HashMap<RouteKey, Vec<Option<Arc<Route>>>>>,
    denials: Counters<DenialKey>,
    audits: Counters<DenialKey>,
    handshakes: [AtomicU64; 2],
    handshake_failures: Counters<ReasonKey>,
    refused_connections: Counters<ReasonKey>,
    /// By result, from a closed set of words.
    readmissions: Counters<ReasonKey>,
    /// Lines that the access log could not queue.
    pub access_log_dropped: AtomicU64,
    /// Why the app's own metrics were left out, by a closed set of words.
    app_scrape_failures: Counters<ReasonKey>,
    /// Samples of the app's under our prefix, left out.
    pub app_scrape_dropped: AtomicU64,
    /// Connection tasks that panicked: a fault of ours, contained.
    pub panics: AtomicU64,
    /// What the control side knows.
    pub process: Process,
}

/// What the control side counts: read at a scrape and in flow reports.
#[derive(Debug, Default)]
pub struct Process {
    /// Unix milliseconds, 0 for none.
    pub certificate_not_after_ms: AtomicU64,
    /// Unix milliseconds, 0 for none.
    pub certificate_issued_ms: AtomicU64,
    /// Renewals that succeeded.
    pub renewals: AtomicU64,
    /// By the closed set of `CaError::reason`.
    renewal_failures: Counters<ReasonKey>,
    /// 1 while the stream with control stands.
    pub control_connected: AtomicU64,
    /// Generation of the policy in force, 0 for none.
    pub policy_generation: AtomicU64,
    /// Sequence of our own trust domain's bundle.
    pub bundle_sequence: AtomicU64,
    /// Version of the quarantine in force, 0 for none.
    pub quarantine_version: AtomicU64,
    /// Its entries.
    pub quarantined: AtomicU64,
    /// What control sent and this proxy refused (stale, unsigned, malformed).
    pub control_refusals: AtomicU64,
}

/// Key of `denials_total`, and of `audited_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct DenialKey {
    policy: Box<str>,
    reason: &'static str,
    monitor_only: bool,
}

/// [`DenialKey`] without owning; hashes alike.
#[derive(Debug, Hash)]
struct DenialRef<'a> {
    policy: &'a str,
    reason: &'static str,
    monitor_only: bool,
}

impl hashbrown::Equivalent<DenialKey> for DenialRef<'_> {
    fn equivalent(&self, key: &DenialKey) -> bool {
        *self.policy == *key.policy && self.reason == key.reason && self.monitor_only == key.monitor_only
    }
}

impl From<&DenialRef<'_>> for DenialKey {
    fn from(key: &DenialRef<'_>) -> Self {
        Self {
            policy: key.policy.into(),
            reason: key.reason,
            monitor_only: key.monitor_only,
        }
    }
}

/// Key of a counter by direction and reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct ReasonKey {
    direction: Direction,
    reason: &'static str,
}

impl From<&ReasonKey> for ReasonKey {
    fn from(key: &ReasonKey) -> Self {
        *key
    }
}

thread_local! {
    /// Which worker's counters this thread counts into.
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// Called once by each worker's thread.
pub(crate) fn count_as_worker(id: usize) {
    WORKER.set(id);
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            routes: Mutex::default(),
            denials: Counters::new(MAX_DENIAL_SERIES),
            audits: Counters::new(MAX_DENIAL_SERIES),
            handshakes: Default::default(),
            handshake_failures: Counters::new(MAX_REASON_SERIES),
            refused_connections: Counters::new(MAX_REASON_SERIES),
            readmissions: Counters::default(),
            access_log_dropped: AtomicU64::new(0),
            app_scrape_failures: Counters::default(),
            app_scrape_dropped: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            process: Process::default(),
        }
    }
}

impl Metrics {
    /// The handles of a route; takes a lock, so once per (connection, route). Past [`MAX_ROUTES`]: the route `other`.
    pub fn route(&self, key: &RouteKey) -> Arc<Route> {
        let worker = WORKER.get();
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let full = routes.len() >= MAX_ROUTES;
        // `other` itself may go past the bound: by its closed labels it is at most sixteen more.
        let shards = match routes.get_mut(key) {
            Some(shards) => shards,
            None if full => routes.entry(key.other()).or_default(),
            None => routes.entry(key.clone()).or_default(),
        };
        if shards.len() <= worker {
            shards.resize(worker + 1, None);
        }
        Arc::clone(shards[worker].get_or_insert_default())
    }

    /// A handshake as server or client: `failure` is a reason of the closed set.
    pub fn handshake(&self, direction: Direction, failure: Option<&'static str>) {
        match failure {
            None => {
                self.handshakes[direction as usize].fetch_add(1, Ordering::Relaxed);
            }
            Some(reason) => {
                let key = ReasonKey { direction, reason };
                self.handshake_failures.add(&key);
            }
        }
    }

    /// A connection that ended before any route was known (plaintext, handshake, unknown destination).
    pub fn refused_connection(&self, direction: Direction, failure: Failure) {
        let reason = failure.facts().reason;
        self.refused_connections.add(&ReasonKey { direction, reason });
    }

    /// A connection was readmitted (`readmitted`), or was not: the reason.
    pub(crate) fn readmission(&self, direction: Direction, reason: &'static str) {
        self.readmissions.add(&ReasonKey { direction, reason });
    }

    /// A denial: by policy (namespace/name, empty for none) and reason.
    pub fn denial(&self, policy: &str, reason: &'static str, monitor_only: bool) {
        let key = |policy| DenialRef {
            policy,
            reason,
            monitor_only,
        };
        if !self.denials.add(&key(policy)) {
            self.denials.add_past_bound(&key("other"));
        }
    }

    /// An AUDIT policy (namespace/name) marked a request.
    pub fn audited(&self, policy: &str) {
        let key = |policy| DenialRef {
            policy,
            reason: "audit_rule",
            monitor_only: false,
        };
        if !self.audits.add(&key(policy)) {
            self.audits.add_past_bound(&key("other"));
        }
    }

    /// A renewal (or first issue) that failed, with the reason of the `CaError`.
    pub fn renewal_failed(&self, reason: &'static str) {
        let direction = Direction::Outbound;
        self.process.renewal_failures.add(&ReasonKey { direction, reason });
    }

    /// The app's own metrics are missing from a scrape.
    pub(crate) fn app_scrape_failed(&self, reason: &'static str) {
        let direction = Direction::Inbound;
        self.app_scrape_failures.add(&ReasonKey { direction, reason });
    }

    /// How many renewals (and first issues) have failed.
    #[must_use]
    pub fn renewal_failures(&self) -> u64 {
        self.process.renewal_failures.read().iter().map(|(_, n)| n).sum()
    }

    /// A new SVID is in force.
    pub fn certificate(&self, svid: &Svid, issued_ms: u64) {
        let process = &self.process;
        process.certificate_issued_ms.store(issued_ms, Ordering::Relaxed);
        let not_after = svid.not_after().as_secs().saturating_mul(1_000);
        process.certificate_not_after_ms.store(not_after, Ordering::Relaxed);
    }

    /// Every route with its counts so far, summed over workers.
    #[must_use]
    pub fn counts(&self) -> Vec<(RouteKey, Counts)> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes
            .iter()
            .map(|(key, shards)| {
                let mut counts = Counts::default();
                shards.iter().flatten().for_each(|shard| shard.add_to(&mut counts));
                (key.clone(), counts)
            })
            .collect()
    }

    /// A registry that shows these metrics.
    #[must_use]
    pub fn registry(self: &Arc<Self>) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(exposition::Collector(Arc::clone(self))));
        registry
    }
}

impl Default for Counters<ReasonKey> {
    fn default() -> Self {
        Self::new(MAX_REASON_SERIES)
    }
}

impl RouteKey {
    /// Where routes past the bound are summed: what is closed stays, what is open becomes `other`.
    #[must_use]
    pub fn other(&self) -> Self {
        let other: Arc<str> = "other".into();
        Self {
            direction: self.direction,
            source: Arc::clone(&other),
            destination: Arc::clone(&other),
            service: other,
            port: 0,
            protocol: self.protocol,
            mutual_tls: self.mutual_tls,
        }
    }
}

impl Finished {
    /// The word that it is counted under.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.failure {
            None if self.would_deny => Outcome::WouldDeny,
            None => Outcome::Allowed,
            Some(failure) if is_refusal(failure) => Outcome::Denied,
            Some(_) => Outcome::Failed,
        }
    }
}

/// Did we turn somebody away (as opposed to: something broke)?
fn is_refusal(failure: Failure) -> bool {
    match failure.facts().blame {
        Blame::Policy => true,
        Blame::Local | Blame::Upstream => false,
        Blame::Peer => !matches!(
            failure,
            Failure::PeerGone | Failure::HeadTimeout | Failure::BodyTimeout | Failure::HandshakeTimeout
        ),
    }
}

impl Direction {
    /// For labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Outcome {
    /// In the order of their index.
    pub const ALL: [Self; 4] = [Self::Allowed, Self::WouldDeny, Self::Denied, Self::Failed];

    /// For labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::WouldDeny => "would_deny",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

impl Protocol {
    /// For labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

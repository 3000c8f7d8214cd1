//! Every metric of the proxy: names, labels and bounds in one file.

use std::sync::Arc;
use std::time::Duration;

use crate::outcome::Failure;
use crate::snapshot::Protocol;

/// Which way a route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a peer to our app.
    Inbound,
    /// From our app to a peer.
    Outbound,
}

/// What a route's series are labelled with: resolved once per (connection, route).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// All metrics.
#[derive(Debug)]
pub struct Metrics {}

/// Handles of one route. Cheap, lock-free: a few relaxed adds per request.
#[derive(Debug)]
pub struct Route {}

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

impl Metrics {
    /// The handles of a route; takes a lock, so once per (connection, route). Past MAX_ROUTES: the route `other`.
    pub fn route(&self, key: &RouteKey) -> Arc<Route> {
        let _ = key;
        todo!()
    }
    /// A handshake as server or client: `failure` is a reason of the closed set.
    pub fn handshake(&self, direction: Direction, failure: Option<&'static str>) {
        let _ = (direction, failure);
        todo!()
    }
    /// A connection that ended before any route was known (plaintext, handshake, unknown destination).
    pub fn refused_connection(&self, direction: Direction, failure: Failure) {
        let _ = (direction, failure);
        todo!()
    }
    /// A denial: by policy (namespace/name, empty for none) and reason.
    pub fn denial(&self, policy: &str, reason: &'static str, monitor_only: bool) {
        let _ = (policy, reason, monitor_only);
        todo!()
    }
}

impl Route {
    /// Counts a finished request or stream.
    pub fn finished(&self, finished: &Finished) {
        let _ = finished;
        todo!()
    }
    /// A connection on this route opened.
    pub fn opened(&self) {
        todo!()
    }
    /// And closed.
    pub fn closed(&self) {
        todo!()
    }
}

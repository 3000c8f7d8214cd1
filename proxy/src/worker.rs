//! One worker: a thread with its own runtime, pools and counters.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::access_log::AccessLog;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::snapshot::{Port, Shared};

/// What a listener hands to a worker.
#[derive(Debug)]
pub enum Accepted {
    /// A peer's connection to one of our workload's ports.
    Inbound {
        /// Accepted, non-blocking, no-delay.
        socket: std::net::TcpStream,
        /// Which port it is for.
        port: Port,
    },
    /// Captured: our app's connection to somewhere.
    Outbound {
        /// Accepted, non-blocking, no-delay.
        socket: std::net::TcpStream,
        /// Where the app meant to go.
        original: SocketAddr,
    },
    /// Our app's connection to the explicit proxy port.
    Explicit {
        /// Accepted, non-blocking, no-delay.
        socket: std::net::TcpStream,
    },
}

/// What the code of one worker thread has at hand; shared by `Rc` inside the thread.
pub struct Worker {
    /// 0..N.
    pub id: usize,
    /// What all workers read.
    pub shared: Arc<Shared>,
    /// Counters, resolved once per (connection, route).
    pub metrics: Arc<Metrics>,
    /// Never blocks.
    pub access_log: AccessLog,
    /// The shutdown signal.
    pub drain: Drain,
    /// Connections to our app.
    pub apps: crate::inbound::forward::AppPool,
    /// Connections to peers.
    pub peers: crate::outbound::pool::Pool,
}

//! One worker: a thread with its own runtime, pools and counters.

mod thread;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::thread::{Ended, Handle, start};
use crate::access_log::AccessLog;
use crate::drain::{Drain, Phase};
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
    /// Looks after live connections.
    pub supervisor: crate::supervise::Supervisor,
    /// Connections to our app.
    pub apps: crate::inbound::forward::AppPool,
    /// Connections to peers.
    pub peers: crate::outbound::pool::Pool,
    /// Whom CUSTOM policies ask.
    pub askers: crate::providers::Askers,
    /// End users' tokens.
    pub tokens: crate::inbound::user::Tokens,
}

impl Worker {
    /// A worker with empty pools.
    #[must_use]
    pub fn new(id: usize, shared: Arc<Shared>, access_log: AccessLog, metrics: Arc<Metrics>, drain: Drain) -> Rc<Self> {
        Rc::new(Self {
            id,
            shared,
            metrics,
            access_log,
            drain,
            supervisor: crate::supervise::Supervisor::default(),
            apps: crate::inbound::forward::AppPool::default(),
            peers: crate::outbound::pool::Pool::default(),
            askers: crate::providers::Askers::default(),
            tokens: crate::inbound::user::Tokens::default(),
        })
    }

    /// A worker of its own on the current thread, without listeners and control side: for tests and benches. Drop the
    /// sender to end it.
    #[must_use]
    pub fn standalone(shared: Arc<Shared>) -> (Rc<Self>, watch::Sender<Phase>) {
        let metrics = Arc::new(Metrics::default());
        let access_log = AccessLog::off(Arc::clone(&metrics));
        let (phase, drain) = Drain::new();
        (Self::new(0, shared, access_log, metrics, drain), phase)
    }
}

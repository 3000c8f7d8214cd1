//! What workers read and the control side writes: identity, trust, policy, destinations. Each is one immutable object
//! behind an `ArcSwap`; a reader takes no lock and sees one revision whole.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use postern_identity::{Expected, SharedTrust, SpiffeId, Svid};
use postern_policy::{Compiled, Mode};
use tokio::sync::{mpsc, oneshot, watch};

use crate::limits::RESOLVE_DEADLINE;
use crate::outcome::Failure;

/// Everything that all workers of a proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Our SVID and the TLS configs made from it; `None` until the first issue.
    pub identity: ArcSwapOption<Identity>,
    /// Bundles and quarantine.
    pub trust: SharedTrust,
    /// Our workload and its compiled policy; `None` until control has sent both.
    pub policy: ArcSwapOption<PolicyState>,
    /// Where our app may go.
    pub destinations: Destinations,
    /// Grows whenever identity, trust or policy changed: live streams look again.
    pub changes: watch::Sender<u64>,
}

/// One generation of our own identity. Never mutated: a renewal makes the next one.
#[derive(Debug)]
pub struct Identity {
    /// Counts renewals; part of every pool key.
    pub generation: u64,
    /// The certificate and key.
    pub svid: Svid,
    /// Inbound, all `postern/*` ALPNs plus `h2` and `http/1.1` for foreign peers.
    pub server: Arc<rustls::ServerConfig>,
    /// Outbound, one config per ALPN that is offered alone.
    pub client_h1: Arc<rustls::ClientConfig>,
    /// See `client_h1`.
    pub client_h2: Arc<rustls::ClientConfig>,
    /// See `client_h1`.
    pub client_tcp: Arc<rustls::ClientConfig>,
}

/// What may happen at this workload, of one revision.
#[derive(Debug)]
pub struct PolicyState {
    /// Grows with each change.
    pub generation: u64,
    /// Our workload as control describes it.
    pub workload: Workload,
    /// The policies that select it.
    pub compiled: Compiled,
}

/// Our workload.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Name (the instance).
    pub name: String,
    /// discover, monitor or protect.
    pub mode: Mode,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// One port of our workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name, may be empty.
    pub name: Arc<str>,
    /// What policy calls it.
    pub number: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Explicit mode: where the proxy listens.
    pub listen: SocketAddr,
    /// Where the app listens.
    pub app: SocketAddr,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Not declared.
    Detect,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, gRPC included.
    Http2,
    /// Opaque.
    Tcp,
}

/// Where an app wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Explicit mode: lower-case host and port.
    Name(Arc<str>, u16),
    /// Captured: the original destination.
    Address(SocketAddr),
}

/// Control's answer for a [`Target`].
#[derive(Debug)]
pub enum Destination {
    /// In the mesh.
    Meshed(Service),
    /// Known, not in the mesh.
    Unmeshed(Vec<SocketAddr>),
    /// Not control's to answer for.
    Outside,
    /// Must not be reached.
    Unreachable(Failure, String),
}

/// A meshed destination.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The service's port.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// How strict it is.
    pub mode: Mode,
    /// Who serves it.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// One endpoint of a meshed destination.
#[derive(Debug)]
pub struct Endpoint {
    /// Where to dial.
    pub address: SocketAddr,
    /// What the workload calls the port.
    pub workload_port: u16,
    /// Who may answer.
    pub expected: Expected,
    /// What is spoken.
    pub protocol: Protocol,
    /// Is it in the mesh? Otherwise plain bytes.
    pub meshed: bool,
    /// For logs.
    pub workload: Arc<str>,
}

/// The destinations that control has answered for, and the way to ask for more.
#[derive(Debug)]
pub struct Destinations {
    known: ArcSwap<HashMap<Target, Arc<Destination>>>,
    ask: mpsc::Sender<Ask>,
}

/// A question to the control client.
#[derive(Debug)]
pub struct Ask {
    /// What is wanted.
    pub target: Target,
    /// Where the answer goes. Asked again while in flight: joins the same Resolve.
    pub answer: oneshot::Sender<Result<Arc<Destination>, Failure>>,
}

impl Destinations {
    /// Questions go to `ask`.
    #[must_use]
    pub fn new(ask: mpsc::Sender<Ask>) -> Self {
        Self {
            known: ArcSwap::default(),
            ask,
        }
    }

    /// What is known now; no lock, no wait.
    #[must_use]
    pub fn get(&self, target: &Target) -> Option<Arc<Destination>> {
        self.known.load().get(target).map(Arc::clone)
    }

    /// What is known, else what control answers within [`RESOLVE_DEADLINE`].
    pub async fn resolve(&self, target: &Target) -> Result<Arc<Destination>, Failure> {
        if let Some(known) = self.get(target) {
            return Ok(known);
        }
        let (answer, answered) = oneshot::channel();
        let ask = Ask {
            target: target.clone(),
            answer,
        };
        let asked = tokio::time::timeout(RESOLVE_DEADLINE, async {
            self.ask.send(ask).await.map_err(|_| Failure::ControlUnavailable)?;
            answered.await.map_err(|_| Failure::ControlUnavailable)?
        });
        asked.await.unwrap_or(Err(Failure::ControlUnavailable))
    }

    /// Replaces what is known; only the control client calls it.
    pub fn publish(&self, known: HashMap<Target, Arc<Destination>>) {
        self.known.store(Arc::new(known));
    }
}

impl Shared {
    /// Nothing known yet; questions for destinations go to `ask`.
    #[must_use]
    pub fn new(ask: mpsc::Sender<Ask>) -> Self {
        Self {
            identity: ArcSwapOption::empty(),
            trust: SharedTrust::default(),
            policy: ArcSwapOption::empty(),
            destinations: Destinations::new(ask),
            changes: watch::channel(0).0,
        }
    }

    /// Tells live streams to look again.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Our own ID, once issued.
    #[must_use]
    pub fn own_id(&self) -> Option<SpiffeId> {
        self.identity.load().as_ref().map(|identity| identity.svid.id().clone())
    }
}

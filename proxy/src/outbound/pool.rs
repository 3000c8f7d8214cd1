//! Connections to peers, keyed by (own identity generation, accepted peer identities, address, protocol): a request never
//! rides a connection that was admitted for someone else.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use postern_identity::{Instance, SpiffeId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::balance::{Budget, Load};
use super::originate::{self, Carries, Riding};
use crate::http::Version;
use crate::http::client;
use crate::http::h1::resting::{self, Resting};
use crate::http::shelf::{self, Open, Shelf};
use crate::limits::{MAX_PEER_CONNECTIONS, USE_MARGIN};
use crate::outcome::Failure;
use crate::snapshot::{Door, Endpoint, Identity, Protocol, Shared};
use crate::stream::Transport;
use crate::supervise::Supervisor;
use crate::worker::Worker;

/// A peer connection in use.
pub type Lease = shelf::Lease<Riding>;

/// A worker's connections to peers.
#[derive(Debug, Default)]
pub struct Pool {
    groups: RefCell<HashMap<Key, Rc<Group>>>,
    /// Groups of an older generation are forgotten when the next one is met.
    generation: Cell<u64>,
    /// Shared by all destinations of a worker.
    pub(super) retries: Budget,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    generation: u64,
    address: SocketAddr,
    carries: Carries,
    door: Door,
    protocol: Protocol,
    ids: Vec<SpiffeId>,
    instance: Option<Instance>,
}

impl Key {
    fn of(endpoint: &Endpoint, identity: &Identity, carries: Carries) -> Self {
        Self {
            generation: identity.generation,
            address: endpoint.address,
            carries,
            door: endpoint.door,
            protocol: endpoint.protocol,
            ids: endpoint.expected.ids.clone(),
            instance: endpoint.expected.instance.clone(),
        }
    }
}

/// Who waits for the HTTP/2 connection that is being made; `None` while none is.
type Waiting = RefCell<Option<Vec<oneshot::Sender<Result<(), Failure>>>>>;

/// Connections to one endpoint under one identity of ours.
#[derive(Debug)]
pub struct Group {
    endpoint: Arc<Endpoint>,
    identity: Arc<Identity>,
    carries: Carries,
    shelf: Rc<Shelf<Riding>>,
    /// Of the HTTP/1 relay.
    resting: Rc<Resting<Riding>>,
    waiting: Waiting,
    /// What balancing knows of it.
    pub load: Load,
}

impl Pool {
    /// The connections to `endpoint` under `identity`.
    pub(super) fn group(&self, endpoint: &Arc<Endpoint>, identity: &Arc<Identity>, carries: Carries) -> Rc<Group> {
        let mut groups = self.groups.borrow_mut();
        if self.generation.replace(identity.generation) != identity.generation {
            // What is in flight keeps its group alive and ends by itself.
            groups.retain(|key, _| key.generation >= identity.generation);
        }
        let key = Key::of(endpoint, identity, carries);
        let made = || {
            Rc::new(Group {
                endpoint: Arc::clone(endpoint),
                identity: Arc::clone(identity),
                carries,
                shelf: Rc::default(),
                resting: Rc::default(),
                waiting: RefCell::new(None),
                load: Load::default(),
            })
        };
        Rc::clone(groups.entry(key).or_insert_with(made))
    }

    /// The same, if there are any already; makes nothing.
    pub(super) fn known(&self, endpoint: &Endpoint, identity: &Identity, carries: Carries) -> Option<Rc<Group>> {
        self.groups.borrow().get(&Key::of(endpoint, identity, carries)).cloned()
    }

    /// Closes what has rested too long or is no longer believed; true if any connection is left.
    pub(crate) fn sweep(&self, shared: &Shared, clock: Duration) -> bool {
        let (trust, now) = (shared.trust.load(), Instant::now());
        let ours = !shared.is_cut_off();
        let mut groups = self.groups.borrow_mut();
        groups.retain(|_, group| {
            group.shelf.sweep(|riding| ours && riding.takes_requests(&trust, clock));
            group
                .resting
                .sweep(|riding| ours && riding.takes_requests(&trust, clock));
            // What is known of one that fails outlives its connections.
            Rc::strong_count(group) > 1 || group.open() > 0 || group.load.is_remembered(now)
        });
        groups.values().any(|group| group.open() > 0)
    }
}

impl Group {
    /// Which HTTP is spoken to it.
    pub(super) fn version(&self) -> Version {
        match self.carries {
            Carries::Http(version) => version,
            Carries::Bytes => Version::H1,
        }
    }

    /// A connection for one request: at rest, or new. `fresh`: only a new one will do.
    pub(super) async fn lease(&self, worker: &Rc<Worker>, fresh: bool) -> Result<Lease, Failure> {
        worker.shared.not_cut_off()?;
        let now = originate::clock();
        if !fresh && let Some(lease) = self.resting(worker, now) {
            return Ok(lease);
        }
        self.check_may_dial(now)?;
        match self.carries {
            Carries::Http(Version::H2) => self.shared_dial(worker).await,
            Carries::Http(Version::H1) | Carries::Bytes => self.dial(worker).await,
        }
    }

    fn open(&self) -> usize {
        self.shelf.open() + self.resting.open()
    }

    fn check_may_dial(&self, now: Duration) -> Result<(), Failure> {
        if self.open() >= MAX_PEER_CONNECTIONS {
            return Err(Failure::Overloaded);
        }
        let own_end = Duration::from_secs(self.identity.svid.not_after().as_secs());
        if self.endpoint.door != Door::Open && now + USE_MARGIN >= own_end {
            return Err(Failure::IdentityExpired);
        }
        Ok(())
    }

    fn resting(&self, worker: &Worker, now: Duration) -> Option<Lease> {
        let trust = worker.shared.trust.load();
        self.shelf.take(|riding| riding.takes_requests(&trust, now))
    }

    async fn dial(&self, worker: &Rc<Worker>) -> Result<Lease, Failure> {
        // Counted from now on: a burst of dials must not pass the bound.
        let _making = self.resting.making();
        let (transport, riding) = originate::open(worker, &self.endpoint, &self.identity, self.carries).await?;
        let sender = client::open(transport, self.version()).await?;
        Supervisor::wake(worker);
        Ok(self.shelf.admit(sender, riding))
    }

    /// One connect in flight serves all who wait for it, and fails all of them.
    async fn shared_dial(&self, worker: &Rc<Worker>) -> Result<Lease, Failure> {
        loop {
            let joined = self.waiting.borrow_mut().as_mut().map(|waiting| {
                let (done, dialled) = oneshot::channel();
                waiting.push(done);
                dialled
            });
            let Some(dialled) = joined else { break };
            match dialled.await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => return Err(failure),
                // Whoever dialled gave up with its request: one of those who waited goes on.
                Err(_) => continue,
            }
            if let Some(lease) = self.resting(worker, originate::clock()) {
                return Ok(lease);
            }
        }
        *self.waiting.borrow_mut() = Some(Vec::new());
        let dialling = Dialling(&self.waiting);
        let dialled = self.dial(worker).await;
        dialling.done(dialled.as_ref().map(|_| ()).map_err(|failure| *failure));
        dialled
    }

    /// A connection for one request of the HTTP/1 relay. `fresh`: only a new one will do.
    pub(super) async fn relayed(&self, worker: &Rc<Worker>, fresh: bool) -> Result<resting::Lease<Riding>, Failure> {
        worker.shared.not_cut_off()?;
        let now = originate::clock();
        if !fresh {
            let trust = worker.shared.trust.load();
            if let Some(lease) = self.resting.take(|riding| riding.takes_requests(&trust, now)) {
                return Ok(lease);
            }
        }
        self.check_may_dial(now)?;
        // Counted from now on: a burst of dials must not pass the bound.
        let open = self.resting.making();
        // On the heap: a connection that only ever uses what rests does not carry a handshake's state.
        let opening = Box::pin(originate::open(worker, &self.endpoint, &self.identity, self.carries));
        let (transport, riding) = opening.await?;
        Supervisor::wake(worker);
        Ok(self.resting.admit(open, transport, riding))
    }

    /// A connection for one opaque stream; nobody else will ride on it.
    pub(super) async fn stream(&self, worker: &Rc<Worker>) -> Result<(Transport, Rc<Riding>, Open), Failure> {
        worker.shared.not_cut_off()?;
        self.check_may_dial(originate::clock())?;
        let open = self.resting.making();
        let (transport, riding) = originate::open(worker, &self.endpoint, &self.identity, self.carries).await?;
        Ok((transport, Rc::new(riding), open))
    }
}

/// Tells those who wait, also if the one who dials is dropped.
struct Dialling<'a>(&'a Waiting);

impl Dialling<'_> {
    fn done(self, result: Result<(), Failure>) {
        for waiting in self.0.take().into_iter().flatten() {
            // Whoever has given up is not there any more.
            let _ = waiting.send(result);
        }
    }
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        // Their senders are dropped unsent: they look again.
        self.0.take();
    }
}

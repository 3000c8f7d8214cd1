//! Where our app's bytes go: control's word on a target, as one connection uses it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use postern_identity::Expected;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout};

use super::balance::{self, Standing};
use super::originate::{self, Carries};
use super::pool::Group;
use crate::exchange::Way;
use crate::http::Version;
use crate::limits::{LOOKUP_DEADLINE, MAX_LOOKED_UP};
use crate::metrics::{Direction, RouteKey};
use crate::outcome::Failure;
use crate::snapshot::{Destination, Door, Endpoint, Identity, Protocol, Target};
use crate::worker::Worker;

/// A target as one connection of our app uses it. Good while `Route::is_current`.
#[derive(Debug)]
pub struct Route {
    target: Target,
    carries: Carries,
    revision: u64,
    identity: Arc<Identity>,
    /// Labels; counts the connection as open.
    pub(super) way: Rc<Way>,
    ends: Ends,
    /// Looked up when first picked.
    groups: RefCell<Vec<Option<Rc<Group>>>>,
}

/// A target that cannot be reached: counted and logged like any other.
#[derive(Debug)]
pub struct Nowhere {
    /// Why.
    pub(super) failure: Failure,
    /// For people: what was asked and the nearest valid name.
    pub(super) detail: String,
    /// Labels.
    pub(super) way: Rc<Way>,
}

impl Nowhere {
    /// What our app is told.
    pub(super) fn text(&self) -> String {
        let reason = self.failure.facts().reason;
        match self.detail.as_str() {
            "" => reason.to_owned(),
            detail => format!("{reason}: {detail}"),
        }
    }
}

/// Who may answer.
#[derive(Debug)]
enum Ends {
    /// Endpoints of a service; shared by all connections.
    Service(Arc<Destination>),
    /// Outside of the mesh: plain bytes.
    Open(Vec<Arc<Endpoint>>),
}

impl Ends {
    fn all(&self) -> &[Arc<Endpoint>] {
        match self {
            Self::Service(destination) => match &**destination {
                Destination::Meshed(service) => &service.endpoints,
                Destination::Unmeshed { .. } | Destination::Outside | Destination::Unreachable(..) => &[],
            },
            Self::Open(endpoints) => endpoints,
        }
    }
}

/// What control says is spoken there. Outside of the mesh it is not ours to know: bytes.
pub(super) async fn declared(worker: &Worker, target: &Target) -> Protocol {
    match worker.shared.destinations.resolve(target).await {
        Ok(destination) => match &*destination {
            Destination::Meshed(service) => service.protocol,
            Destination::Unmeshed { .. } | Destination::Outside | Destination::Unreachable(..) => Protocol::Tcp,
        },
        // `resolve` will say so with its labels.
        Err(_) => Protocol::Tcp,
    }
}

/// Asks for `target`; what is known already costs no wait.
pub(super) async fn resolve(
    worker: &Rc<Worker>,
    target: Target,
    carries: Carries,
    client: Option<SocketAddr>,
) -> Result<Rc<Route>, Nowhere> {
    let nowhere = |failure: Failure, detail: String| {
        let key = key(worker, "unknown", Arc::from(""), 0, carries, false);
        Nowhere {
            failure,
            detail,
            way: Way::open(worker, key, client),
        }
    };
    let shared = &worker.shared;
    let Some(identity) = shared.identity.load_full() else {
        return Err(nowhere(Failure::NoIdentity, String::new()));
    };
    if let Err(failure) = shared.not_cut_off() {
        return Err(nowhere(failure, String::new()));
    }
    if shared.policy.load().is_none() {
        return Err(nowhere(Failure::ControlUnavailable, String::new()));
    }
    // Read first: what changes while we ask makes the route stale, never wrong.
    let revision = shared.destinations.revision();
    let known = shared.destinations.resolve(&target).await;
    let mut destination = known.map_err(|failure| nowhere(failure, String::new()))?;
    let mut outside: Addresses = SmallVec::new();
    if matches!(*destination, Destination::Outside) {
        let looked_up = addresses_of(&target).await;
        outside = looked_up.map_err(|detail| nowhere(Failure::UnknownDestination, detail))?;
        if let Target::Name(..) = target {
            // A name outside of the mesh may lead into it all the same, and must not be reached in clear.
            let inside = inside_of(worker, &outside).await;
            if let Some(inside) = inside.map_err(|failure| nowhere(failure, String::new()))? {
                destination = inside;
            }
        }
    }
    let (key, ends) = match &*destination {
        Destination::Meshed(service) => {
            let name = format!("{}.{}", service.name, service.namespace);
            let secured = service.endpoints.iter().all(|endpoint| endpoint.door != Door::Open);
            let id = originate::first_id(&service.endpoints);
            let key = key(worker, &name, id, service.port, carries, secured);
            (key, Ends::Service(Arc::clone(&destination)))
        }
        Destination::Unmeshed { service, addresses } => {
            let number = addresses.first().map_or(0, SocketAddr::port);
            let key = key(worker, service, Arc::from(""), number, carries, false);
            (key, Ends::Open(open_ends(addresses.iter().copied())))
        }
        Destination::Outside => {
            // No port: whatever an app scans would fill the bounded set of routes.
            let key = key(worker, "outside", Arc::from(""), 0, carries, false);
            (key, Ends::Open(open_ends(outside.into_iter())))
        }
        Destination::Unreachable(failure, detail) => return Err(nowhere(*failure, detail.clone())),
    };
    Ok(Rc::new(Route {
        target,
        carries,
        revision,
        way: Way::open(worker, key, client),
        groups: RefCell::new(vec![None; ends.all().len()]),
        ends,
        identity,
    }))
}

fn key(
    worker: &Worker,
    service: &str,
    destination: Arc<str>,
    port: u16,
    carries: Carries,
    mutual_tls: bool,
) -> RouteKey {
    let own = worker.shared.own_id();
    RouteKey {
        direction: Direction::Outbound,
        source: own.map_or_else(|| Arc::from(""), |id| Arc::from(id.as_str())),
        destination,
        service: service.into(),
        port,
        protocol: match carries {
            Carries::Http(Version::H1) => Protocol::Http1,
            Carries::Http(Version::H2) => Protocol::Http2,
            Carries::Bytes => Protocol::Tcp,
        },
        mutual_tls,
    }
}

fn open_ends(addresses: impl Iterator<Item = SocketAddr>) -> Vec<Arc<Endpoint>> {
    let end = |address: SocketAddr| Endpoint {
        address,
        workload_port: address.port(),
        // Nobody is verified there, so nobody is expected.
        expected: Expected {
            ids: Vec::new(),
            instance: None,
        },
        protocol: Protocol::Detect,
        door: Door::Open,
        readmits: false,
        workload: "".into(),
    };
    addresses.map(|address| Arc::new(end(address))).collect()
}

/// What control says of the first address that is not outside of the mesh.
async fn inside_of(worker: &Worker, addresses: &[SocketAddr]) -> Result<Option<Arc<Destination>>, Failure> {
    for address in addresses {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let destination = worker.shared.destinations.resolve(&Target::Address(address)).await?;
        if !matches!(*destination, Destination::Outside) {
            return Ok(Some(destination));
        }
    }
    Ok(None)
}

/// Few names have more.
type Addresses = SmallVec<[SocketAddr; 2]>;

/// Outside of the mesh a name is the system resolver's business.
async fn addresses_of(target: &Target) -> Result<Addresses, String> {
    let (host, port) = match target {
        Target::Address(address) => return Ok(SmallVec::from_elem(*address, 1)),
        Target::Name(host, port) => (host.trim_matches(['[', ']']), *port),
    };
    let looked_up = timeout(LOOKUP_DEADLINE, tokio::net::lookup_host((host, port))).await;
    match looked_up {
        Ok(Ok(addresses)) => Ok(addresses.take(MAX_LOOKED_UP).collect()),
        Ok(Err(error)) => Err(format!("cannot look up `{host}`: {error}")),
        Err(_) => Err(format!("looking up `{host}` took more than {LOOKUP_DEADLINE:?}")),
    }
}

impl Route {
    /// The same target, and nothing about it or about us has changed since.
    pub(super) fn is_current(&self, worker: &Worker, target: &Target) -> bool {
        self.target == *target
            && self.revision == worker.shared.destinations.revision()
            && worker
                .shared
                .identity
                .load()
                .as_ref()
                .is_some_and(|identity| identity.generation == self.identity.generation)
    }

    /// An endpoint to try that was not tried yet.
    pub(super) fn pick(&self, worker: &Worker, tried: &[usize]) -> Result<(usize, Rc<Group>), Failure> {
        let ends = self.ends.all();
        let groups = &mut *self.groups.borrow_mut();
        let now = Instant::now();
        let standing = |at: usize| {
            let (Some(end), Some(slot)) = (ends.get(at), groups.get_mut(at)) else {
                return Standing::UNKNOWN;
            };
            if slot.is_none() {
                // Another connection may have met it.
                *slot = worker.peers.known(end, &self.identity, self.carries_to(end));
            }
            slot.as_ref()
                .map_or(Standing::UNKNOWN, |group| Standing::of(&group.load, now))
        };
        let at =
            balance::pick(ends.len(), standing, tried, |below| fastrand::usize(..below)).ok_or(Failure::NoEndpoint)?;
        let (Some(end), Some(slot)) = (ends.get(at), groups.get_mut(at)) else {
            return Err(Failure::NoEndpoint);
        };
        let group = slot.get_or_insert_with(|| worker.peers.group(end, &self.identity, self.carries_to(end)));
        Ok((at, Rc::clone(group)))
    }

    fn carries_to(&self, end: &Endpoint) -> Carries {
        match (self.carries, end.protocol) {
            (Carries::Bytes, _) => Carries::Bytes,
            (Carries::Http(_), Protocol::Http1) => Carries::Http(Version::H1),
            (Carries::Http(_), Protocol::Http2) => Carries::Http(Version::H2),
            (Carries::Http(spoken), Protocol::Detect | Protocol::Tcp) => Carries::Http(spoken),
        }
    }

    /// Every endpoint takes HTTP/1 as it comes.
    pub(super) fn speaks_http1(&self) -> bool {
        self.carries == Carries::Http(Version::H1) && self.ends.all().iter().all(|end| end.protocol != Protocol::Http2)
    }

    /// It is (or was) this target's.
    pub(super) fn leads_where(&self, target: &Target) -> bool {
        self.target == *target
    }

    /// In clear: its target, for as long as it stays outside of the mesh.
    pub(super) fn in_clear_to(&self) -> Option<Target> {
        match &self.ends {
            Ends::Open(_) => Some(self.target.clone()),
            Ends::Service(_) => None,
        }
    }

    /// Whoever answers there proves who it is.
    pub(super) fn is_secured(&self) -> bool {
        match &self.ends {
            Ends::Open(_) => false,
            Ends::Service(_) => self.ends.all().iter().all(|end| end.door != Door::Open),
        }
    }

    /// How many endpoints there are.
    pub(super) fn len(&self) -> usize {
        self.ends.all().len()
    }

    /// An address that the route leads to and that `ours` says is our own listener: a loop.
    pub(super) fn leads_to(&self, ours: SocketAddr) -> bool {
        match &self.ends {
            Ends::Open(ends) => ends.iter().any(|end| end.address == ours),
            Ends::Service(_) => false,
        }
    }
}

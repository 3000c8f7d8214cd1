//! What workers read and the control side writes: identity, trust, policy, destinations. Each is one immutable object
//! behind an `ArcSwap`; a reader takes no lock and sees one revision whole.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use postern_identity::{Expected, Instance, SharedTrust, SpiffeId, Svid, Trust, TrustDomain, VerifiedPeer};
use postern_policy::peer_authentication::PortModes;
use postern_policy::{Compiled, Labels, Mode};
use postern_token::Authenticator;
use tokio::sync::{mpsc, oneshot, watch};

use crate::limits::RESOLVE_DEADLINE;
use crate::outcome::Failure;
use crate::providers::Providers;
use crate::readmission;

/// Everything that all workers of a proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Our SVID and the TLS configs made from it; `None` until the first issue.
    pub identity: ArcSwapOption<Identity>,
    /// Bundles and quarantine; written by [`Shared::change_trust`] alone.
    pub trust: SharedTrust,
    /// What renews our SVID and what listens to control both write trust, each from its own thread.
    changing_trust: Mutex<()>,
    /// How many identities there have been.
    pub(crate) generations: AtomicU64,
    /// Bundles come from where our identity does, and not from control.
    pub trust_is_given: AtomicBool,
    /// Our workload and its compiled policy; `None` until control has sent both.
    pub policy: ArcSwapOption<PolicyState>,
    /// Where our app may go.
    pub destinations: Destinations,
    /// Grows whenever identity, trust or policy changed: live streams look again.
    pub changes: watch::Sender<u64>,
    /// What workers miss to verify tokens.
    pub missed_keys: watch::Sender<MissedKeys>,
    /// See [`Shared::is_cut_off`].
    pub(crate) cut_off: AtomicBool,
    /// Long-lived connections of our peers.
    pub(crate) readmissions: Arc<readmission::Table>,
}

/// One generation of our own identity. Never mutated: a renewal makes the next one.
#[derive(Debug)]
pub struct Identity {
    /// Counts renewals; part of every pool key.
    pub generation: u64,
    /// The certificate and key.
    pub svid: Svid,
    /// SHA-256 of the root that it was under when it came; `None`: of none that we knew.
    pub root: Option<[u8; 32]>,
    /// Inbound, all `postern/*` ALPNs plus `h2` and `http/1.1` for foreign peers.
    pub server: Arc<rustls::ServerConfig>,
    /// Outbound, one config per ALPN that is offered alone.
    pub client_h1: Arc<rustls::ClientConfig>,
    /// See `client_h1`.
    pub client_h2: Arc<rustls::ClientConfig>,
    /// See `client_h1`.
    pub client_tcp: Arc<rustls::ClientConfig>,
    /// See `client_h1`: carries no data.
    pub client_renew: Arc<rustls::ClientConfig>,
    /// HTTP/1.1 to a SPIFFE peer that is no sidecar of ours.
    pub client_spiffe_h1: Arc<rustls::ClientConfig>,
    /// HTTP/2 to such a peer.
    pub client_spiffe_h2: Arc<rustls::ClientConfig>,
}

/// What may happen at this workload, of one revision.
#[derive(Debug)]
pub struct PolicyState {
    /// Grows with each change.
    pub generation: u64,
    /// Grows with each change of mode, policies or providers: not when merely labels of peers come and go.
    pub rules: u64,
    /// Our workload as control describes it.
    pub workload: Workload,
    /// The policies that select it.
    pub compiled: Arc<Compiled>,
    /// What control says of peers, as far as those look at it.
    pub peers: Arc<Peers>,
    /// Whom its CUSTOM policies ask.
    pub providers: Arc<Providers>,
    /// Whose tokens are believed.
    pub authenticator: Arc<Authenticator>,
    /// By provider of keys, the newest question ([`MissedKeys::ask`]) that its keys answer.
    pub answered: Arc<HashMap<String, u64>>,
}

/// Keys that tokens named and that we do not have, for the control client to ask about.
#[derive(Debug, Default)]
pub struct MissedKeys {
    asked: u64,
    /// By provider, the question that is not sent yet, and how many put it.
    waiting: BTreeMap<String, (u64, usize)>,
}

impl MissedKeys {
    /// A question about a provider's keys; all that come before it is sent are one. Returns its number.
    pub fn ask(&mut self, provider: &str) -> u64 {
        if let Some((number, askers)) = self.waiting.get_mut(provider) {
            *askers += 1;
            return *number;
        }
        self.asked += 1;
        self.waiting.insert(provider.to_owned(), (self.asked, 1));
        self.asked
    }

    /// Who put this question has its answer already. If it was the last, and the question is not sent, it never will be: control
    /// would fetch once more for nobody, and then not for a while, when the next key may be missed.
    pub fn withdraw(&mut self, provider: &str, number: u64) {
        if let Some((waiting, askers)) = self.waiting.get_mut(provider)
            && *waiting == number
        {
            *askers -= 1;
            if *askers == 0 {
                self.waiting.remove(provider);
            }
        }
    }

    /// What is to be sent now.
    pub fn take(&mut self) -> BTreeMap<String, u64> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        waiting.map(|(provider, (number, _))| (provider, number)).collect()
    }
}

/// Labels of peers.
#[derive(Debug, Default)]
pub struct Peers {
    /// Whose namespaces are meant; `None`: control has told nothing yet.
    pub trust_domain: Option<TrustDomain>,
    /// By instance; who has it must have this ID as well.
    pub instances: HashMap<Instance, (SpiffeId, BTreeMap<String, String>)>,
    /// By name.
    pub namespaces: HashMap<String, BTreeMap<String, String>>,
}

impl Peers {
    /// The labels of a verified peer's workload, and those of its namespace.
    #[must_use]
    pub fn labels_of<'a>(&'a self, peer: &VerifiedPeer) -> [Labels<'a>; 2] {
        let Some(trust_domain) = &self.trust_domain else {
            return [Labels::Unknown; 2];
        };
        let of_workload = match peer.instance().map(|instance| self.instances.get(instance)) {
            // Nobody whom we could know.
            None => Labels::None,
            Some(Some((id, labels))) if id == peer.id() => Labels::Known(labels),
            Some(_) => Labels::Unknown,
        };
        let of_namespace = match peer.id().workload() {
            Some((namespace, _)) if peer.id().trust_domain() == trust_domain.as_str() => {
                self.namespaces.get(namespace).map_or(Labels::Unknown, Labels::Known)
            }
            Some(_) | None => Labels::None,
        };
        [of_workload, of_namespace]
    }
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
    /// What each port takes, declared or not: mutual TLS, plaintext, or either.
    pub mtls: PortModes,
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

impl Protocol {
    /// Do we read it, rather than move bytes?
    #[must_use]
    pub fn is_looked_into(self) -> bool {
        match self {
            Self::Detect | Self::Http1 | Self::Http2 => true,
            Self::Tcp => false,
        }
    }
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
    Unmeshed {
        /// Its name, `service.namespace`.
        service: Arc<str>,
        /// Where it is.
        addresses: Vec<SocketAddr>,
    },
    /// Not control's to answer for.
    Outside,
    /// Must not be reached.
    Unreachable(Failure, String),
}

impl Destination {
    /// Bytes go there as they are.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        match self {
            Self::Unmeshed { .. } | Self::Outside => true,
            Self::Meshed(_) | Self::Unreachable(..) => false,
        }
    }
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
    /// What answers there.
    pub door: Door,
    /// Does its proxy readmit connections, by control's word?
    pub readmits: bool,
    /// For logs.
    pub workload: Arc<str>,
}

/// What answers at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// A sidecar of ours: `postern/*`.
    Sidecar,
    /// Mutual TLS of another make (Envoy, a program with an SVID): `h2`, `http/1.1` or no ALPN.
    Spiffe,
    /// Nobody who proves anything: plain bytes.
    Open,
}

/// The destinations that control has answered for, and the way to ask for more.
#[derive(Debug)]
pub struct Destinations {
    known: ArcSwap<HashMap<Target, Arc<Known>>>,
    ranges: ArcSwapOption<Ranges>,
    revision: AtomicU64,
    ask: mpsc::Sender<Ask>,
}

/// An answer, and whether anyone has wanted it lately.
#[derive(Debug)]
struct Known {
    destination: Arc<Destination>,
    used: AtomicBool,
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
            ranges: ArcSwapOption::empty(),
            revision: AtomicU64::new(0),
            ask,
        }
    }

    /// What is known now; no lock, no wait.
    #[must_use]
    pub fn get(&self, target: &Target) -> Option<Arc<Destination>> {
        let known = self.known.load();
        let known = known.get(target)?;
        // Written once per sweep, not once per request: the line stays shared between workers.
        if !known.used.load(Ordering::Relaxed) {
            known.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&known.destination))
    }

    /// What is known, else what control answers within [`RESOLVE_DEADLINE`]. An address outside of the ranges that
    /// control answers for is [`Destination::Outside`] without asking, also while control is away.
    pub async fn resolve(&self, target: &Target) -> Result<Arc<Destination>, Failure> {
        if let Some(known) = self.get(target) {
            return Ok(known);
        }
        if let Target::Address(address) = target
            && let Some(ranges) = &*self.ranges.load()
            && !ranges.contains(address.ip())
        {
            return Ok(Arc::new(Destination::Outside));
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
        let before = self.known.load();
        let carried = known.into_iter().map(|(target, destination)| {
            // New answers count as used: somebody has just asked.
            let used = before.get(&target).is_none_or(|held| held.used.load(Ordering::Relaxed));
            let used = AtomicBool::new(used);
            (target, Arc::new(Known { destination, used }))
        });
        self.known.store(Arc::new(carried.collect()));
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// Grows whenever anything known changes: while it does not, what was resolved holds.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Replaces the ranges that control answers for.
    pub fn publish_ranges(&self, ranges: Ranges) {
        self.ranges.store(Some(Arc::new(ranges)));
        self.revision.fetch_add(1, Ordering::Release);
    }

    /// One that nobody has used since it was last passed over here; `None` if all were used (then all are marked unused).
    #[must_use]
    pub fn unused(&self) -> Option<Target> {
        let known = self.known.load();
        let mut unused = None;
        for (target, held) in known.iter() {
            if !held.used.load(Ordering::Relaxed) {
                unused = Some(target.clone());
                break;
            }
        }
        if unused.is_none() {
            known
                .values()
                .for_each(|held| held.used.store(false, Ordering::Relaxed));
        }
        unused
    }

    /// Everything that is known, for the admin socket.
    #[must_use]
    pub fn known(&self) -> Vec<(Target, Arc<Destination>)> {
        let known = self.known.load();
        known
            .iter()
            .map(|(target, held)| (target.clone(), Arc::clone(&held.destination)))
            .collect()
    }
}

/// Address ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(IpAddr, u8)>);

impl Ranges {
    /// From network addresses and prefix lengths; `None` if a prefix is longer than its address.
    #[must_use]
    pub fn new(cidrs: Vec<(IpAddr, u8)>) -> Option<Self> {
        let fits = |(ip, prefix): &(IpAddr, u8)| *prefix <= if ip.is_ipv4() { 32 } else { 128 };
        cidrs.iter().all(fits).then_some(Self(cidrs))
    }
    /// Is `ip` in any of them?
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
            IpAddr::V6(v6) => u128::from(v6),
        };
        self.0.iter().any(|(network, prefix)| {
            let differ = bits(*network) ^ bits(ip);
            network.is_ipv4() == ip.is_ipv4() && differ.leading_zeros() >= u32::from(*prefix)
        })
    }
}

impl Shared {
    /// Nothing known yet; questions for destinations go to `ask`.
    #[must_use]
    pub fn new(ask: mpsc::Sender<Ask>) -> Self {
        Self {
            identity: ArcSwapOption::empty(),
            trust: SharedTrust::default(),
            changing_trust: Mutex::default(),
            generations: AtomicU64::new(0),
            trust_is_given: AtomicBool::new(false),
            policy: ArcSwapOption::empty(),
            destinations: Destinations::new(ask),
            changes: watch::channel(0).0,
            missed_keys: watch::Sender::default(),
            cut_off: AtomicBool::new(false),
            readmissions: Arc::default(),
        }
    }

    /// Puts what `change` makes of the trust in force, with the next revision; `None` leaves it. No other change is lost
    /// meanwhile. True if it was changed.
    pub fn change_trust(&self, change: impl FnOnce(&Trust) -> Option<Trust>) -> bool {
        // Whoever panicked while holding it had stored all or nothing.
        let changing = self.changing_trust.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.trust.load_full();
        let Some(mut next) = change(&held) else {
            return false;
        };
        next.revision = held.revision + 1;
        self.trust.store(Arc::new(next));
        drop(changing);
        self.changed();
        true
    }

    /// Tells live streams to look again.
    pub fn changed(&self) {
        // In turn: whoever looks last sees what both threads have written.
        let changing = self.changing_trust.lock().unwrap_or_else(PoisonError::into_inner);
        self.look_at_self();
        drop(changing);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Our own ID, once issued.
    #[must_use]
    pub fn own_id(&self) -> Option<SpiffeId> {
        self.identity.load().as_ref().map(|identity| identity.svid.id().clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_holds_its_own_family_up_to_its_prefix() {
        let ranges = Ranges::new(vec![(ip("10.96.0.0"), 12), (ip("fd00::"), 8)]).unwrap();
        assert!(ranges.contains(ip("10.96.0.1")) && ranges.contains(ip("10.111.255.255")));
        assert!(!ranges.contains(ip("10.112.0.0")) && !ranges.contains(ip("11.96.0.1")));
        assert!(ranges.contains(ip("fd12::1")) && !ranges.contains(ip("fe80::1")));
        assert!(Ranges::new(vec![(ip("0.0.0.0"), 0)]).unwrap().contains(ip("192.0.2.1")));
        assert!(!Ranges::new(vec![(ip("0.0.0.0"), 0)]).unwrap().contains(ip("::1")));
        assert_eq!(Ranges::new(vec![(ip("10.0.0.0"), 33)]), None);
        assert!(!Ranges::default().contains(ip("10.0.0.1")));
    }

    #[test]
    fn a_question_that_nobody_puts_any_more_is_not_sent() {
        let mut missed = MissedKeys::default();
        let both = (missed.ask("sso"), missed.ask("sso"));
        assert_eq!(both, (1, 1), "two that wait put one question");
        missed.withdraw("sso", 1);
        assert_eq!(
            missed.take(),
            BTreeMap::from([("sso".to_owned(), 1)]),
            "one still waits"
        );
        missed.withdraw("sso", 1);
        assert_eq!(missed.ask("sso"), 2);
        missed.withdraw("sso", 1);
        missed.withdraw("other", 2);
        missed.withdraw("sso", 2);
        assert_eq!(missed.take(), BTreeMap::new());
    }

    #[test]
    fn changes_of_trust_by_two_threads_at_once_are_all_kept() {
        const EACH: u64 = 2_000;
        let shared = Shared::new(mpsc::channel(1).0);
        let cut_off = |number: u64| SpiffeId::parse(&format!("spiffe://mesh.test/ns/a/sa/w{number}")).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let shared = &shared;
                scope.spawn(move || {
                    for number in 0..EACH {
                        shared.change_trust(|trust| {
                            let mut next = trust.clone();
                            next.quarantined_ids.insert(cut_off((thread * EACH + number) % 100));
                            Some(next)
                        });
                    }
                });
            }
        });
        let trust = shared.trust.load();
        assert_eq!((trust.revision, trust.quarantined_ids.len()), (2 * EACH, 100));
        assert!(!shared.change_trust(|_| None));
    }

    #[tokio::test]
    async fn an_address_outside_the_ranges_passes_even_while_control_is_away() {
        let (ask, gone) = mpsc::channel(1);
        drop(gone);
        let destinations = Destinations::new(ask);
        let outside = Target::Address("192.0.2.1:443".parse().unwrap());
        let unknown = destinations.resolve(&outside).await;
        assert_eq!(unknown.unwrap_err(), Failure::ControlUnavailable);
        destinations.publish_ranges(Ranges::new(vec![(ip("10.0.0.0"), 8)]).unwrap());
        assert!(matches!(
            *destinations.resolve(&outside).await.unwrap(),
            Destination::Outside
        ));
        let inside = Target::Address("10.0.0.1:80".parse().unwrap());
        let unknown = destinations.resolve(&inside).await;
        assert_eq!(unknown.unwrap_err(), Failure::ControlUnavailable);
    }

    #[test]
    fn the_one_to_release_is_one_that_was_not_used_since_the_last_sweep() {
        let destinations = Destinations::new(mpsc::channel(1).0);
        let target = |n: u16| Target::Name("a.b".into(), n);
        let all = (1..=3).map(|n| (target(n), Arc::new(Destination::Outside)));
        destinations.publish(all.collect());
        assert_eq!(destinations.unused(), None, "all are new");
        assert!(destinations.get(&target(1)).is_some());
        assert!(destinations.get(&target(3)).is_some());
        assert_eq!(destinations.unused(), Some(target(2)));
    }
}

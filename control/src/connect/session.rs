//! One proxy's stream: what it must know is sent when it changes, what it says is taken in.
//!
//! A change only marks what may be different; the message is made when the proxy has room for it, from what is in force
//! then. A slow proxy so gets the newest state, and nothing piles up for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use postern_api::control::v1 as wire;
use postern_api::control::v1::proxy_message::Message as FromProxy;
use postern_api::policy_wire::features_from_wire;
use postern_api::transport;
use postern_identity::VerifiedPeer;
use postern_policy::{Feature, FeatureSet};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::{Answer, refuse, workload_of};
use crate::federation::Told;
use crate::hub::{Hub, told};
use crate::keys::Ring;
use crate::model::Name;
use crate::observed;
use crate::quarantine::Quarantine;
use crate::snapshot::{self, Target};
use crate::state::{Bundles, State};

mod outgoing;

/// Destinations that one proxy may follow. A proxy keeps 4,096 and releases one for each answer past them: as many again
/// may be asked for before their answers, and the releases, are under way. One that follows more does not release.
const MAX_DESTINATIONS: usize = 8192;
/// The peer's expiry is looked at again at least this often, should the clock be moved.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A list takes milliseconds. A proxy that knows better refuses what we send after that, for a minute.
const CATCH_UP: Duration = Duration::from_secs(2);
/// The kinds that count as the source's objects do.
const COUNTED: [wire::Kind; 5] = [
    wire::Kind::Workload,
    wire::Kind::Policies,
    wire::Kind::PeerLabels,
    wire::Kind::Ranges,
    wire::Kind::Destination,
];
/// Those of them that are sent whole.
const COUNTED_ITEMS: [Item; 4] = [Item::Workload, Item::PeerLabels, Item::Policies, Item::Ranges];
/// Longest refusal text that is logged.
const MAX_REFUSAL: usize = 512;

/// What may need to be sent, in the order of sending: trust before the rules, and what they look at; the rules before what they
/// open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Bundle,
    Quarantine,
    Federation,
    Workload,
    PeerLabels,
    Keys,
    Policies,
    Ranges,
    Destination(u64),
}

/// What went out last, without its version.
#[derive(Debug, Default)]
struct Sent {
    workload: Option<wire::WorkloadConfig>,
    policies: Option<wire::PolicySet>,
    peer_labels: Option<Arc<wire::PeerLabels>>,
    ranges: Option<wire::Ranges>,
    bundle: Option<u64>,
    /// Its version; 0: that there is none.
    quarantine: Option<u64>,
    federation: Option<u64>,
    /// By provider, the number of the fetch.
    keys: BTreeMap<String, u64>,
}

/// A destination that the proxy follows.
#[derive(Debug)]
struct Subscription {
    target: Target,
    /// And under which version.
    sent: Option<(Arc<wire::destination::State>, u64)>,
    refused_as_older: bool,
}

pub(super) struct Session {
    hub: Arc<Hub>,
    name: Name,
    id: u64,
    peer: VerifiedPeer,
    features: FeatureSet,
    /// Does it know bundles of other trust domains? One that does not would have rules for one mesh allow foreigners as well.
    federates: bool,
    out: mpsc::Sender<Answer>,
    state: watch::Receiver<Arc<State>>,
    bundles: watch::Receiver<Arc<Bundles>>,
    quarantine: watch::Receiver<Arc<Quarantine>>,
    /// Is this proxy's own workload in it? Then it hears of that alone.
    cut_off: bool,
    keys: watch::Receiver<Arc<Ring>>,
    federation: watch::Receiver<Arc<Told>>,
    /// The state that was looked at last.
    seen: Option<Arc<State>>,
    pending: BTreeSet<Item>,
    sent: Sent,
    destinations: HashMap<u64, Subscription>,
    /// The version per kind that this proxy came with: another replica gave it that.
    came_with: BTreeMap<i32, u64>,
    /// The version per kind that was sent last, or that it came with.
    versions: BTreeMap<i32, u64>,
    /// The kinds whose last snapshot it refused since it has something newer; said again once we have that as well.
    refused_as_older: BTreeSet<i32>,
    /// Until when nothing is sent to a proxy that has something newer than we.
    waits_until: Option<Instant>,
    /// The version per kind that this proxy refused last.
    refused: BTreeMap<i32, u64>,
    reported: u64,
    /// Keys that it misses, by provider: its question, and the fetch that answers it.
    asks: HashMap<String, Vec<(u64, u64)>>,
}

impl Session {
    pub(super) fn new(
        hub: Arc<Hub>,
        name: Name,
        id: u64,
        peer: VerifiedPeer,
        hello: &wire::Hello,
        out: mpsc::Sender<Answer>,
    ) -> Self {
        let (mut state, mut bundles, keys) = (hub.watch_state(), hub.watch_bundles(), hub.keys.watch());
        // What is in force now is sent as a change.
        state.mark_changed();
        bundles.mark_changed();
        let mut quarantine = hub.watch_quarantine();
        quarantine.mark_changed();
        let mut federation = hub.federation.watch();
        federation.mark_changed();
        let mut versions = BTreeMap::new();
        for held in hello.held.iter().filter(|held| held.version < u64::MAX / 2) {
            let version: &mut u64 = versions.entry(held.kind).or_default();
            *version = held.version.max(*version);
        }
        Self {
            hub,
            name,
            id,
            peer,
            features: features_from_wire(&hello.features),
            federates: hello.federation,
            out,
            state,
            bundles,
            quarantine,
            cut_off: false,
            keys,
            federation,
            seen: None,
            pending: BTreeSet::from([Item::Quarantine]),
            sent: Sent::default(),
            destinations: HashMap::new(),
            came_with: versions.clone(),
            versions,
            refused_as_older: BTreeSet::new(),
            waits_until: None,
            refused: BTreeMap::new(),
            reported: 0,
            asks: HashMap::new(),
        }
    }

    /// Another replica has given this proxy something that is newer than our state. If that one has only heard more than we,
    /// we hear it in a moment; what is sent until then would be refused.
    fn catch_up(&mut self) {
        let state = self.hub.state();
        let lagging = COUNTED.into_iter().filter(|kind| self.lags(*kind, &state));
        if let Some(newest) = lagging.map(|kind| self.came_with(kind)).max() {
            self.hub.want(newest);
            self.waits_until = Some(Instant::now() + CATCH_UP);
        }
    }

    /// Marks what may be different in this state. Most changes of a cluster are no affair of most proxies: that is seen here
    /// without making a message.
    fn mark(&mut self, state: Arc<State>) {
        let before = self.seen.replace(Arc::clone(&state)).unwrap_or_default();
        let own = |state: &State| state.model.workloads.get(&self.name).cloned();
        let same = match (own(&before), own(&state)) {
            (Some(before), Some(now)) => Arc::ptr_eq(&before, &now),
            (None, _) | (_, None) => false,
        };
        if !same {
            self.pending.insert(Item::Workload);
        }
        let of_namespace = |state: &State| state.model.labels_of(&self.name.0).clone();
        let same_rules = same && before.policy_version == state.policy_version;
        if !same_rules || of_namespace(&before) != of_namespace(&state) {
            self.pending.insert(Item::Policies);
        }
        let looks_at_labels = self.sent.peer_labels.is_some();
        if snapshot::knows_users(self.features) && !same_rules {
            self.pending.insert(Item::Keys);
        }
        if self.features.has(Feature::SourceLabels) && (!same_rules || looks_at_labels) {
            self.pending.insert(Item::PeerLabels);
        }
        if self.sent.ranges.is_none() || before.model.ranges != state.model.ranges {
            self.pending.insert(Item::Ranges);
        }
        for item in COUNTED_ITEMS {
            if self.refused_as_older.contains(&(item.kind() as i32)) && !self.lags(item.kind(), &state) {
                self.pending.insert(item);
            }
        }
        self.pending
            .extend(self.destinations.keys().map(|id| Item::Destination(*id)));
    }

    fn came_with(&self, kind: wire::Kind) -> u64 {
        self.came_with.get(&(kind as i32)).copied().unwrap_or(0)
    }

    /// Did the proxy come with something that this state may lack?
    fn lags(&self, kind: wire::Kind, state: &State) -> bool {
        state.shared_count && self.came_with(kind) > state.reach(kind).complete
    }

    /// Is this state as new as what the proxy came with?
    fn up_to(&self, state: &State) -> bool {
        !COUNTED.into_iter().any(|kind| self.lags(kind, state))
    }

    pub(super) fn peer_id(&self) -> &postern_identity::SpiffeId {
        self.peer.id()
    }

    /// Until the proxy goes, its SVID ends, it is not served any more, or the process goes down. Says why, in a word.
    pub(super) async fn run(&mut self, inbound: &mut Streaming<wire::ProxyMessage>) -> &'static str {
        let mut down = self.hub.down.subscribe();
        let out = self.out.clone();
        self.catch_up();
        loop {
            if let Err(error) = self.peer.still_holds(&self.hub.trust.load(), transport::now()) {
                let status = Status::unauthenticated(format!("{error}; come back with a current certificate"));
                // If it does not read, its stream just ends.
                let _ = self.out.try_send(Err(status));
                return "peer_expired";
            }
            let until_expiry = self.until_expiry();
            let waits_until = self.waits_until;
            tokio::select! {
                biased;
                () = told(&mut down) => return "shutting_down",
                // Receivers remember what they have seen; a branch that is dropped loses nothing.
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return "shutting_down";
                    }
                    let state = Arc::clone(&self.state.borrow_and_update());
                    if self.waits_until.is_some() && self.up_to(&state) {
                        self.waits_until = None;
                    }
                    if let Err(refusal) = workload_of(&state.model, &self.hub.mesh, &self.peer) {
                        refuse(&self.hub, &self.peer, &self.out, refusal).await;
                        return "refused";
                    }
                    self.mark(state);
                }
                changed = self.bundles.changed() => {
                    if changed.is_err() {
                        return "shutting_down";
                    }
                    self.bundles.mark_unchanged();
                    self.pending.insert(Item::Bundle);
                }
                changed = self.keys.changed() => {
                    if changed.is_err() {
                        return "shutting_down";
                    }
                    self.keys.mark_unchanged();
                    self.pending.insert(Item::Keys);
                }
                changed = self.federation.changed(), if self.federates => {
                    if changed.is_err() {
                        return "shutting_down";
                    }
                    self.federation.mark_unchanged();
                    self.pending.insert(Item::Federation);
                }
                changed = self.quarantine.changed() => {
                    if changed.is_err() {
                        return "shutting_down";
                    }
                    self.cut_off = self.quarantine.borrow_and_update().holds(&self.peer);
                    self.pending.insert(Item::Quarantine);
                }
                // A place reserved and not used is given back.
                room = out.reserve(), if self.next_item().is_some() => match room {
                    Ok(room) => {
                        if let Some(message) = self.next_message() {
                            room.send(Ok(wire::ControlMessage { message: Some(message) }));
                        }
                    }
                    Err(_) => return "closed",
                },
                // Cancel-safe: a message is taken whole or stays in the decoder.
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(what) = self.take(message.message) {
                            let _ = self.out.try_send(Err(Status::invalid_argument(what)));
                            return "protocol";
                        }
                    }
                    Ok(None) | Err(_) => return "closed",
                },
                () = tokio::time::sleep(until_expiry) => {}
                // It is told what we have, and how old that is.
                () = tokio::time::sleep_until(waits_until.unwrap_or_else(Instant::now)), if waits_until.is_some() => {
                    self.waits_until = None;
                }
            }
        }
    }

    /// What may be sent now. Trust and quarantine wait for nothing; a proxy that is cut off hears of nothing else.
    fn next_item(&self) -> Option<Item> {
        let first = self.pending.first().copied();
        let may_go = |item: Item| match item {
            Item::Bundle | Item::Quarantine => true,
            Item::Federation => !self.cut_off,
            Item::Workload | Item::PeerLabels | Item::Keys | Item::Policies | Item::Ranges | Item::Destination(_) => {
                !self.cut_off && self.waits_until.is_none()
            }
        };
        first.filter(|item| may_go(*item))
    }

    fn until_expiry(&self) -> Duration {
        let left = self
            .peer
            .not_after()
            .as_secs()
            .saturating_sub(transport::now().as_secs());
        // One second on: an SVID holds through its last second.
        Duration::from_secs(left.saturating_add(1)).min(LOOK_AGAIN)
    }

    fn take(&mut self, message: Option<FromProxy>) -> Result<(), &'static str> {
        match message.ok_or("an empty message")? {
            FromProxy::Hello(_) => return Err("Hello comes once"),
            FromProxy::Acknowledge(acknowledge) => self.acknowledge(acknowledge)?,
            FromProxy::Resolve(resolve) => self.resolve(resolve)?,
            FromProxy::Release(release) => {
                self.destinations.remove(&release.id);
                self.pending.remove(&Item::Destination(release.id));
            }
            FromProxy::Flows(report) => self.report(report),
            FromProxy::WantKeys(want) => self.want_keys(want),
        }
        Ok(())
    }

    /// Only what its own rules name: a proxy makes nobody call for others.
    fn want_keys(&mut self, want: wire::WantKeys) {
        if self.cut_off {
            return;
        }
        let state = self.hub.state();
        let own = state.model.workloads.get(&self.name);
        if !own.is_some_and(|own| snapshot::providers(&state.model, own).contains(&want.provider)) {
            return;
        }
        let Some(number) = self.hub.keys.want(&want.provider) else {
            return;
        };
        let asks = self.asks.entry(want.provider).or_default();
        // All that wait for the same fetch are answered by it: one entry per fetch, and two can be under way.
        asks.retain(|(_, other)| *other != number);
        asks.push((want.ask, number));
    }

    fn resolve(&mut self, resolve: wire::Resolve) -> Result<(), &'static str> {
        let target = Target::parse(resolve.target)?;
        if self.destinations.len() >= MAX_DESTINATIONS && !self.destinations.contains_key(&resolve.id) {
            return Err("too many destinations on one stream");
        }
        self.destinations.insert(
            resolve.id,
            Subscription {
                target,
                sent: None,
                refused_as_older: false,
            },
        );
        self.pending.insert(Item::Destination(resolve.id));
        Ok(())
    }

    fn acknowledge(&mut self, acknowledge: wire::Acknowledge) -> Result<(), &'static str> {
        let kind = match acknowledge.kind() {
            wire::Kind::Unspecified => return Err("acknowledge: kind"),
            kind => kind,
        };
        if acknowledge.refused.is_empty() {
            self.hub.metrics.acknowledged(kind, "in_force");
            if let Some(subscriber) = self.hub.subscribers().of(&self.name, self.id) {
                subscriber.refused.take_if(|(refused, _)| *refused == kind);
                match kind {
                    wire::Kind::Policies => subscriber.policies.acknowledged(acknowledge.version),
                    wire::Kind::Bundle => subscriber.bundle.acknowledged(acknowledge.version),
                    wire::Kind::Quarantine => subscriber.quarantine.acknowledged(acknowledge.version),
                    wire::Kind::Unspecified
                    | wire::Kind::Workload
                    | wire::Kind::Destination
                    | wire::Kind::Ranges
                    | wire::Kind::PeerLabels
                    | wire::Kind::Federation => {}
                }
            }
            if matches!(kind, wire::Kind::Policies | wire::Kind::Quarantine) {
                self.hub.look();
            }
            return Ok(());
        }
        if acknowledge.version < self.came_with(kind) {
            self.refused_as_older(kind, acknowledge.version);
        }
        if !self.may_refuse(kind, acknowledge.version) {
            self.hub.metrics.acknowledged(kind, "ignored");
            return Ok(());
        }
        self.hub.metrics.acknowledged(kind, "refused");
        let mut refused = acknowledge.refused;
        observed::cut(&mut refused, MAX_REFUSAL);
        if let Some(subscriber) = self.hub.subscribers().of(&self.name, self.id) {
            subscriber.refused = Some((kind, refused.clone()));
        }
        let (namespace, name) = &self.name;
        let kind = snapshot_word(kind);
        tracing::error!(
            reason = "snapshot_refused",
            kind,
            version = acknowledge.version,
            "{namespace}/{name}: {refused}"
        );
        self.hub.event(
            "error",
            format!("{namespace}/{name} refuses {kind} {}: {refused}", acknowledge.version),
        );
        Ok(())
    }

    /// What it refused for its age would never be sent again while it stays the same, though it counts as newer by and by.
    fn refused_as_older(&mut self, kind: wire::Kind, version: u64) {
        if kind != wire::Kind::Destination {
            self.refused_as_older.insert(kind as i32);
            // Caught up before it said so: no other change may come to say it again.
            let caught_up = !self.lags(kind, &self.hub.state());
            let item = COUNTED_ITEMS.into_iter().find(|item| item.kind() == kind);
            self.pending.extend(item.filter(|_| caught_up));
            return;
        }
        // An acknowledgement does not say of which: of all that went out under this version. Twice is harmless.
        for subscription in self.destinations.values_mut() {
            subscription.refused_as_older |= subscription.sent.as_ref().is_some_and(|(_, sent)| *sent == version);
        }
        if !self.lags(kind, &self.hub.state()) {
            let refused = self
                .destinations
                .iter()
                .filter(|(_, subscription)| subscription.refused_as_older);
            self.pending.extend(refused.map(|(id, _)| Item::Destination(*id)));
        }
    }

    /// What was sent last of its kind, once: who refuses more than that would fill the log and push out others' events.
    fn may_refuse(&mut self, kind: wire::Kind, version: u64) -> bool {
        let kind = kind as i32;
        self.versions.get(&kind) == Some(&version) && self.refused.insert(kind, version) != Some(version)
    }

    fn report(&mut self, mut report: wire::FlowReport) {
        // Sent again after a hiccup: counted once.
        if report.sequence != 0 && report.sequence <= self.reported {
            return;
        }
        self.reported = report.sequence;
        let own_id = self.peer.id().as_str();
        if let Some(certificate) = report.certificate.take()
            && let Some(subscriber) = self.hub.subscribers().of(&self.name, self.id)
        {
            subscriber.certificate = Some(observed::certificate(own_id, certificate));
        }
        let overflow = self.hub.observed().take(&self.name, own_id, report);
        self.hub.metrics.overflow(overflow);
    }
}

/// What a snapshot kind is called in metrics and events.
pub(crate) fn snapshot_word(kind: wire::Kind) -> &'static str {
    match kind {
        wire::Kind::Unspecified => "unspecified",
        wire::Kind::Workload => "workload",
        wire::Kind::Policies => "policies",
        wire::Kind::Destination => "destination",
        wire::Kind::Bundle => "bundle",
        wire::Kind::Quarantine => "quarantine",
        wire::Kind::Ranges => "ranges",
        wire::Kind::PeerLabels => "peer_labels",
        wire::Kind::Federation => "federation",
    }
}

impl Item {
    fn kind(self) -> wire::Kind {
        match self {
            Self::Bundle => wire::Kind::Bundle,
            Self::Quarantine => wire::Kind::Quarantine,
            Self::Workload => wire::Kind::Workload,
            Self::Policies => wire::Kind::Policies,
            Self::Ranges => wire::Kind::Ranges,
            Self::PeerLabels => wire::Kind::PeerLabels,
            Self::Federation => wire::Kind::Federation,
            // Their age is their version: they are not acknowledged.
            Self::Keys => wire::Kind::Unspecified,
            Self::Destination(_) => wire::Kind::Destination,
        }
    }
}

//! What the cluster holds, as far as lists and watches have told; and what follows from it.
//!
//! Pure: changes in, a [`Load`] out. What is in a world depends on the objects alone, not on the order in which they were
//! heard of: so two replicas that have heard the same say the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::authentications::AuthenticationItem;
use super::namespaces::NamespaceItem;
use super::peer_authentications::PeerAuthenticationItem;
use super::pods::PodItem;
use super::policies::{AuthorizerItem, PolicyItem};
use super::services::{ServiceItem, SliceItem};
use crate::documents::{self, Backend, Document};
use crate::model::Name;
use crate::source::{Load, Reach, Revisions};

/// A kind that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Namespaces,
    Pods,
    Services,
    Slices,
    Policies,
    IstioPolicies,
    Authorizers,
    Authentications,
    IstioAuthentications,
    PeerAuthentications,
    IstioPeerAuthentications,
}

/// What is kept of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Namespace(NamespaceItem),
    Pod(PodItem),
    Service(ServiceItem),
    Slice(SliceItem),
    Policy(Box<PolicyItem>),
    Authorizer(AuthorizerItem),
    Authentication(AuthenticationItem),
    PeerAuthentication(PeerAuthenticationItem),
    /// Of a kind that may be missing: it is served. In no world.
    Definition,
}

/// What a follower has heard.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// All of a kind.
    Listed {
        kind: Kind,
        items: Vec<(Name, Item)>,
        revision: u64,
    },
    /// One object; `None`: it is gone, or does not count any more.
    Set {
        kind: Kind,
        name: Name,
        item: Option<Item>,
        revision: u64,
    },
    /// Nothing else happened up to there.
    Confirmed { kind: Kind, revision: u64 },
    /// The API server had no such kind up to there.
    Absent { kind: Kind, revision: u64 },
    /// It could not be asked; what was heard before stays.
    Failed { kind: Kind, why: String },
}

impl Change {
    /// Of which kind the API server said something; `None`: it said nothing.
    pub(super) fn heard(&self) -> Option<Kind> {
        match self {
            Self::Listed { kind, .. }
            | Self::Set { kind, .. }
            | Self::Confirmed { kind, .. }
            | Self::Absent { kind, .. } => Some(*kind),
            Self::Failed { .. } => None,
        }
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    /// The world is known to be newer than it was.
    Newer,
    /// Something in it is different.
    Different,
}

/// All of one kind.
#[derive(Debug, Default)]
struct Store {
    items: BTreeMap<Name, Item>,
    /// `None`: not heard yet.
    heard: Option<Heard>,
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    UpTo(u64),
    NoSuchKindUpTo(u64),
}

impl Heard {
    fn up_to(self) -> u64 {
        match self {
            Self::UpTo(revision) | Self::NoSuchKindUpTo(revision) => revision,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct World {
    stores: BTreeMap<Kind, Store>,
    /// Something about our policies is new, be it their status.
    touched: bool,
}

impl Kind {
    pub(super) const ALL: [Self; 11] = [
        Self::Namespaces,
        Self::Pods,
        Self::Services,
        Self::Slices,
        Self::Policies,
        Self::IstioPolicies,
        Self::Authorizers,
        Self::Authentications,
        Self::IstioAuthentications,
        Self::PeerAuthentications,
        Self::IstioPeerAuthentications,
    ];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::Slices => "endpointslices.discovery.k8s.io",
            Self::Policies => "authorizationpolicies.postern.dev",
            Self::IstioPolicies => "authorizationpolicies.security.istio.io",
            Self::Authorizers => "authorizers.postern.dev",
            Self::Authentications => "requestauthentications.postern.dev",
            Self::IstioAuthentications => "requestauthentications.security.istio.io",
            Self::PeerAuthentications => "peerauthentications.postern.dev",
            Self::IstioPeerAuthentications => "peerauthentications.security.istio.io",
        }
    }

    /// Does it show in the status of our policies?
    fn is_told_of(self) -> bool {
        matches!(self, Self::Policies | Self::Authorizers)
    }

    fn is_policy(self) -> bool {
        match self {
            Self::Policies
            | Self::IstioPolicies
            | Self::Authorizers
            | Self::Authentications
            | Self::IstioAuthentications => true,
            // What ports take is told with workloads and destinations.
            Self::PeerAuthentications | Self::IstioPeerAuthentications => false,
            Self::Namespaces | Self::Pods | Self::Services | Self::Slices => false,
        }
    }
}

impl World {
    pub(super) fn apply(&mut self, change: Change) -> Effect {
        match change {
            Change::Listed { kind, items, revision } => {
                let store = self.stores.entry(kind).or_default();
                let items: BTreeMap<Name, Item> = items.into_iter().collect();
                let same = store.heard.is_some() && all_the_same(&store.items, &items);
                self.touched |= kind.is_told_of();
                (store.items, store.heard, store.failure) = (items, Some(Heard::UpTo(revision)), None);
                if same { Effect::Newer } else { Effect::Different }
            }
            Change::Set {
                kind,
                name,
                item,
                revision,
            } => {
                let store = self.stores.entry(kind).or_default();
                store.newer(revision);
                let same = match (store.items.get(&name), &item) {
                    (Some(before), Some(item)) => before.same(item),
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                };
                self.touched |= kind.is_told_of();
                match item {
                    Some(item) => store.items.insert(name, item),
                    None => store.items.remove(&name),
                };
                if same { Effect::Newer } else { Effect::Different }
            }
            Change::Confirmed { kind, revision } => {
                self.stores.entry(kind).or_default().newer(revision);
                Effect::Newer
            }
            Change::Absent { kind, revision } => {
                let store = self.stores.entry(kind).or_default();
                let same = matches!(store.heard, Some(Heard::NoSuchKindUpTo(_)));
                (store.heard, store.failure) = (Some(Heard::NoSuchKindUpTo(revision)), None);
                store.items.clear();
                if same { Effect::Newer } else { Effect::Different }
            }
            Change::Failed { kind, why } => {
                self.stores.entry(kind).or_default().failure = Some(why);
                Effect::Newer
            }
        }
    }

    /// What is still to be heard, and why it is not yet; `None`: all is.
    pub(super) fn awaited(&self) -> Option<String> {
        let awaited = Kind::ALL.into_iter().filter_map(|kind| {
            let store = self.stores.get(&kind);
            if store.is_some_and(|store| store.heard.is_some()) {
                return None;
            }
            let why = store.and_then(|store| store.failure.clone());
            Some(why.unwrap_or_else(|| kind.word().to_owned()))
        });
        let awaited: Vec<String> = awaited.collect();
        (!awaited.is_empty()).then(|| format!("the cluster is not read yet: {}", awaited.join("; ")))
    }

    pub(super) fn revisions(&self) -> Revisions {
        let reach = |kinds: fn(Kind) -> bool| {
            let of = self.stores.iter().filter(|(kind, _)| kinds(**kind));
            let heard: Vec<u64> = of.filter_map(|(_, store)| store.heard.map(Heard::up_to)).collect();
            Reach {
                newest: heard.iter().copied().max().unwrap_or(0),
                complete: heard.iter().copied().min().unwrap_or(0),
            }
        };
        Revisions {
            // Which policies a proxy gets depends on its pod's and its namespace's labels as well.
            policies: reach(|kind| kind.is_policy() || matches!(kind, Kind::Pods | Kind::Namespaces)),
            others: reach(|kind| !kind.is_policy()),
        }
    }

    fn items(&self, kind: Kind) -> impl Iterator<Item = (&Name, &Item)> {
        self.stores.get(&kind).into_iter().flat_map(|store| &store.items)
    }

    /// Our policies, if anything about them is new since it was asked for last.
    pub(super) fn touched_policies(&mut self) -> Option<impl Iterator<Item = (Name, PolicyItem)>> {
        if !std::mem::take(&mut self.touched) {
            return None;
        }
        let policies = self.items(Kind::Policies).filter_map(|(name, item)| match item {
            Item::Policy(policy) => Some((name.clone(), PolicyItem::clone(policy))),
            Item::Namespace(_)
            | Item::Pod(_)
            | Item::Service(_)
            | Item::Slice(_)
            | Item::Authorizer(_)
            | Item::Authentication(_)
            | Item::PeerAuthentication(_)
            | Item::Definition => None,
        });
        Some(policies)
    }

    /// Everything in force.
    pub(super) fn load(&self) -> Load {
        let mut load = Load {
            revisions: Some(self.revisions()),
            ..Load::default()
        };
        for (_, item) in self.items(Kind::Namespaces) {
            if let Item::Namespace(namespace) = item {
                load.conditions.extend(namespace.conditions.iter().cloned());
                load.documents.push(Document::Namespace(namespace.document.clone()));
            }
        }
        self.load_pods(&mut load);
        self.load_services(&mut load);
        for kind in [Kind::Policies, Kind::IstioPolicies] {
            for (_, item) in self.items(kind) {
                if let Item::Policy(policy) = item {
                    load.documents.push(Document::Policy(policy.in_force.clone()));
                    if !policy.errors.is_empty() {
                        let place = policy.in_force.place.file.to_string();
                        load.bad.insert(place, policy.errors.clone());
                    }
                }
            }
        }
        for (_, item) in self.items(Kind::Authorizers) {
            if let Item::Authorizer(authorizer) = item {
                load.documents
                    .extend(authorizer.in_force.iter().map(Arc::clone).map(Document::Authorizer));
                if !authorizer.errors.is_empty() {
                    load.bad.insert(authorizer.place.clone(), authorizer.errors.clone());
                }
            }
        }
        for kind in [Kind::Authentications, Kind::IstioAuthentications] {
            for (_, item) in self.items(kind) {
                if let Item::Authentication(authentication) = item {
                    load.documents
                        .push(Document::Authentication(Arc::clone(&authentication.in_force)));
                    if !authentication.errors.is_empty() {
                        let place = authentication.in_force.place.file.to_string();
                        load.bad.insert(place, authentication.errors.clone());
                    }
                }
            }
        }
        for kind in [Kind::PeerAuthentications, Kind::IstioPeerAuthentications] {
            for (_, item) in self.items(kind) {
                if let Item::PeerAuthentication(peer) = item {
                    load.documents
                        .push(Document::PeerAuthentication(Arc::clone(&peer.in_force)));
                    if !peer.errors.is_empty() {
                        let place = peer.in_force.place.file.to_string();
                        load.bad.insert(place, peer.errors.clone());
                    }
                }
            }
        }
        let Revisions { policies, others } = self.revisions();
        if policies.complete == 0 || others.complete == 0 {
            load.conditions.push(
                "the API server's resource versions are no numbers: replicas of control cannot tell whose state is newer"
                    .to_owned(),
            );
        }
        load
    }

    /// An address is its newest pod's: the one before it may still be on its way out.
    fn load_pods(&self, load: &mut Load) {
        let pods = || {
            self.items(Kind::Pods).filter_map(|(_, item)| match item {
                Item::Pod(pod) => Some(pod),
                Item::Namespace(_)
                | Item::Service(_)
                | Item::Slice(_)
                | Item::Policy(_)
                | Item::Authorizer(_)
                | Item::Authentication(_)
                | Item::PeerAuthentication(_)
                | Item::Definition => None,
            })
        };
        let mut owners: HashMap<IpAddr, &PodItem> = HashMap::new();
        let mut contested = BTreeSet::new();
        for pod in pods().filter(|pod| !pod.document.pod.host_network) {
            for ip in &pod.document.addresses {
                if let Some(other) = owners.get(ip) {
                    contested.insert(*ip);
                    if other.rank() >= pod.rank() {
                        continue;
                    }
                }
                owners.insert(*ip, pod);
            }
        }
        for pod in pods() {
            load.conditions.extend(pod.conditions.iter().cloned());
            let mut document = Arc::clone(&pod.document);
            let lost = |ip: &IpAddr| contested.contains(ip) && !owners.get(ip).is_some_and(|owner| *owner == pod);
            if !document.pod.host_network && document.addresses.iter().any(lost) {
                let mut own = documents::Workload::clone(&document);
                own.addresses.retain(|ip| !lost(ip));
                document = Arc::new(own);
            }
            load.documents.push(Document::Workload(document));
        }
    }

    fn load_services(&self, load: &mut Load) {
        let mut slices: HashMap<&Name, Vec<&SliceItem>> = HashMap::new();
        for (_, item) in self.items(Kind::Slices) {
            if let Item::Slice(slice) = item {
                slices.entry(&slice.service).or_default().push(slice);
            }
        }
        for (name, item) in self.items(Kind::Services) {
            if let Item::Service(service) = item {
                let mut document = documents::Service::clone(&service.document);
                let slices = slices.get(name).map_or(&[][..], Vec::as_slice);
                let backends: BTreeSet<Backend> = document
                    .ports
                    .iter()
                    .flat_map(|port| super::services::backends(port, slices))
                    .collect();
                document.backends = Some(backends.into_iter().collect());
                load.documents.push(Document::Service(Arc::new(document)));
            }
        }
    }
}

impl Item {
    /// Does it mean the same? What people read about a policy is no part of that.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Policy(one), Self::Policy(other)) => one.does_as(other),
            (one, other) => one == other,
        }
    }
}

fn all_the_same(before: &BTreeMap<Name, Item>, after: &BTreeMap<Name, Item>) -> bool {
    before.len() == after.len()
        && before
            .iter()
            .zip(after)
            .all(|((a, before), (b, after))| a == b && before.same(after))
}

impl Store {
    /// A list that came from a restored API server may have set it back; events do not.
    fn newer(&mut self, revision: u64) {
        if let Some(Heard::UpTo(heard) | Heard::NoSuchKindUpTo(heard)) = &mut self.heard {
            *heard = revision.max(*heard);
        }
    }
}

#[cfg(test)]
mod tests;

//! Makes the next message, from what is in force now; nothing if the proxy has it already.

use std::collections::BTreeSet;
use std::sync::Arc;

use postern_api::control::v1 as wire;
use postern_api::control::v1::control_message::Message;

use super::{Item, Session, snapshot_word};
use crate::snapshot;
use crate::state::State;

/// The next version of what is counted by each control for itself.
fn above(last: u64, revision: u64) -> u64 {
    revision.max(last.saturating_add(1))
}

impl Session {
    /// Takes the first item that may need sending off the list.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        let item = self.next_item()?;
        self.pending.remove(&item);
        let state = self.hub.state();
        let message = match item {
            Item::Bundle => self.bundle(),
            Item::Quarantine => self.quarantine(&state),
            Item::Federation => self.federation(),
            Item::Workload => self.workload(&state),
            Item::Policies => self.policies(&state),
            Item::PeerLabels => self.peer_labels(&state),
            Item::Keys => self.keys(&state),
            Item::Ranges => self.ranges(&state),
            Item::Destination(id) => self.destination(&state, id),
        }?;
        let word = if item == Item::Keys {
            "keys"
        } else {
            snapshot_word(item.kind())
        };
        self.hub.metrics.pushed(word);
        Some(message)
    }

    /// Of a directory: above all that this proxy was given of the kind, whoever gave it. Of a cluster: how new it is. To a
    /// proxy that has something which we may lack, that is no more than what we lack nothing of: it refuses that.
    fn version(&mut self, kind: wire::Kind, state: &State) -> u64 {
        let (reach, lags) = (state.reach(kind), self.lags(kind, state));
        let last = self.versions.entry(kind as i32).or_default();
        *last = match state.shared_count {
            true if lags => reach.complete,
            true => reach.newest,
            false => above(*last, reach.newest),
        };
        *last
    }

    /// Was the last one refused for its age, and would it not be any more? Once.
    fn again(&mut self, kind: wire::Kind, state: &State) -> bool {
        !self.lags(kind, state) && self.refused_as_older.remove(&(kind as i32))
    }

    fn workload(&mut self, state: &State) -> Option<Message> {
        let workload = state.model.workloads.get(&self.name)?;
        let mut config = snapshot::workload(&state.model, workload, self.features, 0);
        if !self.again(wire::Kind::Workload, state) && self.sent.workload.as_ref() == Some(&config) {
            return None;
        }
        self.sent.workload = Some(config.clone());
        config.version = self.version(wire::Kind::Workload, state);
        Some(Message::Workload(config))
    }

    fn policies(&mut self, state: &State) -> Option<Message> {
        let workload = state.model.workloads.get(&self.name)?;
        let mut set = snapshot::policies(&state.model, workload, self.features, 0);
        if !self.again(wire::Kind::Policies, state) && self.sent.policies.as_ref() == Some(&set) {
            if let Some(subscriber) = self.hub.subscribers().of(&self.name, self.id) {
                subscriber.policies.unchanged(state.policy_version);
            }
            return None;
        }
        self.sent.policies = Some(set.clone());
        set.version = self.version(wire::Kind::Policies, state);
        if let Some(subscriber) = self.hub.subscribers().of(&self.name, self.id) {
            subscriber.policies.sent(set.version, state.policy_version);
        }
        Some(Message::Policies(set))
    }

    /// Before the first rule that looks at labels nothing is sent; after the last, that there are none.
    fn peer_labels(&mut self, state: &State) -> Option<Message> {
        let workload = state.model.workloads.get(&self.name)?;
        let names = snapshot::label_names(&state.model, workload);
        let looks_at_none = names.iter().all(BTreeSet::is_empty);
        if looks_at_none && self.sent.peer_labels.is_none() {
            return None;
        }
        let labels = state.peer_labels(names);
        let same = self.sent.peer_labels.as_ref().is_some_and(|sent| *sent == labels);
        if !self.again(wire::Kind::PeerLabels, state) && same {
            return None;
        }
        self.sent.peer_labels = (!looks_at_none).then(|| Arc::clone(&labels));
        let version = self.version(wire::Kind::PeerLabels, state);
        Some(Message::PeerLabels(wire::PeerLabels {
            version,
            ..wire::PeerLabels::clone(&labels)
        }))
    }

    /// One provider's keys that are newer than what was sent; the others come next.
    fn keys(&mut self, state: &State) -> Option<Message> {
        if !snapshot::knows_users(self.features) {
            return None;
        }
        let workload = state.model.workloads.get(&self.name)?;
        let providers = snapshot::providers(&state.model, workload);
        self.sent.keys.retain(|provider, _| providers.contains(provider));
        self.asks.retain(|provider, _| providers.contains(provider));
        let ring = self.hub.keys.ring();
        let newer = |provider: &String| {
            let fetched = ring.get(provider)?;
            let sent = self.sent.keys.get(provider);
            sent.is_none_or(|number| *number != fetched.number)
                .then(|| (provider.clone(), Arc::clone(fetched)))
        };
        let (provider, fetched) = providers.iter().find_map(newer)?;
        self.sent.keys.insert(provider.clone(), fetched.number);
        self.pending.insert(Item::Keys);
        let asks = self.asks.get_mut(&provider);
        let answered = asks.map(|asks| {
            asks.extract_if(.., |(_, number)| *number <= fetched.number)
                .map(|(ask, _)| ask)
                .max()
        });
        Some(Message::Keys(wire::KeySet {
            answers: answered.flatten().unwrap_or(0),
            provider,
            fetched_unix: fetched.at,
            jwks: fetched.jwks.clone(),
        }))
    }

    fn ranges(&mut self, state: &State) -> Option<Message> {
        let mut ranges = snapshot::ranges(&state.model, 0);
        if !self.again(wire::Kind::Ranges, state) && self.sent.ranges.as_ref() == Some(&ranges) {
            return None;
        }
        self.sent.ranges = Some(ranges.clone());
        ranges.version = self.version(wire::Kind::Ranges, state);
        Some(Message::Ranges(ranges))
    }

    fn bundle(&mut self) -> Option<Message> {
        let bundles = self.hub.bundles();
        // None yet: the proxy has the one that came with its SVID.
        if bundles.version == 0 || self.sent.bundle == Some(bundles.version) {
            return None;
        }
        self.sent.bundle = Some(bundles.version);
        let last = self.versions.entry(wire::Kind::Bundle as i32).or_default();
        *last = above(*last, bundles.version);
        let version = *last;
        if let Some(subscriber) = self.hub.subscribers().of(&self.name, self.id) {
            subscriber.bundle.sent(version, bundles.sequence);
        }
        Some(Message::Bundle(snapshot::bundles(&bundles, version)))
    }

    /// Without a file that was read the proxy keeps what it has, as another control may have given it.
    fn federation(&mut self) -> Option<Message> {
        let told = self.hub.federation.told();
        if told.version == 0 || self.sent.federation == Some(told.version) {
            return None;
        }
        self.sent.federation = Some(told.version);
        let last = self.versions.entry(wire::Kind::Federation as i32).or_default();
        *last = above(*last, told.version);
        Some(Message::Federation(snapshot::federation(&told, *last)))
    }

    /// A proxy must hear, too, that nobody is cut off.
    fn quarantine(&mut self, state: &State) -> Option<Message> {
        let held = self.hub.quarantine();
        if self.sent.quarantine == Some(held.version) {
            return None;
        }
        self.sent.quarantine = Some(held.version);
        let Some(signed) = held.signed.clone() else {
            let version = self.version(wire::Kind::Quarantine, state);
            return Some(Message::Quarantine(wire::Quarantine {
                version,
                ..wire::Quarantine::default()
            }));
        };
        self.versions.insert(wire::Kind::Quarantine as i32, held.version);
        if let Some(subscriber) = self.hub.subscribers().of(&self.name, self.id) {
            subscriber.quarantine.sent(held.version, held.version);
        }
        let (spiffe_ids, instances) = held.in_clear();
        Some(Message::Quarantine(wire::Quarantine {
            version: held.version,
            spiffe_ids,
            instances,
            signed: Some(signed),
        }))
    }

    fn destination(&mut self, state: &State, id: u64) -> Option<Message> {
        let lags = self.lags(wire::Kind::Destination, state);
        let subscription = self.destinations.get_mut(&id)?;
        let answer = state.answer(&subscription.target, &self.name.0);
        let again = !lags && std::mem::take(&mut subscription.refused_as_older);
        if !again
            && let Some((sent, _)) = &subscription.sent
            && (Arc::ptr_eq(sent, &answer) || *sent == answer)
        {
            return None;
        }
        // Each destination has a version of its own, and an answer changes only with the state. One counter for all of them
        // would begin lower on the next stream than what this one gave to the last of several.
        let reach = state.reach(wire::Kind::Destination);
        let version = if lags { reach.complete } else { reach.newest };
        subscription.sent = Some((Arc::clone(&answer), version));
        self.versions.insert(wire::Kind::Destination as i32, version);
        let mut answer = wire::destination::State::clone(&answer);
        if self.hub.mesh.without_instances
            && let wire::destination::State::Meshed(meshed) = &mut answer
        {
            // Nobody could show one.
            meshed
                .endpoints
                .iter_mut()
                .for_each(|endpoint| endpoint.instance.clear());
        }
        Some(Message::Destination(wire::Destination {
            version,
            id,
            state: Some(answer),
        }))
    }
}

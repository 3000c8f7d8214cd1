//! Which versions are held, and what to do with older ones: a replica of control that lags must not turn us back.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use postern_api::control::v1 as wire;

use crate::snapshot::Target;

/// An older version is refused for this long; whoever still says the same then is right (a control that was restored).
pub(super) const REFUSE_OLDER_FOR: Duration = Duration::from_secs(60);

/// What has a version of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Workload,
    Policies,
    Bundle,
    Quarantine,
    Federation,
    Ranges,
    PeerLabels,
    Destination(Target),
}

/// One update from control.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Update {
    Workload(wire::WorkloadConfig),
    Policies(wire::PolicySet),
    Bundle(wire::BundleSet),
    Quarantine(wire::Quarantine),
    Federation(wire::Federation),
    Ranges(wire::Ranges),
    PeerLabels(wire::PeerLabels),
    Destination(Target, wire::Destination),
}

impl Update {
    pub(super) fn key(&self) -> Key {
        match self {
            Self::Workload(_) => Key::Workload,
            Self::Policies(_) => Key::Policies,
            Self::Bundle(_) => Key::Bundle,
            Self::Quarantine(_) => Key::Quarantine,
            Self::Federation(_) => Key::Federation,
            Self::Ranges(_) => Key::Ranges,
            Self::PeerLabels(_) => Key::PeerLabels,
            Self::Destination(target, _) => Key::Destination(target.clone()),
        }
    }
    pub(super) fn kind(&self) -> wire::Kind {
        kind(&self.key())
    }
    pub(super) fn version(&self) -> u64 {
        match self {
            Self::Workload(m) => m.version,
            Self::Policies(m) => m.version,
            Self::Bundle(m) => m.version,
            Self::Quarantine(m) => m.version,
            Self::Federation(m) => m.version,
            Self::Ranges(m) => m.version,
            Self::PeerLabels(m) => m.version,
            Self::Destination(_, m) => m.version,
        }
    }
}

pub(super) fn kind(key: &Key) -> wire::Kind {
    match key {
        Key::Workload => wire::Kind::Workload,
        Key::Policies => wire::Kind::Policies,
        Key::Bundle => wire::Kind::Bundle,
        Key::Quarantine => wire::Kind::Quarantine,
        Key::Federation => wire::Kind::Federation,
        Key::Ranges => wire::Kind::Ranges,
        Key::PeerLabels => wire::Kind::PeerLabels,
        Key::Destination(_) => wire::Kind::Destination,
    }
}

/// The versions in force, and older updates that wait out their refusal.
#[derive(Debug, Default)]
pub(super) struct Versions {
    held: HashMap<Key, u64>,
    older: HashMap<Key, (Instant, Update)>,
}

impl Versions {
    /// May it be applied? An older one is kept for [`Versions::due`]. How old a quarantine is is the CA's word, not control's:
    /// that is looked at with its signature, and it never goes back.
    pub(super) fn admit(&mut self, update: &Update, now: Instant) -> Result<(), String> {
        let key = update.key();
        if key == Key::Quarantine {
            return Ok(());
        }
        let Some(held) = self.held.get(&key).copied() else {
            return Ok(());
        };
        if update.version() >= held {
            return Ok(());
        }
        let since = self.older.get(&key).map_or(now, |(since, _)| *since);
        self.older.insert(key, (since, update.clone()));
        Err(format!(
            "version {} is older than {held}, which is in force",
            update.version()
        ))
    }

    /// It is in force now.
    pub(super) fn applied(&mut self, key: Key, version: u64) {
        self.older.remove(&key);
        self.held.insert(key, version);
    }

    /// Nothing is known of it any more.
    pub(super) fn forget(&mut self, key: &Key) {
        self.held.remove(key);
        self.older.remove(key);
    }

    /// Only a control that is there can keep saying it.
    pub(super) fn stream_ended(&mut self) {
        self.older.clear();
    }

    /// Older updates that have been refused for long enough, and that nothing newer has replaced.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Update> {
        let due = |since: Instant| now.duration_since(since) >= REFUSE_OLDER_FOR;
        let ready = self.older.extract_if(|_, (since, _)| due(*since));
        ready.map(|(_, (_, update))| update).collect()
    }

    /// For Hello: the newest of each kind. Destinations are asked for again, one by one, but how new the newest is tells
    /// control whether it lags.
    pub(super) fn held(&self) -> Vec<wire::Held> {
        let mut newest: BTreeMap<i32, u64> = BTreeMap::new();
        for (key, version) in &self.held {
            let newest = newest.entry(kind(key) as i32).or_default();
            *newest = (*newest).max(*version);
        }
        let held = newest.into_iter().map(|(kind, version)| wire::Held { kind, version });
        held.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn policies(version: u64) -> Update {
        Update::Policies(wire::PolicySet {
            version,
            policies: Vec::new(),
            ..wire::PolicySet::default()
        })
    }

    #[test]
    fn an_older_version_is_refused_for_60_s_and_then_taken_unless_a_newer_came() {
        let start = Instant::now();
        let mut versions = Versions::default();
        assert!(versions.admit(&policies(5), start).is_ok());
        versions.applied(Key::Policies, 5);
        let why = versions.admit(&policies(4), start).unwrap_err();
        assert!(why.contains("older than 5"), "{why}");
        // Said again, its time does not begin anew.
        versions.admit(&policies(4), start + REFUSE_OLDER_FOR / 2).unwrap_err();
        let just_before = start + REFUSE_OLDER_FOR - Duration::from_millis(1);
        assert!(versions.due(just_before).is_empty());
        assert_eq!(versions.due(start + REFUSE_OLDER_FOR), [policies(4)]);
        versions.admit(&policies(3), start).unwrap_err();
        versions.applied(Key::Policies, 6);
        assert!(versions.due(start + REFUSE_OLDER_FOR * 2).is_empty());
    }

    /// A control that lagged and died had its older policy put in force a minute later, with nobody there.
    #[test]
    fn an_older_version_is_forgotten_with_the_control_that_said_it() {
        let start = Instant::now();
        let mut versions = Versions::default();
        versions.applied(Key::Policies, 5);
        versions.admit(&policies(4), start).unwrap_err();
        versions.stream_ended();
        assert!(versions.due(start + REFUSE_OLDER_FOR * 2).is_empty());
        // Its time begins anew with the next that says so.
        versions.admit(&policies(4), start + REFUSE_OLDER_FOR).unwrap_err();
        assert!(versions.due(start + REFUSE_OLDER_FOR).is_empty());
    }

    #[test]
    fn hello_tells_the_newest_version_of_each_kind() {
        let mut versions = Versions::default();
        versions.applied(Key::Policies, 5);
        for (id, version) in [(1, 7), (2, 9), (3, 8)] {
            let target = Target::Address(([10, 0, 0, id], 80).into());
            versions.applied(Key::Destination(target), version);
        }
        let held: Vec<(i32, u64)> = versions.held().iter().map(|held| (held.kind, held.version)).collect();
        let of = |kind: wire::Kind, version| (kind as i32, version);
        assert_eq!(held, [of(wire::Kind::Policies, 5), of(wire::Kind::Destination, 9)]);
    }
}

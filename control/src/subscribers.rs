//! Who is connected, what each has acknowledged, and its certificate; kept a while after it has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use postern_api::control::v1 as wire;

use crate::model::Name;

/// Streams of one workload: one, and for a moment the one that it replaces.
const MAX_STREAMS_PER_WORKLOAD: usize = 4;
/// Streams altogether, unless `--max-proxies` says otherwise: each holds a TLS and an HTTP/2 connection, and what was sent
/// last. What that takes was not measured at this number.
pub(crate) const MAX_STREAMS: usize = 4096;
/// How long a workload that has gone is remembered.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// By workload.
#[derive(Debug)]
pub(crate) struct Subscribers {
    by_name: BTreeMap<Name, Subscriber>,
    streams: usize,
    /// At most so many.
    pub(crate) max_streams: usize,
    next_id: u64,
}

impl Default for Subscribers {
    fn default() -> Self {
        Self {
            by_name: BTreeMap::new(),
            streams: 0,
            max_streams: MAX_STREAMS,
            next_id: 0,
        }
    }
}

/// One workload's proxy.
#[derive(Debug, Default)]
pub(crate) struct Subscriber {
    pub(crate) spiffe_id: String,
    pub(crate) proxy_version: String,
    pub(crate) policies: Acknowledged,
    pub(crate) bundle: Acknowledged,
    pub(crate) quarantine: Acknowledged,
    pub(crate) certificate: Option<wire::Certificate>,
    /// The snapshot that it refused last, until it takes one of that kind.
    pub(crate) refused: Option<(wire::Kind, String)>,
    /// The newest is the one whose word counts.
    streams: BTreeSet<u64>,
    gone_since: Option<Instant>,
}

/// What a proxy has in force of one kind.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    /// In the reader's terms: the policy version, the bundle's sequence, the quarantine's version.
    pub(crate) in_force: u64,
    /// The message sent last, and what its acknowledgement will mean.
    sent: u64,
    means: u64,
    settled: bool,
}

impl Acknowledged {
    /// A message was sent under `version`; it carries what readers know as `means`.
    pub(crate) fn sent(&mut self, version: u64, means: u64) {
        (self.sent, self.means, self.settled) = (version, means, false);
    }
    /// What was sent is what `means` says, too: nothing needed to be sent.
    pub(crate) fn unchanged(&mut self, means: u64) {
        self.means = means;
        if self.settled {
            self.in_force = means;
        }
    }
    /// The proxy has put `version` in force.
    pub(crate) fn acknowledged(&mut self, version: u64) {
        if version == self.sent {
            self.settled = true;
            self.in_force = self.means;
        }
    }
}

impl Subscribers {
    /// A new stream's number; `None` if there are too many.
    pub(crate) fn connect(&mut self, name: &Name, spiffe_id: &str, proxy_version: &str) -> Option<u64> {
        let subscriber = self.by_name.entry(name.clone()).or_default();
        if self.streams >= self.max_streams || subscriber.streams.len() >= MAX_STREAMS_PER_WORKLOAD {
            return None;
        }
        self.next_id += 1;
        self.streams += 1;
        subscriber.streams.insert(self.next_id);
        subscriber.gone_since = None;
        spiffe_id.clone_into(&mut subscriber.spiffe_id);
        proxy_version.clone_into(&mut subscriber.proxy_version);
        (subscriber.policies, subscriber.bundle, subscriber.refused) = Default::default();
        subscriber.quarantine = Acknowledged::default();
        Some(self.next_id)
    }

    /// A stream ended. True if it was the workload's last.
    pub(crate) fn disconnect(&mut self, name: &Name, id: u64) -> bool {
        let Some(subscriber) = self.by_name.get_mut(name) else {
            return false;
        };
        if !subscriber.streams.remove(&id) {
            return false;
        }
        self.streams -= 1;
        let last = subscriber.streams.is_empty();
        if last {
            subscriber.gone_since = Some(Instant::now());
        }
        last
    }

    /// The record, if `id` is its newest stream.
    pub(crate) fn of(&mut self, name: &Name, id: u64) -> Option<&mut Subscriber> {
        self.by_name
            .get_mut(name)
            .filter(|subscriber| subscriber.streams.last() == Some(&id))
    }

    /// Forgets those long gone; says whom.
    pub(crate) fn prune(&mut self, now: Instant) -> Vec<Name> {
        let gone: Vec<Name> = self
            .by_name
            .iter()
            .filter(|(_, s)| s.streams.is_empty() && s.gone_since.is_none_or(|since| now > since + REMEMBERED))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            self.by_name.remove(name);
        }
        gone
    }

    #[cfg(feature = "kubernetes")]
    pub(crate) fn get(&self, name: &Name) -> Option<&Subscriber> {
        self.by_name.get(name)
    }

    /// The stream that speaks for it.
    #[cfg(all(test, feature = "kubernetes"))]
    pub(crate) fn newest(&self, name: &Name) -> Option<u64> {
        self.by_name.get(name)?.streams.last().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &Subscriber)> {
        self.by_name.iter()
    }

    /// Open streams, also of one workload.
    pub(crate) fn streams(&self) -> usize {
        self.streams
    }

    /// Workloads with an open stream.
    pub(crate) fn connected(&self) -> usize {
        self.by_name
            .values()
            .filter(|subscriber| subscriber.connected())
            .count()
    }
}

impl Subscriber {
    pub(crate) fn connected(&self) -> bool {
        !self.streams.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn name() -> Name {
        ("shop".to_owned(), "cart".to_owned())
    }

    #[test]
    fn streams_of_one_workload_are_bounded_and_freed() {
        let mut subscribers = Subscribers::default();
        let ids: Vec<u64> = (0..MAX_STREAMS_PER_WORKLOAD)
            .map(|_| subscribers.connect(&name(), "spiffe://td/x", "1.0.0").unwrap())
            .collect();
        assert_eq!(subscribers.connect(&name(), "spiffe://td/x", "1.0.0"), None);
        subscribers.disconnect(&name(), ids[0]);
        assert!(subscribers.connect(&name(), "spiffe://td/x", "1.0.0").is_some());
    }

    #[test]
    fn streams_altogether_are_as_many_as_is_set() {
        let mut subscribers = Subscribers {
            max_streams: 2,
            ..Subscribers::default()
        };
        let of = |n: u8| ("shop".to_owned(), format!("cart-{n}"));
        let first = subscribers.connect(&of(0), "spiffe://td/x", "1.0.0").unwrap();
        subscribers.connect(&of(1), "spiffe://td/x", "1.0.0").unwrap();
        assert_eq!(subscribers.connect(&of(2), "spiffe://td/x", "1.0.0"), None);
        subscribers.disconnect(&of(0), first);
        assert!(subscribers.connect(&of(2), "spiffe://td/x", "1.0.0").is_some());
        assert_eq!(subscribers.streams(), 2);
    }

    #[test]
    fn only_the_newest_stream_speaks_for_a_workload() {
        let mut subscribers = Subscribers::default();
        let old = subscribers.connect(&name(), "spiffe://td/x", "1.0.0").unwrap();
        let new = subscribers.connect(&name(), "spiffe://td/x", "1.0.0").unwrap();
        assert!(subscribers.of(&name(), old).is_none());
        assert!(subscribers.of(&name(), new).is_some());
    }

    #[test]
    fn an_acknowledgement_counts_only_for_what_was_sent_last() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.sent(10, 7);
        acknowledged.sent(12, 8);
        acknowledged.acknowledged(10);
        assert_eq!(acknowledged.in_force, 0);
        acknowledged.acknowledged(12);
        assert_eq!(acknowledged.in_force, 8);
        // A policy elsewhere changed: what this proxy holds is the newest, without another message.
        acknowledged.unchanged(9);
        assert_eq!(acknowledged.in_force, 9);
    }

    #[test]
    fn who_has_long_gone_is_forgotten() {
        let mut subscribers = Subscribers::default();
        let id = subscribers.connect(&name(), "spiffe://td/x", "1.0.0").unwrap();
        subscribers.disconnect(&name(), id);
        let now = Instant::now();
        assert!(subscribers.prune(now).is_empty());
        assert_eq!(
            subscribers.prune(now + REMEMBERED + Duration::from_secs(1)),
            vec![name()]
        );
        assert_eq!(subscribers.iter().count(), 0);
    }
}

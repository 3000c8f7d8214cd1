//! Every metric of control. Labels come from closed sets.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use postern_api::control::v1::Kind;
use postern_identity::TrustDomain;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::connect::snapshot_word;
use crate::keys::Ring;
use crate::observed::Overflow;
use crate::state::State;
use crate::subscribers::Subscribers;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Acknowledgement {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Of the few that the operator names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTrustDomain {
    trust_domain: String,
}

/// Handles; clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    connected: Gauge,
    streams: Gauge,
    streams_limit: Gauge,
    pushes: Family<OfKind, Counter>,
    acknowledgements: Family<Acknowledgement, Counter>,
    refused: Family<Reason, Counter>,
    handshakes_failed: Family<Reason, Counter>,
    reloads: Family<Outcome, Counter>,
    source_failures: Counter,
    source_heard: Gauge<f64, AtomicU64>,
    bad_files: Gauge,
    conditions: Gauge,
    policy_version: Gauge,
    bundle_sequence: Gauge,
    dropped: Family<OfKind, Counter>,
    renewals: Family<Outcome, Counter>,
    certificate_not_after: Gauge<f64, AtomicU64>,
    ca_connected: Gauge,
    key_fetches: Family<Outcome, Counter>,
    key_providers: Gauge,
    key_providers_without: Gauge,
    keys_oldest: Gauge<f64, AtomicU64>,
    federation_fetches: Family<Outcome, Counter>,
    federation_fetched: Family<OfTrustDomain, Gauge<f64, AtomicU64>>,
}

const KINDS: [Kind; 8] = [
    Kind::Workload,
    Kind::Policies,
    Kind::Destination,
    Kind::Bundle,
    Kind::Quarantine,
    Kind::Federation,
    Kind::Ranges,
    Kind::PeerLabels,
];
const REFUSALS: [&str; 7] = [
    "trust_domain",
    "no_workload",
    "no_instance",
    "unknown_workload",
    "service_account",
    "not_meshed",
    "version",
];

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let inner = &metrics.inner;
        // Every series is there from the start: a rate over one that appears with its first event misses it.
        for kind in KINDS.map(snapshot_word) {
            drop(inner.pushes.get_or_create(&OfKind { kind }));
            for outcome in ["in_force", "refused", "ignored"] {
                drop(inner.acknowledgements.get_or_create(&Acknowledgement { kind, outcome }));
            }
        }
        for reason in REFUSALS {
            drop(inner.refused.get_or_create(&Reason { reason }));
        }
        drop(inner.pushes.get_or_create(&OfKind { kind: "keys" }));
        for outcome in ["done", "failed"] {
            drop(inner.key_fetches.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["done", "failed", "older"] {
            drop(inner.federation_fetches.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["good", "bad"] {
            drop(inner.reloads.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["done", "failed"] {
            drop(inner.renewals.get_or_create(&Outcome { outcome }));
        }
        for kind in ["flows", "denials", "events"] {
            drop(inner.dropped.get_or_create(&OfKind { kind }));
        }
        let registry = registry.sub_registry_with_prefix("postern_control");
        registry.register(
            "connected_proxies",
            "Workloads whose proxy is connected",
            inner.connected.clone(),
        );
        registry.register("streams", "Open streams of proxies", inner.streams.clone());
        registry.register(
            "streams_limit",
            "Streams past which proxies are refused",
            inner.streams_limit.clone(),
        );
        registry.register("pushes", "Snapshots sent to proxies, by kind", inner.pushes.clone());
        registry.register(
            "acknowledgements",
            "Snapshots that proxies put in force or refused, by kind; ignored: refused again, or not what was sent last",
            inner.acknowledgements.clone(),
        );
        registry.register(
            "proxies_refused",
            "Proxies that were not served, by reason",
            inner.refused.clone(),
        );
        registry.register(
            "handshakes_failed",
            "TLS handshakes that did not become a connection, by reason",
            inner.handshakes_failed.clone(),
        );
        registry.register(
            "source_reloads",
            "Changes of the directory or the cluster that were read; bad: some file or object is refused",
            inner.reloads.clone(),
        );
        registry.register(
            "source_failures",
            "Lists and watches of the cluster that failed",
            inner.source_failures.clone(),
        );
        registry.register(
            "source_heard_timestamp_seconds",
            "When the kind of object that was heard of least recently was; of a directory 0",
            inner.source_heard.clone(),
        );
        registry.register(
            "bad_files",
            "Files or objects that are refused now",
            inner.bad_files.clone(),
        );
        registry.register("conditions", "Faults between documents now", inner.conditions.clone());
        registry.register(
            "policy_version",
            "Version that last changed a policy",
            inner.policy_version.clone(),
        );
        registry.register(
            "bundle_sequence",
            "Sequence number of the trust bundle",
            inner.bundle_sequence.clone(),
        );
        registry.register(
            "reported_dropped",
            "Parts of flow reports past their bounds, by kind",
            inner.dropped.clone(),
        );
        registry.register(
            "certificate_renewals",
            "Attempts to renew the own SVID",
            inner.renewals.clone(),
        );
        registry.register(
            "certificate_not_after_timestamp_seconds",
            "Last instant of the own SVID",
            inner.certificate_not_after.clone(),
        );
        registry.register(
            "ca_connected",
            "1 while the CA's bundle stream is open",
            inner.ca_connected.clone(),
        );
        registry.register(
            "key_fetches",
            "Fetches of the keys of end users' issuers",
            inner.key_fetches.clone(),
        );
        registry.register(
            "key_providers",
            "Issuers whose keys are fetched",
            inner.key_providers.clone(),
        );
        registry.register(
            "key_providers_without_keys",
            "Of these, those whose keys were never fetched: their tokens are refused",
            inner.key_providers_without.clone(),
        );
        registry.register(
            "keys_fetched_timestamp_seconds",
            "When the keys that were fetched least recently were; 0 if there are none",
            inner.keys_oldest.clone(),
        );
        registry.register(
            "federation_fetches",
            "Fetches of the bundles of other trust domains; older: one with a lower sequence than the one in force",
            inner.federation_fetches.clone(),
        );
        registry.register(
            "federation_fetched_timestamp_seconds",
            "When the bundle of another trust domain was last fetched from its endpoint and is in force; 0 if it was not yet",
            inner.federation_fetched.clone(),
        );
        metrics
    }

    /// `done` or `failed`.
    pub(crate) fn keys_fetched(&self, outcome: &'static str) {
        self.inner.key_fetches.get_or_create(&Outcome { outcome }).inc();
    }
    #[allow(clippy::cast_precision_loss)] // As below.
    pub(crate) fn keys(&self, ring: &Ring, providers: usize) {
        self.inner.key_providers.set(clamp(providers as u64));
        let without = providers.saturating_sub(ring.len());
        self.inner.key_providers_without.set(clamp(without as u64));
        let oldest = ring.values().map(|fetched| fetched.at).min();
        self.inner.keys_oldest.set(oldest.unwrap_or(0) as f64);
    }

    /// `done`, `failed` or `older`.
    pub(crate) fn federation_fetched(&self, outcome: &'static str) {
        self.inner.federation_fetches.get_or_create(&Outcome { outcome }).inc();
    }
    #[allow(clippy::cast_precision_loss)] // As below.
    pub(crate) fn federated(&self, trust_domain: &TrustDomain, unix_ms: u64) {
        let of = OfTrustDomain {
            trust_domain: trust_domain.to_string(),
        };
        let gauge = self.inner.federation_fetched.get_or_create(&of);
        gauge.set(unix_ms as f64 / 1000.0);
    }
    /// A relationship with an endpoint begins: what is not there yet would alert nobody.
    pub(crate) fn federating(&self, trust_domain: &TrustDomain) {
        let of = OfTrustDomain {
            trust_domain: trust_domain.to_string(),
        };
        drop(self.inner.federation_fetched.get_or_create(&of));
    }
    pub(crate) fn not_federated_any_more(&self, trust_domain: &TrustDomain) {
        self.inner.federation_fetched.remove(&OfTrustDomain {
            trust_domain: trust_domain.to_string(),
        });
    }

    pub(crate) fn connected(&self, subscribers: &Subscribers) {
        self.inner.connected.set(clamp(subscribers.connected() as u64));
        self.inner.streams.set(clamp(subscribers.streams() as u64));
        self.inner.streams_limit.set(clamp(subscribers.max_streams as u64));
    }
    pub(crate) fn pushed(&self, kind: &'static str) {
        self.inner.pushes.get_or_create(&OfKind { kind }).inc();
    }
    /// `in_force`, `refused` or `ignored`.
    pub(crate) fn acknowledged(&self, kind: Kind, outcome: &'static str) {
        let kind = snapshot_word(kind);
        self.inner
            .acknowledgements
            .get_or_create(&Acknowledgement { kind, outcome })
            .inc();
    }
    pub(crate) fn refused(&self, reason: &'static str) {
        self.inner.refused.get_or_create(&Reason { reason }).inc();
    }
    pub(crate) fn handshake_failed(&self, reason: &'static str) {
        self.inner.handshakes_failed.get_or_create(&Reason { reason }).inc();
    }
    pub(crate) fn reloaded(&self, state: &State) {
        let outcome = if state.bad.is_empty() { "good" } else { "bad" };
        self.inner.reloads.get_or_create(&Outcome { outcome }).inc();
        self.inner.bad_files.set(clamp(state.bad.len() as u64));
        self.inner.conditions.set(clamp(state.model.conditions.len() as u64));
        self.inner.policy_version.set(clamp(state.policy_version));
    }
    #[cfg(feature = "kubernetes")]
    pub(crate) fn source_failed(&self) {
        self.inner.source_failures.inc();
    }
    #[cfg(feature = "kubernetes")]
    #[allow(clippy::cast_precision_loss)] // As below.
    pub(crate) fn source_heard(&self, unix_ms: u64) {
        self.inner.source_heard.set(unix_ms as f64 / 1000.0);
    }
    pub(crate) fn bundle_sequence(&self, sequence: u64) {
        self.inner.bundle_sequence.set(clamp(sequence));
    }
    pub(crate) fn overflow(&self, overflow: Overflow) {
        for (kind, n) in [
            ("flows", overflow.flows),
            ("denials", overflow.denials),
            ("events", overflow.events),
        ] {
            if n > 0 {
                self.inner.dropped.get_or_create(&OfKind { kind }).inc_by(n);
            }
        }
    }
    pub(crate) fn renewal(&self, done: bool) {
        let outcome = if done { "done" } else { "failed" };
        self.inner.renewals.get_or_create(&Outcome { outcome }).inc();
    }
    #[allow(clippy::cast_precision_loss)] // A time in seconds fits a double until long after every SVID has expired.
    pub(crate) fn certificate(&self, not_after: u64) {
        self.inner.certificate_not_after.set(not_after as f64);
    }
    pub(crate) fn ca_connected(&self, connected: bool) {
        self.inner.ca_connected.set(i64::from(connected));
    }
}

fn clamp(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

//! Every metric of the CA. Labels come from closed sets.

use std::sync::atomic::AtomicU64;

use postern_api::refusal::RefusalReason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::authority::{Authority, Stage};
use crate::clock::unix;
use crate::ledger::book::Of;
use crate::ledger::entry::EVENTS;

/// Seconds from request to answer: signing takes a tenth of a millisecond, syncing the token book some.
const ISSUE_BUCKETS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attestation {
    attestation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEvent {
    event: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStage {
    stage: &'static str,
}

/// Handles; clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    issued: Family<Attestation, Counter>,
    refused: Family<Reason, Counter>,
    handshakes_failed: Family<Reason, Counter>,
    rotations: Family<Outcome, Counter>,
    issue_seconds: Histogram,
    bundle_sequence: Gauge,
    issuer_epoch: Gauge,
    issuer_not_after: Gauge<f64, AtomicU64>,
    root_not_after: Gauge<f64, AtomicU64>,
    brought_refused: Gauge,
    root_replacement: Family<OfStage, Gauge>,
    pub(crate) tokens_outstanding: Gauge,
    pub(crate) watchers: Gauge,
    state_reads: Family<Outcome, Counter>,
    leading: Gauge,
    sealed: Gauge,
    kek: Gauge,
    rewrapped: Counter,
    quarantined: Gauge,
    ledger_records: Family<OfEvent, Counter>,
    ledger_head: Gauge,
    ledger_jwt_head: Gauge,
    ledger_failures: Counter,
    ledger_lost: Counter,
}

/// How callers are attested.
const ATTESTATIONS: [&str; 3] = ["join_token", "renewal", "kubernetes_token"];

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            issued: Family::default(),
            refused: Family::default(),
            handshakes_failed: Family::default(),
            rotations: Family::default(),
            issue_seconds: Histogram::new(ISSUE_BUCKETS),
            bundle_sequence: Gauge::default(),
            issuer_epoch: Gauge::default(),
            issuer_not_after: Gauge::default(),
            root_not_after: Gauge::default(),
            brought_refused: Gauge::default(),
            root_replacement: Family::default(),
            tokens_outstanding: Gauge::default(),
            watchers: Gauge::default(),
            state_reads: Family::default(),
            leading: Gauge::default(),
            sealed: Gauge::default(),
            kek: Gauge::default(),
            rewrapped: Counter::default(),
            quarantined: Gauge::default(),
            ledger_records: Family::default(),
            ledger_head: Gauge::default(),
            ledger_jwt_head: Gauge::default(),
            ledger_failures: Counter::default(),
            ledger_lost: Counter::default(),
        };
        // Every reason is there from the start: a rate over a series that appears with its first event misses it.
        for attestation in ATTESTATIONS {
            drop(metrics.issued.get_or_create(&Attestation { attestation }));
        }
        for reason in RefusalReason::ALL {
            drop(metrics.refused.get_or_create(&Reason {
                reason: reason.as_str(),
            }));
        }
        for event in EVENTS {
            drop(metrics.ledger_records.get_or_create(&OfEvent { event }));
        }
        for outcome in ["done", "failed"] {
            drop(metrics.rotations.get_or_create(&Outcome { outcome }));
        }
        for outcome in ["done", "failed", "damaged"] {
            drop(metrics.state_reads.get_or_create(&Outcome { outcome }));
        }
        let registry = registry.sub_registry_with_prefix("postern_ca");
        registry.register(
            "certificates_issued",
            "X.509-SVIDs issued, by attestation",
            metrics.issued.clone(),
        );
        registry.register("refused", "Calls refused, by reason", metrics.refused.clone());
        registry.register(
            "handshakes_failed",
            "TLS handshakes that did not become a connection, by reason",
            metrics.handshakes_failed.clone(),
        );
        registry.register(
            "issuer_rotations",
            "Attempts to put a new issuer in place",
            metrics.rotations.clone(),
        );
        registry.register_with_unit(
            "issue_duration",
            "From an issue request to its answer",
            Unit::Seconds,
            metrics.issue_seconds.clone(),
        );
        registry.register(
            "bundle_sequence",
            "Sequence number of the trust bundle",
            metrics.bundle_sequence.clone(),
        );
        registry.register(
            "issuer_epoch",
            "Number of the issuer that signs",
            metrics.issuer_epoch.clone(),
        );
        registry.register(
            "issuer_not_after_timestamp_seconds",
            "Last instant of the issuing certificate",
            metrics.issuer_not_after.clone(),
        );
        registry.register(
            "root_not_after_timestamp_seconds",
            "Last instant of the root certificate",
            metrics.root_not_after.clone(),
        );
        registry.register(
            "brought_issuer_refused",
            "1 while what is in --issuer-dir is refused, and the issuer before goes on",
            metrics.brought_refused.clone(),
        );
        registry.register(
            "root_replacement",
            "1 for the stage in which the last replacement of the root stands, 0 for the others",
            metrics.root_replacement.clone(),
        );
        registry.register(
            "join_tokens_outstanding",
            "Join tokens that can still be redeemed",
            metrics.tokens_outstanding.clone(),
        );
        registry.register("bundle_watchers", "Open bundle streams", metrics.watchers.clone());
        registry.register(
            "state_reads",
            "Readings of the shared Secret: done, failed (no answer), damaged (the last good state stays in force)",
            metrics.state_reads.clone(),
        );
        registry.register(
            "sealed",
            "1 while the key-encryption key is away at the start, so that nothing is issued",
            metrics.sealed.clone(),
        );
        registry.register(
            "kek_available",
            "1 if the key-encryption key was there at the last look",
            metrics.kek.clone(),
        );
        registry.register(
            "records_rewrapped",
            "Records sealed anew under another key-encryption key",
            metrics.rewrapped.clone(),
        );
        registry.register(
            "quarantined",
            "Entries of the quarantine: identities, instances and serial numbers that are cut off",
            metrics.quarantined.clone(),
        );
        registry.register(
            "ledger_records",
            "Records written into the ledger, by what happened",
            metrics.ledger_records.clone(),
        );
        registry.register(
            "ledger_head",
            "Number of the ledger's newest record; it never falls but where an old backup was put back",
            metrics.ledger_head.clone(),
        );
        registry.register(
            "ledger_jwt_head",
            "The same of the ledger of JWT-SVIDs; 0 where there is one ledger for all (over a Secret)",
            metrics.ledger_jwt_head.clone(),
        );
        registry.register(
            "ledger_write_failures",
            "Times that a ledger could not be written; what it would record is not issued meanwhile",
            metrics.ledger_failures.clone(),
        );
        registry.register(
            "ledger_lost",
            "Refusals that are not in the ledger, since it could not be written for long",
            metrics.ledger_lost.clone(),
        );
        registry.register(
            "leading",
            "1 in the replica that rotates the issuer and publishes the roots",
            metrics.leading.clone(),
        );
        metrics
    }

    pub(crate) fn issued(&self, attestation: &'static str, seconds: f64) {
        self.issued.get_or_create(&Attestation { attestation }).inc();
        self.issue_seconds.observe(seconds);
    }
    pub(crate) fn refused(&self, reason: RefusalReason) {
        self.refused
            .get_or_create(&Reason {
                reason: reason.as_str(),
            })
            .inc();
    }
    pub(crate) fn handshake_failed(&self, reason: &'static str) {
        self.handshakes_failed.get_or_create(&Reason { reason }).inc();
    }
    #[cfg(feature = "kubernetes")]
    pub(crate) fn state_read(&self, outcome: &'static str) {
        self.state_reads.get_or_create(&Outcome { outcome }).inc();
    }
    #[cfg(feature = "kubernetes")]
    pub(crate) fn leading(&self, leading: bool) {
        self.leading.set(leading.into());
    }
    pub(crate) fn brought_refused(&self, refused: bool) {
        self.brought_refused.set(refused.into());
    }
    pub(crate) fn sealed(&self, sealed: bool) {
        self.sealed.set(sealed.into());
    }
    pub(crate) fn kek(&self, available: bool) {
        self.kek.set(available.into());
    }
    pub(crate) fn rewrapped(&self, records: usize) {
        self.rewrapped.inc_by(records as u64);
    }
    pub(crate) fn quarantined(&self, entries: usize) {
        self.quarantined.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }
    pub(crate) fn ledger_record(&self, event: &'static str) {
        self.ledger_records.get_or_create(&OfEvent { event }).inc();
    }
    pub(crate) fn ledger_head(&self, of: Of, number: u64) {
        let head = match of {
            Of::Certificates => &self.ledger_head,
            Of::Tokens => &self.ledger_jwt_head,
        };
        head.set(i64::try_from(number).unwrap_or(i64::MAX));
    }
    pub(crate) fn ledger_failed(&self) {
        self.ledger_failures.inc();
    }
    pub(crate) fn ledger_lost(&self, records: usize) {
        self.ledger_lost.inc_by(records as u64);
    }
    pub(crate) fn rotation(&self, done: bool) {
        self.rotations
            .get_or_create(&Outcome {
                outcome: if done { "done" } else { "failed" },
            })
            .inc();
    }
    #[allow(clippy::cast_precision_loss)] // A time in seconds fits a double until long after every root has expired.
    pub(crate) fn authority(&self, authority: &Authority) {
        self.bundle_sequence
            .set(i64::try_from(authority.bundle().sequence()).unwrap_or(i64::MAX));
        self.issuer_epoch
            .set(i64::try_from(authority.issuer_epoch()).unwrap_or(i64::MAX));
        self.issuer_not_after.set(unix(authority.issuer_not_after()) as f64);
        self.root_not_after.set(unix(authority.root_not_after()) as f64);
        let reached = authority.root_stage().map(|(_, stage)| stage);
        for stage in Stage::ALL {
            let label = OfStage { stage: stage.as_str() };
            let stands = reached == Some(stage);
            self.root_replacement.get_or_create(&label).set(stands.into());
        }
    }
    /// All attestations together.
    pub(crate) fn total_issued(&self) -> u64 {
        ATTESTATIONS
            .iter()
            .map(|a| self.issued.get_or_create(&Attestation { attestation: a }).get())
            .sum()
    }
    /// All reasons together.
    pub(crate) fn total_refused(&self) -> u64 {
        RefusalReason::ALL
            .iter()
            .map(|r| self.refused.get_or_create(&Reason { reason: r.as_str() }).get())
            .sum()
    }
}

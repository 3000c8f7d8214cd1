//! Every metric of the injector. Labels come from closed sets.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use postern_cluster::serving::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::server::Webhook;

/// Around the 10 ms within which 99 of 100 are to be answered; API servers give up after ten seconds.
const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0, 10.0];
/// Reasons that [`crate::inject`] gives for a pod that stays outside; another one counts as `other`.
const SKIPS: [&str; 6] = [
    "disabled",
    "host_network",
    "windows",
    "mirror_pod",
    "not_enabled",
    "namespace",
];

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The pod got a sidecar, or more of one.
    Injected,
    /// It is allowed as it is.
    Allowed,
    /// The pod stays outside of the mesh.
    Skipped,
    /// It is not allowed.
    Refused,
    /// It is not allowed as long as we do not know enough.
    Later,
    /// It was no request that can be answered.
    Malformed,
}

impl Outcome {
    /// As a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Allowed => "allowed",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
            Self::Later => "later",
            Self::Malformed => "malformed",
        }
    }
}

const OUTCOMES: [Outcome; 6] = [
    Outcome::Injected,
    Outcome::Allowed,
    Outcome::Skipped,
    Outcome::Refused,
    Outcome::Later,
    Outcome::Malformed,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    webhook: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWebhook {
    webhook: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Handles; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<Answered, Counter>,
    duration: Family<OfWebhook, Histogram, fn() -> Histogram>,
    skipped: Family<Reason, Counter>,
    handshakes_failed: Counter,
    certificate_not_after: Gauge<f64, AtomicU64>,
    certificate_published: Gauge,
    roots: Gauge,
}

impl Metrics {
    /// All of them, from zero.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            skipped: Family::default(),
            handshakes_failed: Counter::default(),
            certificate_not_after: Gauge::default(),
            certificate_published: Gauge::default(),
            roots: Gauge::default(),
        };
        registry.register(
            "postern_injector_requests",
            "Admission requests by webhook and what became of them",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "postern_injector_request_duration",
            "From the whole request to its answer",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "postern_injector_skipped_pods",
            "Pods that stay outside of the mesh, by reason",
            metrics.skipped.clone(),
        );
        registry.register(
            "postern_injector_handshakes_failed",
            "TLS handshakes that came to nothing",
            metrics.handshakes_failed.clone(),
        );
        registry.register(
            "postern_injector_certificate_not_after_timestamp_seconds",
            "When the serving certificate expires, in seconds since 1970",
            metrics.certificate_not_after.clone(),
        );
        registry.register(
            "postern_injector_certificate_published",
            "1 if every webhook's caBundle has the CA of what is served",
            metrics.certificate_published.clone(),
        );
        registry.register(
            "postern_injector_roots",
            "Roots that new sidecars pin; 0: none can be injected",
            metrics.roots.clone(),
        );
        for webhook in Webhook::ALL {
            for outcome in OUTCOMES {
                let _ = metrics.requests.get_or_create(&answered(webhook, outcome));
            }
            let _ = metrics.duration.get_or_create(&OfWebhook {
                webhook: webhook.as_str(),
            });
        }
        for reason in SKIPS.into_iter().chain(["other"]) {
            let _ = metrics.skipped.get_or_create(&Reason { reason });
        }
        metrics
    }

    pub(crate) fn answered(&self, webhook: Webhook, outcome: Outcome, took: Duration) {
        self.requests.get_or_create(&answered(webhook, outcome)).inc();
        let duration = self.duration.get_or_create(&OfWebhook {
            webhook: webhook.as_str(),
        });
        duration.observe(took.as_secs_f64());
    }

    pub(crate) fn skipped(&self, reason: &str) {
        let known = SKIPS.into_iter().find(|known| *known == reason).unwrap_or("other");
        self.skipped.get_or_create(&Reason { reason: known }).inc();
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// What is read rather than counted.
    pub(crate) fn refresh(&self, certificate: Status, roots: usize) {
        // Exact for the next hundred million years.
        #[allow(clippy::cast_precision_loss)]
        self.certificate_not_after
            .set(certificate.not_after.unwrap_or(0) as f64);
        self.certificate_published.set(i64::from(certificate.published));
        self.roots.set(i64::try_from(roots).unwrap_or(i64::MAX));
    }
}

fn answered(webhook: Webhook, outcome: Outcome) -> Answered {
    Answered {
        webhook: webhook.as_str(),
        outcome: outcome.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_there_from_the_start_and_grow_with_nothing_that_comes_in() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let series = |registry: &Registry| {
            let mut text = String::new();
            let _ = prometheus_client::encoding::text::encode(&mut text, registry);
            text.lines().filter(|line| !line.starts_with('#')).count()
        };
        let before = series(&registry);
        metrics.skipped("a reason of the future");
        metrics.skipped("windows");
        metrics.answered(Webhook::Inject, Outcome::Refused, Duration::from_millis(1));
        assert_eq!(series(&registry), before);
        assert!(before < 90, "{before}");
    }
}

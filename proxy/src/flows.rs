//! Flow reports: what has changed since the last one, each second, bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use postern_api::control::v1 as wire;

use crate::access_log::Denials;
use crate::metrics::{Counts, Direction, Metrics, Outcome, RouteKey};
use crate::snapshot::{Protocol, Shared};
use crate::status::{Status, Topic};

/// Flows in one report (control.proto); the rest follow in the next.
pub(crate) const MAX_FLOWS: usize = 256;

/// Remembers what was reported.
#[derive(Debug)]
pub(crate) struct Reporter {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    denials: Arc<Denials>,
    status: Arc<Status>,
    sequence: u64,
    reported: HashMap<RouteKey, Counts>,
}

impl Reporter {
    pub(crate) fn new(shared: Arc<Shared>, metrics: Arc<Metrics>, denials: Arc<Denials>, status: Arc<Status>) -> Self {
        Self {
            shared,
            metrics,
            denials,
            status,
            sequence: 0,
            reported: HashMap::new(),
        }
    }

    /// Hands the next report to `send`; if that fails, what it held is reported again later.
    pub(crate) fn report(&mut self, send: impl FnOnce(wire::FlowReport) -> bool) {
        let mut changed: Vec<(RouteKey, Counts)> = self
            .metrics
            .counts()
            .into_iter()
            .filter(|(key, now)| self.reported.get(key).copied().unwrap_or_default() != *now)
            .collect();
        changed.truncate(MAX_FLOWS);
        let flows = changed
            .iter()
            .map(|(key, now)| flow(key, now, &self.reported.get(key).copied().unwrap_or_default()))
            .collect();
        let (denials, denials_dropped) = self.denials.take();
        let events = self.status.take_events();
        let lost = denials_dropped + denials.len() as u64;
        let unsent = events.clone();
        let report = wire::FlowReport {
            sequence: self.sequence + 1,
            flows,
            denials,
            denials_dropped,
            certificate: self.certificate(),
            events,
        };
        if send(report) {
            self.sequence += 1;
            self.reported.extend(changed);
        } else {
            // The access log and the counters still have each denial; control learns that there were some.
            self.denials.lost(lost);
            self.status.return_events(unsent);
        }
    }

    fn certificate(&self) -> Option<wire::Certificate> {
        let identity = self.shared.identity.load();
        let svid = &identity.as_ref()?.svid;
        let process = &self.metrics.process;
        let read = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        let ms = |value| i64::try_from(read(value)).unwrap_or(i64::MAX);
        Some(wire::Certificate {
            spiffe_id: svid.id().to_string(),
            serial: hex(&svid.leaf().serial),
            issued_unix_ms: ms(&process.certificate_issued_ms),
            not_after_unix_ms: ms(&process.certificate_not_after_ms),
            renewals: read(&process.renewals),
            renewal_failures: self.metrics.renewal_failures(),
            last_renewal_error: self.status.problem_of(Topic::Identity).unwrap_or_default(),
        })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn flow(key: &RouteKey, now: &Counts, before: &Counts) -> wire::Flow {
    let since = |read: fn(&Counts) -> u64| read(now).saturating_sub(read(before));
    wire::Flow {
        direction: match key.direction {
            Direction::Inbound => wire::Direction::Inbound,
            Direction::Outbound => wire::Direction::Outbound,
        } as i32,
        source: key.source.to_string(),
        destination: key.destination.to_string(),
        service: key.service.to_string(),
        port: key.port.into(),
        protocol: match key.protocol {
            Protocol::Detect => wire::Protocol::Detect,
            Protocol::Http1 => wire::Protocol::Http1,
            Protocol::Http2 => wire::Protocol::Http2,
            Protocol::Tcp => wire::Protocol::Tcp,
        } as i32,
        mutual_tls: key.mutual_tls,
        allowed: since(|c| c.of(Outcome::Allowed) + c.of(Outcome::WouldDeny)),
        denied: since(|c| c.of(Outcome::Denied)),
        failed: since(|c| c.of(Outcome::Failed)),
        would_deny: since(|c| c.of(Outcome::WouldDeny)),
        latency_buckets: now
            .latency
            .iter()
            .zip(before.latency)
            .map(|(now, before)| now.saturating_sub(before))
            .collect(),
        bytes_sent: since(|c| c.sent),
        bytes_received: since(|c| c.received),
        open_connections: now.open,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use postern_identity::TrustDomain;
    use tokio::sync::mpsc;

    use super::*;
    use crate::drain::Drain;
    use crate::metrics::Finished;

    fn reporter() -> (Arc<Metrics>, Reporter) {
        let shared = Arc::new(Shared::new(mpsc::channel(1).0));
        let metrics = Arc::new(Metrics::default());
        let status = Status::new(
            Arc::clone(&shared),
            TrustDomain::parse("cluster.local").unwrap(),
            Drain::new().1,
        );
        let reporter = Reporter::new(shared, Arc::clone(&metrics), Arc::default(), Arc::new(status));
        (metrics, reporter)
    }

    fn key(port: u16) -> RouteKey {
        RouteKey {
            direction: Direction::Outbound,
            source: "spiffe://a/b".into(),
            destination: "spiffe://a/c".into(),
            service: "cart.shop".into(),
            port,
            protocol: Protocol::Http2,
            mutual_tls: true,
        }
    }

    fn count(metrics: &Metrics, port: u16) {
        metrics.route(&key(port)).finished(&Finished {
            status: 200,
            failure: None,
            would_deny: false,
            latency: Duration::from_micros(60),
            sent: 1,
            received: 2,
        });
    }

    fn next(reporter: &mut Reporter) -> wire::FlowReport {
        let mut report = None;
        reporter.report(|r| {
            report = Some(r);
            true
        });
        report.unwrap()
    }

    #[test]
    fn a_report_holds_what_came_since_the_last_one_that_was_sent() {
        let (metrics, mut reporter) = reporter();
        count(&metrics, 80);
        assert_eq!(next(&mut reporter).flows[0].allowed, 1);
        assert!(next(&mut reporter).flows.is_empty());
        count(&metrics, 80);
        reporter.report(|_| false);
        count(&metrics, 80);
        let report = next(&mut reporter);
        assert_eq!((report.sequence, report.flows[0].allowed), (3, 2));
        assert_eq!(report.flows[0].latency_buckets[1], 2);
        assert_eq!((report.flows[0].bytes_sent, report.flows[0].bytes_received), (2, 4));
    }

    #[test]
    fn past_max_flows_the_rest_follows_in_the_next_report() {
        let (metrics, mut reporter) = reporter();
        for port in 0..u16::try_from(MAX_FLOWS).unwrap() + 1 {
            count(&metrics, port);
        }
        assert_eq!(next(&mut reporter).flows.len(), MAX_FLOWS);
        assert_eq!(next(&mut reporter).flows.len(), 1);
    }
}

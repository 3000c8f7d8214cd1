//! The metrics as Prometheus families. Only series that have counted anything are shown, but for those a dashboard
//! needs from the start.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postern_api::flow::{LATENCY_BOUNDS_US, LATENCY_BUCKETS};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::route::CLASSES;
use super::{Counts, Direction, Metrics, Outcome, ReasonKey, RouteKey};
use crate::snapshot::Protocol;

/// Encodes a proxy's metrics at each scrape.
#[derive(Debug)]
pub(super) struct Collector(pub(super) Arc<Metrics>);

/// Series of bytes and latency leave the identities out: they multiply buckets.
type Narrow<'a> = (Direction, &'a str, u16, Protocol);

/// One figure of a route.
type Read = fn(&Counts) -> u64;

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &*self.0;
        let mut counts = metrics.counts();
        counts.sort_by(|(a, _), (b, _)| a.cmp(b));
        requests(&mut to, &counts)?;
        narrow(&mut to, &counts)?;
        connections(&mut to, &counts)?;
        refusals(&mut to, metrics)?;
        app(&mut to, metrics)?;
        process(&mut to, metrics)
    }
}

fn requests(to: &mut DescriptorEncoder<'_>, counts: &[(RouteKey, Counts)]) -> fmt::Result {
    let mut family = to.encode_descriptor(
        "postern_proxy_requests",
        "Finished requests and opaque streams",
        None,
        MetricType::Counter,
    )?;
    for (key, counts) in counts {
        let port = key.port.to_string();
        for (outcome, by_class) in Outcome::ALL.iter().zip(&counts.requests) {
            for (class, count) in CLASSES.iter().zip(by_class).filter(|(_, count)| **count > 0) {
                let labels = [
                    ("direction", key.direction.as_str()),
                    ("source", &key.source),
                    ("destination", &key.destination),
                    ("service", &key.service),
                    ("port", &port),
                    ("protocol", key.protocol.as_str()),
                    ("tls", if key.mutual_tls { "mutual" } else { "none" }),
                    ("code", class),
                    ("outcome", outcome.as_str()),
                ];
                counter(&mut family.encode_family(&labels)?, *count)?;
            }
        }
    }
    Ok(())
}

fn narrow(to: &mut DescriptorEncoder<'_>, counts: &[(RouteKey, Counts)]) -> fmt::Result {
    let mut sums: BTreeMap<Narrow<'_>, Counts> = BTreeMap::new();
    for (key, counts) in counts {
        let sum = sums
            .entry((key.direction, &key.service, key.port, key.protocol))
            .or_default();
        sum.latency.iter_mut().zip(counts.latency).for_each(|(to, n)| *to += n);
        sum.latency_sum_us = sum.latency_sum_us.wrapping_add(counts.latency_sum_us);
        sum.sent += counts.sent;
        sum.received += counts.received;
    }
    let mut family = to.encode_descriptor(
        "postern_proxy_request_duration_seconds",
        "From the first byte of an allowed request to the last of its answer",
        None,
        MetricType::Histogram,
    )?;
    for (key, sum) in sums.iter().filter(|(_, sum)| sum.latency.iter().any(|n| *n > 0)) {
        with_labels(&mut family, key, |series| {
            let count = sum.latency.iter().sum();
            let seconds = sum.latency_sum_us as f64 / 1e6;
            series.encode_histogram::<NoLabelSet>(seconds, count, &buckets(&sum.latency), None)
        })?;
    }
    let bytes: [(&str, &str, Read); 2] = [
        ("postern_proxy_sent_bytes", "Body bytes towards the upstream", |c| {
            c.sent
        }),
        ("postern_proxy_received_bytes", "Body bytes from the upstream", |c| {
            c.received
        }),
    ];
    for (name, help, read) in bytes {
        let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (key, sum) in sums.iter().filter(|(_, sum)| read(sum) > 0) {
            with_labels(&mut family, key, |series| counter(series, read(sum)))?;
        }
    }
    Ok(())
}

fn with_labels(
    family: &mut MetricEncoder<'_>,
    (direction, service, port, protocol): &Narrow<'_>,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    let port = port.to_string();
    let labels = [
        ("direction", direction.as_str()),
        ("service", service),
        ("port", &port),
        ("protocol", protocol.as_str()),
    ];
    encode(&mut family.encode_family(&labels)?)
}

/// Upper bounds in seconds.
fn buckets(latency: &[u64; LATENCY_BUCKETS]) -> Vec<(f64, u64)> {
    let bounds = LATENCY_BOUNDS_US.iter().map(|us| *us as f64 / 1e6);
    bounds
        .chain(std::iter::once(f64::INFINITY))
        .zip(latency.iter().copied())
        .collect()
}

fn connections(to: &mut DescriptorEncoder<'_>, counts: &[(RouteKey, Counts)]) -> fmt::Result {
    let mut family = to.encode_descriptor(
        "postern_proxy_connections",
        "Connections open now",
        None,
        MetricType::Gauge,
    )?;
    for direction in [Direction::Inbound, Direction::Outbound] {
        let open: u64 = counts
            .iter()
            .filter(|(key, _)| key.direction == direction)
            .map(|(_, counts)| counts.open)
            .sum();
        let labels = [("direction", direction.as_str())];
        family
            .encode_family(&labels)?
            .encode_gauge(&i64::try_from(open).unwrap_or(i64::MAX))?;
    }
    Ok(())
}

fn refusals(to: &mut DescriptorEncoder<'_>, metrics: &Metrics) -> fmt::Result {
    let mut family = to.encode_descriptor(
        "postern_proxy_denials",
        "Denials by policy and reason; enforced=\"false\": would have been denied in protect",
        None,
        MetricType::Counter,
    )?;
    for (key, count) in metrics.denials.read() {
        let labels = [
            ("policy", &*key.policy),
            ("reason", key.reason),
            ("enforced", if key.monitor_only { "false" } else { "true" }),
        ];
        counter(&mut family.encode_family(&labels)?, count)?;
    }
    let mut family = to.encode_descriptor(
        "postern_proxy_audited",
        "Requests and streams that an AUDIT policy marked",
        None,
        MetricType::Counter,
    )?;
    for (key, count) in metrics.audits.read() {
        counter(&mut family.encode_family(&[("policy", &*key.policy)])?, count)?;
    }
    let mut family = to.encode_descriptor(
        "postern_proxy_handshakes",
        "Mutual TLS handshakes that succeeded",
        None,
        MetricType::Counter,
    )?;
    for direction in [Direction::Inbound, Direction::Outbound] {
        let count = metrics.handshakes[direction as usize].load(Ordering::Relaxed);
        counter(&mut family.encode_family(&[("direction", direction.as_str())])?, count)?;
    }
    let by_reason = [
        (
            "postern_proxy_handshake_failures",
            "Mutual TLS handshakes that failed",
            &metrics.handshake_failures,
        ),
        (
            "postern_proxy_refused_connections",
            "Connections that ended before any route was known",
            &metrics.refused_connections,
        ),
    ];
    for (name, help, counters) in by_reason {
        let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (key, count) in counters.read() {
            let labels = [("direction", key.direction.as_str()), ("reason", key.reason)];
            counter(&mut family.encode_family(&labels)?, count)?;
        }
    }
    let mut family = to.encode_descriptor(
        "postern_proxy_readmissions",
        "Connections whose long streams asked to outlive their SVIDs, by what became of it",
        None,
        MetricType::Counter,
    )?;
    // Its alert is of an increase, which the first one is only after a zero.
    let alerted = ReasonKey {
        direction: Direction::Inbound,
        reason: "wrong_peer",
    };
    let mut results = BTreeMap::from([(alerted, 0)]);
    results.extend(metrics.readmissions.read());
    for (key, count) in results {
        let labels = [("direction", key.direction.as_str()), ("result", key.reason)];
        counter(&mut family.encode_family(&labels)?, count)?;
    }
    Ok(())
}

fn app(to: &mut DescriptorEncoder<'_>, metrics: &Metrics) -> fmt::Result {
    let mut family = to.encode_descriptor(
        "postern_app_scrape_failures",
        "Scrapes without the app's own metrics",
        None,
        MetricType::Counter,
    )?;
    for (key, count) in metrics.app_scrape_failures.read() {
        counter(&mut family.encode_family(&[("reason", key.reason)])?, count)?;
    }
    let mut series = to.encode_descriptor(
        "postern_app_scrape_dropped_samples",
        "Samples of the app that were left out: their names begin with postern_",
        None,
        MetricType::Counter,
    )?;
    counter(&mut series, metrics.app_scrape_dropped.load(Ordering::Relaxed))
}

fn process(to: &mut DescriptorEncoder<'_>, metrics: &Metrics) -> fmt::Result {
    let process = &metrics.process;
    let mut family = to.encode_descriptor(
        "postern_proxy_certificate_renewal_failures",
        "First issues and renewals that failed",
        None,
        MetricType::Counter,
    )?;
    for (key, count) in process.renewal_failures.read() {
        counter(&mut family.encode_family(&[("reason", key.reason)])?, count)?;
    }
    let counters: [(&str, &str, &AtomicU64); 4] = [
        (
            "postern_proxy_certificate_renewals",
            "Renewals that succeeded",
            &process.renewals,
        ),
        (
            "postern_proxy_access_log_dropped",
            "Access log lines that found the queue full",
            &metrics.access_log_dropped,
        ),
        (
            "postern_proxy_panics",
            "Connection tasks that panicked (contained)",
            &metrics.panics,
        ),
        (
            "postern_proxy_control_refusals",
            "Updates from control that were refused: stale, unsigned or malformed",
            &process.control_refusals,
        ),
    ];
    for (name, help, value) in counters {
        let mut series = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        counter(&mut series, value.load(Ordering::Relaxed))?;
    }
    let gauges: [(&str, &str, &AtomicU64); 5] = [
        (
            "postern_proxy_control_connected",
            "1 while the stream with control stands",
            &process.control_connected,
        ),
        (
            "postern_proxy_policy_generation",
            "Generation of the policy in force, 0 for none",
            &process.policy_generation,
        ),
        (
            "postern_proxy_bundle_sequence",
            "Sequence of our own trust domain's bundle",
            &process.bundle_sequence,
        ),
        (
            "postern_proxy_quarantine_version",
            "Version of the quarantine in force, 0 for none",
            &process.quarantine_version,
        ),
        (
            "postern_proxy_quarantined",
            "Entries of the quarantine in force: identities, instances and serial numbers that are cut off",
            &process.quarantined,
        ),
    ];
    for (name, help, value) in gauges {
        let mut series = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        series.encode_gauge(&i64::try_from(value.load(Ordering::Relaxed)).unwrap_or(i64::MAX))?;
    }
    let mut series = to.encode_descriptor(
        "postern_proxy_certificate_expiry_timestamp_seconds",
        "When our own SVID expires (Unix), 0 for none",
        None,
        MetricType::Gauge,
    )?;
    series.encode_gauge(&(process.certificate_not_after_ms.load(Ordering::Relaxed) as f64 / 1e3))?;
    let mut family = to.encode_descriptor("postern_proxy_build_info", "The build", None, MetricType::Gauge)?;
    family
        .encode_family(&[("version", postern_api::VERSION)])?
        .encode_gauge(&1_i64)
}

fn counter(series: &mut MetricEncoder<'_>, count: u64) -> fmt::Result {
    series.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

//! Edges: each as the called side counts it; as the caller does where the other side has no proxy that reports, or is
//! somebody else's namespace.

use std::collections::{BTreeMap, BTreeSet};

use postern_api::control::v1 as wire;
use postern_identity::SpiffeId;
use postern_identity::bundle::fingerprint;
use rustls::pki_types::CertificateDer;

use super::super::objects::{Direction, Edge, End, GROUP, Object, Resource};
use super::object;

/// Longest part of a name that comes from an ID; a name has at most 253 bytes.
const MAX_NAME_PART: usize = 80;
/// Who proved nothing.
const ANONYMOUS: &str = "anonymous";

/// What makes an edge one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Of the reporter: who may see the namespace may see the edge.
    namespace: String,
    direction: Direction,
    source: String,
    destination: String,
    service: String,
    port: u32,
    protocol: i32,
    secured: bool,
}

#[derive(Debug, Default)]
struct Sum {
    flow: wire::Flow,
    allowed_per_second: f64,
    denied_per_second: f64,
    reporters: BTreeSet<String>,
}

pub(in crate::api) fn edges(pictures: &[wire::Picture]) -> Vec<Object<Edge>> {
    let mut sums = summed(pictures);
    fold_callers_side(&mut sums);
    let mut edges: Vec<Object<Edge>> = sums.into_iter().map(|(key, sum)| edge(key, &sum)).collect();
    edges.sort_by(|a, b| {
        let key = |edge: &Object<Edge>| (edge.metadata.namespace.clone(), edge.metadata.name.clone());
        key(a).cmp(&key(b))
    });
    edges
}

/// All replicas' counts: a proxy that went from one to another reported to both, each thing to one.
fn summed(pictures: &[wire::Picture]) -> BTreeMap<Key, Sum> {
    let mut sums: BTreeMap<Key, Sum> = BTreeMap::new();
    for picture in pictures {
        let seconds = f64::from(picture.recent_ms.max(1000)) / 1000.0;
        for view in &picture.flows {
            let Some((key, flow)) = key(view) else { continue };
            let sum = sums.entry(key).or_default();
            add(&mut sum.flow, flow);
            sum.allowed_per_second += per_second(view.recently_allowed, seconds);
            sum.denied_per_second += per_second(view.recently_denied, seconds);
            sum.reporters.insert(view.reporter.clone());
        }
    }
    sums
}

#[allow(clippy::cast_precision_loss)] // Past 2^52 requests in half a minute nobody reads the last digit.
fn per_second(count: u64, seconds: f64) -> f64 {
    // Two digits are what half a minute gives.
    (count as f64 / seconds * 100.0).round() / 100.0
}

fn key(view: &wire::FlowView) -> Option<(Key, &wire::Flow)> {
    let flow = view.flow.as_ref()?;
    let direction = match flow.direction() {
        wire::Direction::Inbound => Direction::Inbound,
        wire::Direction::Outbound => Direction::Outbound,
        wire::Direction::Unspecified => return None,
    };
    let key = Key {
        namespace: view.reporter.split_once('/')?.0.to_owned(),
        direction,
        source: flow.source.clone(),
        destination: flow.destination.clone(),
        service: flow.service.clone(),
        port: flow.port,
        protocol: flow.protocol,
        secured: flow.mutual_tls,
    };
    Some((key, flow))
}

fn add(sum: &mut wire::Flow, flow: &wire::Flow) {
    let counters = [
        (&mut sum.allowed, flow.allowed),
        (&mut sum.denied, flow.denied),
        (&mut sum.failed, flow.failed),
        (&mut sum.would_deny, flow.would_deny),
        (&mut sum.bytes_sent, flow.bytes_sent),
        (&mut sum.bytes_received, flow.bytes_received),
    ];
    for (sum, more) in counters {
        *sum = sum.saturating_add(more);
    }
}

/// Within a namespace both sides report. The called side's count stands; only what never reached it is the caller's to
/// tell, and is added there as failed.
fn fold_callers_side(sums: &mut BTreeMap<Key, Sum>) {
    let mut called: BTreeMap<(String, String, String), Key> = BTreeMap::new();
    for key in sums
        .keys()
        .filter(|key| key.direction == Direction::Inbound && key.secured)
    {
        let pair = (key.namespace.clone(), key.source.clone(), key.destination.clone());
        called.entry(pair).or_insert_with(|| key.clone());
    }
    let callers: Vec<Key> = sums
        .keys()
        .filter(|key| key.direction == Direction::Outbound)
        .cloned()
        .collect();
    for key in callers {
        let pair = (key.namespace.clone(), key.source.clone(), key.destination.clone());
        let Some(inbound) = called.get(&pair) else { continue };
        let Some(outbound) = sums.remove(&key) else { continue };
        if let Some(sum) = sums.get_mut(inbound) {
            sum.flow.failed = sum.flow.failed.saturating_add(outbound.flow.failed);
        }
    }
}

fn edge(key: Key, sum: &Sum) -> Object<Edge> {
    let name = name(&key);
    let labels = BTreeMap::from([
        (format!("{}/secured", GROUP), key.secured.to_string()),
        (format!("{}/direction", GROUP), direction_word(key.direction).to_owned()),
    ]);
    let flow = &sum.flow;
    let body = Edge {
        source: end(&key.source),
        destination: end(&key.destination),
        service: key.service,
        port: key.port,
        protocol: protocol(key.protocol).to_owned(),
        secured: key.secured,
        direction: key.direction,
        allowed: flow.allowed,
        denied: flow.denied,
        would_deny: flow.would_deny,
        failed: flow.failed,
        allowed_per_second: sum.allowed_per_second,
        denied_per_second: sum.denied_per_second,
        bytes_sent: flow.bytes_sent,
        bytes_received: flow.bytes_received,
        reporters: u32::try_from(sum.reporters.len()).unwrap_or(u32::MAX),
    };
    object(Resource::Edges, Some(key.namespace), name, labels, body)
}

/// The same in every replica and at every time, and a DNS name: `web-cart-8080-1f2e3d4c`.
fn name(key: &Key) -> String {
    let text = format!(
        "{} {} {} {} {} {} {}",
        direction_word(key.direction),
        key.source,
        key.destination,
        key.service,
        key.port,
        key.protocol,
        key.secured
    );
    // Only to tell names apart.
    let digest = fingerprint(&CertificateDer::from(text.as_bytes()));
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let destination = if key.destination.is_empty() {
        short_name(&key.service)
    } else {
        account(&key.destination)
    };
    format!("{}-{destination}-{}-{short}", account(&key.source), key.port)
}

fn account(id: &str) -> String {
    match end(id).service_account {
        Some(account) => short_name(&account),
        None => ANONYMOUS.to_owned(),
    }
}

fn short_name(text: &str) -> String {
    let kept = text.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    });
    let kept: String = kept.take(MAX_NAME_PART).collect();
    let trimmed = kept.trim_matches('-');
    if trimmed.is_empty() {
        ANONYMOUS.to_owned()
    } else {
        trimmed.to_owned()
    }
}

fn end(id: &str) -> End {
    let parsed = SpiffeId::parse(id).ok();
    let workload = parsed.as_ref().and_then(SpiffeId::workload);
    End {
        spiffe_id: id.to_owned(),
        namespace: workload.map(|(namespace, _)| namespace.to_owned()),
        service_account: workload.map(|(_, account)| account.to_owned()),
    }
}

fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

fn protocol(protocol: i32) -> &'static str {
    match wire::Protocol::try_from(protocol) {
        Ok(wire::Protocol::Http1) => "http1",
        Ok(wire::Protocol::Http2) => "http2",
        Ok(wire::Protocol::Tcp) => "tcp",
        Ok(wire::Protocol::Detect | wire::Protocol::Unspecified) | Err(_) => "unknown",
    }
}

//! Who talks to whom: totals of successive pictures made into rates and quantiles over a short window.

use std::collections::{BTreeMap, VecDeque};

use postern_api::control::v1 as wire;
use postern_api::flow::{LATENCY_BUCKETS, quantile};

use super::documents::WORKLOADS;

/// What a rate looks back on. Proxies report each second; less would jump.
const WINDOW_MS: i64 = 4_000;
/// Quantiles need more samples than rates do.
const QUANTILE_WINDOW_MS: i64 = 10_000;
/// Pictures come each half second, and when something happens.
const MAX_PICTURES: usize = 128;

/// An opaque protocol's name.
const TCP: &str = "TCP";

/// What makes an edge, as the receiving proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// SPIFFE ID; empty if nobody proved anything.
    pub(super) from: String,
    /// SPIFFE ID.
    pub(super) to: String,
    pub(super) protocol: &'static str,
    pub(super) mutual_tls: bool,
}

/// An edge as it is now.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Edge {
    pub(super) key: Key,
    /// Requests a second that were let in.
    pub(super) rate: f64,
    /// Microseconds; `None` without a sample.
    pub(super) p99_us: Option<u64>,
    /// Requests a second that were refused.
    pub(super) denied_rate: f64,
    /// Since the start.
    pub(super) allowed: u64,
    /// Since the start, by whoever of the two counted more.
    pub(super) failed: u64,
}

#[derive(Debug, Clone)]
struct Totals {
    allowed: u64,
    denied: u64,
    failed: u64,
    /// Failed by the caller's count.
    unsent: u64,
    latency: Vec<u64>,
}

/// Remembers as many pictures as a window needs.
#[derive(Debug, Default)]
pub(super) struct Edges {
    seen: VecDeque<(i64, BTreeMap<Key, Totals>)>,
}

impl Edges {
    /// Takes a picture.
    pub(super) fn take(&mut self, picture: &wire::Picture) {
        let mut totals: BTreeMap<Key, Totals> = BTreeMap::new();
        for flow in picture.flows.iter().filter_map(|view| view.flow.as_ref()) {
            if flow.direction() != wire::Direction::Inbound {
                // What never arrived is known to the caller alone.
                if flow.failed > 0 && !flow.destination.is_empty() {
                    totals.entry(key(flow)).or_insert_with(Totals::none).unsent += flow.failed;
                }
                continue;
            }
            let sum = totals.entry(key(flow)).or_insert_with(Totals::none);
            sum.allowed += flow.allowed;
            sum.denied += flow.denied;
            sum.failed += flow.failed;
            sum.latency
                .iter_mut()
                .zip(&flow.latency_buckets)
                .for_each(|(sum, n)| *sum += n);
        }
        self.seen.push_back((picture.time_unix_ms, totals));
        let oldest = picture.time_unix_ms - QUANTILE_WINDOW_MS;
        // One from before the window stays: the difference to it spans the whole window.
        while self.seen.len() > MAX_PICTURES || self.seen.get(1).is_some_and(|(time, _)| *time <= oldest) {
            self.seen.pop_front();
        }
    }

    /// All edges, in a steady order: by who is called first.
    pub(super) fn now(&self) -> Vec<Edge> {
        let Some((now, totals)) = self.seen.back() else {
            return Vec::new();
        };
        let mut edges: Vec<Edge> = totals
            .iter()
            .map(|(key, totals)| self.edge(*now, key, totals))
            .collect();
        // What is allowed comes first, what is refused below it; both as a request travels.
        edges.sort_by_cached_key(|edge| {
            let key = &edge.key;
            (edge.allowed == 0, rank(&key.from), rank(&key.to), key.clone())
        });
        edges
    }

    fn edge(&self, now: i64, key: &Key, totals: &Totals) -> Edge {
        let (then, before) = self.before(now - WINDOW_MS);
        let none = Totals::none();
        let before = before.and_then(|all| all.get(key)).unwrap_or(&none);
        let seconds = ((now - then) as f64 / 1e3).max(0.5);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let (_, long_before) = self.before(now - QUANTILE_WINDOW_MS);
        let long_before = long_before.and_then(|all| all.get(key)).unwrap_or(&none);
        let recent: Vec<u64> = totals
            .latency
            .iter()
            .zip(&long_before.latency)
            .map(|(now, then)| now.saturating_sub(*then))
            .collect();
        Edge {
            key: key.clone(),
            rate: rate(totals.allowed, before.allowed),
            p99_us: recent.iter().any(|n| *n > 0).then(|| quantile(&recent, 0.99)),
            denied_rate: rate(totals.denied, before.denied),
            allowed: totals.allowed,
            // A failure that both saw counts once. An opaque protocol has no status: to the caller a refusal is a
            // connection that broke.
            failed: totals.failed.max(match key.protocol {
                TCP => totals.unsent.saturating_sub(totals.denied),
                _ => totals.unsent,
            }),
        }
    }

    /// The last picture at or before `time`, else the first; with the time it was taken at.
    fn before(&self, time: i64) -> (i64, Option<&BTreeMap<Key, Totals>>) {
        let at = self
            .seen
            .iter()
            .rev()
            .find(|(taken, _)| *taken <= time)
            .or_else(|| self.seen.front());
        at.map_or((time, None), |(taken, totals)| (*taken, Some(totals)))
    }
}

impl Totals {
    fn none() -> Self {
        Self {
            allowed: 0,
            denied: 0,
            failed: 0,
            unsent: 0,
            latency: vec![0; LATENCY_BUCKETS],
        }
    }
}

/// Where a workload stands on a request's way; strangers last.
fn rank(id: &str) -> usize {
    let account = id.rsplit('/').next();
    let known = WORKLOADS.iter().position(|workload| Some(*workload) == account);
    known.unwrap_or(WORKLOADS.len())
}

fn key(flow: &wire::Flow) -> Key {
    Key {
        from: flow.source.clone(),
        to: flow.destination.clone(),
        protocol: match flow.protocol() {
            wire::Protocol::Http1 => "HTTP/1.1",
            wire::Protocol::Http2 => "HTTP/2",
            wire::Protocol::Tcp => TCP,
            wire::Protocol::Detect | wire::Protocol::Unspecified => "?",
        },
        mutual_tls: flow.mutual_tls,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_api::flow::bucket_of;

    use super::*;

    fn picture(ms: i64, from: &str, allowed: u64, denied: u64) -> wire::Picture {
        let mut latency_buckets = vec![0; LATENCY_BUCKETS];
        latency_buckets[bucket_of(900)] = allowed;
        let flow = wire::Flow {
            direction: wire::Direction::Inbound as i32,
            source: from.to_owned(),
            destination: "spiffe://a/ns/shop/sa/cart".to_owned(),
            protocol: wire::Protocol::Http1 as i32,
            mutual_tls: true,
            allowed,
            denied,
            latency_buckets,
            ..wire::Flow::default()
        };
        wire::Picture {
            time_unix_ms: ms,
            flows: vec![wire::FlowView {
                reporter: "shop/cart".to_owned(),
                flow: Some(flow),
                ..wire::FlowView::default()
            }],
            ..wire::Picture::default()
        }
    }

    #[test]
    fn a_rate_is_what_was_added_within_the_window() {
        let mut edges = Edges::default();
        for second in 0..20_u64 {
            edges.take(&picture(second as i64 * 1_000, "web", second * 30, second));
        }
        let edge = edges.now().pop().unwrap();
        assert!((edge.rate - 30.0).abs() < 0.01, "{edge:?}");
        assert!((edge.denied_rate - 1.0).abs() < 0.01, "{edge:?}");
        assert!((700..=1_000).contains(&edge.p99_us.unwrap()), "{edge:?}");
        assert!(edges.seen.len() <= 12, "{}", edges.seen.len());
    }

    #[test]
    fn an_edge_that_has_gone_quiet_has_no_rate_and_no_quantile() {
        let mut edges = Edges::default();
        for second in 0..20 {
            edges.take(&picture(second * 1_000, "web", 100, 0));
        }
        let edge = edges.now().pop().unwrap();
        assert!(edge.rate.abs() < f64::EPSILON);
        assert_eq!(edge.p99_us, None);
        assert_eq!(edge.allowed, 100);
    }

    #[test]
    fn who_is_only_refused_stands_below_who_is_let_in() {
        let mut edges = Edges::default();
        let mut both = picture(0, "a-mallory", 0, 5);
        both.flows.extend(picture(0, "web", 5, 0).flows);
        edges.take(&both);
        let order: Vec<String> = edges.now().into_iter().map(|edge| edge.key.from).collect();
        assert_eq!(order, ["web", "a-mallory"]);
    }

    #[test]
    fn what_the_caller_reports_of_the_same_request_is_no_second_edge() {
        let mut edges = Edges::default();
        let mut picture = picture(0, "web", 5, 0);
        picture.flows[0].flow.as_mut().unwrap().direction = wire::Direction::Outbound as i32;
        edges.take(&picture);
        assert!(edges.now().is_empty());
    }

    #[test]
    fn what_failed_at_the_caller_shows_on_the_edge_that_it_would_have_taken() {
        let mut edges = Edges::default();
        let mut both = picture(0, "web", 5, 0);
        both.flows.extend(picture(0, "web", 5, 0).flows);
        let outbound = both.flows[1].flow.as_mut().unwrap();
        outbound.direction = wire::Direction::Outbound as i32;
        outbound.failed = 3;
        edges.take(&both);
        let now = edges.now();
        assert_eq!(now.len(), 1);
        assert_eq!((now[0].allowed, now[0].failed), (5, 3));
    }

    #[test]
    fn a_refused_stream_is_no_failure_though_its_caller_saw_it_break() {
        let mut edges = Edges::default();
        let mut both = picture(0, "mallory", 0, 3);
        both.flows.extend(picture(0, "mallory", 0, 0).flows);
        for view in &mut both.flows {
            view.flow.as_mut().unwrap().protocol = wire::Protocol::Tcp as i32;
        }
        let outbound = both.flows[1].flow.as_mut().unwrap();
        outbound.direction = wire::Direction::Outbound as i32;
        outbound.failed = 3;
        edges.take(&both);
        assert_eq!(edges.now()[0].failed, 0);
    }
}

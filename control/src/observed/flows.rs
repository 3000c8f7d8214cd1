//! Flows added up: per reporter and edge, since control started.

use std::collections::{BTreeMap, HashMap};

use postern_api::control::v1 as wire;
use postern_api::flow::LATENCY_BUCKETS;

use super::recent::Recent;
use super::{MAX_ID, cut};
use crate::model::Name;

/// Flows looked at in one report (the contract's own bound).
const MAX_PER_REPORT: usize = 256;
/// Edges kept per workload: it talks to that many others in a very large mesh.
const MAX_PER_WORKLOAD: usize = 512;
/// Edges kept altogether: some 9 MiB.
const MAX_FLOWS: usize = 16 * 1024;
/// Longest service or port name.
const MAX_NAME: usize = 256;

/// What makes an edge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Edge {
    direction: i32,
    source: String,
    destination: String,
    service: String,
    port: u32,
    protocol: i32,
    mutual_tls: bool,
}

/// Totals by reporter and edge.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    by_reporter: BTreeMap<Name, HashMap<Edge, Total>>,
    kept: usize,
}

/// Since the start, and of late.
#[derive(Debug, Default)]
struct Total {
    flow: wire::Flow,
    recent: Recent,
}

impl Flows {
    /// Adds a report that came in `slot`; says how many of its flows were not kept.
    pub(super) fn add(&mut self, reporter: &Name, own_id: &str, flows: Vec<wire::Flow>, slot: u64) -> u64 {
        let mut dropped = 0;
        let edges = self.by_reporter.entry(reporter.clone()).or_default();
        for (i, flow) in flows.into_iter().enumerate() {
            let Some(flow) = checked(flow, own_id).filter(|_| i < MAX_PER_REPORT) else {
                dropped += 1;
                continue;
            };
            let edge = Edge::of(&flow);
            let (allowed, denied) = (flow.allowed, flow.denied);
            let total = if let Some(total) = edges.get_mut(&edge) {
                add(&mut total.flow, &flow);
                total
            } else if edges.len() < MAX_PER_WORKLOAD && self.kept < MAX_FLOWS {
                self.kept += 1;
                let recent = Recent::default();
                edges.entry(edge).or_insert(Total { flow, recent })
            } else {
                dropped += 1;
                continue;
            };
            total.recent.add(slot, allowed, denied);
        }
        dropped
    }

    /// Forgets a workload.
    pub(crate) fn forget(&mut self, reporter: &Name) {
        if let Some(edges) = self.by_reporter.remove(reporter) {
            self.kept -= edges.len();
        }
    }

    /// A workload that has gone has nothing open.
    pub(crate) fn closed(&mut self, reporter: &Name) {
        for total in self
            .by_reporter
            .get_mut(reporter)
            .into_iter()
            .flat_map(HashMap::values_mut)
        {
            total.flow.open_connections = 0;
        }
    }

    /// All of them, in a steady order, as they are in `slot`.
    pub(super) fn views(&self, slot: u64) -> Vec<wire::FlowView> {
        let mut views = Vec::with_capacity(self.kept);
        for ((namespace, name), edges) in &self.by_reporter {
            let mut edges: Vec<_> = edges.iter().collect();
            edges.sort_by_key(|(edge, _)| *edge);
            views.extend(edges.into_iter().map(|(_, total)| {
                let (recently_allowed, recently_denied) = total.recent.counts(slot);
                wire::FlowView {
                    reporter: format!("{namespace}/{name}"),
                    flow: Some(total.flow.clone()),
                    recently_allowed,
                    recently_denied,
                }
            }));
        }
        views
    }
}

impl Edge {
    fn of(flow: &wire::Flow) -> Self {
        Self {
            direction: flow.direction,
            source: flow.source.clone(),
            destination: flow.destination.clone(),
            service: flow.service.clone(),
            port: flow.port,
            protocol: flow.protocol,
            mutual_tls: flow.mutual_tls,
        }
    }
}

/// A flow that holds together; its own side is the reporter, whatever it says.
fn checked(mut flow: wire::Flow, own_id: &str) -> Option<wire::Flow> {
    match flow.direction() {
        wire::Direction::Inbound => own_id.clone_into(&mut flow.destination),
        wire::Direction::Outbound => own_id.clone_into(&mut flow.source),
        wire::Direction::Unspecified => return None,
    }
    if flow.port > u32::from(u16::MAX) || wire::Protocol::try_from(flow.protocol).is_err() {
        return None;
    }
    for id in [&mut flow.source, &mut flow.destination] {
        cut(id, MAX_ID);
    }
    cut(&mut flow.service, MAX_NAME);
    flow.latency_buckets.resize(LATENCY_BUCKETS, 0);
    Some(flow)
}

fn add(total: &mut wire::Flow, flow: &wire::Flow) {
    let counters = [
        (&mut total.allowed, flow.allowed),
        (&mut total.denied, flow.denied),
        (&mut total.failed, flow.failed),
        (&mut total.would_deny, flow.would_deny),
        (&mut total.bytes_sent, flow.bytes_sent),
        (&mut total.bytes_received, flow.bytes_received),
    ];
    for (sum, more) in counters {
        *sum = sum.saturating_add(more);
    }
    for (sum, more) in total.latency_buckets.iter_mut().zip(&flow.latency_buckets) {
        *sum = sum.saturating_add(*more);
    }
    // A level, not a count.
    total.open_connections = flow.open_connections;
}

//! What proxies report and what control notices: aggregates and short rings, all bounded, whatever a proxy sends.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use postern_api::control::v1 as wire;

use crate::model::Name;
use crate::state::now_ms;

mod flows;
mod recent;

pub(crate) use flows::Flows;

/// A screen shows fewer.
const MAX_DENIALS: usize = 64;
/// A screen shows fewer.
const MAX_EVENTS: usize = 64;
/// Events taken from one report, so that one proxy cannot push out all others' at once.
const MAX_EVENTS_PER_REPORT: usize = 8;
/// Longest text of an event.
const MAX_TEXT: usize = 512;
/// Longest method, path, policy or rule of a denial.
const MAX_FIELD: usize = 128;
/// Longest SPIFFE ID, as everywhere.
const MAX_ID: usize = postern_identity::id::MAX_ID_LEN;

/// See the module.
#[derive(Debug)]
pub(crate) struct Observed {
    started: Instant,
    pub(crate) flows: Flows,
    /// Oldest first.
    pub(crate) denials: VecDeque<wire::Denial>,
    /// Oldest first.
    pub(crate) events: VecDeque<wire::Event>,
}

/// What of a report was not kept.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow {
    pub(crate) flows: u64,
    pub(crate) denials: u64,
    pub(crate) events: u64,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            flows: Flows::default(),
            denials: VecDeque::new(),
            events: VecDeque::new(),
        }
    }
}

impl Observed {
    /// All flows, and how far back their recent counts go.
    pub(crate) fn flow_views(&self) -> (Vec<wire::FlowView>, Duration) {
        let since_start = self.started.elapsed();
        (self.flows.views(recent::slot(since_start)), recent::reach(since_start))
    }

    /// Takes a report of the workload `reporter`, whose verified identity is `own_id`: it speaks for itself only.
    pub(crate) fn take(&mut self, reporter: &Name, own_id: &str, report: wire::FlowReport) -> Overflow {
        let mut overflow = Overflow {
            denials: report.denials_dropped,
            ..Overflow::default()
        };
        overflow.flows = self
            .flows
            .add(reporter, own_id, report.flows, recent::slot(self.started.elapsed()));
        for (i, mut denial) in report.denials.into_iter().enumerate() {
            if i >= MAX_DENIALS {
                overflow.denials += 1;
                continue;
            }
            if denial.source != own_id {
                own_id.clone_into(&mut denial.destination);
            }
            for id in [&mut denial.source, &mut denial.destination] {
                cut(id, MAX_ID);
            }
            let fields = [
                &mut denial.decision_id,
                &mut denial.method,
                &mut denial.path,
                &mut denial.reason,
                &mut denial.policy,
                &mut denial.rule,
            ];
            for field in fields {
                cut(field, MAX_FIELD);
            }
            push(&mut self.denials, denial, MAX_DENIALS);
        }
        for (i, event) in report.events.into_iter().enumerate() {
            if i >= MAX_EVENTS_PER_REPORT {
                overflow.events += 1;
                continue;
            }
            let level = match event.level.as_str() {
                "error" => "error",
                "warning" => "warning",
                _ => "info",
            };
            let mut text = format!("{}/{}: {}", reporter.0, reporter.1, event.text);
            cut(&mut text, MAX_TEXT);
            let event = wire::Event {
                time_unix_ms: event.time_unix_ms,
                level: level.to_owned(),
                text,
            };
            push(&mut self.events, event, MAX_EVENTS);
        }
        overflow
    }

    /// Control's own event.
    pub(crate) fn event(&mut self, level: &str, mut text: String) {
        cut(&mut text, MAX_TEXT);
        let event = wire::Event {
            time_unix_ms: now_ms(),
            level: level.to_owned(),
            text,
        };
        push(&mut self.events, event, MAX_EVENTS);
    }
}

/// A report's certificate: whose it is, is known.
pub(crate) fn certificate(own_id: &str, mut certificate: wire::Certificate) -> wire::Certificate {
    own_id.clone_into(&mut certificate.spiffe_id);
    cut(&mut certificate.serial, MAX_FIELD);
    cut(&mut certificate.last_renewal_error, MAX_TEXT);
    certificate
}

fn push<T>(ring: &mut VecDeque<T>, item: T, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(item);
}

/// Shortens to at most `most` bytes, at a character's end; control characters have no place on an operator's screen.
pub(crate) fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    if text.contains(|c: char| c.is_control()) {
        *text = text.replace(|c: char| c.is_control(), "?");
    }
}

#[cfg(test)]
mod tests;

//! The counters of one route on one worker.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use postern_api::flow::{LATENCY_BUCKETS, bucket_of};

use super::{Finished, Outcome};

/// No status (an opaque stream), then 1xx to 5xx.
pub(super) const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Handles of one route. Cheap, lock-free: a few relaxed adds per request.
#[derive(Debug, Default)]
pub struct Route {
    /// By outcome and status class.
    requests: [[AtomicU64; CLASSES.len()]; Outcome::ALL.len()],
    /// Of what was allowed.
    latency: [AtomicU64; LATENCY_BUCKETS],
    latency_sum_us: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// Opened on one worker and closed there: never negative for long.
    open: AtomicI64,
}

/// What a route had counted at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// By [`Outcome`] and status class (none, 1xx to 5xx).
    pub requests: [[u64; CLASSES.len()]; Outcome::ALL.len()],
    /// Latencies of allowed requests, per bucket of `postern_api::flow`.
    pub latency: [u64; LATENCY_BUCKETS],
    /// Their sum in microseconds.
    pub latency_sum_us: u64,
    /// Body bytes towards the upstream.
    pub sent: u64,
    /// Body bytes from the upstream.
    pub received: u64,
    /// Connections open now.
    pub open: u64,
}

impl Route {
    /// Counts a finished request or stream.
    pub fn finished(&self, finished: &Finished) {
        let outcome = finished.outcome();
        let class = match finished.status / 100 {
            class @ 1..=5 => usize::from(class),
            _ => 0,
        };
        self.requests[outcome as usize][class].fetch_add(1, Ordering::Relaxed);
        if matches!(outcome, Outcome::Allowed | Outcome::WouldDeny) {
            let us = u64::try_from(finished.latency.as_micros()).unwrap_or(u64::MAX);
            self.latency[bucket_of(us)].fetch_add(1, Ordering::Relaxed);
            self.latency_sum_us.fetch_add(us, Ordering::Relaxed);
        }
        if finished.sent > 0 {
            self.sent.fetch_add(finished.sent, Ordering::Relaxed);
        }
        if finished.received > 0 {
            self.received.fetch_add(finished.received, Ordering::Relaxed);
        }
    }
    /// A connection on this route opened.
    pub fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }
    /// And closed.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn add_to(&self, sum: &mut Counts) {
        let add = |to: &mut u64, from: &AtomicU64| *to += from.load(Ordering::Relaxed);
        for (to, from) in sum.requests.iter_mut().flatten().zip(self.requests.iter().flatten()) {
            add(to, from);
        }
        for (to, from) in sum.latency.iter_mut().zip(&self.latency) {
            add(to, from);
        }
        add(&mut sum.latency_sum_us, &self.latency_sum_us);
        add(&mut sum.sent, &self.sent);
        add(&mut sum.received, &self.received);
        sum.open += u64::try_from(self.open.load(Ordering::Relaxed)).unwrap_or(0);
    }
}

impl Counts {
    /// Requests that ended so.
    #[must_use]
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.requests[outcome as usize].iter().sum()
    }
}

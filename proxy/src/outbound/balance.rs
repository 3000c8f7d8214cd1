//! Which endpoint: of two chosen at random the one with less to do and quicker answers (power of two choices on a
//! peak-sensitive average); endpoints that keep failing are passed over for a while, unless all do.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{EJECT_AFTER, EJECT_FOR, EJECT_MOST, RETRY_BURST, RETRY_SHARE};
use crate::outcome::{Blame, Failure};

/// How far one answer moves the average when it is quicker; a slower one is believed at once.
const WEIGHT: f64 = 0.1;
/// What an endpoint without a history is taken for: quick enough to be tried.
const UNKNOWN_US: f64 = 1_000.0;

/// One worker's experience with one endpoint.
#[derive(Debug)]
pub struct Load {
    in_flight: Cell<u32>,
    answer_us: Cell<f64>,
    failures: Cell<u32>,
    failed_at: Cell<Option<Instant>>,
    ejected_until: Cell<Option<Instant>>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            in_flight: Cell::new(0),
            answer_us: Cell::new(UNKNOWN_US),
            failures: Cell::new(0),
            failed_at: Cell::new(None),
            ejected_until: Cell::new(None),
        }
    }
}

impl Load {
    /// A request goes there.
    pub fn began(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }
    /// And is over.
    pub fn ended(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
    }

    /// It was answered after `took`.
    pub fn answered(&self, took: Duration) {
        let took = took.as_secs_f64() * 1e6;
        let known = self.answer_us.get();
        self.answer_us.set(if took > known {
            took
        } else {
            known + (took - known) * WEIGHT
        });
        if self.failures.get() > 0 {
            self.failures.set(0);
            self.failed_at.set(None);
            self.ejected_until.set(None);
        }
    }

    /// It could not be reached, or broke off. What is its client's fault, or ours, is not counted.
    pub fn failed(&self, failure: Failure, now: Instant) {
        if failure.facts().blame != Blame::Upstream {
            return;
        }
        self.failed_at.set(Some(now));
        let failures = self.failures.get() + 1;
        self.failures.set(failures);
        if failures >= EJECT_AFTER {
            let doubled = (failures - EJECT_AFTER).min(8);
            self.ejected_until
                .set(Some(now + (EJECT_FOR * 2_u32.pow(doubled)).min(EJECT_MOST)));
        }
    }

    /// Its failures still count, whether or not anybody uses it.
    #[must_use]
    pub fn is_remembered(&self, now: Instant) -> bool {
        self.failed_at
            .get()
            .is_some_and(|at| now.saturating_duration_since(at) < EJECT_MOST)
    }

    /// Is it passed over now?
    #[must_use]
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.get().is_some_and(|until| now < until)
    }

    fn cost(&self) -> f64 {
        f64::from(self.in_flight.get() + 1) * self.answer_us.get()
    }
}

/// What is known of an endpoint at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    cost: f64,
    ejected: bool,
}

impl Standing {
    /// Never used.
    pub const UNKNOWN: Self = Self {
        cost: UNKNOWN_US,
        ejected: false,
    };

    /// By experience.
    #[must_use]
    pub fn of(load: &Load, now: Instant) -> Self {
        Self {
            cost: load.cost(),
            ejected: load.is_ejected(now),
        }
    }
}

/// Picks one of `count`, not one of `tried` if another is left. `standing` tells what is known of each; `random` gives a
/// number below its argument.
pub fn pick(
    count: usize,
    mut standing: impl FnMut(usize) -> Standing,
    tried: &[usize],
    mut random: impl FnMut(usize) -> usize,
) -> Option<usize> {
    match count {
        0 => return None,
        1 => return Some(0).filter(|first| !tried.contains(first)),
        _ => {}
    }
    let mut usable = |at: usize| {
        let standing = standing(at);
        (!tried.contains(&at) && !standing.ejected).then_some(standing.cost)
    };
    let (a, b) = (random(count), random(count - 1));
    let b = if b >= a { b + 1 } else { b };
    match (usable(a), usable(b)) {
        (Some(cost_a), Some(cost_b)) => Some(if cost_b < cost_a { b } else { a }),
        (Some(_), None) => Some(a),
        (None, Some(_)) => Some(b),
        (None, None) => (0..count)
            .find(|at| usable(*at).is_some())
            // All are out of favour: better a doubtful one than none.
            .or_else(|| (0..count).find(|at| !tried.contains(at))),
    }
}

/// Retries of requests that were sent are a share of requests, so that they never double an overload.
#[derive(Debug)]
pub struct Budget(Cell<f32>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(RETRY_BURST))
    }
}

impl Budget {
    /// A request was sent.
    pub fn earn(&self) {
        self.0.set((self.0.get() + RETRY_SHARE).min(RETRY_BURST));
    }
    /// May one be sent again?
    #[must_use]
    pub fn spend(&self) -> bool {
        let left = self.0.get() - 1.0;
        if left < 0.0 {
            return false;
        }
        self.0.set(left);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn choose(loads: &[Load], tried: &[usize], now: Instant, seed: u64) -> Option<usize> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let standing = |at: usize| loads.get(at).map_or(Standing::UNKNOWN, |load| Standing::of(load, now));
        pick(loads.len(), standing, tried, |n| rng.usize(..n))
    }

    #[test]
    fn the_busier_and_slower_of_two_is_avoided() {
        let loads = [Load::default(), Load::default()];
        let now = Instant::now();
        loads[0].began();
        assert!((0..32).all(|seed| choose(&loads, &[], now, seed) == Some(1)));
        loads[0].ended();
        loads[1].answered(Duration::from_millis(50));
        assert!((0..32).all(|seed| choose(&loads, &[], now, seed) == Some(0)));
    }

    #[test]
    fn an_endpoint_is_ejected_after_eject_after_failures_and_not_one_before() {
        let loads = [Load::default(), Load::default(), Load::default()];
        let now = Instant::now();
        for _ in 0..EJECT_AFTER - 1 {
            loads[0].failed(Failure::ConnectFailed, now);
        }
        assert!(!loads[0].is_ejected(now));
        loads[0].failed(Failure::ConnectFailed, now);
        assert!(loads[0].is_ejected(now) && !loads[0].is_ejected(now + EJECT_FOR));
        assert!((0..64).all(|seed| choose(&loads, &[], now, seed) != Some(0)));
        loads[0].answered(Duration::from_micros(1));
        assert!(!loads[0].is_ejected(now));
    }

    #[test]
    fn when_all_are_ejected_one_is_tried_all_the_same_but_none_twice() {
        let loads = [Load::default(), Load::default()];
        let now = Instant::now();
        for load in &loads {
            (0..EJECT_AFTER).for_each(|_| load.failed(Failure::ConnectFailed, now));
        }
        assert!(choose(&loads, &[], now, 1).is_some());
        assert_eq!(choose(&loads, &[0], now, 1), Some(1));
        assert_eq!(choose(&loads, &[0, 1], now, 1), None);
        assert_eq!(choose(&loads[..1], &[0], now, 1), None);
        assert_eq!(choose(&[], &[], now, 1), None);
    }

    #[test]
    fn what_a_client_or_we_do_ejects_nobody() {
        let load = Load::default();
        let now = Instant::now();
        for failure in [
            Failure::PeerGone,
            Failure::BodyTimeout,
            Failure::Overloaded,
            Failure::IdentityExpired,
        ] {
            (0..EJECT_AFTER * 2).for_each(|_| load.failed(failure, now));
        }
        assert!(!load.is_ejected(now) && !load.is_remembered(now));
    }

    #[test]
    fn ejection_grows_up_to_its_bound() {
        let load = Load::default();
        let now = Instant::now();
        (0..EJECT_AFTER + 40).for_each(|_| load.failed(Failure::ConnectFailed, now));
        assert!(load.is_ejected(now + EJECT_MOST - Duration::from_millis(1)));
        assert!(!load.is_ejected(now + EJECT_MOST));
    }

    #[test]
    fn retries_are_a_share_of_requests() {
        let budget = Budget::default();
        let burst = (0..100).filter(|_| budget.spend()).count();
        assert_eq!(burst, 10);
        (0..10).for_each(|_| budget.earn());
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 2);
    }
}

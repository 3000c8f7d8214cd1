//! When to ask for one connection.

use std::cell::Cell;
use std::time::Duration;

use crate::limits::{
    READMIT_BY, READMIT_FROM, READMIT_HURRY, READMIT_HURRY_FOR, READMIT_HURRY_MOST, READMIT_PAUSE, SUPERVISE_TICK,
};

/// Nobody's clock says that.
const NEVER: Duration = Duration::MAX;

/// See the module. Every `now` is of the same clock as every `end`, until when the connection holds.
#[derive(Debug)]
pub(super) struct Schedule {
    next: Cell<Duration>,
    /// Since when a root is being replaced, as far as we can tell: what was admitted under the old one ends with it, however
    /// long its certificate would last.
    hurry: Cell<Option<Duration>>,
    /// Between two tries meanwhile.
    patience: Cell<Duration>,
}

impl Schedule {
    /// `apart`: one of the two ends has renewed under a new root, and the other has not.
    pub(super) fn new(apart: bool, end: Duration, now: Duration) -> Self {
        let made = Self {
            next: Cell::new(NEVER),
            hurry: Cell::new(apart.then_some(now)),
            patience: Cell::new(READMIT_HURRY),
        };
        made.put(first_try(end, now), now);
        made
    }

    /// Not before that.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.next.get()
    }

    /// Asked also where our own renewal has won nothing?
    pub(super) fn hurries(&self) -> bool {
        self.hurry.get().is_some()
    }

    /// Our root is another than it was.
    pub(super) fn root_changed(&self, now: Duration) {
        self.hurry.set(Some(now));
        self.patience.set(READMIT_HURRY);
        self.by(now + READMIT_HURRY.mul_f64(between(0.0, 1.0)));
    }

    /// The two ends have agreed. While they are `apart` there is another time to ask for.
    pub(super) fn agreed(&self, apart: bool, now: Duration) {
        if !apart {
            self.hurry.set(None);
        } else if !self.hurries() {
            self.hurry.set(Some(now));
            self.patience.set(READMIT_HURRY);
        }
    }

    pub(super) fn succeeded(&self, end: Duration, now: Duration) {
        self.put(first_try(end, now), now);
    }

    pub(super) fn failed(&self, end: Duration, now: Duration) {
        self.put(next_try(end, now), now);
    }

    /// The peer has shown that it does not know how.
    pub(super) fn never(&self) {
        self.next.set(NEVER);
        self.hurry.set(None);
    }

    pub(super) fn is_never(&self) -> bool {
        self.next.get() == NEVER
    }

    fn put(&self, at: Duration, now: Duration) {
        self.next.set(at);
        if let Some(since) = self.hurry.get() {
            let patience = self.patience.get();
            self.patience.set(next_patience(patience, now.saturating_sub(since)));
            self.by(now + patience.mul_f64(between(0.5, 1.0)));
        }
    }

    fn by(&self, at: Duration) {
        self.next.set(self.next.get().min(at));
    }
}

/// Doubled; while the other end is likely to renew, not past [`READMIT_HURRY_MOST`].
fn next_patience(patience: Duration, since: Duration) -> Duration {
    let doubled = patience.saturating_mul(2);
    match since < READMIT_HURRY_FOR {
        true => doubled.min(READMIT_HURRY_MOST),
        false => doubled,
    }
}

/// Within which a connection that holds until `end` is asked about.
fn first_try(end: Duration, now: Duration) -> Duration {
    now + end.saturating_sub(now).mul_f64(between(READMIT_FROM, READMIT_BY))
}

fn next_try(end: Duration, now: Duration) -> Duration {
    let pause = end.saturating_sub(now).mul_f64(READMIT_PAUSE * between(0.5, 1.5));
    now + pause.max(SUPERVISE_TICK)
}

fn between(least: f64, most: f64) -> f64 {
    least + fastrand::f64() * (most - least)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const START: Duration = Duration::from_secs(1_000_000);
    const END: Duration = Duration::from_secs(1_014_400);

    /// When it asks, each time in vain, until `end`.
    fn tries(schedule: &Schedule, from: Duration, until: Duration) -> Vec<Duration> {
        let (mut now, mut tries) = (from, Vec::new());
        while now < until {
            if schedule.is_due(now) {
                tries.push(now);
                schedule.failed(END, now);
            }
            now += SUPERVISE_TICK;
        }
        tries
    }

    fn longest(tries: &[Duration]) -> Duration {
        tries.windows(2).map(|two| two[1] - two[0]).max().unwrap()
    }

    #[test]
    fn while_a_root_is_replaced_a_peer_that_renews_late_is_asked_within_seconds() {
        // As it is of a connection that was there before, and of one that begins in between.
        let before = Schedule::new(false, END, START);
        before.root_changed(START);
        for schedule in [before, Schedule::new(true, END, START)] {
            let asked = tries(&schedule, START, START + READMIT_HURRY_FOR);
            assert!(asked[0] - START <= READMIT_HURRY + SUPERVISE_TICK, "{asked:?}");
            assert!(longest(&asked) <= READMIT_HURRY_MOST + SUPERVISE_TICK, "{asked:?}");
            // The very last second of it counts as well.
            let last = *asked.last().unwrap();
            assert!(
                last + READMIT_HURRY_MOST + SUPERVISE_TICK >= START + READMIT_HURRY_FOR,
                "{asked:?}"
            );
        }
    }

    #[test]
    fn a_peer_that_never_renews_is_asked_ever_more_seldom() {
        let schedule = Schedule::new(true, END, START);
        let asked = tries(&schedule, START, START + READMIT_HURRY_FOR + Duration::from_secs(7_200));
        assert!(longest(&asked) > READMIT_HURRY_MOST * 8, "{asked:?}");
        assert!(asked.len() < 40, "{asked:?}");
    }

    #[test]
    fn ends_that_are_under_one_root_again_are_in_no_hurry() {
        let schedule = Schedule::new(true, END, START);
        schedule.agreed(true, START);
        assert!(schedule.hurries());
        schedule.agreed(false, START);
        schedule.failed(END, START);
        assert!(!schedule.hurries() && !schedule.is_due(START + READMIT_HURRY_MOST * 2));
    }

    #[test]
    fn without_a_root_s_change_the_first_try_is_in_its_part_of_the_time() {
        let life = END - START;
        for _ in 0..100 {
            let schedule = Schedule::new(false, END, START);
            assert!(!schedule.is_due(START + life.mul_f64(READMIT_FROM) - SUPERVISE_TICK));
            assert!(schedule.is_due(START + life.mul_f64(READMIT_BY) + SUPERVISE_TICK));
            schedule.never();
            assert!(schedule.is_never() && !schedule.is_due(END));
        }
    }
}

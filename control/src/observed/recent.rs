//! Counts of the last half minute, in slots: what a rate is made of. A ring per edge, so that nothing grows with traffic.

use std::time::Duration;

/// One slot's length.
const SLOT: Duration = Duration::from_secs(5);
/// Slots that are over and still count: proxies report each second, and a rate over less than half a minute jumps.
const PAST: u64 = 6;
/// Those, and the one that is now.
const SLOTS: usize = PAST as usize + 1;

/// The slot of an instant, counted from the start of the process.
pub(super) fn slot(since_start: Duration) -> u64 {
    since_start.as_secs() / SLOT.as_secs()
}

/// How far back [`Recent::counts`] goes then.
pub(super) fn reach(since_start: Duration) -> Duration {
    let begun = u32::try_from(slot(since_start).saturating_sub(PAST)).unwrap_or(u32::MAX);
    since_start.saturating_sub(SLOT.saturating_mul(begun))
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub(super) struct Recent {
    /// Allowed and denied, by slot number modulo [`SLOTS`].
    counts: [(u64, u64); SLOTS],
    /// The newest slot that was counted in.
    newest: u64,
}

impl Recent {
    pub(super) fn add(&mut self, slot: u64, allowed: u64, denied: u64) {
        // Whatever lies between was quiet.
        for quiet in (self.newest + 1..=slot).rev().take(SLOTS) {
            self.counts[at(quiet)] = (0, 0);
        }
        self.newest = self.newest.max(slot);
        let count = &mut self.counts[at(slot)];
        count.0 = count.0.saturating_add(allowed);
        count.1 = count.1.saturating_add(denied);
    }

    /// Allowed and denied in `now` and the slots before it that still count.
    pub(super) fn counts(&self, now: u64) -> (u64, u64) {
        let oldest = now.saturating_sub(PAST);
        let slots = oldest..=self.newest.min(now);
        slots.map(|slot| self.counts[at(slot)]).fold((0, 0), |sum, count| {
            (sum.0.saturating_add(count.0), sum.1.saturating_add(count.1))
        })
    }
}

fn at(slot: u64) -> usize {
    usize::try_from(slot % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let mut recent = Recent::default();
        recent.add(0, 10, 1);
        recent.add(3, 5, 0);
        assert_eq!(recent.counts(3), (15, 1));
        assert_eq!(recent.counts(PAST), (15, 1));
        assert_eq!(recent.counts(PAST + 1), (5, 0));
        assert_eq!(recent.counts(PAST + 4), (0, 0));
    }

    #[test]
    fn a_slot_that_is_used_again_begins_at_nothing() {
        let mut recent = Recent::default();
        recent.add(1, 10, 10);
        recent.add(1 + SLOTS as u64, 1, 0);
        assert_eq!(recent.counts(1 + SLOTS as u64), (1, 0));
        recent.add(u64::MAX / 2, 2, 0);
        assert_eq!(recent.counts(u64::MAX / 2), (2, 0));
    }

    #[test]
    fn the_window_reaches_as_far_as_there_was_a_process() {
        assert_eq!(reach(Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(reach(Duration::from_secs(34)), Duration::from_secs(34));
        assert_eq!(reach(Duration::from_secs(35)), Duration::from_secs(30));
        assert_eq!(reach(Duration::from_secs(1002)), Duration::from_secs(32));
    }
}

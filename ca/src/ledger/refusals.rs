//! Refusals, so told that no flood of them fills the disk: the first of a caller and reason is a record at once, the others
//! of the same interval one more with their count. Past a bound of callers they are told by reason alone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use postern_api::refusal::RefusalReason;
use rustls_pki_types::UnixTime;

use super::entry::{Entry, Event, Refused};
use crate::admission::neighbourhood;

/// How long refusals that are alike are counted before they become a record.
pub(crate) const INTERVAL: Duration = Duration::from_secs(300);
/// Pairs of caller and reason that are told apart within an interval. With the reasons themselves these are two records
/// each, 130 in five minutes, 1.2 million in a flood of 30 days: about 700 MB.
pub(crate) const MAX_TOLD_APART: usize = 32;
/// Of what a caller was told. (It may have chosen some of it.)
const MAX_MESSAGE: usize = 512;

/// A refusal that is to be told.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) reason: RefusalReason,
    pub(crate) attestation: &'static str,
    pub(crate) caller: IpAddr,
    pub(crate) message: String,
}

#[derive(Default)]
pub(crate) struct Refusals {
    tallies: HashMap<(Option<IpAddr>, RefusalReason), Refused>,
    told_apart: usize,
}

impl Refusals {
    /// The record of a first one; none for those that are counted.
    pub(crate) fn note(&mut self, told: &Told, now: UnixTime) -> Option<Entry> {
        let caller = Some(neighbourhood(told.caller));
        let known = |caller| self.tallies.contains_key(&(caller, told.reason));
        let caller = if known(caller) || self.told_apart < MAX_TOLD_APART {
            caller
        } else {
            None
        };
        let now = now.as_secs();
        if let Some(tally) = self.tallies.get_mut(&(caller, told.reason)) {
            if tally.count == 0 {
                tally.first = now;
            }
            tally.count += 1;
            tally.last = now;
            return None;
        }
        self.told_apart += usize::from(caller.is_some());
        let first = Refused {
            reason: told.reason.as_str().to_owned(),
            attestation: told.attestation.to_owned(),
            caller: caller.map(|caller| caller.to_string()),
            message: told.message.chars().take(MAX_MESSAGE).collect(),
            count: 1,
            first: now,
            last: now,
        };
        // What is counted from now on is another record.
        let tally = Refused {
            count: 0,
            ..first.clone()
        };
        self.tallies.insert((caller, told.reason), tally);
        Some(Entry {
            time: now,
            event: Event::Refused(first),
        })
    }

    /// The interval is over: what was counted.
    pub(crate) fn counted(&mut self, now: UnixTime) -> Vec<Entry> {
        self.told_apart = 0;
        let mut counted: Vec<Refused> = self
            .tallies
            .drain()
            .map(|(_, tally)| tally)
            .filter(|tally| tally.count > 0)
            .collect();
        counted.sort_by_key(|tally| tally.first);
        counted
            .into_iter()
            .map(|tally| Entry::at(now, Event::Refused(tally)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(caller: u32) -> Told {
        Told {
            reason: RefusalReason::Busy,
            attestation: "none",
            caller: IpAddr::V4(caller.into()),
            message: "é".repeat(2 * MAX_MESSAGE),
        }
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn refused(entry: &Entry) -> &Refused {
        match &entry.event {
            Event::Refused(refused) => refused,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn refusals_that_are_alike_are_two_records_and_the_first_is_told_at_once() {
        let mut refusals = Refusals::default();
        let first = refusals.note(&told(1), at(10)).unwrap();
        assert_eq!((refused(&first).count, refused(&first).first), (1, 10));
        assert_eq!(refused(&first).message.chars().count(), MAX_MESSAGE);
        for second in 11..=110 {
            assert_eq!(refusals.note(&told(1), at(second)), None);
        }
        let counted = refusals.counted(at(300));
        assert_eq!(counted.len(), 1);
        let tally = refused(&counted[0]);
        assert_eq!((tally.count, tally.first, tally.last), (100, 11, 110));
        // A new interval begins with a first one.
        assert!(refusals.note(&told(1), at(301)).is_some());
        assert!(refusals.counted(at(600)).is_empty());
    }

    #[test]
    fn a_flood_from_many_callers_is_told_by_reason_alone_past_the_bound() {
        let mut refusals = Refusals::default();
        let bound = u32::try_from(MAX_TOLD_APART).unwrap();
        for caller in 0..bound {
            assert!(refused(&refusals.note(&told(caller), at(1)).unwrap()).caller.is_some());
        }
        assert_eq!(refused(&refusals.note(&told(bound), at(1)).unwrap()).caller, None);
        for caller in bound + 1..10_000 {
            assert_eq!(refusals.note(&told(caller), at(2)), None);
        }
        // One that is known is still told apart.
        assert_eq!(refusals.note(&told(0), at(2)), None);
        let counted = refusals.counted(at(300));
        let mut counts: Vec<u64> = counted.iter().map(|entry| refused(entry).count).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, u64::from(9_999 - bound)]);
    }
}

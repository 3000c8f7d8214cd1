//! The last denials, for the next flow report.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use postern_api::control::v1 as wire;

use super::{Entry, cut};

/// Denials in one flow report; more are counted (control.proto).
pub const MAX_DENIALS: usize = 64;

/// Bounded: a flood of denials costs a counter, not memory.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    denials: Vec<wire::Denial>,
    dropped: u64,
}

impl Denials {
    /// The denials since the last call, and how many there were beyond them.
    #[must_use]
    pub fn take(&self) -> (Vec<wire::Denial>, u64) {
        let held = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        (held.denials, held.dropped)
    }

    /// Counts denials that were taken and could not be reported.
    pub(crate) fn lost(&self, count: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).dropped += count;
    }

    pub(super) fn note(&self, entry: &Entry<'_>, now: SystemTime) {
        // Only refusals come here, and the lock is held for a push.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.denials.len() >= MAX_DENIALS {
            held.dropped += 1;
            return;
        }
        held.denials.push(wire::Denial {
            time_unix_ms: unix_ms(now),
            decision_id: entry.decision_id.unwrap_or_default().to_owned(),
            source: entry.route.source.to_string(),
            destination: entry.route.destination.to_string(),
            port: entry.route.port.into(),
            method: cut(entry.method).to_owned(),
            path: cut(entry.path).to_owned(),
            reason: entry.reason().unwrap_or_default().to_owned(),
            would_deny: entry.finished.failure.is_none(),
            policy: entry.policy.unwrap_or_default().to_owned(),
            rule: entry.rule.unwrap_or_default().to_owned(),
        });
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

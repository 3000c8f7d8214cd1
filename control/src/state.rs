//! What is in force: one immutable object per change of the directory, and one per change of the bundle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use postern_api::ca::v1 as ca;

use crate::directory::Load;
use crate::model::Model;

/// What the directory says, and under which versions.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Grows with every change; begins at the time, so that it grows across restarts, too.
    pub(crate) version: u64,
    /// The version that last changed any policy.
    pub(crate) policy_version: u64,
    pub(crate) model: Arc<Model>,
    /// Refused files and why.
    pub(crate) bad: BTreeMap<String, Vec<String>>,
}

impl State {
    /// The state after `load`.
    pub(crate) fn after(previous: &Self, load: Load, root_namespace: &str, now: SystemTime) -> Self {
        let model = Model::build(root_namespace, &load.documents);
        let version = next_version(previous.version, now);
        let same = previous.version != 0 && previous.model.policies == model.policies;
        Self {
            version,
            policy_version: if same { previous.policy_version } else { version },
            model: Arc::new(model),
            bad: load.bad,
        }
    }
}

/// The CA's bundles as they are carried to proxies: byte for byte what the CA signed.
#[derive(Debug, Default)]
pub(crate) struct Bundles {
    pub(crate) version: u64,
    /// Sequence of the newest one.
    pub(crate) sequence: u64,
    pub(crate) issuer_epoch: u64,
    /// The whole chain of links, oldest first: a proxy may hold any of them.
    pub(crate) links: Vec<ca::SignedBundle>,
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The same, as the wire has it.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(unix_ms(SystemTime::now())).unwrap_or(i64::MAX)
}

/// Above `previous`, and above everything that an earlier process gave out, unless the clock was set back: then
/// [`crate::connect`] counts on from what the proxy holds.
pub(crate) fn next_version(previous: u64, now: SystemTime) -> u64 {
    previous.saturating_add(1).max(unix_ms(now))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn versions_grow_whatever_the_clock_does(times in proptest::collection::vec(0u64..4_000_000_000_000, 1..50)) {
            let mut version = 0;
            for ms in times {
                let next = next_version(version, UNIX_EPOCH + Duration::from_millis(ms));
                prop_assert!(next > version);
                version = next;
            }
        }
    }

    #[test]
    fn a_restarted_control_begins_above_what_the_one_before_gave_out() {
        let started = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut version = next_version(0, started);
        for _ in 0..1000 {
            version = next_version(version, started);
        }
        assert!(next_version(0, started + Duration::from_secs(2)) > version);
    }
}

//! The clock as a value, so that a test can move it.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;

/// Asked for the time at each decision.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system() -> Clock {
    Arc::new(UnixTime::now)
}

/// `time` moved forward.
pub(crate) fn later(time: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs().saturating_add(by.as_secs())))
}

/// `time` moved back.
pub(crate) fn earlier(time: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs().saturating_sub(by.as_secs())))
}

/// From `now` to `then`; zero if it has passed.
pub(crate) fn until(then: UnixTime, now: UnixTime) -> Duration {
    Duration::from_secs(then.as_secs().saturating_sub(now.as_secs()))
}

/// Seconds since 1970 as the wire and the store write them.
pub(crate) fn unix(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// RFC 3339, for people.
pub(crate) fn shown(time: UnixTime) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(time.as_secs());
    humantime::format_rfc3339_seconds(time).to_string()
}

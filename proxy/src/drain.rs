//! Shutdown: stop being ready, keep accepting through the grace's start, end connections gracefully, then cut.

use std::time::Duration;

use tokio::sync::watch;

/// Endpoints and load balancers take this long to notice that we are not ready; until then they still send.
const GRACE: Duration = Duration::from_secs(5);

/// How much of a shutdown's time new connections are still accepted: a fifth, at most [`GRACE`].
#[must_use]
pub(crate) fn grace(whole: Duration) -> Duration {
    (whole / 5).min(GRACE)
}

/// How often a shutdown looks whether what it waits for has ended.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How far the shutdown is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    /// Serving.
    #[default]
    Running,
    /// Not ready any more; connections are told to end (GOAWAY, `connection: close`).
    Draining,
    /// The deadline has passed: cut what is left.
    Cut,
}

/// A task's view of the shutdown.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<Phase>);

impl Drain {
    /// The signal and the view of it.
    #[must_use]
    pub fn new() -> (watch::Sender<Phase>, Self) {
        let (sender, receiver) = watch::channel(Phase::Running);
        (sender, Self(receiver))
    }
    /// Where it is now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }
    /// Waits until at least `phase`. Cancel-safe.
    pub async fn reached(&mut self, phase: Phase) {
        // A dropped sender means that the process is ending: treat it as reached.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

//! Who leads: one of the replicas, by a `coordination.k8s.io/v1` Lease.
//!
//! ```text
//! each sixth of the duration:  read --> ours: renew | nobody's, or not renewed for its duration: take it | wait
//!                              write (with what was read as its precondition) --> Leadership until 2/3 of the duration
//! ```
//!
//! Clocks of machines are never compared. A candidate counts from when **it** saw the last change, by its own steady
//! clock, so it takes the Lease no earlier than a whole duration after the holder wrote. A holder counts from before it
//! **asked** for its last write, and gives up after two thirds of the duration: the third between is for clocks that run
//! unlike. Each acquisition has its own epoch (`leaseTransitions`), which only grows.
//!
//! The steady clock stands still while a machine is suspended: a leader that wakes may believe in itself for a moment.
//! So every write that a leader makes has a precondition of its own (`resourceVersion`); a Lease only spares work.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

#[cfg(test)]
mod tests;

/// What components take: a leader that was killed is followed within about this.
pub const DURATION: Duration = Duration::from_secs(15);
/// A Lease has whole seconds.
const SHORTEST: Duration = Duration::from_secs(1);
/// Rounds in one duration: a few may fail without the leadership being lost.
const ROUNDS: u32 = 6;
/// The longest that one call may take, however long the duration is.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// The right to do what only one replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// Counts acquisitions of this Lease, by whomever.
    pub epoch: u64,
}

/// Stands for election until the future is dropped. The receiver has `None` while somebody else, or nobody, leads.
///
/// The Lease must exist (the chart creates it empty). `holder` is shown to people; a random suffix is appended, so that a
/// process is never taken for its predecessor. `duration` is [`DURATION`] but in tests, and at least a second.
pub fn run(
    client: Client,
    namespace: &str,
    name: &str,
    holder: &str,
    duration: Duration,
) -> (
    watch::Receiver<Option<Leadership>>,
    impl Future<Output = ()> + Send + use<>,
) {
    let (told, receiver) = watch::channel(None);
    let holder = format!("{holder}_{:08x}", fastrand::u32(..));
    let election = Election {
        api: Api::namespaced(client, namespace),
        name: name.to_owned(),
        candidate: Candidate::new(holder, duration.max(SHORTEST)),
        told,
        trouble: None,
    };
    (receiver, election.run())
}

struct Election {
    api: Api<Lease>,
    name: String,
    candidate: Candidate,
    told: watch::Sender<Option<Leadership>>,
    /// The last that was logged.
    trouble: Option<String>,
}

impl Election {
    async fn run(mut self) {
        loop {
            let until = self.candidate.held.map(|held| held.until);
            match until {
                // Given up in time, even if a call hangs. A write that is cut off here is seen at the next reading.
                Some(until) => drop(timeout_at(until, self.round()).await),
                None => self.round().await,
            }
            self.tell();
            let pause = (self.candidate.duration / ROUNDS).mul_f64(0.75 + 0.5 * fastrand::f64());
            let mut wake = Instant::now() + pause;
            if let Some(held) = self.candidate.held {
                wake = wake.min(held.until);
            }
            sleep_until(wake).await;
            self.tell();
        }
    }

    fn tell(&mut self) {
        let now = self.candidate.leadership(Instant::now());
        let name = self.name.as_str();
        self.told.send_if_modified(|told| {
            if *told == now {
                return false;
            }
            match now {
                Some(Leadership { epoch }) => tracing::info!(lease = name, epoch, "leading"),
                None => tracing::info!(lease = name, "not leading any more"),
            }
            *told = now;
            true
        });
    }

    async fn round(&mut self) {
        let outcome = self.read_and_write().await;
        match outcome {
            Ok(()) => self.trouble = None,
            Err(error) if self.trouble.as_ref() != Some(&error) => {
                tracing::warn!(lease = self.name, "the Lease cannot be read or written: {error}");
                self.trouble = Some(error);
            }
            Err(_) => {}
        }
    }

    async fn read_and_write(&mut self) -> Result<(), String> {
        let patience = CALL_DEADLINE.min(self.candidate.duration / 3);
        let slow = |_| "no answer in time".to_owned();
        let lease = timeout(patience, self.api.get(&self.name))
            .await
            .map_err(slow)?
            .map_err(|error| error.to_string())?;
        let spec = lease.spec.clone().unwrap_or_default();
        let Some(wanted) = self.candidate.observe(&spec, Instant::now()) else {
            return Ok(());
        };
        let epoch = epoch_of(&wanted);
        let next = Lease {
            metadata: lease.metadata,
            spec: Some(wanted),
        };
        let asked = Instant::now();
        match timeout(patience, self.api.replace(&self.name, &PostParams::default(), &next))
            .await
            .map_err(slow)?
        {
            Ok(written) => {
                self.candidate.wrote(&written.spec.unwrap_or_default(), epoch, asked);
                Ok(())
            }
            // Somebody was quicker: seen at the next reading.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The rules, without a clock or a network of their own.
#[derive(Debug)]
struct Candidate {
    holder: String,
    duration: Duration,
    seen: Option<Seen>,
    held: Option<Held>,
}

#[derive(Debug)]
struct Seen {
    spec: LeaseSpec,
    /// By our steady clock.
    at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: u64,
    until: Instant,
}

impl Candidate {
    fn new(holder: String, duration: Duration) -> Self {
        Self {
            holder,
            duration,
            seen: None,
            held: None,
        }
    }

    /// Leads, as far as it can know, at `now`.
    fn leadership(&mut self, now: Instant) -> Option<Leadership> {
        if self.held.is_some_and(|held| now >= held.until) {
            self.held = None;
        }
        self.held.map(|Held { epoch, .. }| Leadership { epoch })
    }

    /// What is to be written, after reading `spec` at `now`.
    fn observe(&mut self, spec: &LeaseSpec, now: Instant) -> Option<LeaseSpec> {
        let seen = match &mut self.seen {
            Some(seen) if seen.spec == *spec => seen.at,
            _ => {
                self.seen = Some(Seen {
                    spec: spec.clone(),
                    at: now,
                });
                now
            }
        };
        let epoch = self.leadership(now).map(|leadership| leadership.epoch);
        match spec.holder_identity.as_deref().unwrap_or_default() {
            ours if ours == self.holder && epoch == Some(epoch_of(spec)) => {
                Some(self.record(spec.lease_transitions, spec.acquire_time.clone()))
            }
            // Nobody's; or ours by a write of which we did not hear. A new term either way.
            nobody if nobody.is_empty() || nobody == self.holder => Some(self.next_term(spec)),
            _ => {
                self.held = None;
                (now.duration_since(seen) >= self.patience(spec)).then(|| self.next_term(spec))
            }
        }
    }

    /// A write that was asked for at `asked` was confirmed.
    fn wrote(&mut self, spec: &LeaseSpec, epoch: u64, asked: Instant) {
        self.seen = Some(Seen {
            spec: spec.clone(),
            at: Instant::now(),
        });
        self.held = Some(Held {
            epoch,
            until: asked + self.duration * 2 / 3,
        });
    }

    /// How long a holder may be silent: as long as it says, and never less than we would be.
    fn patience(&self, spec: &LeaseSpec) -> Duration {
        let said = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        Duration::from_secs(said.unwrap_or(0)).max(self.duration)
    }

    fn next_term(&self, spec: &LeaseSpec) -> LeaseSpec {
        let epoch = spec.lease_transitions.unwrap_or(0).max(0).saturating_add(1);
        self.record(Some(epoch), None)
    }

    fn record(&self, transitions: Option<i32>, acquired: Option<MicroTime>) -> LeaseSpec {
        // For people, and so that each renewal changes something; no candidate of ours compares it with its own clock.
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            holder_identity: Some(self.holder.clone()),
            // Rounded up: others wait longer, not shorter.
            lease_duration_seconds: i32::try_from(self.duration.as_millis().div_ceil(1000)).ok(),
            lease_transitions: transitions,
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

fn epoch_of(spec: &LeaseSpec) -> u64 {
    spec.lease_transitions
        .and_then(|epoch| u64::try_from(epoch).ok())
        .unwrap_or(0)
}

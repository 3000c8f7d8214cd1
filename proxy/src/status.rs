//! What the process says of itself: readiness with its reason, and events for the log and the flow reports.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use postern_api::control::v1 as wire;
use postern_identity::TrustDomain;
pub(crate) use postern_telemetry::error_chain;
use rustls::pki_types::UnixTime;

use crate::access_log::unix_ms;
use crate::drain::{Drain, Phase};
use crate::snapshot::Shared;

/// Events that wait for a flow report; past it the oldest go (the log has them all).
const MAX_EVENTS: usize = 32;

/// What stands in the way, by who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Getting or renewing our SVID.
    Identity,
    /// The stream with control.
    Control,
    /// Ports that cannot be listened on.
    Listen,
    /// The app's own SVID, at the Workload API.
    AppIdentity,
}

/// How grave an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Info,
    /// Needs a look.
    Warning,
    /// Needs a hand.
    Error,
}

/// Shared by the control side and the endpoint.
#[derive(Debug)]
pub struct Status {
    shared: Arc<Shared>,
    trust_domain: TrustDomain,
    drain: Drain,
    /// True once every listener that is wanted stands.
    pub listening: AtomicBool,
    problems: Mutex<BTreeMap<Topic, String>>,
    events: Mutex<VecDeque<wire::Event>>,
}

impl Status {
    /// Nothing known yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, trust_domain: TrustDomain, drain: Drain) -> Self {
        Self {
            shared,
            trust_domain,
            drain,
            listening: AtomicBool::new(false),
            problems: Mutex::default(),
            events: Mutex::default(),
        }
    }

    /// Notes what stands in the way; an event the first time and whenever the words change.
    pub fn problem(&self, topic: Topic, level: Level, text: String) {
        let before = lock(&self.problems).insert(topic, text.clone());
        if before.as_ref() != Some(&text) {
            self.event(level, text);
        }
    }

    /// It no longer does.
    pub fn solved(&self, topic: Topic) {
        lock(&self.problems).remove(&topic);
    }

    /// What stands in the way of `topic`.
    #[must_use]
    pub fn problem_of(&self, topic: Topic) -> Option<String> {
        lock(&self.problems).get(&topic).cloned()
    }

    /// Logs, and tells control with the next flow report.
    pub fn event(&self, level: Level, text: impl Into<String>) {
        let text = text.into();
        match level {
            Level::Info => tracing::info!("{text}"),
            Level::Warning => tracing::warn!("{text}"),
            Level::Error => tracing::error!("{text}"),
        }
        let mut events = lock(&self.events);
        if events.len() >= MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(wire::Event {
            time_unix_ms: unix_ms(SystemTime::now()),
            level: level.as_str().to_owned(),
            text,
        });
    }

    /// The events since the last call.
    pub(crate) fn take_events(&self) -> Vec<wire::Event> {
        lock(&self.events).drain(..).collect()
    }

    /// Puts events back that could not be sent; newer ones stay.
    pub(crate) fn return_events(&self, unsent: Vec<wire::Event>) {
        let mut events = lock(&self.events);
        let room = MAX_EVENTS.saturating_sub(events.len());
        for event in unsent.into_iter().rev().take(room) {
            events.push_front(event);
        }
    }

    /// `Ok` when requests can be served, else the first thing that is missing and why.
    pub fn readiness(&self) -> Result<(), String> {
        self.readiness_at(UnixTime::now())
    }

    fn readiness_at(&self, now: UnixTime) -> Result<(), String> {
        if self.drain.phase() != Phase::Running {
            return Err("shutting down".to_owned());
        }
        let because = |topic, what: &str| match self.problem_of(topic) {
            Some(problem) => Err(format!("{what}: {problem}")),
            None => Err(what.to_owned()),
        };
        match &*self.shared.identity.load() {
            None => return because(Topic::Identity, "no SVID yet"),
            Some(identity) if now > identity.svid.not_after() => {
                return because(Topic::Identity, "our own SVID has expired");
            }
            Some(_) => {}
        }
        if self.shared.is_cut_off() {
            return Err("this workload is quarantined: nothing comes in, and nothing goes out".to_owned());
        }
        let trust = self.shared.trust.load();
        if trust.bundles.get(self.trust_domain.as_str()).is_none() {
            return because(Topic::Identity, "no trust bundle yet");
        }
        if self.shared.policy.load().is_none() {
            return because(Topic::Control, "control has not sent our workload and its policies yet");
        }
        if !self.listening.load(Ordering::Relaxed) {
            return because(Topic::Listen, "not listening yet");
        }
        Ok(())
    }
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data, whole at every instant.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

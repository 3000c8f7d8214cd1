//! Which bundle the mesh has in force, as the controls that watch it here have reported.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// By control and certificate; kept for as long as it watches the bundle.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledgements {
    heard: Arc<Mutex<Heard>>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
struct Heard {
    controls: BTreeMap<Caller, Control>,
    /// When somebody last came or went; the proxies of who has gone are on their way to another.
    moved: Instant,
}

/// A control by its certificate: what it said before it started anew, or was renewed, counts for nothing on its new stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) serial: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Control {
    /// For a moment two, when it connects anew.
    streams: usize,
    report: Option<Report>,
}

/// What a control said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) lowest_sequence: u64,
    pub(crate) proxies: u32,
}

/// A control that watches, until dropped.
pub(crate) struct Connected {
    all: Acknowledgements,
    caller: Caller,
}

impl Default for Acknowledgements {
    fn default() -> Self {
        let heard = Heard {
            controls: BTreeMap::new(),
            moved: Instant::now(),
        };
        Self {
            heard: Arc::new(Mutex::new(heard)),
            changes: watch::Sender::new(()),
        }
    }
}

impl Acknowledgements {
    /// It is waited for from now on.
    pub(crate) fn connect(&self, caller: Caller) -> Connected {
        self.with(|heard| {
            heard.controls.entry(caller.clone()).or_default().streams += 1;
            heard.moved = Instant::now();
        });
        Connected {
            all: self.clone(),
            caller,
        }
    }

    /// Counts only for one that watches: else it would be waited for after it has gone.
    pub(crate) fn report(&self, caller: &Caller, lowest_sequence: u64, proxies: u32) {
        let report = Some(Report {
            lowest_sequence,
            proxies,
        });
        let changed = self.with(|heard| {
            let control = heard
                .controls
                .get_mut(caller)
                .filter(|control| control.report != report);
            control.map(|control| control.report = report).is_some()
        });
        if changed {
            self.changes.send_replace(());
        }
    }

    /// Has every control that watches reported that all it serves have this bundle, or a later one, and for how long has nobody come
    /// or gone? `None` as well if none watches: it may be restarting, and its proxies are there.
    pub(crate) fn reached(&self, sequence: u64) -> Option<Duration> {
        self.with(|heard| {
            let has = |control: &Control| control.report.is_some_and(|report| report.lowest_sequence >= sequence);
            let reached = !heard.controls.is_empty() && heard.controls.values().all(has);
            reached.then(|| heard.moved.elapsed())
        })
    }

    /// For how long nobody has come or gone.
    pub(crate) fn quiet(&self) -> Duration {
        self.with(|heard| heard.moved.elapsed())
    }

    /// For people.
    pub(crate) fn reports(&self) -> Vec<(String, Option<Report>)> {
        self.with(|heard| {
            let shown = heard.controls.iter();
            shown
                .map(|(caller, control)| (caller.name.clone(), control.report))
                .collect()
        })
    }

    /// To be told of each report that says something else.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Heard) -> T) -> T {
        work(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.all.with(|heard| {
            heard.moved = Instant::now();
            if let Some(control) = heard.controls.get_mut(&self.caller) {
                control.streams = control.streams.saturating_sub(1);
                if control.streams == 0 {
                    heard.controls.remove(&self.caller);
                }
            }
        });
        self.all.changes.send_replace(());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn caller(name: &str, serial: u8) -> Caller {
        Caller {
            name: name.to_owned(),
            serial: vec![serial],
        }
    }

    #[test]
    fn a_bundle_is_reached_when_every_control_that_watches_has_said_so_and_never_without_one() {
        let all = Acknowledgements::default();
        let reached = |sequence| all.reached(sequence).is_some();
        let (first, other) = (caller("one", 1), caller("two", 2));
        assert!(!reached(1));
        let one = all.connect(first.clone());
        let again = all.connect(first.clone());
        assert!(!reached(1), "it has said nothing yet");
        all.report(&first, 2, 3);
        assert!(reached(2) && !reached(3));
        let two = all.connect(other.clone());
        assert!(!reached(2));
        all.report(&other, 1, 1);
        assert!(reached(1) && !reached(2));
        drop(two);
        assert!(reached(2), "who has gone is not waited for");
        drop(one);
        assert!(reached(2), "its other stream goes on");
        drop(again);
        all.report(&first, 9, 1);
        assert!(!reached(1), "nobody watches");
    }

    #[test]
    fn a_control_that_started_anew_has_said_nothing_yet_while_its_old_stream_stands() {
        let all = Acknowledgements::default();
        let (before, after) = (caller("one", 1), caller("one", 2));
        let _old = all.connect(before.clone());
        all.report(&before, 5, 3);
        assert!(all.reached(5).is_some());
        let new = all.connect(after.clone());
        assert!(all.reached(5).is_none());
        all.report(&after, 5, 0);
        assert!(all.reached(5).is_some());
        while all.quiet() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let since = Instant::now();
        drop(new);
        assert!(all.reached(5).unwrap() <= since.elapsed(), "one has gone just now");
    }
}

//! Destinations that somebody asked for: who waits, what is known, what was released.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::limits::MAX_DESTINATIONS;
use crate::outcome::Failure;
use crate::snapshot::{Ask, Destination, Shared, Target};

type Answer = oneshot::Sender<Result<Arc<Destination>, Failure>>;

/// One entry per target that was ever answered and not released.
#[derive(Debug)]
pub(super) struct Asked {
    shared: Arc<Shared>,
    known: HashMap<Target, Arc<Destination>>,
    waiting: HashMap<Target, Vec<Answer>>,
}

impl Asked {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            known: HashMap::new(),
            waiting: HashMap::new(),
        }
    }

    /// Takes a question; returns the target if control must be asked.
    pub(super) fn ask(&mut self, Ask { target, answer }: Ask) -> Option<Target> {
        if let Some(known) = self.known.get(&target) {
            // Answered between the worker's look and its question.
            let _ = answer.send(Ok(Arc::clone(known)));
            return None;
        }
        let waiting = self.waiting.entry(target.clone()).or_default();
        // Whoever has given up waits no more.
        waiting.retain(|answer| !answer.is_closed());
        waiting.push(answer);
        (waiting.len() == 1).then_some(target)
    }

    /// An answer or an update; returns a target to release, where there are too many.
    pub(super) fn answered(&mut self, target: &Target, destination: Destination) -> Option<Target> {
        let destination = Arc::new(destination);
        let full = self.known.len() >= MAX_DESTINATIONS && !self.known.contains_key(target);
        let released = full.then(|| self.release()).flatten();
        self.known.insert(target.clone(), Arc::clone(&destination));
        self.shared.destinations.publish(self.known.clone());
        self.answer(target, || Ok(Arc::clone(&destination)));
        released
    }

    /// Control's answer was not understood.
    pub(super) fn refused(&mut self, target: &Target) {
        self.answer(target, || Err(Failure::ControlUnavailable));
    }

    /// Control is away: whoever waits is told now.
    pub(super) fn control_is_away(&mut self) {
        for answer in self.waiting.drain().flat_map(|(_, waiting)| waiting) {
            let _ = answer.send(Err(Failure::ControlUnavailable));
        }
    }

    /// Everything that a new stream has to ask for.
    pub(super) fn targets(&self) -> Vec<Target> {
        let waiting = self.waiting.keys().filter(|target| !self.known.contains_key(*target));
        self.known.keys().chain(waiting).cloned().collect()
    }

    fn answer(&mut self, target: &Target, with: impl Fn() -> Result<Arc<Destination>, Failure>) {
        for answer in self.waiting.remove(target).into_iter().flatten() {
            let _ = answer.send(with());
        }
    }

    fn release(&mut self) -> Option<Target> {
        let target = self
            .shared
            .destinations
            .unused()
            .or_else(|| self.known.keys().next().cloned())?;
        self.known.remove(&target);
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::sync::mpsc;

    use super::*;

    fn target(n: usize) -> Target {
        Target::Name(format!("s{n}.ns").into(), 80)
    }

    #[test]
    fn one_question_in_flight_answers_all_who_wait_for_it() {
        let mut asked = Asked::new(Arc::new(Shared::new(mpsc::channel(1).0)));
        let ask = |asked: &mut Asked| {
            let (answer, answered) = oneshot::channel();
            let target = target(1);
            (asked.ask(Ask { target, answer }), answered)
        };
        let (first, mut a) = ask(&mut asked);
        let (second, mut b) = ask(&mut asked);
        assert_eq!((first, second), (Some(target(1)), None));
        asked.answered(&target(1), Destination::Outside);
        assert!(a.try_recv().unwrap().is_ok() && b.try_recv().unwrap().is_ok());
        assert_eq!(ask(&mut asked).0, None);
    }

    #[test]
    fn past_max_destinations_one_is_released_for_each_that_comes() {
        let shared = Arc::new(Shared::new(mpsc::channel(1).0));
        let mut asked = Asked::new(Arc::clone(&shared));
        asked.known = (0..MAX_DESTINATIONS - 1)
            .map(|n| (target(n), Arc::new(Destination::Outside)))
            .collect();
        assert_eq!(
            asked.answered(&target(MAX_DESTINATIONS - 1), Destination::Outside),
            None
        );
        let newest = target(MAX_DESTINATIONS);
        let released = asked.answered(&newest, Destination::Outside).unwrap();
        assert_ne!(released, newest);
        assert_eq!(shared.destinations.known().len(), MAX_DESTINATIONS);
        assert!(shared.destinations.get(&released).is_none());
    }
}

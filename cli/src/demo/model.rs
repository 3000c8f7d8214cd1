//! Everything that the screen shows, as plain data.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use postern_api::control::v1 as wire;

use super::attack::{Attack, Attempt};
use super::canary::{self, Statuses};
use super::denials::Denials;
use super::edges::Edges;
use super::verdict::{self, Fate};

/// Our own notes; control keeps as many of its events.
const MAX_NOTES: usize = 64;

/// How far the demo is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// What is ready so far.
    Starting(Vec<String>),
    Running,
}

/// What became of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tried {
    /// Under way.
    Trying,
    /// Judged by the services' notes.
    Done(Fate, Vec<Attempt>),
    /// It could not be tried: why.
    Prevented(String),
}

impl Tried {
    /// By the services' notes. What got through stands first: that is what is shown.
    pub(super) fn judged(mut attempts: Vec<Attempt>, statuses: &Statuses) -> Self {
        attempts.sort_by_key(|attempt| !attempt.passed(canary::reached(statuses)));
        Self::Done(verdict::fate(&attempts, statuses), attempts)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) stage: Stage,
    pub(super) picture: Option<Arc<wire::Picture>>,
    pub(super) edges: Edges,
    pub(super) denials: Denials,
    pub(super) attacks: BTreeMap<Attack, Tried>,
    /// Until the certificate of the last attack expires, seconds.
    pub(super) ageing_seconds: Option<u64>,
    /// By service: requests that nobody vouched for.
    pub(super) unvouched: BTreeMap<&'static str, u64>,
    pub(super) ca_runs: bool,
    pub(super) policy_file: String,
    pub(super) help: bool,
    /// Our clock, for how much life certificates have left.
    pub(super) now_ms: i64,
    notes: VecDeque<wire::Event>,
}

impl Model {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self {
            stage: Stage::Starting(Vec::new()),
            picture: None,
            edges: Edges::default(),
            denials: Denials::default(),
            attacks: BTreeMap::new(),
            ageing_seconds: None,
            unvouched: BTreeMap::new(),
            ca_runs: false,
            policy_file: String::new(),
            help: false,
            now_ms: 0,
            notes: VecDeque::new(),
        }
    }

    /// Takes a picture of control's.
    pub(super) fn take(&mut self, picture: Arc<wire::Picture>) {
        self.edges.take(&picture);
        self.denials.take(&picture);
        self.picture = Some(picture);
    }

    /// Takes what the services say: attacks are judged again, for a request may arrive late.
    pub(super) fn heard(&mut self, statuses: &Statuses) {
        for tried in self.attacks.values_mut() {
            if let Tried::Done(_, attempts) = tried {
                *tried = Tried::judged(std::mem::take(attempts), statuses);
            }
        }
        let anonymous = |workload: &'static str| {
            let reached = &statuses.get(workload)?.reached;
            let count = reached.by_caller.get("").copied().unwrap_or_default();
            (count > 0).then_some((workload, count))
        };
        self.unvouched = ["cart", "payments"].into_iter().filter_map(anonymous).collect();
    }

    /// Something that we did, or that happened to us.
    pub(super) fn note(&mut self, level: &str, text: impl Into<String>) {
        if self.notes.len() == MAX_NOTES {
            self.notes.pop_front();
        }
        self.notes.push_back(wire::Event {
            time_unix_ms: self.now_ms,
            level: level.to_owned(),
            text: text.into(),
        });
    }

    /// Control's events and our notes, oldest first.
    pub(super) fn events(&self) -> Vec<&wire::Event> {
        let theirs = self.picture.iter().flat_map(|picture| &picture.events);
        let mut events: Vec<&wire::Event> = theirs.chain(&self.notes).collect();
        events.sort_by_key(|event| event.time_unix_ms);
        events
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_shop::canary::{Reached, Status};

    use super::*;

    #[test]
    fn notes_and_controls_events_are_one_list_by_time() {
        let mut model = Model::new();
        model.now_ms = 20;
        model.note("info", "ours");
        let event = |ms, text: &str| wire::Event {
            time_unix_ms: ms,
            text: text.to_owned(),
            ..wire::Event::default()
        };
        model.take(Arc::new(wire::Picture {
            events: vec![event(10, "before"), event(30, "after")],
            ..wire::Picture::default()
        }));
        let texts: Vec<&str> = model.events().iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts, ["before", "ours", "after"]);
    }

    #[test]
    fn an_attack_is_judged_again_when_its_request_arrives_late() {
        let mut model = Model::new();
        let attempt = Attempt {
            nonce: "nonce-1".to_owned(),
            page: "",
            what: String::new(),
            heard: String::new(),
        };
        let done = Tried::Done(Fate::Refused, vec![attempt]);
        model.attacks.insert(Attack::Plaintext, done);
        let reached = Reached {
            nonces: [("nonce-1".to_owned(), "items".to_owned())].into(),
            by_caller: [(String::new(), 1)].into(),
            ..Reached::default()
        };
        let status = Status {
            reached,
            ..Status::default()
        };
        model.heard(&Statuses::from([("cart", status)]));
        let Tried::Done(fate, _) = &model.attacks[&Attack::Plaintext] else {
            panic!("it was done");
        };
        assert_eq!(*fate, Fate::Passed);
        assert_eq!(model.unvouched["cart"], 1);
    }
}

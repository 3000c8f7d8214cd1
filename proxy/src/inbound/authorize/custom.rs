//! CUSTOM policies: whom they name is asked before DENY and ALLOW decide, and again when the rules change.
//!
//! All of a request's providers must agree. Every failure denies. What is asked is kept with the permit, for as long as the
//! stream lives.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use postern_authorizer::{Check, Edits, Failure as NoVerdict, Verdict};
use postern_policy::request::is_same_field;
use postern_policy::{Matched, Mode};
use tokio::time::{Instant, timeout_at};

use super::{By, Permit, question, report};
use crate::exchange::Exchange;
use crate::inbound::Connection;
use crate::limits::{MAX_CUSTOM_ROUNDS, RECHECK_DEADLINE};
use crate::outcome::Failure;
use crate::providers::Provider;
use crate::snapshot::PolicyState;
use crate::worker::Worker;

/// A request that may go on if those whom CUSTOM policies ask agree, and the other policies too.
#[derive(Debug)]
pub struct Question {
    permit: Permit,
    check: Rc<Check>,
}

/// One to be asked, and by whose rule.
struct Asked {
    /// `None`: control names one that it has not sent, or that is not understood.
    provider: Option<Arc<Provider>>,
    by: By,
}

impl Asked {
    fn of(state: &PolicyState, provider: &str, matched: Matched<'_>) -> Self {
        Self {
            provider: state.providers.get(provider).map(Arc::clone),
            by: By::named(matched.policy, matched.place()),
        }
    }

    /// Its edits, if it agrees.
    async fn ask(&self, worker: &Rc<Worker>, exchange: &Exchange, check: &Check) -> Result<Edits, Failure> {
        let Some(provider) = &self.provider else {
            return Err(Failure::CustomError);
        };
        match provider.ask(worker, check).await {
            Ok(Verdict::Allow(edits)) => Ok(edits),
            Ok(Verdict::Deny(refusal)) => {
                exchange.refused_with(refusal);
                Err(Failure::CustomDenied)
            }
            Err(error) => {
                tracing::debug!(reason = error.reason(), policy = self.by.policy, "no verdict: {error}");
                Err(match error {
                    NoVerdict::Timeout => Failure::CustomTimeout,
                    _ => Failure::CustomError,
                })
            }
        }
    }
}

impl Question {
    pub(super) fn new(permit: Permit, check: Check) -> Self {
        Self {
            permit,
            check: Rc::new(check),
        }
    }

    /// Asks all, one after the other, until one does not agree. When the rules change meanwhile, whom the new ones name and
    /// the old ones did not is asked as well; DENY and ALLOW decide last, under the policy of then.
    pub(in crate::inbound) async fn ask(
        self,
        connection: &Connection,
        exchange: &Rc<Exchange>,
    ) -> Result<(Permit, Edits), Failure> {
        let Self { permit, check } = self;
        let worker = &connection.worker;
        let (mut agreed, mut edits): (Vec<Arc<Provider>>, _) = (Vec::new(), Edits::default());
        // A denial that `monitor` only told of; should that end while we ask, its provider is asked once more.
        let mut tolerated = false;
        for _ in 0..MAX_CUSTOM_ROUNDS {
            let state = worker.shared.policy.load_full().ok_or(Failure::ControlUnavailable)?;
            // The door may have become a stricter one while somebody was asked.
            permit
                .passes_door(&state)
                .inspect_err(|failure| report(worker, exchange, *failure, None, false))?;
            tolerated &= state.workload.mode != Mode::Protect;
            let mut open = permit.asked_under(&state, exchange)?;
            open.retain(|asked| {
                let answered = |provider: &Arc<Provider>| agreed.iter().any(|known| Arc::ptr_eq(known, provider));
                !asked.provider.as_ref().is_some_and(answered)
            });
            if open.is_empty() || tolerated {
                if !tolerated {
                    permit.user_after_asking(worker, &state, exchange)?;
                    permit.edited_by(worker, &state, exchange, &edits)?;
                    permit.conclude(worker, &state, exchange)?;
                }
                if permit.look().is_none() {
                    permit.generation.set(state.generation);
                }
                permit.rules.set(state.rules);
                let _ = permit.asked.set(check);
                return Ok((permit, edits));
            }
            for asked in open {
                match asked.ask(worker, exchange, &check).await {
                    Ok(more) => {
                        agreed.extend(asked.provider);
                        add(&mut edits, more);
                    }
                    Err(failure) => {
                        permit.denied(worker, &state, exchange, failure, Some(asked.by))?;
                        tolerated = true;
                        break;
                    }
                }
            }
        }
        report(worker, exchange, Failure::CustomError, None, false);
        Err(Failure::CustomError)
    }
}

fn add(edits: &mut Edits, more: Edits) {
    let Edits {
        request,
        remove,
        answer,
        set_query,
        remove_query,
    } = more;
    edits.request.extend(request);
    edits.remove.extend(remove);
    edits.answer.extend(answer);
    edits.set_query.extend(set_query);
    edits.remove_query.extend(remove_query);
}

impl Permit {
    /// The token may have ended while somebody was asked, and whose tokens are believed may be another matter by now.
    fn user_after_asking(&self, worker: &Worker, state: &PolicyState, exchange: &Exchange) -> Result<(), Failure> {
        let failure = match self.look() {
            Some(look) if look.generation() != state.generation || self.user_has_expired() => {
                self.user_again(state, worker)
            }
            Some(_) => None,
            // Nobody looked for a token in this head, nor for what only we may tell.
            None if self.http.is_some() && !state.authenticator.is_idle() => Some(Failure::CustomError),
            None => None,
        };
        failure.map_or(Ok(()), |failure| self.denied(worker, state, exchange, failure, None))
    }

    /// DENY and ALLOW decide on the head as it was sent: an answer that changes what they look at is none. Nor is one that
    /// tells the app of users in our place.
    fn edited_by(
        &self,
        worker: &Worker,
        state: &PolicyState,
        exchange: &Exchange,
        edits: &Edits,
    ) -> Result<(), Failure> {
        let mut names = edits.request.iter().map(|(name, ..)| name).chain(&edits.remove);
        let (looked_at, look) = (&state.compiled.needs().headers, self.look());
        let touches = names.any(|name| {
            let name = name.as_str();
            let is_ours = || look.as_ref().is_some_and(|look| look.is_ours_to_tell(name));
            looked_at.iter().any(|looked| is_same_field(name, looked)) || is_ours()
        });
        if !touches {
            return Ok(());
        }
        self.denied(worker, state, exchange, Failure::CustomError, None)
    }

    /// Must somebody be asked? No allocation, and nothing at all where there is no CUSTOM policy. What cannot even be
    /// decided on is the other policies' to refuse.
    pub(super) fn must_ask(&self, state: &PolicyState, exchange: &Exchange) -> bool {
        if !state.compiled.has_custom() || state.workload.mode == Mode::Discover {
            return false;
        }
        let look = self.look();
        let about = self.about(look.as_deref(), exchange);
        let matched = about.under(state, |compiled, request| compiled.custom(request).next().is_some());
        matched.unwrap_or(false)
    }

    fn asked_under(&self, state: &PolicyState, exchange: &Exchange) -> Result<Vec<Asked>, Failure> {
        if !state.compiled.has_custom() || state.workload.mode == Mode::Discover {
            return Ok(Vec::new());
        }
        let look = self.look();
        self.about(look.as_deref(), exchange).under(state, |compiled, request| {
            let custom = compiled.custom(request);
            custom
                .map(|(provider, matched)| Asked::of(state, provider, matched))
                .collect()
        })
    }

    /// A request of which nobody kept what to ask (no CUSTOM policy matched it when it began) cannot be asked about: it ends.
    pub(super) fn ask_again(
        &self,
        worker: &Rc<Worker>,
        state: &PolicyState,
        exchange: &Rc<Exchange>,
    ) -> Result<(), Failure> {
        if self.rules.replace(state.rules) == state.rules {
            return Ok(());
        }
        let mut open = self.asked_under(state, exchange)?;
        if open.is_empty() {
            return Ok(());
        }
        let check = match (self.asked.get(), &self.http) {
            (Some(asked), _) => Rc::clone(asked),
            (None, None) => Rc::new(question::of_stream(worker, &self.caller, self.port, self.destination)),
            (None, Some(_)) => {
                let by = open.pop().map(|asked| asked.by);
                report(worker, exchange, Failure::CustomError, by, false);
                return Err(Failure::CustomError);
            }
        };
        // Bounded by its deadline; the stream that it may end does not wait for it.
        tokio::task::spawn_local(again(Rc::clone(worker), Rc::downgrade(exchange), check, open));
        Ok(())
    }
}

async fn again(worker: Rc<Worker>, stream: Weak<Exchange>, check: Rc<Check>, open: Vec<Asked>) {
    let deadline = Instant::now() + RECHECK_DEADLINE;
    for asked in open {
        let Some(exchange) = stream.upgrade() else { return };
        let answer = timeout_at(deadline, asked.ask(&worker, &exchange, &check)).await;
        let failure = match answer {
            Ok(Ok(_)) => continue,
            Ok(Err(failure)) => failure,
            Err(_) => Failure::CustomTimeout,
        };
        let state = worker.shared.policy.load();
        if state.as_ref().is_none_or(|state| state.workload.mode == Mode::Protect) {
            report(&worker, &exchange, failure, Some(asked.by), false);
            exchange.cut_short(failure);
        }
        return;
    }
}

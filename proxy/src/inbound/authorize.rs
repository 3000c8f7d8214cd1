//! Only this module makes a [`Permit`].

use std::cell::Cell;
use std::rc::Rc;

use postern_policy::canonical::{CanonicalHost, CanonicalPathRef};
use postern_policy::{Decision, Http, Mode, Request, Verdict};

use super::Connection;
use super::authenticate::Caller;
use crate::exchange::{Denial, Exchange};
use crate::outcome::{BadRequest, Failure};
use crate::snapshot::{PolicyState, Protocol};
use crate::worker::Worker;

/// Proof that policy lets one request or stream through. Consumed by `forward`; the exchange keeps it, so that the
/// same facts can be decided again when policy changes.
#[derive(Debug)]
pub struct Permit {
    caller: Rc<Caller>,
    port: u16,
    /// On a stream: may it be one at all? Asked again with each policy.
    declared_tcp: bool,
    host: Option<Rc<CanonicalHost>>,
    generation: Cell<u64>,
}

/// Decides on a request whose head passed [`super::request::check`].
pub fn request(connection: &Connection, host: &Rc<CanonicalHost>, exchange: &Exchange) -> Result<Permit, Failure> {
    admit(connection, Some(Rc::clone(host)), exchange)
}

/// Decides on an opaque stream.
pub fn stream(connection: &Connection, exchange: &Exchange) -> Result<Permit, Failure> {
    admit(connection, None, exchange)
}

fn admit(connection: &Connection, host: Option<Rc<CanonicalHost>>, exchange: &Exchange) -> Result<Permit, Failure> {
    let state = connection.worker.shared.policy.load();
    let Some(state) = state.as_ref() else {
        return Err(Failure::ControlUnavailable);
    };
    let permit = Permit {
        caller: Rc::clone(&connection.caller),
        port: connection.port.number,
        declared_tcp: connection.port.protocol == Protocol::Tcp,
        host,
        generation: Cell::new(state.generation),
    };
    let Err((failure, decision)) = permit.decide(state, exchange) else {
        return Ok(permit);
    };
    let monitor_only = match state.workload.mode {
        Mode::Discover => return Ok(permit),
        Mode::Monitor => true,
        Mode::Protect => false,
    };
    report(&connection.worker, exchange, failure, decision.as_ref(), monitor_only);
    if monitor_only {
        exchange.would_deny();
        Ok(permit)
    } else {
        Err(failure)
    }
}

/// Only on a denial: names, counts, and leaves the trace that the access log line is made of.
fn report(worker: &Worker, exchange: &Exchange, failure: Failure, decision: Option<&Decision<'_>>, monitor_only: bool) {
    let policy = decision
        .and_then(|decision| decision.policy)
        .map(|policy| format!("{}/{}", policy.namespace, policy.name));
    let rule = decision
        .and_then(Decision::place)
        .map(postern_policy::document::Place::line_of);
    let reason = failure.facts().reason;
    let name = policy.as_deref().unwrap_or("");
    worker.metrics.denial(name, reason, monitor_only);
    exchange.denied(Denial {
        decision_id: decision_id(worker.id).into(),
        policy: policy.map(Into::into),
        rule: rule.map(Into::into),
    });
}

/// Unique within a process by its counter, between processes by 40 random bits.
fn decision_id(worker: usize) -> String {
    thread_local! {
        static NEXT: Cell<(u64, u64)> = Cell::new((fastrand::u64(..1 << 40), 0));
    }
    let (start, count) = NEXT.get();
    NEXT.set((start, count + 1));
    format!("{start:010x}-{worker:x}-{count:x}")
}

impl Permit {
    fn decide<'a>(&self, state: &'a PolicyState, exchange: &Exchange) -> Result<(), (Failure, Option<Decision<'a>>)> {
        let method;
        let http = match (&self.host, exchange.head()) {
            (Some(host), Some(head)) => {
                method = head.method.as_str();
                // `request::check` made it so: the path is a fixed point.
                let path = match CanonicalPathRef::check(head.path()) {
                    Ok(Some(path)) => path,
                    Ok(None) => return Err((Failure::BadRequest(BadRequest::Target), None)),
                    Err(error) => return Err((Failure::BadPath(error), None)),
                };
                Some(Http { method, host, path })
            }
            _ if !self.declared_tcp && state.compiled.needs_http(self.port) => {
                return Err((Failure::NotHttp, None));
            }
            _ => None,
        };
        let decision = state.compiled.decide(&Request {
            peer: self.caller.peer().map(postern_identity::VerifiedPeer::id),
            port: self.port,
            http,
        });
        match decision.verdict {
            Verdict::Allow => Ok(()),
            Verdict::Deny => Err((Failure::Denied(decision.reason), Some(decision))),
        }
    }

    /// Decides the same facts under the policy of now; cheap while that has not changed.
    pub(crate) fn still_holds(&self, worker: &Worker, exchange: &Exchange) -> Result<(), Failure> {
        let state = worker.shared.policy.load();
        let Some(state) = state.as_ref() else {
            return Err(Failure::ControlUnavailable);
        };
        if self.generation.replace(state.generation) == state.generation {
            return Ok(());
        }
        match state.workload.mode {
            Mode::Discover | Mode::Monitor => Ok(()),
            // Plaintext has no place in `protect`, whatever the rules say.
            Mode::Protect if self.caller.peer().is_none() => Err(Failure::Plaintext),
            Mode::Protect => self.decide(state, exchange).map_err(|(failure, decision)| {
                report(worker, exchange, failure, decision.as_ref(), false);
                failure
            }),
        }
    }
}

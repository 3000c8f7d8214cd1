//! Only this module makes a [`Permit`].

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use postern_policy::canonical::{CanonicalHost, CanonicalPathRef};
use postern_policy::{
    Decision, Doubt, Headers, Http, Labels, Matched, Mode, MtlsMode, Reason, Request, StepUp, Verdict,
};
use postern_token::answer;

use super::Connection;
use super::authenticate::Caller;
use super::fields::Kept;
use super::user::Look;
use crate::exchange::{Audited, Denial, Exchange};
use crate::outcome::{BadRequest, Failure};
use crate::snapshot::{PolicyState, Protocol};
use crate::worker::Worker;

/// Proof that policy lets one request or stream through. Consumed by `forward`; the exchange keeps it, so that the
/// same facts can be decided again when policy changes.
#[derive(Debug)]
pub struct Permit {
    caller: Rc<Caller>,
    port: u16,
    destination: IpAddr,
    /// On a stream: may it be one at all? Asked again with each policy.
    declared_tcp: bool,
    http: Option<Facts>,
    generation: Cell<u64>,
}

/// Yes, or why not.
type Outcome<'a> = Result<(), (Failure, Option<Decision<'a>>)>;

/// What is kept of a request that its exchange does not keep.
#[derive(Debug)]
struct Facts {
    host: Rc<CanonicalHost>,
    fields: Kept,
    user: RefCell<Option<Rc<Look>>>,
}

/// What is asked for, by a request whose head passed [`super::request::check`].
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The one effective authority.
    pub host: &'a Rc<CanonicalHost>,
    /// The other fields of its head, as the app will see them.
    pub fields: &'a dyn Headers,
    /// The end user, where tokens are looked for.
    pub user: Option<&'a Rc<Look>>,
}

/// Decides on a request.
pub fn request(connection: &Connection, asked: Asked<'_>, exchange: &Exchange) -> Result<Permit, Failure> {
    admit(connection, Some(asked), exchange)
}

/// Decides on an opaque stream.
pub fn stream(connection: &Connection, exchange: &Exchange) -> Result<Permit, Failure> {
    admit(connection, None, exchange)
}

fn admit(connection: &Connection, asked: Option<Asked<'_>>, exchange: &Exchange) -> Result<Permit, Failure> {
    let state = connection.worker.shared.policy.load();
    let Some(state) = state.as_ref() else {
        return Err(Failure::ControlUnavailable);
    };
    let user = asked.and_then(|asked| asked.user);
    let permit = Permit {
        caller: Rc::clone(&connection.caller),
        port: connection.port.number,
        destination: connection.port.app.ip(),
        declared_tcp: connection.port.protocol == Protocol::Tcp,
        http: asked.map(|asked| Facts {
            host: Rc::clone(asked.host),
            fields: Kept::of(&state.compiled.needs().headers, asked.fields),
            user: RefCell::new(asked.user.map(Rc::clone)),
        }),
        // What its token was verified under may have gone meanwhile: the next look at it will see.
        generation: Cell::new(user.map_or(state.generation, |look| look.generation())),
    };
    if let Err(failure) = permit.passes_door(state) {
        // It came in before that was so. Whatever the mode: nothing of plaintext is only monitored.
        report(&connection.worker, exchange, failure, None, false);
        return Err(failure);
    }
    let outcome = match user.and_then(|look| look.refusal()) {
        None => {
            let (outcome, audit) = permit.decide(state, exchange);
            if let Some(audit) = audit {
                mark(&connection.worker, exchange, audit);
            }
            outcome
        }
        Some((failure, challenge)) => {
            if let Some(challenge) = challenge {
                exchange.challenged(challenge);
            }
            Err((failure, None))
        }
    };
    let Err((failure, decision)) = outcome else {
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

/// What a login would change of a denial (RFC 6750, RFC 9470).
fn denied(state: &PolicyState, request: &Request<'_>, reason: Reason, exchange: &Exchange) -> Failure {
    let (failure, answer) = match state.compiled.step_up(request) {
        None => return Failure::Denied(reason),
        Some(StepUp::Token) => (Failure::NeedsLogin(reason), answer::no_token()),
        Some(StepUp::Login { acr_values, max_age }) => {
            let acr_values = acr_values.iter().map(String::as_str);
            (Failure::NeedsLogin(reason), answer::stronger_login(acr_values, max_age))
        }
        Some(StepUp::Scope(scopes)) => (
            Failure::NeedsScope(reason),
            answer::more_scope(scopes.iter().map(String::as_str)),
        ),
    };
    if let Some(challenge) = answer.challenge {
        exchange.challenged(challenge);
    }
    failure
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
        reason,
    });
}

/// Only where an AUDIT rule matches.
fn mark(worker: &Worker, exchange: &Exchange, audit: Matched<'_>) {
    let policy = format!("{}/{}", audit.policy.namespace, audit.policy.name);
    worker.metrics.audited(&policy);
    exchange.audited(Audited {
        policy: policy.into(),
        rule: audit.place().map_or_else(Box::default, |place| place.line_of().into()),
    });
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
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
    /// And what an AUDIT rule marks.
    fn decide<'a>(&self, state: &'a PolicyState, exchange: &Exchange) -> (Outcome<'a>, Option<Matched<'a>>) {
        let look = self.http.as_ref().and_then(|facts| facts.user.borrow().clone());
        let http = match (&self.http, exchange.head()) {
            (Some(facts), Some(head)) => {
                // `request::check` made it so: the path is a fixed point.
                let path = match CanonicalPathRef::check(head.path()) {
                    Ok(Some(path)) => path,
                    Ok(None) => return (Err((Failure::BadRequest(BadRequest::Target), None)), None),
                    Err(error) => return (Err((Failure::BadPath(error), None)), None),
                };
                Some(Http {
                    method: head.method.as_str(),
                    host: &facts.host,
                    path,
                    headers: &facts.fields,
                    user: look.as_ref().and_then(|look| look.user()),
                })
            }
            _ if !self.declared_tcp && state.compiled.needs_http(self.port) => {
                return (Err((Failure::NotHttp, None)), None);
            }
            _ => None,
        };
        let needs = state.compiled.needs();
        let peer = self.caller.peer();
        let [peer_labels, peer_namespace_labels] = match peer {
            Some(peer) if needs.peer_labels => state.peers.labels_of(peer),
            Some(_) | None => [Labels::Unknown; 2],
        };
        let address = self.caller.address().map(|address| address.ip());
        let request = Request {
            peer: peer.map(postern_identity::VerifiedPeer::id),
            peer_labels,
            peer_namespace_labels,
            source_ip: address,
            // No proxy before us is believed about who called it.
            remote_ip: address,
            destination_ip: Some(self.destination),
            port: self.port,
            sni: self.caller.server_name(),
            doubt: Doubt::Closed,
            now: if needs.clock { unix_seconds() } else { 0 },
            http,
        };
        let decision = state.compiled.decide(&request);
        let outcome = match decision.verdict {
            Verdict::Allow => Ok(()),
            Verdict::Deny => {
                let failure = match look {
                    // No token is looked for: none would change it.
                    None => Failure::Denied(decision.reason),
                    Some(_) => denied(state, &request, decision.reason, exchange),
                };
                Err((failure, Some(decision)))
            }
        };
        (outcome, decision.audit)
    }

    /// Nobody who proves nothing goes on where mutual TLS alone is taken, whatever the rules say.
    fn passes_door(&self, state: &PolicyState) -> Result<(), Failure> {
        match (self.caller.peer(), state.workload.mtls.of(self.port)) {
            (None, MtlsMode::Strict) => Err(Failure::Plaintext),
            (Some(_), _) | (None, MtlsMode::Permissive | MtlsMode::Disable) => Ok(()),
        }
    }

    /// Decides the same facts under the policy of now; cheap while that has not changed.
    pub(crate) fn still_holds(&self, worker: &Worker, exchange: &Exchange) -> Result<(), Failure> {
        let state = worker.shared.policy.load();
        let Some(state) = state.as_ref() else {
            return Err(Failure::ControlUnavailable);
        };
        let is_new = self.generation.replace(state.generation) != state.generation;
        if !is_new && !self.user_has_expired() {
            return Ok(());
        }
        self.passes_door(state)
            .inspect_err(|failure| report(worker, exchange, *failure, None, false))?;
        match state.workload.mode {
            Mode::Discover | Mode::Monitor => Ok(()),
            Mode::Protect => {
                let outcome = match self.user_again(state, worker) {
                    Some(failure) => Err((failure, None)),
                    None => self.decide(state, exchange).0,
                };
                outcome.map_err(|(failure, decision)| {
                    report(worker, exchange, failure, decision.as_ref(), false);
                    failure
                })
            }
        }
    }

    fn user_has_expired(&self) -> bool {
        let look = self.http.as_ref().map(|facts| facts.user.borrow());
        look.is_some_and(|look| look.as_ref().is_some_and(|look| look.has_expired(unix_seconds())))
    }

    /// Verifies the user's token under the documents and keys of now; why it is not believed any more.
    fn user_again(&self, state: &PolicyState, worker: &Worker) -> Option<Failure> {
        let facts = self.http.as_ref()?;
        let mut user = facts.user.borrow_mut();
        let look = user.as_ref()?.again(state, worker, &self.caller);
        let refusal = look.refusal();
        *user = Some(look);
        refusal.map(|(failure, _)| failure)
    }
}

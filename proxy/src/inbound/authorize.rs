//! Only this module makes a [`Permit`].
//!
//! What CUSTOM policies match is asked about first (`custom`), and their yes is no permit: DENY and ALLOW have their say
//! after it, under the policy of then. Where there is no CUSTOM policy nothing waits and nothing is allocated for them.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use postern_authorizer::Check;
use postern_policy::canonical::{CanonicalHost, CanonicalPathRef};
use postern_policy::{
    AuthorizationPolicy, Compiled, Decision, Doubt, Headers, Http, Labels, Matched, Mode, MtlsMode, Reason, Request,
    StepUp, User, Verdict,
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

mod custom;
mod question;

pub use custom::Question;
pub(super) use question::Whole;

/// Proof that policy lets one request or stream through. Consumed by `forward`; the exchange keeps it, so that the
/// same facts can be decided again when policy changes.
#[derive(Debug)]
pub struct Permit {
    caller: Rc<Caller>,
    port: u16,
    destination: IpAddr,
    /// As its port is declared. On a stream: may it be one at all? Asked again with each policy.
    protocol: Protocol,
    http: Option<Facts>,
    generation: Cell<u64>,
    /// The rules under which CUSTOM policies were asked last; see [`PolicyState::rules`].
    rules: Cell<u64>,
    /// What they were asked, so that they can be asked again.
    asked: OnceCell<Rc<Check>>,
}

/// No policy has this generation.
const OF_NONE: u64 = u64::MAX;

/// Yes, or why not.
type Outcome = Result<(), (Failure, Option<By>)>;

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

/// What becomes of a request.
#[derive(Debug)]
pub enum Admission {
    /// It goes on.
    Permitted(Permit),
    /// Not before somebody is asked.
    Asks(Box<Question>),
}

/// Does a CUSTOM policy match this request? Without one that is quickly said.
pub(super) fn asks(connection: &Connection, state: &PolicyState, asked: Asked<'_>, method: &str, path: &str) -> bool {
    let refused = asked.user.is_some_and(|look| look.refusal().is_some());
    if !state.compiled.has_custom() || state.workload.mode == Mode::Discover || refused {
        return false;
    }
    let about = About {
        caller: &connection.caller,
        port: connection.port.number,
        destination: connection.port.app.ip(),
        protocol: connection.port.protocol,
        http: Some(AboutHttp {
            method,
            path,
            host: asked.host,
            headers: asked.fields,
            user: asked.user.and_then(|look| look.user()),
        }),
    };
    let matched = about.under(state, |compiled, request| compiled.custom(request).next().is_some());
    matched.unwrap_or(false)
}

/// Decides on a request, under `state`.
pub(super) fn request(
    connection: &Connection,
    state: Option<&PolicyState>,
    asked: Asked<'_>,
    whole: Option<Whole<'_>>,
    exchange: &Exchange,
) -> Result<Admission, Failure> {
    let state = state.ok_or(Failure::ControlUnavailable)?;
    connection.worker.shared.not_cut_off()?;
    let permit = Permit::at_door(connection, state, Some(asked), exchange)?;
    // Who the user is comes before what may be done.
    if let Some((failure, challenge)) = asked.user.and_then(|look| look.refusal()) {
        if let Some(challenge) = challenge {
            exchange.challenged(challenge);
        }
        permit.denied(&connection.worker, state, exchange, failure, None)?;
        return Ok(Admission::Permitted(permit));
    }
    admit(connection, state, permit, whole, exchange)
}

/// Decides on an opaque stream.
pub fn stream(connection: &Connection, exchange: &Exchange) -> Result<Admission, Failure> {
    let state = connection.worker.shared.policy.load();
    let state = state.as_ref().ok_or(Failure::ControlUnavailable)?;
    connection.worker.shared.not_cut_off()?;
    let permit = Permit::at_door(connection, state, None, exchange)?;
    admit(connection, state, permit, None, exchange)
}

fn admit(
    connection: &Connection,
    state: &PolicyState,
    permit: Permit,
    whole: Option<Whole<'_>>,
    exchange: &Exchange,
) -> Result<Admission, Failure> {
    if permit.must_ask(state, exchange) {
        let check = question::of(connection, whole, exchange)?;
        return Ok(Admission::Asks(Box::new(Question::new(permit, check))));
    }
    permit.conclude(&connection.worker, state, exchange)?;
    Ok(Admission::Permitted(permit))
}

/// Who said no.
#[derive(Debug)]
struct By {
    /// `namespace/name`.
    policy: String,
    /// Where its rule was read.
    rule: Option<String>,
}

impl By {
    fn of(decision: &Decision<'_>) -> Option<Self> {
        decision.policy.map(|policy| Self::named(policy, decision.place()))
    }

    fn named(policy: &AuthorizationPolicy, place: Option<&postern_policy::document::Place>) -> Self {
        Self {
            policy: format!("{}/{}", policy.namespace, policy.name),
            rule: place.map(postern_policy::document::Place::line_of),
        }
    }
}

/// Only on a denial: names, counts, and leaves the trace that the access log line is made of.
fn report(worker: &Worker, exchange: &Exchange, failure: Failure, by: Option<By>, monitor_only: bool) {
    let reason = failure.facts().reason;
    let name = by.as_ref().map_or("", |by| &by.policy);
    worker.metrics.denial(name, reason, monitor_only);
    let (policy, rule) = by.map_or((None, None), |by| (Some(by.policy), by.rule));
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

/// What a login would change of a denial (RFC 6750, RFC 9470).
fn step_up(compiled: &Compiled, request: &Request<'_>, reason: Reason, exchange: &Exchange) -> Failure {
    let (failure, answer) = match compiled.step_up(request) {
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

/// The facts of a request, wherever they are kept.
struct About<'a> {
    caller: &'a Caller,
    port: u16,
    destination: IpAddr,
    protocol: Protocol,
    http: Option<AboutHttp<'a>>,
}

struct AboutHttp<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a CanonicalHost,
    headers: &'a dyn Headers,
    user: Option<&'a User>,
}

impl About<'_> {
    /// May it not be a stream of bytes? Where HTTP is declared it would be something else than was said, and where it may be
    /// HTTP, bytes would carry a user's token, and what only we tell of users, past everybody who looks at them.
    fn refuses_bytes(&self, state: &PolicyState) -> bool {
        match self.protocol {
            Protocol::Http1 | Protocol::Http2 => true,
            Protocol::Detect => state.compiled.needs_http(self.port) || !state.authenticator.is_idle(),
            Protocol::Tcp => false,
        }
    }

    /// What `ask` says of the request.
    fn under<'s, R>(
        &self,
        state: &'s PolicyState,
        ask: impl FnOnce(&'s Compiled, &Request<'_>) -> R,
    ) -> Result<R, Failure> {
        let http = match &self.http {
            Some(http) => {
                // `request::check` made it so: the path is a fixed point.
                let path = match CanonicalPathRef::check(http.path) {
                    Ok(Some(path)) => path,
                    Ok(None) => return Err(Failure::BadRequest(BadRequest::Target)),
                    Err(error) => return Err(Failure::BadPath(error)),
                };
                Some(Http {
                    method: http.method,
                    host: http.host,
                    path,
                    headers: http.headers,
                    user: http.user,
                })
            }
            None if self.refuses_bytes(state) => return Err(Failure::NotHttp),
            None => None,
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
        Ok(ask(&state.compiled, &request))
    }
}

impl Permit {
    /// Worth nothing until it is concluded.
    fn unproven(connection: &Connection, state: &PolicyState, asked: Option<Asked<'_>>) -> Self {
        Self {
            caller: Rc::clone(&connection.caller),
            port: connection.port.number,
            destination: connection.port.app.ip(),
            protocol: connection.port.protocol,
            http: asked.map(|asked| Facts {
                host: Rc::clone(asked.host),
                fields: Kept::of(&state.compiled.needs().headers, asked.fields),
                user: RefCell::new(asked.user.map(Rc::clone)),
            }),
            // What its token was verified under may have gone meanwhile: the next look at it will see.
            generation: Cell::new(
                asked
                    .and_then(|asked| asked.user)
                    .map_or(state.generation, |look| look.generation()),
            ),
            rules: Cell::new(state.rules),
            asked: OnceCell::new(),
        }
    }

    /// It may have come in before the door was what it is now. Whatever the mode: nothing of plaintext is only monitored.
    fn at_door(
        connection: &Connection,
        state: &PolicyState,
        asked: Option<Asked<'_>>,
        exchange: &Exchange,
    ) -> Result<Self, Failure> {
        let permit = Self::unproven(connection, state, asked);
        permit
            .passes_door(state)
            .inspect_err(|failure| report(&connection.worker, exchange, *failure, None, false))?;
        Ok(permit)
    }

    /// Nobody who proves nothing goes on where mutual TLS alone is taken, whatever the rules say.
    fn passes_door(&self, state: &PolicyState) -> Result<(), Failure> {
        match (self.caller.peer(), state.workload.mtls.of(self.port)) {
            (None, MtlsMode::Strict) => Err(Failure::Plaintext),
            (Some(_), _) | (None, MtlsMode::Permissive | MtlsMode::Disable) => Ok(()),
        }
    }

    fn about<'a>(&'a self, look: Option<&'a Look>, exchange: &'a Exchange) -> About<'a> {
        let http = self.http.as_ref().zip(exchange.head());
        About {
            caller: &self.caller,
            port: self.port,
            destination: self.destination,
            protocol: self.protocol,
            http: http.map(|(facts, head)| AboutHttp {
                method: head.method.as_str(),
                path: head.path(),
                host: &facts.host,
                headers: &facts.fields,
                user: look.and_then(Look::user),
            }),
        }
    }

    /// Do fields of its head decide what becomes of it, or say who its user is? Trailers would be more of them, of which
    /// nobody who decides has heard; there are servers that read both as one.
    pub(crate) fn hangs_on_fields(&self) -> bool {
        let of_head = |facts: &Facts| !facts.fields.is_empty() || facts.user.borrow().is_some();
        self.asked.get().is_some() || self.http.as_ref().is_some_and(of_head)
    }

    /// The end user, as last looked at.
    pub(super) fn look(&self) -> Option<Rc<Look>> {
        self.http.as_ref().and_then(|facts| facts.user.borrow().clone())
    }

    /// What DENY and ALLOW say, and what an AUDIT rule marks.
    fn decide<'s>(&self, state: &'s PolicyState, exchange: &Exchange) -> (Outcome, Option<Matched<'s>>) {
        let look = self.look();
        let about = self.about(look.as_deref(), exchange);
        let decided = about.under(state, |compiled, request| {
            let decision = compiled.decide(request);
            let outcome = match decision.verdict {
                Verdict::Allow => Ok(()),
                Verdict::Deny => {
                    let failure = match look {
                        // No token is looked for: none would change it.
                        None => Failure::Denied(decision.reason),
                        Some(_) => step_up(compiled, request, decision.reason, exchange),
                    };
                    Err((failure, By::of(&decision)))
                }
            };
            (outcome, decision.audit)
        });
        decided.unwrap_or_else(|failure| (Err((failure, None)), None))
    }

    /// What becomes of it by DENY and ALLOW, in the mode of `state`.
    fn conclude(&self, worker: &Worker, state: &PolicyState, exchange: &Exchange) -> Result<(), Failure> {
        let (outcome, audit) = self.decide(state, exchange);
        if let Some(audit) = audit {
            mark(worker, exchange, audit);
        }
        let Err((failure, by)) = outcome else {
            return Ok(());
        };
        self.denied(worker, state, exchange, failure, by)
    }

    /// A denial, in the mode of `state`: `Ok` where it is only told.
    fn denied(
        &self,
        worker: &Worker,
        state: &PolicyState,
        exchange: &Exchange,
        failure: Failure,
        by: Option<By>,
    ) -> Result<(), Failure> {
        let monitor_only = match state.workload.mode {
            Mode::Discover => return Ok(()),
            Mode::Monitor => true,
            Mode::Protect => false,
        };
        report(worker, exchange, failure, by, monitor_only);
        if monitor_only {
            exchange.would_deny();
            Ok(())
        } else {
            Err(failure)
        }
    }

    /// Decides the same facts under the policy of now; cheap while that has not changed. Whom CUSTOM policies ask is asked
    /// again beside the stream, which ends within a second if one of them does not agree.
    pub(crate) fn still_holds(&self, worker: &Rc<Worker>, exchange: &Rc<Exchange>) -> Result<(), Failure> {
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
                outcome.map_err(|(failure, by)| {
                    report(worker, exchange, failure, by, false);
                    failure
                })?;
                self.ask_again(worker, state, exchange)
            }
        }
    }

    /// Decides them once more, whether anything has changed or not, and asks whom CUSTOM policies ask: its connection is being
    /// readmitted.
    pub(super) fn holds_anew(&self, worker: &Rc<Worker>, exchange: &Rc<Exchange>) -> Result<(), Failure> {
        self.generation.set(OF_NONE);
        self.rules.set(OF_NONE);
        self.still_holds(worker, exchange)
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

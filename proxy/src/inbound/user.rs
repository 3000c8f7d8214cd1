//! The end user of a request: its token is found, verified, and kept for as long as the request goes on.
//!
//! ```text
//! head, query -> look (find, verify or remember) -> Look -> authorize -> forwarded without the token, with what is told
//!                  a key that we do not have -> settled (ask control, wait) -> look
//! ```
//!
//! Where no RequestAuthentication concerns the workload there is no [`Look`], and nothing of this costs anything.

use std::rc::Rc;
use std::sync::Arc;

use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, header, request};
use postern_policy::request::is_same_field;
use postern_policy::{Headers, Mode, User};
use postern_token::{Authenticator, Caller as Brings, Refusal, Spot, Token, Verified, answer, locate};
// The system's monotonic clock, which tests may move.
use tokio::time::Instant;

use super::Connection;
use super::authenticate::Caller;
use super::fields::OfMap;
use crate::http::h1::fields;
use crate::http::h1::head::RequestHead;
use crate::http::headers::remove_where;
use crate::limits::{KEYS_DEADLINE, MAX_WAITING_FOR_KEYS};
use crate::outcome::{BadRequest, Failure};
use crate::snapshot::{PolicyState, Shared};
use crate::worker::Worker;

mod tokens;

pub use tokens::Tokens;

/// What a request says of its end user, at a workload that looks for tokens.
#[derive(Debug)]
pub struct Look {
    authenticator: Arc<Authenticator>,
    /// Of the policy state that it was looked at under.
    generation: u64,
    found: Result<Option<Bearer>, Refused>,
}

/// A token that was verified, and the user whom it makes of its caller.
#[derive(Debug)]
struct Bearer {
    token: Token,
    verified: Rc<Verified>,
    user: Arc<User>,
}

/// A token that is not believed.
#[derive(Debug)]
struct Refused {
    refusal: Refusal,
    /// Control may have its key: who can wait asks for it.
    may_come: Option<Missing>,
}

/// What is asked of control.
#[derive(Debug)]
struct Missing {
    provider: String,
    fingerprint: [u8; 32],
}

/// Looks for the end user of a request; `None` if no document concerns the workload.
pub(super) fn look(connection: &Connection, headers: &dyn Headers, query: Option<&str>) -> Option<Rc<Look>> {
    let state = connection.worker.shared.policy.load();
    let state = state.as_ref()?;
    if state.authenticator.is_idle() {
        return None;
    }
    let found = match state.authenticator.find(headers, query) {
        Ok(None) => Ok(None),
        Ok(Some(token)) => verified(state, &connection.worker, &connection.caller, token),
        Err(refusal) => Err(Refused {
            refusal,
            may_come: None,
        }),
    };
    Some(Rc::new(Look::new(state, found)))
}

fn verified(state: &PolicyState, worker: &Worker, caller: &Caller, token: Token) -> Result<Option<Bearer>, Refused> {
    let fingerprint = token.fingerprint();
    let verified = worker
        .tokens
        .verify(&state.authenticator, &token, fingerprint)
        .map_err(|refusal| Refused {
            may_come: missing(state, worker, &refusal, fingerprint),
            refusal,
        })?;
    let id = caller.peer().map(postern_identity::VerifiedPeer::id);
    let brings = Brings {
        id,
        is_foreign: id.is_some_and(|id| state.compiled.is_foreign(id)),
        certificate_sha256: caller.certificate_sha256(),
    };
    let user = verified.admits(brings).map(Arc::clone).map_err(|refusal| Refused {
        refusal,
        may_come: None,
    })?;
    Ok(Some(Bearer { token, verified, user }))
}

/// What control may still bring for a token. Where nothing is refused nobody waits: it is asked for, for the next time.
fn missing(state: &PolicyState, worker: &Worker, refusal: &Refusal, fingerprint: [u8; 32]) -> Option<Missing> {
    let (Refusal::UnknownKey { provider } | Refusal::NoKeys { provider }) = refusal else {
        return None;
    };
    let provider = provider.clone()?;
    if worker.tokens.is_absent(&fingerprint) {
        return None;
    }
    match state.workload.mode {
        Mode::Protect => Some(Missing { provider, fingerprint }),
        Mode::Discover | Mode::Monitor => {
            worker.tokens.remember_absent(fingerprint);
            worker.shared.missed_keys.send_modify(|missed| {
                missed.ask(&provider);
            });
            None
        }
    }
}

/// The same, where it may be waited for a key: as long as control may still bring it, and no longer than [`KEYS_DEADLINE`].
pub(super) async fn settled(connection: &Connection, parts: &request::Parts) -> Option<Rc<Look>> {
    let again = || look(connection, &OfMap(&parts.headers), parts.uri.query());
    let first = again()?;
    let Some(Missing { provider, fingerprint }) = first.awaited() else {
        return Some(first);
    };
    let worker = &connection.worker;
    let Some(_waiting) = worker.tokens.wait() else {
        return Some(first);
    };
    let deadline = Instant::now() + KEYS_DEADLINE;
    // Before the question: its answer must not go by unheard.
    let mut changes = worker.shared.changes.subscribe();
    let question = Question::put(&worker.shared, provider);
    loop {
        let now = again()?;
        if now.awaited().is_none() {
            return Some(now);
        }
        // What was fetched after the question has no such key: only now that is known.
        if is_answered(worker, provider, question.number) {
            worker.tokens.remember_absent(*fingerprint);
            return again();
        }
        if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return Some(now);
        }
    }
}

/// Withdrawn once nobody waits for its answer.
struct Question<'q> {
    shared: &'q Shared,
    provider: &'q str,
    number: u64,
}

impl<'q> Question<'q> {
    fn put(shared: &'q Shared, provider: &'q str) -> Self {
        let mut number = 0;
        shared.missed_keys.send_modify(|missed| number = missed.ask(provider));
        Self {
            shared,
            provider,
            number,
        }
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        // Nothing to do about it: nobody need hear of it.
        self.shared.missed_keys.send_if_modified(|missed| {
            missed.withdraw(self.provider, self.number);
            false
        });
    }
}

/// Is there room for one more that waits?
pub(super) fn may_wait(connection: &Connection) -> bool {
    connection.worker.tokens.waiting() < MAX_WAITING_FOR_KEYS
}

fn is_answered(worker: &Worker, provider: &str, question: u64) -> bool {
    let state = worker.shared.policy.load();
    let newest = state.as_ref().and_then(|state| state.answered.get(provider));
    newest.is_some_and(|newest| *newest >= question)
}

impl Look {
    fn new(state: &PolicyState, found: Result<Option<Bearer>, Refused>) -> Self {
        Self {
            authenticator: Arc::clone(&state.authenticator),
            generation: state.generation,
            found,
        }
    }

    /// What control may still bring.
    fn awaited(&self) -> Option<&Missing> {
        self.found.as_ref().err()?.may_come.as_ref()
    }

    /// Could waiting change it?
    pub(super) fn may_settle(&self) -> bool {
        self.awaited().is_some()
    }

    /// The generation of the policy state that it is of.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The end user.
    pub(super) fn user(&self) -> Option<&User> {
        Some(&self.bearer()?.user)
    }

    fn bearer(&self) -> Option<&Bearer> {
        self.found.as_ref().ok()?.as_ref()
    }

    /// Why the request goes no further, and what its client is told to bring.
    pub(super) fn refusal(&self) -> Option<(Failure, Option<String>)> {
        let refused = self.found.as_ref().err()?;
        let failure = match &refused.refusal {
            Refusal::Several => Failure::BadRequest(BadRequest::Tokens),
            // No fetch has said that there is no such key.
            Refusal::UnknownKey { .. } if refused.may_come.is_some() => Failure::NoTokenKeys("token_key_awaited"),
            refusal if refusal.is_ours() => Failure::NoTokenKeys(refusal.as_str()),
            refusal => Failure::Token(refusal.as_str()),
        };
        let challenge = match failure {
            Failure::NoTokenKeys(_) => None,
            _ => answer::refused(&refused.refusal).challenge,
        };
        Some((failure, challenge))
    }

    /// Has what it stands on come to its end?
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.bearer().is_some_and(|bearer| now >= bearer.verified.until())
    }

    /// Looks at the same token under the state of now.
    pub(super) fn again(&self, state: &PolicyState, worker: &Worker, caller: &Caller) -> Rc<Self> {
        // Nobody waits for a key in the middle of a stream.
        let refused = |refusal: Refusal| Refused {
            refusal,
            may_come: None,
        };
        let found = match &self.found {
            Err(before) if !state.authenticator.is_idle() => Err(refused(before.refusal.clone())),
            Ok(None) | Err(_) => Ok(None),
            Ok(Some(bearer)) => match state.authenticator.found_again(&bearer.token) {
                None => Ok(None),
                Some(token) => verified(state, worker, caller, token).map_err(|now| refused(now.refusal)),
            },
        };
        Rc::new(Self::new(state, found))
    }

    /// Whose token the app does not get.
    fn taken(&self) -> Option<&Spot> {
        let bearer = self.bearer()?;
        (!bearer.verified.is_forwarded()).then(|| bearer.token.spot())
    }

    /// Does a client's field of this name go? Also in other spellings.
    pub(super) fn takes(&self, name: &str) -> bool {
        let is_token = || matches!(self.taken(), Some(Spot::Header(spot)) if is_same_field(name, spot));
        self.is_ours_to_tell(name) || is_token()
    }

    /// Is the app told of users in a field of this name, of any of them? Also in other spellings.
    pub(super) fn is_ours_to_tell(&self, name: &str) -> bool {
        self.authenticator.tells(name)
    }

    /// The cookie that goes.
    pub(super) fn taken_cookie(&self) -> Option<&str> {
        match self.taken() {
            Some(Spot::Cookie(name)) => Some(name),
            Some(Spot::Header(_) | Spot::Param(_)) | None => None,
        }
    }

    /// A query without the token that stands in it; `None`: as it is.
    pub(super) fn query_without(&self, query: &str) -> Option<Option<String>> {
        match self.taken() {
            Some(Spot::Param(name)) => Some(locate::without_param(query, name)),
            Some(Spot::Header(_) | Spot::Cookie(_)) | None => None,
        }
    }

    /// What the app is told of the user.
    pub(super) fn told(&self) -> impl Iterator<Item = (&str, &str)> {
        self.bearer().into_iter().flat_map(|bearer| bearer.verified.told())
    }

    /// Takes away what the app must not get.
    pub(super) fn clean(&self, parts: &mut request::Parts) -> Result<(), Failure> {
        remove_where(&mut parts.headers, |name| self.takes(name));
        if let Some(cookie) = self.taken_cookie() {
            take_cookie(&mut parts.headers, cookie)?;
        }
        if let Some(left) = parts.uri.query().and_then(|query| self.query_without(query)) {
            set_query(&mut parts.uri, left.as_deref())?;
        }
        Ok(())
    }

    /// Writes the end-to-end fields of a relayed head, without what the app must not get.
    pub(super) fn write_rest(&self, out: &mut Vec<u8>, head: &RequestHead<'_, '_>) {
        let cookie = self.taken_cookie();
        for field in fields::end_to_end(head.fields, &head.classes, &head.connection) {
            match cookie {
                _ if self.takes(field.name) => {}
                Some(cookie) if is_same_field(field.name, "cookie") => {
                    if let Some(left) = locate::without_cookie(field.value, cookie) {
                        fields::write(out, field.name.as_bytes(), &left);
                    }
                }
                Some(_) | None => fields::write(out, field.name.as_bytes(), field.value),
            }
        }
    }

    /// Tells the app of the user, once nobody can take that away again, or tell of one who is not there.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        remove_where(headers, |name| self.is_ours_to_tell(name));
        for (name, value) in self.told() {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_bytes(value.as_bytes()),
            ) {
                headers.insert(name, value);
            }
        }
    }
}

fn take_cookie(headers: &mut HeaderMap, cookie: &str) -> Result<(), Failure> {
    let bad = |_| Failure::BadRequest(BadRequest::Field);
    let lines = headers.get_all(header::COOKIE).iter();
    let left: Vec<Vec<u8>> = lines
        .filter_map(|line| locate::without_cookie(line.as_bytes(), cookie))
        .collect();
    headers.remove(header::COOKIE);
    for line in left {
        headers.append(header::COOKIE, HeaderValue::from_bytes(&line).map_err(bad)?);
    }
    Ok(())
}

fn set_query(uri: &mut Uri, query: Option<&str>) -> Result<(), Failure> {
    let target = match query {
        Some(query) => format!("{}?{query}", uri.path()),
        None => uri.path().to_owned(),
    };
    let bad = Failure::BadRequest(BadRequest::Target);
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(bytes::Bytes::from(target)).map_err(|_| bad)?);
    *uri = Uri::from_parts(parts).map_err(|_| bad)?;
    Ok(())
}

/// The fields of a head as the app will see them: without what goes, with what is told.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) sent: &'a dyn Headers,
    pub(super) look: Option<&'a Look>,
}

impl Headers for Shown<'_> {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        let Some(look) = self.look else {
            return self.sent.each(name, found);
        };
        if look.takes(name) {
            let told = look.told().filter(|(told, _)| is_same_field(told, name));
            told.for_each(|(_, value)| found(value.as_bytes()));
            return true;
        }
        match look.taken_cookie() {
            Some(cookie) if is_same_field(name, "cookie") => self.sent.each(name, &mut |line| {
                if let Some(left) = locate::without_cookie(line, cookie) {
                    found(&left);
                }
            }),
            Some(_) | None => self.sent.each(name, found),
        }
    }
}

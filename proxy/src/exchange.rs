//! One request with its answer, or one opaque stream: counted, watched, and recorded exactly once.
//!
//! An [`Exchange`] is held by both bodies of a request (or by the relay of a stream). When the last of them is gone it
//! writes itself into the metrics and, where wanted, the access log: no path can end without its record.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use postern_authorizer::Refusal;
// The system's monotonic clock, which tests may move.
use tokio::time::Instant;

use crate::access_log::{AccessLog, Entry};
use crate::inbound::authorize::Permit;
use crate::metrics::{Finished, Route, RouteKey};
use crate::outbound::originate::Riding;
use crate::outcome::Failure;
use crate::snapshot;
use crate::worker::Worker;

/// Labels and counters of one route, resolved once per (connection, route): counts as an open connection on it.
#[derive(Debug)]
pub struct Way {
    key: RouteKey,
    route: Arc<Route>,
    log: AccessLog,
    peer_address: Option<SocketAddr>,
}

impl Way {
    /// Resolves the labels; takes a lock, so once per (connection, route).
    #[must_use]
    pub fn open(worker: &Worker, key: RouteKey, peer_address: Option<SocketAddr>) -> Rc<Self> {
        let route = worker.metrics.route(&key);
        route.opened();
        Rc::new(Self {
            key,
            route,
            log: worker.access_log.clone(),
            peer_address,
        })
    }

    /// What the counters are labelled with.
    #[must_use]
    pub fn key(&self) -> &RouteKey {
        &self.key
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.route.closed();
    }
}

/// What policy and the log are told of a request.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its method.
    pub method: http::Method,
    /// Its target as forwarded.
    pub target: Target,
    /// The one effective authority, canonical.
    pub host: Rc<str>,
}

/// A request's target.
#[derive(Debug, Clone)]
pub enum Target {
    /// Shares its bytes with the request.
    Uri(http::Uri),
    /// The path alone.
    Path(Box<str>),
}

impl Head {
    /// The target's path, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        match &self.target {
            Target::Uri(uri) => uri.path(),
            Target::Path(path) => path,
        }
    }
}

/// Why policy said no (or would have), for the log; made only then.
#[derive(Debug)]
pub struct Denial {
    /// Also in the answer.
    pub decision_id: Box<str>,
    /// `namespace/name` of the policy that decided.
    pub policy: Option<Box<str>>,
    /// `file:line` of its rule.
    pub rule: Option<Box<str>>,
    /// As for metrics; also where it was let through all the same.
    pub reason: &'static str,
}

/// What an AUDIT rule marked, for the log; made only then.
#[derive(Debug)]
pub struct Audited {
    /// `namespace/name`.
    pub policy: Box<str>,
    /// `file:line` of its rule.
    pub rule: Box<str>,
}

/// Which half of an exchange moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// Towards the upstream.
    Request,
    /// From the upstream.
    Answer,
}

/// What a leg did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Motion {
    /// It has not begun, or is over.
    Idle,
    /// It waits for its source.
    Hungry,
    /// It gave bytes to its sink, which has not come back for more.
    Full,
}

/// See the module.
#[derive(Debug)]
pub struct Exchange {
    way: Rc<Way>,
    head: Option<Head>,
    started: Instant,
    ended: Cell<Option<Instant>>,
    sent: Cell<u64>,
    received: Cell<u64>,
    status: Cell<u16>,
    failure: Cell<Option<Failure>>,
    would_deny: Cell<bool>,
    denial: OnceCell<Denial>,
    challenge: OnceCell<Box<str>>,
    audited: OnceCell<Audited>,
    permit: OnceCell<Permit>,
    refusal: RefCell<Option<Box<Refusal>>>,
    riding: RefCell<Option<Rc<Riding>>>,
    in_clear_to: OnceCell<snapshot::Target>,
    half_closed: Cell<bool>,
    moved: Cell<Instant>,
    motion: [Cell<Motion>; 2],
    cut: Cell<Option<(Failure, Instant)>>,
    wakers: RefCell<[Option<Waker>; 2]>,
}

impl Exchange {
    /// Begins now. `head` is `None` for an opaque stream.
    #[must_use]
    pub fn begin(way: Rc<Way>, head: Option<Head>) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            way,
            head,
            started: now,
            ended: Cell::new(None),
            sent: Cell::new(0),
            received: Cell::new(0),
            status: Cell::new(0),
            failure: Cell::new(None),
            would_deny: Cell::new(false),
            denial: OnceCell::new(),
            challenge: OnceCell::new(),
            audited: OnceCell::new(),
            permit: OnceCell::new(),
            refusal: RefCell::new(None),
            riding: RefCell::new(None),
            in_clear_to: OnceCell::new(),
            half_closed: Cell::new(false),
            moved: Cell::new(now),
            motion: [Cell::new(Motion::Idle), Cell::new(Motion::Idle)],
            cut: Cell::new(None),
            wakers: RefCell::new([None, None]),
        })
    }

    /// The answer's status.
    pub fn answered(&self, status: http::StatusCode) {
        self.status.set(status.as_u16());
        self.moved.set(Instant::now());
    }

    /// Do the trailers of its request end here? Where fields decided what becomes of it.
    #[must_use]
    pub fn drops_trailers(&self) -> bool {
        self.permit.get().is_some_and(Permit::hangs_on_fields)
    }

    /// Has an answer's head been seen?
    #[must_use]
    pub fn has_answer(&self) -> bool {
        self.status.get() != 0
    }

    /// What went wrong; the first word counts.
    pub fn fail(&self, failure: Failure) {
        if self.failure.get().is_none() {
            self.failure.set(Some(failure));
        }
    }

    /// What went wrong so far.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure.get()
    }

    /// It would have been denied in `protect`.
    pub fn would_deny(&self) {
        self.would_deny.set(true);
    }

    /// For the log.
    pub fn denied(&self, denial: Denial) {
        let _ = self.denial.set(denial);
    }

    /// In the words of whom a CUSTOM policy asked.
    pub fn refused_with(&self, refusal: Refusal) {
        *self.refusal.borrow_mut() = Some(Box::new(refusal));
    }

    /// See [`Exchange::refused_with`].
    #[must_use]
    pub fn take_refusal(&self) -> Option<Box<Refusal>> {
        self.refusal.take()
    }

    /// For the log.
    pub fn audited(&self, audited: Audited) {
        let _ = self.audited.set(audited);
    }

    /// Of the denial, if it was one.
    #[must_use]
    pub fn decision_id(&self) -> Option<&str> {
        self.denial.get().map(|denial| &*denial.decision_id)
    }

    /// What its client is told to bring, in `WWW-Authenticate`.
    pub fn challenged(&self, challenge: String) {
        let _ = self.challenge.set(challenge.into());
    }

    /// See [`Exchange::challenged`].
    #[must_use]
    pub fn challenge(&self) -> Option<&str> {
        self.challenge.get().map(|challenge| &**challenge)
    }

    /// Keeps what let it in for as long as it lives, so that it can be decided again.
    pub fn admit(&self, permit: Permit) {
        let _ = self.permit.set(permit);
    }

    /// What let it in.
    #[must_use]
    pub fn permit(&self) -> Option<&Permit> {
        self.permit.get()
    }

    /// Outbound: keeps what its peer connection was admitted on, so that it ends with it.
    pub fn rides(&self, riding: Option<&Rc<Riding>>) {
        *self.riding.borrow_mut() = riding.cloned();
    }

    /// Outbound, to a destination outside of the mesh: it ends if that joins.
    pub fn goes_in_clear_to(&self, target: Option<snapshot::Target>) {
        if let Some(target) = target {
            let _ = self.in_clear_to.set(target);
        }
    }

    /// See [`Exchange::goes_in_clear_to`].
    #[must_use]
    pub fn in_clear_to(&self) -> Option<&snapshot::Target> {
        self.in_clear_to.get()
    }

    /// See [`Exchange::rides`].
    #[must_use]
    pub fn riding(&self) -> Option<Rc<Riding>> {
        self.riding.borrow().clone()
    }

    /// The request's head.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Bytes went by.
    pub fn moved(&self, leg: Leg, bytes: usize) {
        let counter = match leg {
            Leg::Request => &self.sent,
            Leg::Answer => &self.received,
        };
        counter.set(counter.get().saturating_add(bytes as u64));
        self.motion[leg as usize].set(Motion::Full);
        self.moved.set(Instant::now());
    }

    /// A leg waits for bytes; `waker` is called by [`Exchange::cut_short`].
    pub fn waits(&self, leg: Leg, waker: &Waker) {
        self.motion[leg as usize].set(Motion::Hungry);
        self.keep_waker(leg, waker);
    }

    /// A leg has bytes that its receiver does not take; see [`Exchange::waits`].
    pub(crate) fn blocked(&self, leg: Leg, waker: &Waker) {
        self.motion[leg as usize].set(Motion::Full);
        self.keep_waker(leg, waker);
    }

    fn keep_waker(&self, leg: Leg, waker: &Waker) {
        let slot = &mut self.wakers.borrow_mut()[leg as usize];
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// A leg is over.
    pub fn closed(&self, leg: Leg) {
        self.motion[leg as usize].set(Motion::Idle);
        if leg == Leg::Answer {
            self.ended();
        }
    }

    /// The answer is whole, or the stream over.
    pub fn ended(&self) {
        if self.ended.get().is_none() {
            self.ended.set(Some(Instant::now()));
        }
    }

    /// One direction of an opaque stream has ended.
    pub fn half_closed(&self) {
        self.half_closed.set(true);
    }

    /// Has [`Exchange::half_closed`] happened?
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.half_closed.get()
    }

    /// Ends it from outside: bodies and relays fail with `failure` when next polled, which is now.
    pub fn cut_short(&self, failure: Failure) {
        if self.cut.get().is_some() || self.ended.get().is_some() {
            return;
        }
        self.fail(failure);
        self.cut.set(Some((failure, Instant::now())));
        for waker in self.wakers.take().into_iter().flatten() {
            waker.wake();
        }
    }

    /// Was it cut short, and when?
    #[must_use]
    pub fn cut(&self) -> Option<(Failure, Instant)> {
        self.cut.get()
    }

    /// Runs `future`, unless the exchange is cut short first: then it is dropped.
    pub async fn unless_cut<F: Future>(&self, future: F) -> Result<F::Output, Failure> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            if let Some((failure, _)) = self.cut() {
                return Poll::Ready(Err(failure));
            }
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Ok(output)),
                Poll::Pending => {
                    self.keep_waker(Leg::Answer, cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// How long it has been going on.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// When anything moved last.
    #[must_use]
    pub fn last_moved(&self) -> Instant {
        self.moved.get()
    }

    /// Does the peer owe request bytes, or take no answer bytes that are ready for it?
    #[must_use]
    pub fn peer_stalls(&self) -> bool {
        let owed = !self.has_answer() && self.motion[Leg::Request as usize].get() == Motion::Hungry;
        owed || self.motion[Leg::Answer as usize].get() == Motion::Full
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let ended = self.ended.get().unwrap_or_else(Instant::now);
        let finished = Finished {
            status: self.status.get(),
            failure: self.failure.get(),
            would_deny: self.would_deny.get(),
            latency: ended.saturating_duration_since(self.started),
            sent: self.sent.get(),
            received: self.received.get(),
        };
        self.way.route.finished(&finished);
        let log = &self.way.log;
        if log.wants(&finished) || self.audited.get().is_some() {
            let (head, denial) = (self.head.as_ref(), self.denial.get());
            log.write(&Entry {
                route: &self.way.key,
                peer_address: self.way.peer_address,
                method: head.map_or("", |head| head.method.as_str()),
                path: head.map_or("", Head::path),
                host: head.map_or("", |head| &head.host),
                decision_id: denial.map(|denial| &*denial.decision_id),
                policy: denial.and_then(|denial| denial.policy.as_deref()),
                rule: denial.and_then(|denial| denial.rule.as_deref()),
                would_deny: denial.map(|denial| denial.reason),
                audited: self.audited.get(),
                finished: &finished,
            });
        }
    }
}

//! Who may go on: one task per worker looks at every live connection, so that requests carry no timers of their own.
//!
//! It wakes when identity, trust, policy or the drain phase changed, and every [`TICK`] while connections live; each
//! live exchange is decided again under a new policy, each peer is looked at under new trust, and every deadline of
//! `limits` that is not tied to a connection's beginning is enforced here.

mod readmissible;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_identity::VerifiedPeer;
use postern_policy::MtlsMode;
use rustls_pki_types::UnixTime;
// The system's monotonic clock, which tests may move.
use tokio::time::Instant;

use crate::drain::Phase;
use crate::exchange::Exchange;
use crate::inbound::authenticate::Caller;
use crate::limits::{
    ANSWER_DEADLINE, BODY_PROGRESS_DEADLINE, CUT_GRACE, EXPIRY_MARGIN, HALF_CLOSE_DEADLINE, HEAD_DEADLINE,
    IDLE_DEADLINE, LONG_LIVED, MAX_HANDSHAKES, MAX_READMISSIONS, OPAQUE_IDLE_DEADLINE, SUPERVISE_TICK as TICK,
};
use crate::outbound;
use crate::outcome::Failure;
use crate::worker::Worker;
use readmissible::Readmissible;

/// What a connection speaks: decides which deadlines hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Opaque,
}

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Go on.
    Run,
    /// Finish what is in flight, take nothing new.
    Graceful,
    /// Close now.
    Cut(Failure),
}

/// One live connection's control block.
#[derive(Debug)]
pub struct Control {
    speaks: Cell<Speaks>,
    /// Whom it was admitted for, or readmitted last.
    peer: RefCell<Option<VerifiedPeer>>,
    readmissible: Option<Readmissible>,
    readmitted: Cell<bool>,
    /// The port that took it in clear.
    in_clear_on: Cell<Option<u16>>,
    trust_revision: Cell<u64>,
    signal: Cell<Signal>,
    /// Why it was told to end gracefully.
    ending: Cell<Option<(Failure, Instant)>>,
    waker: RefCell<Option<Waker>>,
    live: RefCell<Vec<Weak<Exchange>>>,
    active: Cell<Instant>,
    head_since: Cell<Option<Instant>>,
    write_blocked: Cell<Option<Instant>>,
    upgraded: Cell<bool>,
}

/// All live connections of a worker.
#[derive(Debug, Default)]
pub struct Supervisor {
    connections: RefCell<Vec<Weak<Control>>>,
    running: Cell<bool>,
    handshakes: Rc<Cell<usize>>,
    readmissions: Rc<Cell<usize>>,
}

/// Counts one handshake, or readmission, in progress.
#[derive(Debug)]
pub struct Slot(Rc<Cell<usize>>);

impl Slot {
    fn of(taken: &Rc<Cell<usize>>, most: usize) -> Option<Self> {
        if taken.get() >= most {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Self(Rc::clone(taken)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Supervisor {
    /// A handshake begins, unless [`crate::limits::MAX_HANDSHAKES`] are in progress.
    #[must_use]
    pub fn handshake(&self) -> Option<Slot> {
        Slot::of(&self.handshakes, MAX_HANDSHAKES)
    }

    /// We ask for a readmission, unless [`crate::limits::MAX_READMISSIONS`] are under way.
    pub(crate) fn readmission(&self) -> Option<Slot> {
        Slot::of(&self.readmissions, MAX_READMISSIONS)
    }

    /// Puts a connection under supervision for as long as the answer is held. `caller`: whom it was admitted for.
    #[must_use]
    pub fn watch(worker: &Rc<Worker>, speaks: Speaks, caller: Option<&Caller>) -> Rc<Control> {
        let now = Instant::now();
        let control = Rc::new(Control {
            speaks: Cell::new(speaks),
            peer: RefCell::new(caller.and_then(Caller::peer).cloned()),
            readmissible: caller.and_then(|caller| Readmissible::of(worker, caller)),
            readmitted: Cell::new(false),
            in_clear_on: Cell::new(None),
            // Looked at once at the first pass: trust may have moved since the handshake.
            trust_revision: Cell::new(u64::MAX),
            signal: Cell::new(Signal::Run),
            ending: Cell::new(None),
            waker: RefCell::new(None),
            live: RefCell::new(Vec::new()),
            active: Cell::new(now),
            head_since: Cell::new(None),
            write_blocked: Cell::new(None),
            upgraded: Cell::new(false),
        });
        worker.supervisor.connections.borrow_mut().push(Rc::downgrade(&control));
        Self::wake(worker);
        control
    }

    /// Sees to it that resting connections are closed in time, also once nothing else lives.
    pub(crate) fn wake(worker: &Rc<Worker>) {
        if !worker.supervisor.running.replace(true) {
            tokio::task::spawn_local(run(Rc::clone(worker)));
        }
    }

    /// Looks at everything; false if nothing lives.
    fn look(&self, worker: &Rc<Worker>) -> bool {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|weak| weak.strong_count() > 0);
        let pass = Pass {
            worker,
            now: Instant::now(),
            clock: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            phase: worker.drain.phase(),
            cut_off: worker.shared.is_cut_off(),
        };
        for control in connections.iter().filter_map(Weak::upgrade) {
            control.look(&pass);
            control.register_if_long_lived(&pass);
        }
        let (apps, peers) = (worker.apps.sweep(), worker.peers.sweep(&worker.shared, pass.clock));
        !connections.is_empty() || apps || peers
    }
}

/// Supervision ends with its task, however that ends: the next connection begins it anew.
struct Running<'a>(&'a Worker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.supervisor.running.set(false);
        if std::thread::panicking() {
            self.0.metrics.panics.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

async fn run(worker: Rc<Worker>) {
    let _running = Running(&worker);
    let mut changes = worker.shared.changes.subscribe();
    let mut drain = worker.drain.clone();
    while worker.supervisor.look(&worker) {
        let next = match drain.phase() {
            Phase::Running => Phase::Draining,
            Phase::Draining | Phase::Cut => Phase::Cut,
        };
        let cut = drain.phase() == Phase::Cut;
        // All three are cancel-safe: each looks at a state that stays.
        tokio::select! {
            _ = changes.changed() => {}
            () = drain.reached(next), if !cut => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

struct Pass<'a> {
    worker: &'a Rc<Worker>,
    now: Instant,
    clock: Duration,
    phase: Phase,
    /// Are we ourselves quarantined?
    cut_off: bool,
}

impl Control {
    /// What to do; wakes the caller's task when that changes.
    pub fn signal(&self, waker: &Waker) -> Signal {
        let slot = &mut *self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
        self.signal.get()
    }

    /// Waits for more than [`Signal::Run`].
    pub async fn told(&self) -> Signal {
        std::future::poll_fn(|cx| match self.signal(cx.waker()) {
            Signal::Run => std::task::Poll::Pending,
            told => std::task::Poll::Ready(told),
        })
        .await
    }

    /// Waits until it must end at once.
    pub async fn cut(&self) -> Failure {
        std::future::poll_fn(|cx| match self.signal(cx.waker()) {
            Signal::Run | Signal::Graceful => std::task::Poll::Pending,
            Signal::Cut(failure) => std::task::Poll::Ready(failure),
        })
        .await
    }

    /// Nobody proved anything on it: it ends once this port takes mutual TLS alone.
    pub(crate) fn is_in_clear_on(&self, port: u16) {
        self.in_clear_on.set(Some(port));
    }

    /// Its answer is 101: what follows is opaque.
    pub fn upgrade(&self) {
        self.upgraded.set(true);
        self.speaks.set(Speaks::Opaque);
    }

    /// Did [`Control::upgrade`] happen?
    #[must_use]
    pub fn is_upgraded(&self) -> bool {
        self.upgraded.get()
    }

    /// Is it being ended?
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.get().is_some()
    }

    /// An exchange rides on it.
    pub fn carries(&self, exchange: &Rc<Exchange>) {
        self.head_since.set(None);
        let mut live = self.live.borrow_mut();
        // Dead entries are swept when the list would grow: amortised, and bounded by the stream limit.
        if live.len() == live.capacity() {
            live.retain(|weak| weak.strong_count() > 0);
        }
        live.push(Rc::downgrade(exchange));
    }

    /// Bytes came from the peer.
    pub(crate) fn read(&self) {
        if self.head_since.get().is_none() && !self.has_live() {
            let now = Instant::now();
            self.head_since.set(Some(now));
            self.active.set(now);
        }
    }

    /// A write made progress, or did not.
    pub(crate) fn wrote(&self, progress: bool) {
        match (progress, self.write_blocked.get()) {
            (true, Some(_)) => self.write_blocked.set(None),
            (false, None) => self.write_blocked.set(Some(Instant::now())),
            (true, None) | (false, Some(_)) => {}
        }
    }

    fn has_live(&self) -> bool {
        self.live.borrow().iter().any(|weak| weak.strong_count() > 0)
    }

    fn tell(&self, signal: Signal) {
        if self.signal.get() != signal && !matches!(self.signal.get(), Signal::Cut(_)) {
            self.signal.set(signal);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Ends it and whatever rides on it, now.
    pub fn close(&self, failure: Failure) {
        for exchange in self.live.borrow().iter().filter_map(Weak::upgrade) {
            exchange.cut_short(failure);
        }
        if self.ending.get().is_none_or(|(_, since)| since.elapsed() < CUT_GRACE) && self.speaks.get() != Speaks::Opaque
        {
            // Streams are reset and heads answered first; the next passes cut what is left.
            self.end(failure);
        } else {
            self.tell(Signal::Cut(failure));
        }
    }

    /// Ends it gracefully; an opaque stream knows no grace but its own end.
    fn end(&self, failure: Failure) {
        if self.ending.get().is_none() {
            self.ending.set(Some((failure, Instant::now())));
        }
        self.tell(Signal::Graceful);
    }

    fn look(&self, pass: &Pass<'_>) {
        if pass.phase == Phase::Cut {
            self.close(Failure::Draining);
            self.tell(Signal::Cut(Failure::Draining));
            return;
        }
        if pass.phase == Phase::Draining && self.ending.get().is_none() {
            self.end(Failure::Draining);
        }
        if pass.cut_off {
            self.close(Failure::SelfQuarantined);
        }
        self.look_at_peer(pass);
        let mut any = false;
        self.live.borrow_mut().retain(|weak| weak.strong_count() > 0);
        let live: smallvec::SmallVec<[Rc<Exchange>; 4]> = self.live.borrow().iter().filter_map(Weak::upgrade).collect();
        for exchange in &live {
            any = true;
            self.look_at(exchange, pass);
        }
        self.look_at_door(pass);
        self.look_at_transport(any, pass);
    }

    /// After its exchanges, which say why they end.
    fn look_at_door(&self, pass: &Pass<'_>) {
        let Some(port) = self.in_clear_on.get() else { return };
        let policy = pass.worker.shared.policy.load();
        if policy
            .as_ref()
            .is_some_and(|state| state.workload.mtls.of(port) == MtlsMode::Strict)
        {
            self.close(Failure::Plaintext);
        }
    }

    fn look_at_peer(&self, pass: &Pass<'_>) {
        let Some(peer) = &*self.peer.borrow() else {
            return;
        };
        let end = Duration::from_secs(peer.not_after().as_secs());
        if pass.clock >= end {
            self.close(Failure::PeerExpired);
        } else if pass.clock + EXPIRY_MARGIN + TICK >= end && self.ending.get().is_none() {
            self.end(Failure::PeerExpired);
        }
        let trust = pass.worker.shared.trust.load();
        if self.trust_revision.replace(trust.revision) != trust.revision
            && let Err(error) = peer.still_holds(&trust, UnixTime::since_unix_epoch(pass.clock))
        {
            self.trust_revision.set(u64::MAX);
            self.close(Failure::of_peer(&error));
        }
    }

    fn look_at(&self, exchange: &Rc<Exchange>, pass: &Pass<'_>) {
        if let Some((failure, since)) = exchange.cut() {
            // A stream blocked on its reader never asks its body again: the connection has to go.
            if pass.now.saturating_duration_since(since) >= CUT_GRACE {
                self.tell(Signal::Cut(failure));
            }
            return;
        }
        if let Some(permit) = exchange.permit()
            && let Err(failure) = permit.still_holds(pass.worker, exchange)
        {
            exchange.cut_short(failure);
            return;
        }
        if let Some(riding) = exchange.riding() {
            if let Err(failure) = riding.still_holds(&pass.worker.shared.trust.load(), pass.clock) {
                exchange.cut_short(failure);
                return;
            }
            if exchange.age(pass.now) >= LONG_LIVED {
                outbound::readmit::ask_if_due(pass.worker, &riding, pass.clock);
            }
        }
        if let Some(target) = exchange.in_clear_to()
            && let Some(destination) = pass.worker.shared.destinations.get(target)
            && !destination.is_in_clear()
        {
            // It has joined the mesh, or must not be reached any more: what goes on in clear ends.
            exchange.cut_short(Failure::PeerWithdrawn);
            return;
        }
        let still = pass.now.saturating_duration_since(exchange.last_moved());
        let overdue = match self.speaks.get() {
            Speaks::Opaque if exchange.is_half_closed() && still >= HALF_CLOSE_DEADLINE => Some(Failure::BodyTimeout),
            Speaks::Opaque => (still >= OPAQUE_IDLE_DEADLINE).then_some(Failure::BodyTimeout),
            Speaks::Http1 if still >= BODY_PROGRESS_DEADLINE && exchange.peer_stalls() => Some(Failure::BodyTimeout),
            // A gRPC stream may rest: only what nobody has touched for the idle deadline is ended.
            Speaks::Http1 | Speaks::Http2 if still >= IDLE_DEADLINE && exchange.peer_stalls() => {
                Some(Failure::BodyTimeout)
            }
            Speaks::Http1 | Speaks::Http2 => (still >= ANSWER_DEADLINE).then_some(Failure::UpstreamTimeout),
        };
        if let Some(failure) = overdue {
            exchange.cut_short(failure);
        }
    }

    fn look_at_transport(&self, any_live: bool, pass: &Pass<'_>) {
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| pass.now.saturating_duration_since(at));
        if any_live {
            self.active.set(pass.now);
        }
        match self.speaks.get() {
            Speaks::Opaque => {}
            Speaks::Http1 | Speaks::Http2 => {
                if self.speaks.get() == Speaks::Http1 && since(self.head_since.get()) >= HEAD_DEADLINE {
                    self.tell(Signal::Cut(Failure::HeadTimeout));
                }
                if !any_live && since(Some(self.active.get())) >= IDLE_DEADLINE {
                    self.end(Failure::PeerGone);
                }
            }
        }
        if since(self.write_blocked.get()) >= BODY_PROGRESS_DEADLINE && self.speaks.get() != Speaks::Opaque {
            self.tell(Signal::Cut(Failure::BodyTimeout));
        }
        // Whatever outlives its own end by the grace of a second asking is cut; a drain has its own deadline.
        if let Some((failure, since)) = self.ending.get()
            // HTTP/2 waits for a preface that never comes, also when told to end.
            && (is_no_longer_believed(failure) || (matches!(failure, Failure::PeerGone) && !any_live))
            && pass.now.saturating_duration_since(since) >= CUT_GRACE
        {
            self.tell(Signal::Cut(failure));
        }
    }
}

fn is_no_longer_believed(failure: Failure) -> bool {
    matches!(
        failure,
        Failure::PeerWithdrawn | Failure::PeerQuarantined | Failure::SelfQuarantined
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_readmissions_are_under_way_and_not_one_more() {
        let supervisor = Supervisor::default();
        let mut held: Vec<_> = (0..MAX_READMISSIONS).map(|_| supervisor.readmission()).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(supervisor.readmission().is_none());
        held.pop();
        assert!(supervisor.readmission().is_some());
    }
}

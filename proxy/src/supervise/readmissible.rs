//! A peer's connection that lives long, until it is readmitted: see [`crate::readmission`].

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use postern_identity::VerifiedPeer;

use super::{Control, Pass, Signal, is_no_longer_believed};
use crate::exchange::Exchange;
use crate::inbound::authenticate::Caller;
use crate::inbound::readmit;
use crate::limits::{LONG_LIVED, READMISSIBLE_FROM, READMIT_DEADLINE};
use crate::metrics::Direction;
use crate::outbound::originate;
use crate::outcome::Failure;
use crate::readmission::{Name, Registered};
use crate::worker::Worker;

/// For metrics: the table of connections that can be readmitted is full.
const NO_ROOM: &str = "no_room";

/// What it takes to be asked for by name.
#[derive(Debug)]
pub(super) struct Readmissible {
    name: Name,
    /// When it is worth a place in the table.
    from: Duration,
    /// There was no room; not to be tried before this.
    again: Cell<Duration>,
    registered: RefCell<Option<Registered>>,
}

impl Readmissible {
    pub(super) fn of(worker: &Worker, caller: &Caller) -> Option<Self> {
        let name = caller.connection()?.clone();
        let own = worker.shared.identity.load();
        // The client counts from both SVIDs.
        let ends = [caller.peer()?.not_after(), own.as_ref()?.svid.not_after()];
        let end = Duration::from_secs(ends[0].as_secs().min(ends[1].as_secs()));
        let now = originate::clock();
        let from = now + end.saturating_sub(now).mul_f64(READMISSIBLE_FROM);
        Some(Self {
            name,
            from,
            again: Cell::new(Duration::ZERO),
            registered: RefCell::new(None),
        })
    }
}

impl Control {
    /// Whom it was admitted for, or readmitted last.
    pub(crate) fn peer(&self) -> Option<VerifiedPeer> {
        self.peer.borrow().clone()
    }

    /// What is in flight on it.
    pub(crate) fn live(&self) -> Vec<Rc<Exchange>> {
        self.live.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// It is cut, or will be in a moment: nothing can be said for it any more.
    pub(crate) fn is_lost(&self) -> bool {
        let withdrawn = |(failure, _)| is_no_longer_believed(failure);
        matches!(self.signal.get(), Signal::Cut(_)) || self.ending.get().is_some_and(withdrawn)
    }

    /// The same peer has proved itself anew, and what is in flight was decided anew. New requests are not for it: they would
    /// be told of as the old certificate's.
    pub(crate) fn readmit(&self, peer: VerifiedPeer) {
        self.peer.replace(Some(peer));
        self.readmitted.set(true);
        // It was verified under the trust of a moment ago.
        self.trust_revision.set(u64::MAX);
        if let Some((Failure::PeerExpired, _)) = self.ending.get() {
            self.ending.set(None);
        }
        self.tell(Signal::Graceful);
    }

    /// It takes no new requests, whether its client has heard so or not.
    pub(crate) fn is_readmitted(&self) -> bool {
        self.readmitted.get()
    }

    /// There is another root than its peer's: that one may be about to leave.
    fn may_lose_its_root(&self, pass: &Pass<'_>) -> bool {
        let trust = pass.worker.shared.trust.load();
        let peer = self.peer.borrow();
        let bundle = peer
            .as_ref()
            .and_then(|peer| trust.bundles.get(peer.id().trust_domain()));
        bundle.is_some_and(|bundle| bundle.roots().len() > 1)
    }

    /// So that it can be readmitted, as long as something long-lived is in flight.
    pub(super) fn register_if_long_lived(self: &Rc<Self>, pass: &Pass<'_>) {
        let Some(readmissible) = &self.readmissible else { return };
        let is_long_lived = |exchange: Rc<Exchange>| exchange.cut().is_none() && exchange.age(pass.now) >= LONG_LIVED;
        if !self.live.borrow().iter().filter_map(Weak::upgrade).any(is_long_lived) {
            // Its place is for others.
            readmissible.registered.take();
            return;
        }
        if readmissible.registered.borrow().is_some() || self.is_lost() {
            return;
        }
        let is_time = pass.clock >= readmissible.from || self.may_lose_its_root(pass);
        if !is_time || pass.clock < readmissible.again.get() {
            return;
        }
        match pass.worker.shared.readmissions.register(&readmissible.name) {
            Some((registered, offered)) => {
                readmissible.registered.replace(Some(registered));
                let answering = readmit::answer_for(Rc::clone(pass.worker), Rc::downgrade(self), offered);
                // Ends with the connection, or its place in the table.
                tokio::task::spawn_local(answering);
            }
            None => {
                pass.worker.metrics.readmission(Direction::Inbound, NO_ROOM);
                readmissible.again.set(pass.clock + READMIT_DEADLINE);
            }
        }
    }
}

//! Asks a peer that a connection with a long stream may go on past the SVIDs that it was admitted on: see
//! [`crate::readmission`].

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use postern_identity::VerifiedPeer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::originate::{self, Riding};
use crate::inbound::readmit::READMITTED;
use crate::limits::{
    EXPIRY_MARGIN, READMIT_BY, READMIT_DEADLINE, READMIT_FROM, READMIT_HURRY, READMIT_PAUSE, SUPERVISE_TICK,
};
use crate::metrics::Direction;
use crate::outcome::Failure;
use crate::readmission::{Answer, Name};
use crate::snapshot::{Endpoint, Identity};
use crate::worker::Worker;

/// What it takes to ask for one connection, and when to.
#[derive(Debug)]
pub(super) struct Readmission {
    name: Name,
    endpoint: Arc<Endpoint>,
    /// When to ask next; [`NEVER`] once the peer has shown that it does not know how.
    next: Cell<Duration>,
    /// Of our identity that it was admitted under.
    root: Cell<Option<[u8; 32]>>,
    has_been: Cell<bool>,
    is_under_way: Cell<bool>,
    /// A root is being replaced: what was admitted under the old one ends with it, however long its certificate would last.
    is_urgent: Cell<bool>,
    /// Between two tries while it is; doubles.
    patience: Cell<Duration>,
}

/// Nobody's clock says that.
const NEVER: Duration = Duration::MAX;

/// Why there was no readmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unheard {
    /// An older proxy.
    Unsupported,
    /// Nobody answered, or not as they should.
    Failed(&'static str),
    /// Whoever answers is another workload, or another instance of it.
    WrongPeer,
    /// In the peer's words.
    Refused(&'static str),
    /// Agreed, but the peer has no newer SVID itself yet.
    Unchanged,
}

impl Unheard {
    fn reason(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Failed(reason) | Self::Refused(reason) => reason,
            Self::WrongPeer => "wrong_peer",
            Self::Unchanged => "unchanged",
        }
    }
}

impl Readmission {
    /// Of a connection with `peer` that was admitted now, until `end`.
    pub(super) fn new(
        name: Name,
        endpoint: &Arc<Endpoint>,
        own: &Identity,
        peer: &VerifiedPeer,
        end: Duration,
    ) -> Self {
        let made = Self {
            name,
            endpoint: Arc::clone(endpoint),
            next: Cell::new(NEVER),
            root: Cell::new(own.root),
            has_been: Cell::new(false),
            is_under_way: Cell::new(false),
            is_urgent: Cell::new(is_under_another_root(own, peer)),
            patience: Cell::new(READMIT_HURRY),
        };
        made.schedule(first_try(end));
        made
    }

    /// Has it been readmitted?
    pub(super) fn has_been(&self) -> bool {
        self.has_been.get()
    }

    /// Our root is another than it was, so the connection is asked about soon.
    fn look_at_root(&self, own: &Identity, clock: Duration) {
        if own.root.is_some() && self.root.replace(own.root) != own.root {
            self.is_urgent.set(true);
            self.patience.set(READMIT_HURRY);
            self.try_by(clock + READMIT_HURRY.mul_f64(between(0.0, 1.0)));
        }
    }

    /// It holds until `end` now. While the peer's root is not ours, it has not renewed yet.
    fn succeeded(&self, own: &Identity, peer: &VerifiedPeer, end: Duration) {
        self.has_been.set(true);
        self.is_urgent.set(is_under_another_root(own, peer));
        self.schedule(first_try(end));
    }

    fn failed(&self, end: Duration) {
        self.schedule(next_try(end));
    }

    fn schedule(&self, at: Duration) {
        self.next.set(at);
        if self.is_urgent.get() {
            let patience = self.patience.get();
            self.patience.set(patience.saturating_mul(2));
            self.try_by(originate::clock() + patience.mul_f64(between(0.5, 1.0)));
        }
    }

    fn try_by(&self, at: Duration) {
        self.next.set(self.next.get().min(at));
    }
}

/// One of the two has renewed under a new root, and the other has not.
fn is_under_another_root(own: &Identity, peer: &VerifiedPeer) -> bool {
    let is_of_ours = peer.id().trust_domain() == own.svid.id().trust_domain();
    is_of_ours && own.root.is_some_and(|root| root != *peer.anchor())
}

/// Within which a connection that holds until `end` is asked about.
fn first_try(end: Duration) -> Duration {
    let now = originate::clock();
    now + end.saturating_sub(now).mul_f64(between(READMIT_FROM, READMIT_BY))
}

fn next_try(end: Duration) -> Duration {
    let now = originate::clock();
    let pause = end.saturating_sub(now).mul_f64(READMIT_PAUSE * between(0.5, 1.5));
    now + pause.max(SUPERVISE_TICK)
}

fn between(least: f64, most: f64) -> f64 {
    least + fastrand::f64() * (most - least)
}

/// Called while a stream that lives long rides on the connection.
pub(crate) fn ask_if_due(worker: &Rc<Worker>, riding: &Rc<Riding>, clock: Duration) {
    let Some(readmission) = riding.readmission() else {
        return;
    };
    if readmission.is_under_way.get() || readmission.next.get() == NEVER {
        return;
    }
    let Some(identity) = worker.shared.identity.load_full() else {
        return;
    };
    readmission.look_at_root(&identity, clock);
    if clock < readmission.next.get() || clock + EXPIRY_MARGIN >= riding.end() {
        return;
    }
    if !readmission.is_urgent.get() && identity.svid.not_after().as_secs() <= riding.end().as_secs() {
        // Nothing is won before our own renewal.
        readmission.failed(riding.end());
        return;
    }
    let Some(slot) = worker.supervisor.readmission() else {
        return;
    };
    readmission.is_under_way.set(true);
    let (worker, riding) = (Rc::clone(worker), Rc::clone(riding));
    // Bounded by its deadline; nobody waits for it.
    tokio::task::spawn_local(async move {
        let _slot = slot;
        // On the heap: a handshake's state is large.
        let asking = Box::pin(timeout(READMIT_DEADLINE, ask(&worker, &riding, &identity)));
        let result = asking.await.unwrap_or(Err(Unheard::Failed("timeout")));
        note(&worker, &riding, result);
    });
}

fn note(worker: &Worker, riding: &Riding, result: Result<(), Unheard>) {
    let Some(readmission) = riding.readmission() else {
        return;
    };
    readmission.is_under_way.set(false);
    let reason = result.map_or_else(Unheard::reason, |()| READMITTED);
    worker.metrics.readmission(Direction::Outbound, reason);
    let endpoint = &readmission.endpoint;
    let told = (&*endpoint.workload, endpoint.address);
    match result {
        Ok(()) => {
            tracing::debug!(dst.workload = told.0, dst.address = %told.1, "connection readmitted");
        }
        Err(Unheard::Unsupported) => {
            readmission.next.set(NEVER);
            tracing::info!(dst.workload = told.0, dst.address = %told.1, reason, "connection not readmitted");
        }
        Err(Unheard::Failed(_) | Unheard::WrongPeer | Unheard::Refused(_) | Unheard::Unchanged) => {
            readmission.failed(riding.end());
            tracing::info!(dst.workload = told.0, dst.address = %told.1, reason, "connection not readmitted");
        }
    }
}

async fn ask(worker: &Rc<Worker>, riding: &Riding, identity: &Arc<Identity>) -> Result<(), Unheard> {
    let (Some(readmission), Some(held)) = (riding.readmission(), riding.peer()) else {
        return Err(Unheard::Unsupported);
    };
    let config = Arc::clone(&identity.client_renew);
    let secured = originate::secure(worker, &readmission.endpoint, identity, config).await;
    let mut secured = secured.map_err(|failure| match failure {
        Failure::UpstreamHandshake(originate::NO_COMMON_PROTOCOL) => Unheard::Unsupported,
        Failure::WrongPeer => Unheard::WrongPeer,
        other => Unheard::Failed(other.facts().reason),
    })?;
    worker.metrics.handshake(Direction::Outbound, None);
    if !secured.peer.is_same_as(&held) {
        // The name is for who we have been talking to, and nobody else.
        return Err(Unheard::WrongPeer);
    }
    let mut answer = [0; 1];
    let asked = async {
        secured.stream.write_all(readmission.name.as_bytes()).await?;
        secured.stream.flush().await?;
        secured.stream.read_exact(&mut answer).await
    };
    if let Err(error) = asked.await {
        let refused = originate::is_alert(&error);
        return Err(Unheard::Failed(if refused { originate::REFUSED } else { "peer_gone" }));
    }
    match Answer::from_byte(answer[0]) {
        Answer::Readmitted => {}
        Answer::Refused(reason) => return Err(Unheard::Refused(reason)),
    }
    // What both have agreed on may have ended meanwhile, though nobody has looked yet.
    riding
        .still_holds(&worker.shared.trust.load(), originate::clock())
        .map_err(|failure| Unheard::Failed(failure.facts().reason))?;
    let (end, peer) = (secured.end(identity), secured.peer);
    if end <= riding.end() && peer.anchor() == held.anchor() {
        return Err(Unheard::Unchanged);
    }
    readmission.succeeded(identity, &peer, end);
    riding.readmit(peer, end);
    Ok(())
}

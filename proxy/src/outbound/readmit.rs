//! Asks a peer that a connection with a long stream may go on past the SVIDs that it was admitted on: see
//! [`crate::readmission`].

mod schedule;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use postern_identity::VerifiedPeer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use self::schedule::Schedule;
use super::originate::{self, Riding};
use crate::drain::Phase;
use crate::inbound::readmit::READMITTED;
use crate::limits::{EXPIRY_MARGIN, READMIT_DEADLINE};
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
    schedule: Schedule,
    /// Of our identity that it was admitted under.
    root: Cell<Option<[u8; 32]>>,
    was_asked: Cell<bool>,
    is_under_way: Cell<bool>,
}

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
        Self {
            name,
            endpoint: Arc::clone(endpoint),
            schedule: Schedule::new(is_under_another_root(own, peer), end, originate::clock()),
            root: Cell::new(own.root),
            was_asked: Cell::new(false),
            is_under_way: Cell::new(false),
        }
    }

    /// Was the peer asked about it? It may have agreed, also where we have not heard it: it takes no new requests then.
    pub(super) fn was_asked(&self) -> bool {
        self.was_asked.get()
    }

    /// Our root is another than it was, so the connection is asked about soon.
    fn look_at_root(&self, own: &Identity, clock: Duration) {
        if own.root.is_some() && self.root.replace(own.root) != own.root {
            self.schedule.root_changed(clock);
        }
    }
}

/// One of the two has renewed under a new root, and the other has not.
fn is_under_another_root(own: &Identity, peer: &VerifiedPeer) -> bool {
    let is_of_ours = peer.id().trust_domain() == own.svid.id().trust_domain();
    is_of_ours && own.root.is_some_and(|root| root != *peer.anchor())
}

/// Called while a stream that lives long rides on the connection.
pub(crate) fn ask_if_due(worker: &Rc<Worker>, riding: &Rc<Riding>, clock: Duration) {
    let Some(readmission) = riding.readmission() else {
        return;
    };
    let schedule = &readmission.schedule;
    let is_running = worker.drain.phase() == Phase::Running;
    if !is_running || readmission.is_under_way.get() || schedule.is_never() {
        return;
    }
    let Some(identity) = worker.shared.identity.load_full() else {
        return;
    };
    readmission.look_at_root(&identity, clock);
    if !schedule.is_due(clock) || clock + EXPIRY_MARGIN >= riding.end() {
        return;
    }
    if !schedule.hurries() && identity.svid.not_after().as_secs() <= riding.end().as_secs() {
        // Nothing is won before our own renewal.
        schedule.failed(riding.end(), clock);
        return;
    }
    let Some(slot) = worker.supervisor.readmission() else {
        return;
    };
    readmission.is_under_way.set(true);
    // What begins while we ask might come after the answer.
    readmission.was_asked.set(true);
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
    let now = originate::clock();
    match result {
        Ok(()) => {
            readmission.schedule.succeeded(riding.end(), now);
            tracing::debug!(dst.workload = told.0, dst.address = %told.1, "connection readmitted");
        }
        Err(Unheard::Unsupported) => {
            readmission.schedule.never();
            tracing::info!(dst.workload = told.0, dst.address = %told.1, reason, "connection not readmitted");
        }
        // Nothing is wrong: its turn to renew comes.
        Err(Unheard::Unchanged) => {
            readmission.schedule.failed(riding.end(), now);
            tracing::debug!(dst.workload = told.0, dst.address = %told.1, reason, "connection not readmitted");
        }
        Err(Unheard::Failed(_) | Unheard::WrongPeer | Unheard::Refused(_)) => {
            readmission.schedule.failed(riding.end(), now);
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
    let now = originate::clock();
    riding
        .still_holds(&worker.shared.trust.load(), now)
        .map_err(|failure| Unheard::Failed(failure.facts().reason))?;
    let (end, peer) = (secured.end(identity), secured.peer);
    readmission.schedule.agreed(is_under_another_root(identity, &peer), now);
    if end <= riding.end() && peer.anchor() == held.anchor() {
        return Err(Unheard::Unchanged);
    }
    riding.readmit(peer, end);
    Ok(())
}

//! May an older connection of the same workload go on? See [`crate::readmission`].

use std::rc::{Rc, Weak};
use std::time::Duration;

use postern_identity::VerifiedPeer;
use postern_identity::tls::NAME_BYTES;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::authenticate::Caller;
use crate::limits::{LONG_LIVED, READMIT_DEADLINE};
use crate::metrics::Direction;
use crate::outbound::originate;
use crate::readmission::{Answer, Name, Offer, Refusal};
use crate::stream::Transport;
use crate::supervise::Control;
use crate::worker::Worker;

#[cfg(test)]
mod tests;

/// Serves a connection of ALPN `postern/renew`: a name comes in, a byte goes out, and that is all.
pub(super) async fn serve(worker: &Worker, mut transport: Transport, caller: &Caller) {
    let Some(peer) = caller.peer() else { return };
    let asking = timeout(READMIT_DEADLINE, answer(worker, &mut transport, peer));
    let result = asking.await.unwrap_or(Err(Refusal::Busy));
    let reason = result.map_or_else(Refusal::reason, |()| READMITTED);
    worker.metrics.readmission(Direction::Inbound, reason);
    match result {
        Ok(()) => tracing::debug!(peer.id = %peer.id(), "connection readmitted"),
        // A theft that was tried.
        Err(Refusal::WrongPeer) => {
            tracing::warn!(peer.id = %peer.id(), reason, "connection not readmitted");
        }
        Err(_) => tracing::info!(peer.id = %peer.id(), reason, "connection not readmitted"),
    }
}

/// Beside the reasons of [`Refusal`].
pub(crate) const READMITTED: &str = "readmitted";

async fn answer(worker: &Worker, transport: &mut Transport, peer: &VerifiedPeer) -> Result<(), Refusal> {
    let mut name = Zeroizing::new([0; NAME_BYTES]);
    let result = match transport.read_exact(&mut *name).await {
        Ok(_) => ask(worker, Name::from_bytes(&name), peer.clone()).await,
        Err(_) => return Err(Refusal::Malformed),
    };
    // Whoever does not hear it asks again, or ends at its time.
    let _ = transport.write_all(&[Answer::to_byte(result)]).await;
    let _ = transport.shutdown().await;
    result
}

/// The worker that has the connection decides.
async fn ask(worker: &Worker, name: Name, peer: VerifiedPeer) -> Result<(), Refusal> {
    let offers = worker.shared.readmissions.find(&name).ok_or(Refusal::Unknown)?;
    let (answer, answered) = oneshot::channel();
    offers.try_send(Offer { peer, answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Refusal::Busy,
        mpsc::error::TrySendError::Closed(_) => Refusal::Unknown,
    })?;
    // Dropped unanswered, the connection has just ended.
    answered.await.unwrap_or(Err(Refusal::Unknown))
}

/// Answers what is asked of one connection, until that is gone.
pub(crate) async fn answer_for(worker: Rc<Worker>, connection: Weak<Control>, mut offered: mpsc::Receiver<Offer>) {
    // The other end is in the table as long as the connection is.
    while let Some(Offer { peer, answer }) = offered.recv().await {
        let Some(connection) = connection.upgrade() else { return };
        // Whoever asked may be gone.
        let _ = answer.send(decide(&worker, &connection, peer));
    }
}

/// Everything that was asked when it was admitted is asked again.
fn decide(worker: &Rc<Worker>, connection: &Control, peer: VerifiedPeer) -> Result<(), Refusal> {
    let now = originate::clock();
    let held = connection.peer().ok_or(Refusal::Unknown)?;
    if !held.is_same_as(&peer) {
        return Err(Refusal::WrongPeer);
    }
    let (trust, at) = (worker.shared.trust.load(), UnixTime::since_unix_epoch(now));
    // Whoever is cut off by the certificate that the connection was admitted on stays so, though nobody has looked yet.
    held.still_holds(&trust, at).map_err(|_| Refusal::Ending)?;
    let is_over = now >= Duration::from_secs(held.not_after().as_secs());
    if is_over || connection.is_lost() || worker.shared.not_cut_off().is_err() {
        return Err(Refusal::Ending);
    }
    // Under another root it may well be shorter, and last longer than the old root.
    if peer.not_after() < held.not_after() && peer.anchor() == held.anchor() {
        return Err(Refusal::Older);
    }
    // It was verified under the trust of a moment ago.
    peer.still_holds(&trust, at).map_err(|_| Refusal::NotBelieved)?;
    let (mut any, mut allowed) = (false, false);
    for exchange in connection.live() {
        // Without a permit it has not begun.
        let Some(permit) = exchange.permit().filter(|_| exchange.cut().is_none()) else {
            continue;
        };
        // What is short is over before it matters: it is decided on, and is no reason to go on.
        let is_long = exchange.age(Instant::now()) >= LONG_LIVED;
        any |= is_long;
        match permit.holds_anew(worker, &exchange) {
            Ok(()) => allowed |= is_long,
            Err(failure) => exchange.cut_short(failure),
        }
    }
    match (any, allowed) {
        (false, _) => Err(Refusal::Idle),
        (true, false) => Err(Refusal::Denied),
        (true, true) => {
            connection.readmit(peer);
            Ok(())
        }
    }
}

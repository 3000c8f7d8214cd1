//! The stream of bundles to control: the state now, then every change, for as long as control's SVID holds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use postern_api::ca::v1 as pb;
use postern_api::refusal::RefusalReason;
use postern_identity::VerifiedPeer;
use tokio::sync::watch;
use tonic::Status;

use crate::acknowledged::{Caller, Connected};
use crate::authority::Authority;
use crate::clock::until;
use crate::issuance::Ca;
use crate::quarantine::Held;
use crate::refusal::Refusal;

/// The peer's expiry is looked at again at least this often, should the wall clock be moved.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

struct Watcher {
    ca: Arc<Ca>,
    peer: VerifiedPeer,
    sequence: u64,
    changes: watch::Receiver<Arc<Authority>>,
    quarantine: watch::Receiver<Arc<Held>>,
    down: watch::Receiver<bool>,
    ended: bool,
    /// It is waited for by a root's replacement, for as long as it watches.
    _connected: Connected,
}

/// By what the reports of one control are known.
pub(super) fn control_of(peer: &VerifiedPeer) -> Caller {
    let name = peer
        .instance()
        .map_or_else(|| "control".to_owned(), ToString::to_string);
    let serial = peer.serial().to_vec();
    Caller { name, serial }
}

/// Each update carries all links from the caller's sequence on: after a rotation they are signed anew.
pub(super) fn stream(
    ca: Arc<Ca>,
    peer: VerifiedPeer,
    sequence: u64,
    down: watch::Receiver<bool>,
) -> impl Stream<Item = Result<pb::BundleUpdate, Status>> + Send {
    let mut changes = ca.watch();
    changes.mark_changed();
    let quarantine = ca.watch_quarantine();
    ca.metrics.watchers.inc();
    let connected = ca.acknowledged.connect(control_of(&peer));
    let watcher = Watcher {
        _connected: connected,
        ca,
        peer,
        sequence,
        changes,
        quarantine,
        down,
        ended: false,
    };
    futures_util::stream::unfold(watcher, |mut watcher| async move {
        if watcher.ended {
            return None;
        }
        let item = watcher.next().await;
        watcher.ended = item.is_err();
        Some((item.map_err(Status::from), watcher))
    })
}

impl Watcher {
    async fn next(&mut self) -> Result<pb::BundleUpdate, Refusal> {
        let going_down = || Refusal::new(RefusalReason::ShuttingDown, "the CA is going down");
        loop {
            let now = self.ca.now();
            if self.peer.still_holds(&self.ca.trust.load(), now).is_err() {
                let message = "the caller's certificate no longer holds; come back with a current one";
                return Err(Refusal::new(RefusalReason::CallerExpired, message));
            }
            // One second on: an SVID holds through its last second.
            let look_again = until(self.peer.not_after(), now)
                .saturating_add(Duration::from_secs(1))
                .min(LOOK_AGAIN);
            let changed = tokio::select! {
                biased;
                // All receivers remember what they have seen: a branch that is dropped loses nothing.
                gone = self.down.wait_for(|down| *down) => {
                    let _ = gone;
                    return Err(going_down());
                }
                changed = self.quarantine.changed() => changed,
                changed = self.changes.changed() => changed,
                () = tokio::time::sleep(look_again) => continue,
            };
            changed.map_err(|_| going_down())?;
            return Ok(self.update());
        }
    }
}

impl Watcher {
    /// All that is in force now.
    fn update(&mut self) -> pb::BundleUpdate {
        let authority = Arc::clone(&self.changes.borrow_and_update());
        let held = Arc::clone(&self.quarantine.borrow_and_update());
        pb::BundleUpdate {
            bundles: authority.links_after(self.sequence).iter().map(Into::into).collect(),
            issuer_epoch: authority.issuer_epoch(),
            quarantine: held.signed.as_ref().map(Into::into),
            quarantined: held.shown(),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.ca.metrics.watchers.dec();
    }
}

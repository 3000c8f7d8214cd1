//! The stream of bundles to control: the state now, then every change, for as long as control's SVID holds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use postern_api::ca::v1 as pb;
use postern_api::refusal::RefusalReason;
use postern_identity::VerifiedPeer;
use tokio::sync::watch;
use tonic::Status;

use crate::authority::Authority;
use crate::clock::until;
use crate::issuance::{Ca, links_from};
use crate::refusal::Refusal;

/// The peer's expiry is looked at again at least this often, should the wall clock be moved.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

struct Watcher {
    ca: Arc<Ca>,
    peer: VerifiedPeer,
    sequence: u64,
    changes: watch::Receiver<Arc<Authority>>,
    down: watch::Receiver<bool>,
    ended: bool,
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
    ca.metrics.watchers.inc();
    let watcher = Watcher {
        ca,
        peer,
        sequence,
        changes,
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
            tokio::select! {
                biased;
                // Both receivers remember what they have seen: a branch that is dropped loses nothing.
                gone = self.down.wait_for(|down| *down) => {
                    let _ = gone;
                    return Err(going_down());
                }
                changed = self.changes.changed() => {
                    changed.map_err(|_| going_down())?;
                    let authority = Arc::clone(&self.changes.borrow_and_update());
                    return Ok(pb::BundleUpdate {
                        bundles: links_from(&authority, self.sequence, now),
                        issuer_epoch: authority.issuer_epoch(),
                    });
                }
                () = tokio::time::sleep(look_again) => {}
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.ca.metrics.watchers.dec();
    }
}

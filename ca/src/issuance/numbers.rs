//! The numbers of bundles. Whoever holds one takes none with a lower number, so an older state that was put back must not count on from
//! where it was: what it publishes would be passed over until it had made as many bundles as were lost.
//!
//! A process cannot tell a state that it left from one that was put back. So a bundle from before it began is published anew, under the
//! time for a number, and so is one that takes the place of a newer one while it runs. One that was signed before and is shown again stays
//! what it is: old. A bundle without keys of JWT-SVIDs is published anew as well, with some. A clock that is set while the process runs
//! was wrong when it began: a machine that was put back boots with its old time. So the process counts as begun when that is noticed.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustls_pki_types::UnixTime;

use super::{Ca, Keeping, RotationError};
use crate::authority::Authority;
use crate::clock::later;
use crate::store::Store;

/// A clock that is further than this from where it would have run to was set.
const SET: Duration = Duration::from_secs(60);

/// A time of the clock, and when it was read.
pub(super) struct Since {
    time: UnixTime,
    read: Instant,
}

impl Since {
    pub(super) fn new(time: UnixTime) -> Self {
        let read = Instant::now();
        Self { time, read }
    }

    /// The same, or now if the clock was set in between, in either direction.
    fn seen_at(&mut self, now: UnixTime) -> UnixTime {
        let would_be = later(self.time, self.read.elapsed());
        if now.as_secs().abs_diff(would_be.as_secs()) > SET.as_secs() {
            *self = Self::new(now);
        }
        self.time
    }
}

impl Ca {
    /// The highest number that this process has held.
    pub(crate) fn highest_number(&self) -> u64 {
        self.highest_number.load(Ordering::Relaxed)
    }

    fn numbered_since(&self) -> UnixTime {
        let mut since = self.numbered_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.seen_at(self.now())
    }

    /// Is its bundle's number one that another may have had since, or is it without the keys of JWT-SVIDs?
    pub(crate) fn wants_another_bundle(&self, authority: &Authority) -> bool {
        let least = self.numbered_since().as_secs().max(self.highest_number());
        authority.bundle().sequence() < least || !authority.publishes_jwt_keys()
    }

    /// Publishes the bundle anew if that is due. A failure is logged, and what is due stays so.
    pub(crate) async fn keep_numbers_growing(self: &Arc<Self>) {
        let authority = self.authority();
        // One whose issuer is void signs nothing; the bundle of the next one is numbered by the clock.
        if !self.wants_another_bundle(&authority) || authority.ready(self.now()).is_err() {
            return;
        }
        match self.renumber().await {
            Ok(Some(next)) => tracing::info!(bundle = next.bundle().sequence(), "the bundle is published anew"),
            Ok(None) => {}
            Err(error) => tracing::warn!(
                reason = "bundle_number",
                "the bundle is not published anew; if the state was put back, proxies pass over the one that is there: {}",
                crate::error_chain(&error)
            ),
        }
    }

    /// `None`: another has seen to it.
    async fn renumber(self: &Arc<Self>) -> Result<Option<Arc<Authority>>, RotationError> {
        let one = self.rotating().await;
        let ca = Arc::clone(self);
        let work = match &self.keeping {
            Keeping::Directory(store) => {
                let store = Arc::clone(store);
                tokio::task::spawn_blocking(move || {
                    let _one = one;
                    ca.renumber_in(&store)
                })
            }
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(shared) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _one = one;
                    shared.renumber(&ca).await
                })
            }
        };
        work.await.unwrap_or(Err(RotationError::Cut))
    }

    /// Blocks; under `rotating`.
    fn renumber_in(&self, store: &Store) -> Result<Option<Arc<Authority>>, RotationError> {
        let current = self.authority();
        if !self.wants_another_bundle(&current) {
            return Ok(None);
        }
        let next = current.renumbered(self.highest_number(), self.now())?;
        self.commit(store, next).map(Some)
    }
}

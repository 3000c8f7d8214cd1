//! The quarantine that replicas share: written over what was read, and never turned back by a Secret that is older.

use std::sync::Arc;

use postern_api::ca_client::Backoff;
use tokio::time::sleep;

use super::{LONGEST_WAIT, RACES, Shared, rand_share};
use crate::issuance::{Ca, QuarantineChange, RotationError};
use crate::quarantine::{Change, Held};
use crate::store::Kind;
use crate::store::secret::{SecretError, Stored};

impl Shared {
    /// Before anybody is served. Waits for the API server as long as it takes.
    pub(crate) async fn load_quarantine(&self, ca: &Ca) -> Result<(), SecretError> {
        let mut backoff = Backoff::up_to(LONGEST_WAIT);
        loop {
            match self.store.read().await {
                Ok(stored) => return self.take_quarantine(ca, &stored).map(drop),
                Err(error) if error.is_outage() => {
                    tracing::warn!("the quarantine is not there yet: {}", crate::error_chain(&error));
                    sleep(backoff.after_failure(rand_share())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Under the CA's lock.
    pub(crate) async fn change_quarantine(
        &self,
        ca: &Ca,
        change: &Change,
    ) -> Result<(Arc<Held>, bool), QuarantineChange> {
        let failed = |error: RotationError| QuarantineChange::Store(error);
        for _ in 0..RACES {
            let stored = self.store.read().await.map_err(|error| failed(error.into()))?;
            self.take_quarantine(ca, &stored)
                .map_err(|error| failed(error.into()))?;
            // What this replica has and the Secret lacks is written with it.
            let Some(next) = ca.quarantine().changed(change, &ca.authority(), ca.now())? else {
                return Ok((ca.quarantine(), false));
            };
            match self.write_quarantine(stored, &next).await {
                Ok(()) => return Ok((ca.enforce(next), true)),
                Err(RotationError::Secret(SecretError::Conflict(_))) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(RotationError::Races))
    }

    /// What another replica wrote is in force from now on; if the Secret is older (one that was put back), what this replica
    /// has is written over it: the quarantine is lifted by an operator's word alone.
    pub(super) async fn follow_quarantine(&self, ca: &Ca, stored: Stored) -> Result<(), RotationError> {
        let found = self.take_quarantine(ca, &stored)?;
        let held = ca.quarantine();
        if found >= held.version {
            return Ok(());
        }
        tracing::warn!(
            reason = "quarantine",
            found,
            held = held.version,
            "Secret {} was put back to an older quarantine: the one in force is written again",
            self.store.place()
        );
        match self.write_quarantine(stored, &held).await {
            // Another replica saw it, too.
            Err(RotationError::Secret(SecretError::Conflict(_))) => Ok(()),
            done => done,
        }
    }

    /// The version in the Secret.
    fn take_quarantine(&self, ca: &Ca, stored: &Stored) -> Result<u64, SecretError> {
        let Some(read) = stored.quarantine(&ca.authority())? else {
            return Ok(0);
        };
        let version = read.version;
        if version > ca.quarantine().version {
            ca.enforce(read);
        }
        Ok(version)
    }

    async fn write_quarantine(&self, over: Stored, held: &Held) -> Result<(), RotationError> {
        let record = self.store.record(Kind::Quarantine, &held.record());
        let record = record.map_err(|_| RotationError::Cut)?;
        Ok(self.store.write(over, vec![record]).await?)
    }
}

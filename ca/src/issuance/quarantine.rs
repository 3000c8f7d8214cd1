//! The quarantine of a running CA: changed one at a time, on disk (or in the Secret) before anybody is told.

use std::net::IpAddr;
use std::sync::Arc;

use postern_api::refusal::RefusalReason;
use postern_identity::{Instance, SignedQuarantine, SpiffeId, Trust, quarantine};
use tokio::sync::watch;

use super::{Attesting, Ca, Keeping, RotationError};
use crate::authority::Authority;
use crate::quarantine::{Change, ChangeError, Held, Record};
use crate::refusal::Refusal;
use crate::store::{Kind, StoreError};

/// Why the quarantine is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuarantineChange {
    #[error(transparent)]
    Refused(#[from] ChangeError),
    #[error("the CA's state cannot be written")]
    Store(#[from] RotationError),
}

impl Ca {
    /// What is in force.
    pub(crate) fn quarantine(&self) -> Arc<Held> {
        Arc::clone(&self.quarantine.borrow())
    }
    /// To be told of every change.
    pub(crate) fn watch_quarantine(&self) -> watch::Receiver<Arc<Held>> {
        self.quarantine.subscribe()
    }

    /// Refuses whoever is cut off. The caller hears no reason.
    pub(super) fn not_quarantined(&self, id: &SpiffeId, instance: Option<&Instance>) -> Result<(), Refusal> {
        let trust = self.trust.load();
        // There is no certificate yet: one that is shown for a renewal is looked at by the verifier.
        trust
            .check_quarantine(id, instance, &[])
            .map_err(|error| Refusal::new(RefusalReason::Quarantined, error.to_string()))
    }

    /// Is this an operator's token? Only where pods are attested there is somebody to ask.
    pub(crate) async fn may_operate(&self, token: &str, caller: IpAddr) -> Result<(), Refusal> {
        let _admitted = self.admission.admit(caller).map_err(Refusal::from)?;
        match &self.attesting {
            #[cfg(feature = "kubernetes")]
            Attesting::Pods(by_pod) => by_pod.operator(token, self.now()).await,
            Attesting::Tokens { .. } => {
                let _ = token;
                let message = "this CA's operators use its admin socket; tokens are for a CA in a cluster";
                Err(Refusal::new(RefusalReason::CallerIdentity, message))
            }
        }
    }

    /// Before anybody is served: what was stored in the directory, if that is where the state is.
    pub(crate) fn load_own_quarantine(&self) -> Result<(), StoreError> {
        let store = match &self.keeping {
            Keeping::Directory(store) => store,
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(_) => return Ok(()),
        };
        let damaged = |why: String| store.damaged(Kind::Quarantine, why);
        if let Some(record) = store.read::<Record>(Kind::Quarantine)? {
            self.enforce(Held::load(record, &self.authority()).map_err(damaged)?);
        }
        Ok(())
    }

    /// Changes it. Once begun it is finished, even if the caller goes away. True: it was not so before.
    pub(crate) async fn change_quarantine(
        self: &Arc<Self>,
        change: Change,
    ) -> Result<(Arc<Held>, bool), QuarantineChange> {
        let one = self.rotating().await;
        let ca = Arc::clone(self);
        let work = tokio::spawn(async move {
            let _one = one;
            match &ca.keeping {
                Keeping::Directory(store) => {
                    let Some(next) = ca.quarantine().changed(&change, &ca.authority(), ca.now())? else {
                        return Ok((ca.quarantine(), false));
                    };
                    let (store, record) = (Arc::clone(store), next.record());
                    let written = tokio::task::spawn_blocking(move || store.write(Kind::Quarantine, &record)).await;
                    written
                        .unwrap_or_else(|_| Err(StoreError::Cut(Kind::Quarantine.file())))
                        .map_err(RotationError::from)?;
                    Ok((ca.enforce(next), true))
                }
                #[cfg(feature = "kubernetes")]
                Keeping::Secret(shared) => shared.change_quarantine(&ca, &change).await,
            }
        });
        let outcome = work.await.unwrap_or(Err(QuarantineChange::Store(RotationError::Cut)));
        if let Err(error) = &outcome {
            tracing::error!(
                reason = "quarantine",
                "the quarantine is as it was: {}",
                crate::error_chain(error)
            );
        }
        outcome
    }

    /// What control still holds, if we do not know it: this CA was put back from an older backup.
    pub(crate) async fn relearn_quarantine(self: &Arc<Self>, signed: &SignedQuarantine) {
        let authority = self.authority();
        let set = match quarantine::open(authority.bundle(), signed, self.now()) {
            Ok(set) if !self.quarantine().knows(set.version()) => set,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(
                    reason = "quarantine",
                    "what control holds does not hold: {}",
                    crate::error_chain(&error)
                );
                return;
            }
        };
        let (version, entries) = (set.version(), set.subjects().len());
        if let Ok((_, true)) = self.change_quarantine(Change::Relearn(set)).await {
            tracing::warn!(
                reason = "quarantine",
                version,
                entries,
                "this CA's quarantine was older than what it had signed: what control still held is in force again"
            );
        }
    }

    /// This is in force from now on; it is stored.
    pub(crate) fn enforce(&self, next: Held) -> Arc<Held> {
        let next = Arc::new(next);
        self.metrics.quarantined(next.entries.len());
        // Issuing first: who is told of it is not issued to any more.
        self.trust.store(Arc::new(trust_under(&self.authority(), &next)));
        self.quarantine.send_replace(Arc::clone(&next));
        next
    }

    /// Under another issuer the set is signed anew.
    pub(super) fn resign_quarantine(&self, authority: &Authority) {
        let held = Held::clone(&self.quarantine());
        match held.signed_by(authority) {
            Ok(signed) => drop(self.quarantine.send_replace(Arc::new(signed))),
            Err(error) => {
                tracing::error!(
                    reason = "quarantine",
                    "the quarantine is not signed anew: {}",
                    crate::error_chain(&error)
                );
            }
        }
    }
}

/// What the CA believes callers by.
pub(super) fn trust_under(authority: &Authority, held: &Held) -> Trust {
    let trust = authority.trust();
    trust.with_quarantine(&held.set()).unwrap_or(trust)
}

//! The root of a running CA: replaced stage by stage, each on disk (or in the Secret) before it counts.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;

use super::{Ca, Keeping, RotationError};
use crate::authority::{Authority, AuthorityError, AuthorityRecord, Root, RootPace, RootRecord, Rotation, Stage, Step};
use crate::clock::until;
use crate::pem;
use crate::store::{Kind, Store, StoreError};
use crate::tokens::hex;

/// After a stage that failed.
const RETRY: Duration = Duration::from_secs(10);
/// Stages of one look: prepared to activated, with room.
const STEPS: usize = 4;

/// What becomes of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RootChange {
    /// By the operator.
    Begin,
    /// By the operator, after a compromise.
    Taint,
    /// What is due.
    Next,
}

impl RootChange {
    /// The authority after it; `None`: nothing is due.
    pub(crate) fn made(
        self,
        ca: &Ca,
        current: &Authority,
        root: Option<&Root>,
        now: UnixTime,
    ) -> Result<Option<Authority>, RotationError> {
        let stage = current.root_stage().map(|(_, stage)| stage);
        match (self, stage) {
            (Self::Begin, None | Some(Stage::Retired)) => {
                // Whoever keeps it elsewhere wants no root to be made here.
                root.ok_or_else(|| ca.root_is_elsewhere())?;
                Ok(Some(current.rotating(Rotation::prepare(current, false, now)?)))
            }
            (Self::Begin, Some(stage)) => Err(RotationError::RootUnderWay(stage.as_str())),
            // A root of our own would be none of theirs who bring issuers, or have brought the one that waits.
            (Self::Taint, _) if root.is_none() && (ca.mounted.is_some() || current.brings_next_root(now)) => {
                let hurried = current.hurried(now).map(Some);
                hurried.ok_or_else(|| RotationError::NothingToHurry(ca.mounted_at()))
            }
            // Whatever is under way: whoever has the store has the root that was to follow as well, and the one that signs. Published
            // first: killed between that and its first signature, the CA would be a stranger to whoever has not heard.
            (Self::Taint, _) => {
                let prepared = current.rotating(Rotation::prepare(current, true, now)?);
                Ok(Some(prepared.publishing_next_root(now)?))
            }
            (Self::Next, _) => match ca.root_step(current, now) {
                Some(Step::Publish) => Ok(Some(current.publishing_next_root(now)?)),
                Some(Step::Activate) => Ok(Some(current.under_next_root(root, now)?)),
                Some(Step::Retire) => Ok(Some(current.without_old_root(now)?)),
                Some(Step::StoreRoot) => Ok(Some(current.clone())),
                Some(Step::Wait(_)) | None => Ok(None),
            },
        }
    }
}

impl Ca {
    /// What is due of the root.
    fn root_step(&self, authority: &Authority, now: UnixTime) -> Option<Step> {
        let rotation = authority.rotation()?;
        rotation.step(
            authority,
            &self.root_pace,
            self.began,
            |sequence| self.acknowledged_for(sequence),
            now,
        )
    }

    /// `None`: not all who are connected have this bundle; else for how long nobody has come or gone. One of several replicas hears
    /// only of those that are connected to it.
    fn acknowledged_for(&self, sequence: u64) -> Option<Duration> {
        match &self.keeping {
            Keeping::Directory(_) => self.acknowledged.reached(sequence),
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(_) => None,
        }
    }

    pub(crate) fn root_pace(&self) -> RootPace {
        self.root_pace
    }

    /// Why no issuer and no root is made here.
    pub(crate) fn root_is_elsewhere(&self) -> RotationError {
        match self.mounted {
            Some(_) => RotationError::Mounted(self.mounted_at()),
            None => RotationError::RootOffline(self.root_place()),
        }
    }

    fn mounted_at(&self) -> String {
        let dir = self
            .mounted
            .as_ref()
            .map(|mounted| mounted.dir.path().display().to_string());
        dir.unwrap_or_default()
    }

    pub(crate) fn root_place(&self) -> String {
        match &self.keeping {
            Keeping::Directory(store) => store.path(Kind::Root).display().to_string(),
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(shared) => format!("Secret {}", shared.store.place()),
        }
    }

    /// When the next stage begins at the latest.
    pub(crate) fn root_next(&self, authority: &Authority) -> Option<UnixTime> {
        let now = self.now();
        self.root_step(authority, now).map(|step| match step {
            Step::Wait(until) => until,
            Step::Publish | Step::Activate | Step::StoreRoot | Step::Retire => now,
        })
    }

    /// Does what is due of the root; how long until there may be more.
    pub(crate) async fn advance_root(self: &Arc<Self>) -> Option<Duration> {
        for _ in 0..STEPS {
            let (authority, now) = (self.authority(), self.now());
            match self.root_step(&authority, now)? {
                Step::Wait(then) => {
                    let settling = self.root_pace.settle.saturating_sub(self.acknowledged.quiet());
                    let then = until(then, now);
                    return Some(if settling.is_zero() { then } else { then.min(settling) });
                }
                Step::Publish | Step::Activate | Step::StoreRoot | Step::Retire => {}
            }
            if self.change_root(RootChange::Next).await.is_err() {
                return Some(RETRY);
            }
        }
        Some(RETRY)
    }

    /// Once begun it is finished, even if the caller goes away.
    pub(crate) async fn change_root(self: &Arc<Self>, change: RootChange) -> Result<Arc<Authority>, RotationError> {
        let one = self.rotating().await;
        let ca = Arc::clone(self);
        let stage_of = |authority: &Authority| {
            let (rotation, stage) = authority.root_stage()?;
            Some((rotation.new_root(), stage))
        };
        let before = stage_of(&self.authority());
        let work = match &self.keeping {
            Keeping::Directory(store) => {
                let store = Arc::clone(store);
                // As for a new issuer.
                let learned = store.learn().await;
                tokio::task::spawn_blocking(move || {
                    let _one = one;
                    learned?;
                    ca.change_root_in(&store, change)
                })
            }
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(shared) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _one = one;
                    shared.change_root(&ca, change).await
                })
            }
        };
        let made = work.await.unwrap_or(Err(RotationError::Cut));
        match &made {
            Ok(next) => {
                if let Some((rotation, stage)) = next.root_stage().filter(|_| stage_of(next) != before) {
                    tracing::info!(
                        stage = stage.as_str(),
                        tainted = rotation.is_tainted(),
                        root_sha256 = hex(&crate::authority::sha256(&rotation.new_root())),
                        bundle = next.bundle().sequence(),
                        "the root is being replaced"
                    );
                }
            }
            Err(error) => {
                tracing::error!(reason = "root_rotation", error = %crate::error_chain(error), "the root stays as it was");
            }
        }
        made
    }

    /// Blocks; under `rotating`.
    fn change_root_in(&self, store: &Store, change: RootChange) -> Result<Arc<Authority>, RotationError> {
        let mut current = self.authority();
        // Before another record takes the place of the one that it is in.
        if current.has_something_to_store() {
            current = self.adopt(finished(store, Authority::clone(&current))?);
        }
        let root = root_of(store, &current)?;
        let Some(next) = change.made(self, &current, root.as_ref(), self.now())? else {
            return Ok(current);
        };
        self.commit(store, next)
    }

    /// Writes in the order in which a kill does no harm, and signs with it.
    pub(super) fn commit(&self, store: &Store, next: Authority) -> Result<Arc<Authority>, RotationError> {
        // It announces what follows.
        if let Some(rotation) = next.rotation() {
            store.write(Kind::Rotation, rotation)?;
        }
        // Without the authority's record nobody takes them for its keys.
        if let Some(keys) = next.jwt_keys_record() {
            store.write(Kind::JwtKeys, &keys)?;
        }
        store.write(Kind::Authority, &AuthorityRecord::of(&next))?;
        // Now: what is stored is what signs, whatever becomes of the rest.
        let next = self.adopt(next);
        show_roots(store, &next);
        if next.has_something_to_store() {
            return Ok(self.adopt(finished(store, Authority::clone(&next))?));
        }
        Ok(next)
    }
}

/// For programs that trust by a file; ours do not read it. Put right at the next start, too.
pub(super) fn show_roots(store: &Store, authority: &Authority) {
    // The file of an earlier version has the one root that there ever was.
    if authority.rotation().is_none() {
        return;
    }
    let roots = authority.bundle().roots().iter();
    let pem: String = roots.map(|root| pem::encode("CERTIFICATE", root).to_string()).collect();
    if store.root_pem().is_some_and(|shown| shown == pem) {
        return;
    }
    if let Err(error) = store.write_root_pem(&pem) {
        tracing::warn!(
            reason = "root_pem",
            "root.pem does not have the roots of now: {}",
            crate::error_chain(&error)
        );
    }
}

/// The next root's key in the place of the old one's, which is gone for good. (Of a brought issuer the key is in the authority.)
fn root_stored(store: &Store, authority: &Authority, root: Option<&Root>) -> Result<Authority, StoreError> {
    if let Some(root) = root {
        store.write(Kind::Root, &RootRecord::of(root))?;
    }
    let done = authority.with_root_stored();
    if let Some(rotation) = done.rotation() {
        store.write(Kind::Rotation, rotation)?;
    }
    Ok(done)
}

/// The root that signs, with its key; `None`: that is kept elsewhere.
pub(crate) fn root_of(store: &Store, authority: &Authority) -> Result<Option<Root>, StoreError> {
    let damaged = |kind, error: AuthorityError| store.damaged(kind, error.to_string());
    let pending = authority
        .pending_root_of_own()
        .map_err(|error| damaged(Kind::Rotation, error))?;
    if pending.is_some() {
        return Ok(pending);
    }
    let Some(record) = store.read::<RootRecord>(Kind::Root)? else {
        return Ok(None);
    };
    let root = record.load().map_err(|error| damaged(Kind::Root, error))?;
    if root.cert() != authority.root() {
        return Err(store.damaged(Kind::Root, "it is the root of another store"));
    }
    Ok(Some(root))
}

/// What a kill left undone when the next root had begun to sign.
pub(super) fn finished(store: &Store, authority: Authority) -> Result<Authority, StoreError> {
    let pending = authority
        .pending_root_of_own()
        .map_err(|error| store.damaged(Kind::Rotation, error.to_string()))?;
    if authority.has_something_to_store() {
        root_stored(store, &authority, pending.as_ref())
    } else {
        Ok(authority)
    }
}

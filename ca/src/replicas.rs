//! Replicas that share one Secret: found the CA once, take over what another replica wrote, and, as the leader, rotate the
//! issuer and publish the roots.
//!
//! ```text
//! found_or_load: no roots published, Secret --empty--> a new CA, written if still empty --lost the race--> read again
//! follow:        every 5 s: Secret --changed, checked--> the authority that signs (a damaged one changes nothing)
//! lead:          issuer due -> rotate (written only over what was read); roots -> ConfigMap
//! ```
//!
//! Issuing needs none of this: serial numbers are random, and every issuer that ever signs is under the published root.

use std::sync::Arc;
use std::time::Duration;

use postern_api::ca_client::Backoff;
use postern_identity::TrustDomain;
use rustls_pki_types::UnixTime;
use tokio::time::sleep;

use crate::authority::{Authority, AuthorityError, AuthorityRecord, Brought, BroughtError, Root, RootRecord, Rotation};
use crate::brought_files::IssuerDir;
use crate::clock::Clock;
use crate::issuance::{Ca, RootChange, RotationError, Why};
use crate::ledger::chain::KeyRecord;
use crate::store::Kind;
use crate::store::secret::{SealError, SecretError, SecretStore, Stored};
use crate::tokens::hex;

mod lead;
mod quarantine;
#[cfg(test)]
mod tests;

pub(crate) use lead::{RootsMap, lead};

/// How soon a replica signs with an issuer that another one made.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// While the API server does not answer at the start.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Lost races in a row; each means that another replica succeeded.
const RACES: usize = 8;

/// What a CA is founded with.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Such as `cluster.local`; kept for ever.
    pub trust_domain: TrustDomain,
    /// The root's life.
    pub root_life: Duration,
    /// The life of each issuer made from now on.
    pub issuer_life: Duration,
}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoundingError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Brought(#[from] BroughtError),
    #[error(
        "Secret {0} has the root's key, so its CA makes its issuing certificates itself; take key root.json out of it, to a safe \
         place, for those of --issuer-dir to follow its own"
    )]
    OwnRoot(String),
    #[error("the new CA cannot be written down")]
    Encoding(#[from] SealError),
    #[error("the published roots are not there yet: {0}")]
    Roots(String),
    /// A CA was here, whose keys are gone: another one would be a stranger to every pod.
    #[error(
        "Secret {secret} is empty, but ConfigMap {roots} publishes the root {root_sha256} of a CA that was founded here; put \
         the Secret back from a backup; without one, scale the CA to 0, so that nobody publishes the old root again, empty the \
         ConfigMap as well (kubectl patch configmap, data: null), scale it up, which founds a new CA, and re-create every \
         pod of the mesh"
    )]
    Emptied {
        secret: String,
        roots: String,
        root_sha256: String,
    },
}

impl FoundingError {
    fn is_outage(&self) -> bool {
        match self {
            Self::Secret(error) => error.is_outage(),
            Self::Roots(_) => true,
            Self::Authority(_) | Self::Brought(_) | Self::OwnRoot(_) | Self::Encoding(_) | Self::Emptied { .. } => {
                false
            }
        }
    }
}

/// The CA in the Secret, founded if there is none and never was. Waits for the API server as long as it takes.
pub(crate) async fn found_or_load(
    store: &SecretStore,
    roots: Option<&RootsMap>,
    (founding, mounted): (&Founding, Option<&IssuerDir>),
    clock: &Clock,
) -> Result<Authority, FoundingError> {
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    loop {
        match attempt(store, roots, (founding, mounted), clock()).await {
            Err(error) if error.is_outage() => {
                tracing::warn!("the CA's state is not there yet: {}", crate::error_chain(&error));
                sleep(backoff.after_failure(rand_share())).await;
            }
            done => return done,
        }
    }
}

/// What a Secret holds of an authority; written together, or not at all.
fn records_of(store: &SecretStore, authority: &Authority) -> Result<Vec<(Kind, Vec<u8>)>, SealError> {
    let mut records = vec![store.record(Kind::Authority, &AuthorityRecord::of(authority))?];
    if let Some(keys) = authority.jwt_keys_record() {
        records.push(store.record(Kind::JwtKeys, &keys)?);
    }
    if let Some(rotation) = authority.rotation() {
        records.push(store.record(Kind::Rotation, rotation)?);
    }
    Ok(records)
}

async fn attempt(
    store: &SecretStore,
    roots: Option<&RootsMap>,
    (founding, mounted): (&Founding, Option<&IssuerDir>),
    now: UnixTime,
) -> Result<Authority, FoundingError> {
    // Before the Secret, which is written first: what is published now is the root of a Secret that was filled before now.
    let published = match roots {
        Some(roots) => roots.published().await,
        None => Ok(None),
    };
    let stored = store.read().await?;
    if let Some(authority) = stored.authority(now)? {
        if mounted.is_some() && stored.root_of(&authority)?.is_some() {
            return Err(FoundingError::OwnRoot(store.place()));
        }
        return Ok(suits(store, founding, authority)?);
    }
    // Only now: a CA that is there needs no word of what is published.
    if let (Some(root_sha256), Some(roots)) = (published.map_err(FoundingError::Roots)?, roots) {
        return Err(FoundingError::Emptied {
            secret: store.place(),
            roots: roots.place().to_owned(),
            root_sha256,
        });
    }
    let (authority, root) = match mounted {
        Some(dir) => {
            let brought = dir.look(&founding.trust_domain, None, now)?;
            let life = founding.issuer_life;
            (Authority::found_by(&founding.trust_domain, &brought, life, now)?, None)
        }
        None => {
            let root = Root::create(&founding.trust_domain, founding.root_life, now)?;
            let authority = Authority::found(&founding.trust_domain, &root, founding.issuer_life, now)?;
            (authority, Some(root))
        }
    };
    let mut records = records_of(store, &authority)?;
    if let Some(root) = &root {
        records.push(store.record(Kind::Root, &RootRecord::of(root))?);
    }
    store.write(stored, records).await?;
    tracing::info!(
        secret = store.place(),
        trust_domain = %founding.trust_domain,
        root_sha256 = hex(&authority.root_sha256()),
        "a new CA is founded"
    );
    Ok(authority)
}

/// The key of the ledger that replicas share; made by the first that looks. Waits for the API server as long as it takes.
pub(crate) async fn ledger_key(store: &SecretStore) -> Result<KeyRecord, FoundingError> {
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    loop {
        match ledger_key_once(store).await {
            Err(error) if error.is_outage() => {
                tracing::warn!("the ledger's key is not there yet: {}", crate::error_chain(&error));
                sleep(backoff.after_failure(rand_share())).await;
            }
            done => return done,
        }
    }
}

async fn ledger_key_once(store: &SecretStore) -> Result<KeyRecord, FoundingError> {
    let stored = store.read().await?;
    if let Some(key) = stored.ledger_key()? {
        return Ok(key);
    }
    let key = KeyRecord::create().map_err(SealError::from)?;
    let record = store.record(Kind::Ledger, &key)?;
    // If another replica was quicker, that is a conflict, and its key is read.
    store.write(stored, vec![record]).await?;
    Ok(key)
}

/// One that was read is ours to sign with.
fn suits(store: &SecretStore, founding: &Founding, authority: Authority) -> Result<Authority, SecretError> {
    if *authority.trust_domain() != founding.trust_domain {
        return Err(SecretError::TrustDomain {
            place: store.place(),
            found: authority.trust_domain().to_string(),
            wanted: founding.trust_domain.to_string(),
        });
    }
    Ok(authority.with_issuer_life(founding.issuer_life))
}

/// A store that this CA shares with its replicas.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: SecretStore,
    pub(crate) founding: Founding,
}

impl Shared {
    /// A new issuer, unless another replica has just made one; under the CA's lock.
    pub(crate) async fn rotate(&self, ca: &Ca, why: Why) -> Result<Arc<Authority>, RotationError> {
        for _ in 0..RACES {
            let now = ca.now();
            let (stored, current) = self.current(ca, now).await?;
            if why == Why::Due && now < current.rotation_due(ca.svid_life) {
                return Ok(current);
            }
            let root = stored.root_of(&current)?.ok_or_else(|| ca.root_is_elsewhere())?;
            let next = current.with_new_issuer(&root, now)?;
            let records = records_of(&self.store, &next).map_err(|_| RotationError::Cut)?;
            match self.store.write(stored, records).await {
                Ok(()) => {
                    let made = Ok(ca.adopt(next));
                    ca.rotated(&made);
                    return made;
                }
                Err(SecretError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RotationError::Races)
    }

    /// The same for the root: all records in one writing.
    pub(crate) async fn change_root(&self, ca: &Ca, change: RootChange) -> Result<Arc<Authority>, RotationError> {
        for _ in 0..RACES {
            let now = ca.now();
            let (stored, current) = self.current(ca, now).await?;
            let root = stored.root_of(&current)?;
            let Some(next) = change.made(ca, &current, root.as_ref(), now)? else {
                return Ok(current);
            };
            let pending = next.pending_root_of_own()?;
            let next = if next.has_something_to_store() {
                next.with_root_stored()
            } else {
                next
            };
            let mut records = records_of(&self.store, &next).map_err(|_| RotationError::Cut)?;
            if let Some(root) = pending {
                let record = self.store.record(Kind::Root, &RootRecord::of(&root));
                records.push(record.map_err(|_| RotationError::Cut)?);
            }
            match self.store.write(stored, records).await {
                Ok(()) => return Ok(ca.adopt(next)),
                Err(SecretError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RotationError::Races)
    }

    /// The bundle anew; `None`: another replica has seen to it.
    pub(crate) async fn renumber(&self, ca: &Ca) -> Result<Option<Arc<Authority>>, RotationError> {
        for _ in 0..RACES {
            let now = ca.now();
            let (stored, current) = self.current(ca, now).await?;
            if !ca.wants_another_bundle(&current) {
                return Ok(None);
            }
            let next = current.renumbered(ca.highest_number(), now)?;
            let records = records_of(&self.store, &next).map_err(|_| RotationError::Cut)?;
            match self.store.write(stored, records).await {
                Ok(()) => return Ok(Some(ca.adopt(next))),
                Err(SecretError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RotationError::Races)
    }

    /// An issuer that was brought follows the one that signs.
    pub(crate) async fn bring(&self, ca: &Ca, brought: &Brought, place: &str) -> Result<Arc<Authority>, RotationError> {
        for _ in 0..RACES {
            let now = ca.now();
            let (stored, current) = self.current(ca, now).await?;
            if stored.root_of(&current)?.is_some() {
                return Err(RotationError::OwnRoot(ca.root_place()));
            }
            let Some(next) = ca.brought(&current, brought, place, now)? else {
                return Ok(current);
            };
            let signs = next.issuer_epoch() > current.issuer_epoch();
            let records = records_of(&self.store, &next).map_err(|_| RotationError::Cut)?;
            match self.store.write(stored, records).await {
                Ok(()) => {
                    let made = Ok(ca.adopt(next));
                    if signs {
                        ca.rotated(&made);
                    }
                    return made;
                }
                Err(SecretError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RotationError::Races)
    }

    /// What the Secret holds now, which signs from now on.
    async fn current(&self, ca: &Ca, now: UnixTime) -> Result<(Stored, Arc<Authority>), RotationError> {
        let stored = self.store.read().await?;
        let read = stored
            .authority(now)?
            .ok_or_else(|| RotationError::Gone(self.store.place()))?;
        self.take(ca, suits(&self.store, &self.founding, read)?)?;
        Ok((stored, ca.authority()))
    }

    /// What another replica wrote is what signs from now on; but nothing brings a root back that is in wrong hands.
    fn take(&self, ca: &Ca, read: Authority) -> Result<(), SecretError> {
        let held = ca.authority();
        if read.is(&held) {
            return Ok(());
        }
        let replaced = |to: &&Rotation| to.is_tainted() && to.new_root() == *held.root();
        if held
            .rotation()
            .filter(replaced)
            .is_some_and(|to| to.old_root() == *read.root())
        {
            return Err(SecretError::Damaged {
                place: self.store.place(),
                key: Kind::Authority.file(),
                why: "it was put back to the root that was replaced because it is in wrong hands; put back a backup that is newer"
                    .to_owned(),
            });
        }
        let epoch = read.issuer_epoch();
        if read.root() != held.root() && read.rotation().is_some_and(|to| to.old_root() == *held.root()) {
            tracing::info!(
                issuer_epoch = epoch,
                "the next root's issuer signs from now on: another replica has seen to it"
            );
        } else if read.root() != held.root() {
            tracing::error!(
                root_sha256 = hex(&read.root_sha256()),
                "Secret {} holds a CA with another root, which signs from now on: every pod of the mesh must be re-created",
                self.store.place()
            );
        } else if epoch < held.issuer_epoch() {
            tracing::warn!(
                epoch,
                "Secret {} was put back to an older issuer, which signs from now on",
                self.store.place()
            );
        } else if epoch > held.issuer_epoch() {
            tracing::info!(issuer_epoch = epoch, "another replica's new issuer signs from now on");
        } else if read.rotation() != held.rotation() {
            tracing::info!(
                bundle = read.bundle().sequence(),
                "another replica has gone on with the replacement of the root"
            );
        } else {
            tracing::info!(bundle = read.bundle().sequence(), "the bundle has another number");
        }
        ca.adopt(read);
        Ok(())
    }

    /// Looks for what other replicas wrote, for ever.
    pub(crate) async fn follow(self, ca: Arc<Ca>, poll: Duration) {
        let mut seen: Option<String> = None;
        let mut told: Option<String> = None;
        loop {
            sleep(poll).await;
            // Not while this process writes: an older reading must not follow a newer writing.
            let _one = ca.rotating().await;
            let trouble = self.look(&ca, &mut seen).await.err();
            let outcome = trouble.as_ref().map_or("done", RotationError::outcome);
            ca.metrics.state_read(outcome);
            let text = trouble.map(|error| crate::error_chain(&error));
            if told != text {
                const KEPT: &str = "this replica goes on with the issuer that it has";
                match (&text, outcome) {
                    // An API server comes back by itself; a Secret does not mend itself.
                    (Some(text), "failed") => tracing::warn!(reason = "state", "{KEPT}: {text}"),
                    (Some(text), _) => tracing::error!(reason = "state", "{KEPT}: {text}"),
                    (None, _) => tracing::info!("the CA's state can be read again"),
                }
                told = text;
            }
        }
    }

    async fn look(&self, ca: &Ca, seen: &mut Option<String>) -> Result<(), RotationError> {
        let stored = self.store.read().await?;
        if seen.is_some() && seen.as_deref() == stored.version() {
            return Ok(());
        }
        let read = stored
            .authority(ca.now())?
            .ok_or_else(|| RotationError::Gone(self.store.place()))?;
        self.take(ca, suits(&self.store, &self.founding, read)?)?;
        let version = stored.version().map(str::to_owned);
        self.follow_quarantine(ca, stored).await?;
        // Only what was taken need not be read again: trouble is told for as long as it lasts.
        *seen = version;
        Ok(())
    }
}

/// For spreading waits; nothing secret hangs on it.
fn rand_share() -> f64 {
    let mut byte = [0_u8; 1];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

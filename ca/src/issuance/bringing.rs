//! Issuers that were made elsewhere: asked for and handed in, or mounted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use super::root::root_of;
use super::{Ca, Keeping, RotationError};
use crate::authority::{Authority, AuthorityError, Brought, BroughtError, Fault, Stage, Taken};
use crate::base64_bytes::Base64;
use crate::brought_files::{IssuerDir, handed_in};
use crate::clock::{later, shown};
use crate::pem;
use crate::profile;
use crate::store::{Kind, Store, StoreError};

/// Between two looks at a mounted issuer. The kubelet takes a minute to bring a Secret.
pub(crate) const LOOK: Duration = Duration::from_secs(5);

/// `request.json`: a key whose certificate is being waited for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    private_key: Base64,
    /// Until there is an authority.
    pub(crate) founding: Option<Founding>,
}

/// A CA that has a root and no issuer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Founding {
    pub(crate) trust_domain: String,
    pub(crate) root_certificate: Base64,
    pub(crate) issuer_life_seconds: u64,
}

impl Request {
    pub(crate) fn create(founding: Option<Founding>) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(profile::ProfileError::from)?;
        Ok(Self {
            private_key: Base64::of(key.serialized_der()),
            founding,
        })
    }

    pub(crate) fn key(&self) -> Result<KeyPair, AuthorityError> {
        KeyPair::try_from(self.private_key.bytes())
            .map_err(|error| AuthorityError::Unusable(format!("the requested issuer's key cannot be read: {error}")))
    }
}

/// PEM.
pub(crate) fn csr(
    trust_domain: &postern_identity::TrustDomain,
    epoch: u64,
    key: &KeyPair,
) -> Result<String, AuthorityError> {
    let der = profile::issuer_request(trust_domain, epoch, key)?;
    Ok(pem::encode("CERTIFICATE REQUEST", &der).to_string())
}

/// A mounted issuer, and what was last made of it.
pub(crate) struct Mounted {
    pub(crate) dir: IssuerDir,
    told: Mutex<Option<Told>>,
}

/// What is said of a mounted issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    InForce,
    Waiting(Stage),
    /// And what of it stays the same as long as the files do.
    Refused(String, String),
}

impl Told {
    fn refused(error: &BroughtError) -> Self {
        Self::Refused(error.to_string(), error.lasting().to_string())
    }

    fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refused(_, lasting), Self::Refused(_, other)) => lasting == other,
            _ => self == other,
        }
    }
}

impl Mounted {
    pub(crate) fn at(dir: IssuerDir) -> Self {
        Self {
            dir,
            told: Mutex::default(),
        }
    }
    /// `None`: this replica has not looked.
    pub(crate) fn told(&self) -> Option<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    #[cfg(feature = "kubernetes")]
    fn forget(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
    fn tell(&self, now: Told) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = !told.as_ref().is_some_and(|told| told.says_the_same(&now));
        *told = Some(now);
        changed
    }
}

impl Ca {
    /// Looks at the mounted issuer, if there is one, and takes what is new. What it cannot take changes nothing.
    pub(crate) async fn look_at_mounted(self: &Arc<Self>) {
        let Some(mounted) = &self.mounted else { return };
        let seen = self.take_mounted(mounted).await;
        let refused = matches!(seen, Told::Refused(..));
        self.metrics.brought_refused(refused);
        if !mounted.tell(seen.clone()) {
            return;
        }
        let dir = mounted.dir.path().display();
        match seen {
            Told::InForce => tracing::info!(%dir, "the mounted issuer is taken"),
            Told::Waiting(stage) => {
                tracing::info!(%dir, stage = stage.as_str(), "the mounted issuer waits: the root is being replaced");
            }
            Told::Refused(why, _) => {
                tracing::error!(
                    reason = "brought_issuer",
                    "the mounted issuer is refused, and the one before goes on: {why}"
                );
            }
        }
    }

    /// Another replica looks from now on.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn leave_mounted(&self) {
        if let Some(mounted) = &self.mounted {
            mounted.forget();
            self.metrics.brought_refused(false);
        }
    }

    async fn take_mounted(self: &Arc<Self>, mounted: &Mounted) -> Told {
        let (authority, now, dir) = (self.authority(), self.now(), mounted.dir.clone());
        let looked = tokio::task::spawn_blocking(move || {
            dir.look(authority.trust_domain(), Some(authority.root()), now)
                .map(Arc::new)
        });
        let brought = match looked.await {
            Ok(Ok(brought)) => brought,
            Ok(Err(error)) => return Told::refused(&error),
            Err(_) => {
                let why = "it could not be looked at".to_owned();
                return Told::Refused(why.clone(), why);
            }
        };
        let place = mounted.dir.path().display().to_string();
        match self.bring(Arc::clone(&brought), &place).await {
            Ok(next) => next.holds_back(&brought).map_or(Told::InForce, Told::Waiting),
            Err(RotationError::Waits(stage)) => Told::Waiting(stage),
            Err(RotationError::Brought(error)) => Told::refused(&error),
            Err(error) => {
                let why = crate::error_chain(&error);
                Told::Refused(why.clone(), why)
            }
        }
    }

    /// An issuer follows the one that signs. Once begun it is finished, even if the caller goes away.
    async fn bring(self: &Arc<Self>, brought: Arc<Brought>, place: &str) -> Result<Arc<Authority>, RotationError> {
        let one = self.rotating().await;
        let (ca, place) = (Arc::clone(self), place.to_owned());
        let work = match &self.keeping {
            Keeping::Directory(store) => {
                let store = Arc::clone(store);
                tokio::task::spawn_blocking(move || {
                    let _one = one;
                    ca.bring_into(&store, &brought, &place)
                })
            }
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(shared) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _one = one;
                    shared.bring(&ca, &brought, &place).await
                })
            }
        };
        work.await.unwrap_or(Err(RotationError::Cut))
    }

    /// Blocks; under `rotating`.
    fn bring_into(&self, store: &Store, brought: &Brought, place: &str) -> Result<Arc<Authority>, RotationError> {
        let current = self.authority();
        if root_of(store, &current)?.is_some() {
            return Err(RotationError::OwnRoot(self.root_place()));
        }
        match self.brought(&current, brought, place, self.now())? {
            Some(next) => {
                let signs = next.issuer_epoch() > current.issuer_epoch();
                let made = self.commit(store, next);
                if signs {
                    self.rotated(&made);
                }
                made
            }
            None => Ok(current),
        }
    }

    /// The authority after it; `None`: nothing is to be done.
    pub(crate) fn brought(
        &self,
        current: &Authority,
        brought: &Brought,
        place: &str,
        now: UnixTime,
    ) -> Result<Option<Authority>, RotationError> {
        match current.bringing(brought, now)? {
            Taken::Already => Ok(None),
            Taken::Next(next) => {
                let ends = brought.ends();
                // Leaves of the one before are believed as long as those of this one. Under another root they have both roots' time.
                let signs = next.issuer_epoch() > current.issuer_epoch();
                if signs && ends < later(now, self.svid_life) && ends < current.issuer_not_after() {
                    return Err(Fault::EndsSoon { until: shown(ends) }.at(place).into());
                }
                Ok(Some(*next))
            }
            Taken::Later(stage) => Err(RotationError::Waits(stage)),
            Taken::Replaced => Err(Fault::Replaced.at(place).into()),
            Taken::Older => Err(RotationError::Older(place.to_owned())),
        }
    }

    /// A request for the next issuer, PEM: the same until its certificate is there.
    pub(crate) async fn request_issuer(self: &Arc<Self>) -> Result<String, RotationError> {
        let store = self.takes_by_hand()?;
        let one = self.rotating().await;
        let ca = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            let _one = one;
            let current = ca.authority();
            if root_of(&store, &current)?.is_some() {
                return Err(RotationError::OwnRoot(ca.root_place()));
            }
            let (request, key) = match waiting(&store, &current)? {
                Some(waiting) => waiting,
                None => {
                    let request = Request::create(None)?;
                    let key = request.key()?;
                    store.write(Kind::Request, &request)?;
                    (request, key)
                }
            };
            drop(request);
            Ok(csr(current.trust_domain(), current.issuer_epoch() + 1, &key)?)
        });
        work.await.unwrap_or(Err(RotationError::Cut))
    }

    /// Takes the certificate that was asked for, PEM.
    pub(crate) async fn import_issuer(
        self: &Arc<Self>,
        pem: String,
        place: String,
    ) -> Result<Arc<Authority>, RotationError> {
        let store = self.takes_by_hand()?;
        let one = self.rotating().await;
        let ca = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            let _one = one;
            let (current, now) = (ca.authority(), ca.now());
            let Some((_, key)) = waiting(&store, &current)? else {
                return Err(RotationError::NothingRequested);
            };
            let known: &CertificateDer<'static> = current.root();
            let parts = handed_in(&pem, &place, key, known)?;
            let brought = Brought::check(current.trust_domain(), &parts, Some(known), now)?;
            let next = ca.bring_into(&store, &brought, &place)?;
            // From here on the key is where an issuer's key is; what a kill leaves is known for what it is.
            store.remove(Kind::Request)?;
            Ok(next)
        });
        work.await.unwrap_or(Err(RotationError::Cut))
    }

    fn takes_by_hand(&self) -> Result<Arc<Store>, RotationError> {
        if let Some(mounted) = &self.mounted {
            return Err(RotationError::Mounted(mounted.dir.path().display().to_string()));
        }
        match &self.keeping {
            Keeping::Directory(store) => Ok(Arc::clone(store)),
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(_) => Err(RotationError::Shared),
        }
    }
}

/// The request that is waited for; one whose certificate signs, or is to sign, was answered.
fn waiting(store: &Store, current: &Authority) -> Result<Option<(Request, KeyPair)>, StoreError> {
    let Some(request) = store.read::<Request>(Kind::Request)? else {
        return Ok(None);
    };
    let key = request
        .key()
        .map_err(|error| store.damaged(Kind::Request, error.to_string()))?;
    let answered = current.has_key(&key.subject_public_key_info());
    Ok((!answered).then_some((request, key)))
}

impl Ca {
    /// Two would make issuers: not with the root's key here and a directory of issuers.
    pub(crate) fn makes_or_mounts(&self) -> Result<(), StoreError> {
        match (&self.keeping, &self.mounted) {
            (Keeping::Directory(store), Some(_)) if root_of(store, &self.authority())?.is_some() => {
                Err(StoreError::OwnRoot(store.path(Kind::Root)))
            }
            // Of a Secret it was seen when it was read.
            _ => Ok(()),
        }
    }
}

//! The CA itself: from a request to a certificate, in one place and in order.
//!
//! ```text
//! admit -> CSR (key proven) -> clock -> attest (identity) -> not cut off -> admit (identity) -> key fresh -> sign
//!       -> record (in the ledger, on disk) -> settle (token used up, on disk) -> still not cut off -> answer
//! ```

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::issue_request::Attestation;
use postern_api::ca_client::JoinToken;
use postern_api::refusal::RefusalReason;
use postern_identity::SharedTrust;
use postern_identity::bundle::SignedBundle;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::acknowledged::Acknowledgements;
use crate::admission::{Admission, Identities, REQUESTS};
use crate::attest::Attestor;
use crate::attest::join::ByJoinToken;
#[cfg(feature = "kubernetes")]
use crate::attest::pod::ByPod;
use crate::attest::renewal::ByOwnSvid;
use crate::authority::{Authority, AuthorityError, AuthorityRecord, BroughtError, RootPace, Stage};
use crate::brought_files::IssuerDir;
use crate::clock::{Clock, shown};
use crate::csr::{self, ProvenKey};
use crate::keys_seen::KeysSeen;
use crate::ledger::entry::{Event, Issued};
use crate::ledger::{Ledger, LedgerConfig};
use crate::metrics::Metrics;
use crate::profile::Holder;
use crate::quarantine::Held;
use crate::refusal::Refusal;
#[cfg(feature = "kubernetes")]
use crate::replicas::Shared;
use crate::seal::Sealer;
#[cfg(feature = "kubernetes")]
use crate::store::secret::SecretError;
use crate::store::{Kind, Store, StoreError};
use crate::tokens::{TokenBook, hex};

pub(crate) mod bringing;
mod jwt;
mod numbers;
mod quarantine;
mod root;
#[cfg(test)]
mod tests;

use bringing::Mounted;
pub(crate) use quarantine::QuarantineChange;
use quarantine::trust_under;
pub(crate) use root::RootChange;
use root::{finished, root_of, show_roots};

/// State of a running CA; shared by all its services.
pub(crate) struct Ca {
    pub(crate) clock: Clock,
    pub(crate) svid_life: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) trust: SharedTrust,
    authority: watch::Sender<Arc<Authority>>,
    quarantine: watch::Sender<Arc<Held>>,
    keeping: Keeping,
    attesting: Attesting,
    keys_seen: KeysSeen,
    admission: Admission,
    identities: Identities,
    pub(crate) ledger: Ledger,
    pub(crate) acknowledged: Acknowledgements,
    root_pace: RootPace,
    /// Where issuers come from, if not from here.
    pub(crate) mounted: Option<Mounted>,
    /// Since when this process serves.
    began: UnixTime,
    /// Bundles from before this are published anew.
    numbered_since: Mutex<numbers::Since>,
    /// Of a bundle that signed here.
    highest_number: AtomicU64,
    /// One rotation at a time; a rotation whose caller went away still holds it.
    rotating: Arc<tokio::sync::Mutex<()>>,
}

/// Where authority and root are kept.
pub(crate) enum Keeping {
    /// In a directory that this process owns.
    Directory(Arc<Store>),
    /// In a Secret that replicas share.
    #[cfg(feature = "kubernetes")]
    Secret(Shared),
}

/// How callers are told apart. One way per CA: see `attest.rs`.
pub(crate) enum Attesting {
    /// By a one-time token first, then by their own SVID.
    Tokens { by_token: ByJoinToken, by_svid: ByOwnSvid },
    /// By their pods' tokens.
    #[cfg(feature = "kubernetes")]
    Pods(ByPod),
}

/// What a new issuer is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The old one's time is over; not if another replica has seen to it.
    Due,
    /// Somebody asked for it.
    Asked,
}

/// Why there is no new issuer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[cfg(feature = "kubernetes")]
    #[error(
        "Secret {0} is empty: the CA's state was taken out of it; put it back from a backup; or scale the CA to 0, empty the \
         ConfigMap of the roots too, scale it up, which founds a new one, and re-create every pod of the mesh"
    )]
    Gone(String),
    #[cfg(feature = "kubernetes")]
    #[error("other replicas wrote the state each time")]
    Races,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(
        "the root key is not in the store ({0}); put root.json back to rotate, or bring the next issuing certificate: \
         `postern-ca issuer request` and `issuer import`, or a mounted one (--issuer-dir)"
    )]
    RootOffline(String),
    #[error("issuing certificates come from {0} (--issuer-dir): put the next one there")]
    Mounted(String),
    #[error(
        "{0} has the root's key, so this CA makes its issuing certificates itself; take root.json out of it, to a safe place, for \
         those that are brought to follow its own"
    )]
    OwnRoot(String),
    #[error(transparent)]
    Brought(#[from] BroughtError),
    #[error(
        "{0}: this issuing certificate was made before the one that signs, or waits to, so it is taken for one that was followed; bring the one \
         that follows; to go back to it on purpose, have its key certified anew (a restored or late mount mends itself)"
    )]
    Older(String),
    #[error("no request is waiting for a certificate; `postern-ca issuer request` makes one")]
    NothingRequested,
    #[error(
        "it waits: the root is being replaced, and that is {} (`postern-ca rotate --dry-run` shows the stages); hand it in again \
         when it is over",
        .0.as_str()
    )]
    Waits(Stage),
    #[cfg(feature = "kubernetes")]
    #[error(
        "over a Secret issuing certificates are brought by a mounted directory alone (--issuer-dir; chart: ca.broughtIssuer)"
    )]
    Shared,
    #[error(
        "no issuer under another root is on its way: put one into {0} first; then this hurries its taking the place of the root \
         that signs"
    )]
    NothingToHurry(String),
    #[error("the root is being replaced already (it is {0}; `postern-ca rotate --dry-run` shows the stages)")]
    RootUnderWay(&'static str),
    #[error("the rotation was cut short")]
    Cut,
}

#[cfg(feature = "kubernetes")]
impl RotationError {
    /// For the metric of readings.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Secret(error) if error.is_outage() => "failed",
            _ => "damaged",
        }
    }
}

/// The authority in a directory's store; everything in it has been checked when this returns.
pub(crate) fn load_authority(store: &Store, now: UnixTime) -> Result<Authority, StoreError> {
    let damaged = |kind, error: AuthorityError| store.damaged(kind, error.to_string());
    let record: AuthorityRecord = match store.read(Kind::Authority)? {
        Some(record) => record,
        None => {
            let founding = store
                .read::<bringing::Request>(Kind::Request)?
                .and_then(|request| request.founding);
            return Err(match founding {
                Some(_) => StoreError::NoIssuer {
                    dir: store.dir().to_owned(),
                },
                None => store.damaged(Kind::Authority, "it is missing"),
            });
        }
    };
    let authority = record.load(now).map_err(|error| damaged(Kind::Authority, error))?;
    let authority = authority
        .with_jwt_keys(store.read(Kind::JwtKeys)?)
        .map_err(|error| damaged(Kind::JwtKeys, error))?;
    let authority = authority
        .with_rotation(store.read(Kind::Rotation)?, now)
        .map_err(|error| damaged(Kind::Rotation, error))?;
    let authority = finished(store, authority)?;
    // Only looked at, so that a damaged root is known today and not on the day of the rotation.
    root_of(store, &authority)?;
    Ok(authority)
}

/// What a request asks for, beside what it shows.
struct Asked<'r> {
    csr: &'r [u8],
    holder: Holder,
    held: HeldBundle,
    quarantine_version: u64,
}

impl Ca {
    /// A CA over a directory's store that attests by join tokens.
    pub(crate) fn load(
        store: Store,
        lives: (Duration, RootPace),
        ledger: &LedgerConfig,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let authority = load_authority(&store, clock())?;
        show_roots(&store, &authority);
        let store = Arc::new(store);
        let book = Arc::new(TokenBook::load(Arc::clone(&store))?);
        let trust: SharedTrust = Arc::new(ArcSwap::from_pointee(authority.trust()));
        let attesting = Attesting::Tokens {
            by_token: ByJoinToken { book },
            by_svid: ByOwnSvid {
                trust: Arc::clone(&trust),
                trust_domain: authority.trust_domain().clone(),
                own_id: authority.own_id().clone(),
            },
        };
        let ledger = Ledger::open(
            &store,
            authority.founding_root_sha256(),
            ledger,
            Arc::clone(&clock),
            metrics.clone(),
        )?;
        let ca = Self::new(
            authority,
            (Keeping::Directory(store), ledger),
            (attesting, trust),
            lives,
            clock,
            metrics,
        );
        ca.load_own_quarantine()?;
        Ok(ca)
    }

    pub(crate) fn new(
        authority: Authority,
        (keeping, ledger): (Keeping, Ledger),
        (attesting, trust): (Attesting, SharedTrust),
        (svid_life, root_pace): (Duration, RootPace),
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        csr::prepare();
        metrics.authority(&authority);
        Self {
            began: clock(),
            numbered_since: Mutex::new(numbers::Since::new(clock())),
            highest_number: AtomicU64::new(authority.bundle().sequence()),
            clock,
            svid_life,
            metrics,
            trust,
            authority: watch::Sender::new(Arc::new(authority)),
            quarantine: watch::Sender::default(),
            keeping,
            attesting,
            keys_seen: KeysSeen::default(),
            admission: Admission::new(REQUESTS),
            identities: Identities::default(),
            ledger,
            acknowledged: Acknowledgements::default(),
            root_pace,
            mounted: None,
            rotating: Arc::default(),
        }
    }

    /// The same, with issuers from this directory.
    pub(crate) fn with_mounted(self, dir: Option<IssuerDir>) -> Self {
        Self {
            mounted: dir.map(Mounted::at),
            ..self
        }
    }

    /// The book of join tokens, where callers are attested by them.
    pub(crate) fn tokens(&self) -> Option<&Arc<TokenBook>> {
        match &self.attesting {
            Attesting::Tokens { by_token, .. } => Some(&by_token.book),
            #[cfg(feature = "kubernetes")]
            Attesting::Pods(_) => None,
        }
    }

    pub(crate) fn now(&self) -> UnixTime {
        (self.clock)()
    }
    /// The authority that signs now.
    pub(crate) fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority.borrow())
    }
    /// To be told of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Authority>> {
        self.authority.subscribe()
    }

    /// Answers one issue request, and counts and logs how it ended.
    pub(crate) async fn issue(&self, request: pb::IssueRequest, caller: IpAddr) -> Result<pb::IssueResponse, Refusal> {
        let started = Instant::now();
        let _admitted = self
            .admission
            .admit(caller)
            .map_err(Refusal::from)
            .inspect_err(|refusal| self.refused(refusal, "none", caller))?;
        let asked = Asked {
            csr: &request.csr,
            holder: if request.for_app { Holder::App } else { Holder::Proxy },
            held: held_by(&request),
            quarantine_version: request.quarantine_version,
        };
        let (name, outcome) = match (&self.attesting, request.attestation) {
            (Attesting::Tokens { by_token, .. }, Some(Attestation::JoinToken(token))) => (
                ByJoinToken::NAME,
                self.issue_to(by_token, Zeroizing::new(token), &asked, caller).await,
            ),
            (Attesting::Tokens { by_svid, .. }, Some(Attestation::Renewal(renewal))) => {
                (ByOwnSvid::NAME, self.issue_to(by_svid, renewal, &asked, caller).await)
            }
            #[cfg(feature = "kubernetes")]
            (Attesting::Pods(by_pod), Some(Attestation::KubernetesToken(token))) => (
                ByPod::NAME,
                self.issue_to(by_pod, Zeroizing::new(token), &asked, caller).await,
            ),
            (attesting, _) => ("none", Err(attesting.takes_something_else())),
        };
        match &outcome {
            Ok(_) => self.metrics.issued(name, started.elapsed().as_secs_f64()),
            Err(refusal) => self.refused(refusal, name, caller),
        }
        outcome
    }

    async fn issue_to<A: Attestor>(
        &self,
        attestor: &A,
        evidence: A::Evidence,
        asked: &Asked<'_>,
        caller: IpAddr,
    ) -> Result<pb::IssueResponse, Refusal> {
        let Asked {
            csr,
            holder,
            held,
            quarantine_version,
        } = *asked;
        let key = ProvenKey::from_csr(csr)?;
        let authority = self.authority();
        let now = self.now();
        authority.ready(now)?;
        let attested = attestor.attest(evidence, csr, key.fingerprint(), now).await?;
        self.not_quarantined(&attested.id, attested.instance.as_ref())?;
        self.identities
            .admit(&attested.id, attested.instance.as_ref(), Instant::now())?;
        let fresh = self.keys_seen.reserve(key.fingerprint())?;
        let signed = authority.sign(
            &attested.id,
            attested.instance.as_ref(),
            holder,
            key.spki(),
            self.svid_life,
            now,
        )?;
        // First: a token that is used up without a record would be lost to both sides, and nobody would know why.
        self.ledger
            .record(Event::Issued(Issued {
                serial: signed.serial.clone(),
                identity: attested.id.to_string(),
                instance: attested.instance.as_ref().map(ToString::to_string),
                key_sha256: hex(&key.fingerprint()),
                attestation: A::NAME.to_owned(),
                evidence: attested.evidence,
                caller: Some(caller.to_canonical().to_string()),
                not_before: signed.not_before.as_secs(),
                not_after: signed.not_after.as_secs(),
                issuer_epoch: signed.issuer_epoch,
            }))
            .await?;
        attestor.settle(attested.claim, now).await.inspect_err(|refusal| {
            let reason = refusal.reason().as_str().to_owned();
            self.ledger.note(Event::Withdrawn {
                serial: signed.serial.clone(),
                reason,
            });
        })?;
        fresh.keep();
        // Who was cut off meanwhile gets nothing, even at the price of its token.
        self.not_quarantined(&attested.id, attested.instance.as_ref())
            .inspect_err(|refusal| {
                let reason = refusal.reason().as_str().to_owned();
                self.ledger.note(Event::Withdrawn {
                    serial: signed.serial.clone(),
                    reason,
                });
            })?;
        // Whose it is, is in the ledger, which is sealed; a log is read by many.
        tracing::info!(
            serial = signed.serial,
            attestation = A::NAME,
            not_after = shown(signed.not_after),
            issuer_epoch = signed.issuer_epoch,
            "issued"
        );
        Ok(pb::IssueResponse {
            chain: signed.chain.iter().map(|der| der.to_vec()).collect(),
            bundles: held.lacks(&authority).iter().map(Into::into).collect(),
            issuer_epoch: signed.issuer_epoch,
            quarantine: self.quarantine_after(quarantine_version),
        })
    }

    /// The set for a caller who holds this version.
    fn quarantine_after(&self, version: u64) -> Option<pb::SignedQuarantine> {
        let held = self.quarantine();
        held.signed.as_ref().filter(|_| held.version > version).map(Into::into)
    }

    /// Counts and logs a refusal.
    pub(crate) fn refused(&self, refusal: &Refusal, attestation: &'static str, caller: IpAddr) {
        self.metrics.refused(refusal.reason());
        self.ledger.refused(refusal, attestation, caller);
        let what = refusal.without_identities();
        tracing::warn!(reason = refusal.reason().as_str(), attestation, caller = %caller, "refused: {what}");
    }

    /// A new issuer: prepared, tested, stored, and only then the one that signs and is announced. Once begun it is
    /// finished, even if the caller goes away (a deadline, Ctrl-C): what is stored is what signs.
    pub(crate) async fn rotate(self: &Arc<Self>, why: Why) -> Result<Arc<Authority>, RotationError> {
        let one = self.rotating().await;
        let ca = Arc::clone(self);
        let work = match &self.keeping {
            Keeping::Directory(store) => {
                let store = Arc::clone(store);
                // A root that was put back since this process began may be sealed as nothing else here is.
                let learned = store.learn().await.map_err(RotationError::from);
                tokio::task::spawn_blocking(move || {
                    let _one = one;
                    let made = learned.and_then(|()| ca.replace_issuer(&store));
                    ca.rotated(&made);
                    made
                })
            }
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(shared) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _one = one;
                    let made = shared.rotate(&ca, why).await;
                    // A success is counted where it is one: not if another replica had been quicker.
                    if made.is_err() {
                        ca.rotated(&made);
                    }
                    made
                })
            }
        };
        // In a directory there is one process, and it asks when it is due.
        let _ = why;
        work.await.unwrap_or_else(|_| {
            let cut = Err(RotationError::Cut);
            self.rotated(&cut);
            cut
        })
    }

    /// What seals what this CA keeps.
    pub(crate) fn sealer(&self) -> Option<Arc<Sealer>> {
        let seals = match &self.keeping {
            Keeping::Directory(store) => store.seals(),
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(shared) => shared.store.seals(),
        };
        seals.sealer().map(Arc::clone)
    }

    /// Seals anew what is not sealed as it would be now; which records those were.
    pub(crate) async fn rewrap(&self) -> Result<Vec<Kind>, RotationError> {
        let one = self.rotating().await;
        match &self.keeping {
            Keeping::Directory(store) => {
                let store = Arc::clone(store);
                store.learn().await?;
                // To its end, also if nobody waits for it any more.
                let work = tokio::task::spawn_blocking(move || {
                    let _one = one;
                    let behind = store.behind()?;
                    behind.iter().try_for_each(|kind| store.rewrap(*kind))?;
                    Ok(behind)
                });
                work.await.unwrap_or(Err(RotationError::Cut))
            }
            #[cfg(feature = "kubernetes")]
            Keeping::Secret(shared) => match shared.store.rewrap().await {
                // Another replica is quicker, or rotates: the next look sees what is left.
                Err(SecretError::Conflict(_)) => Ok(Vec::new()),
                done => Ok(done?),
            },
        }
    }

    /// Held by whoever changes what is stored or takes it over.
    pub(crate) async fn rotating(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.rotating).lock_owned().await
    }

    /// Blocks; under `rotating`.
    fn replace_issuer(&self, store: &Store) -> Result<Arc<Authority>, RotationError> {
        let current = self.authority();
        let root = root_of(store, &current)?.ok_or_else(|| self.root_is_elsewhere())?;
        self.commit(store, current.with_new_issuer(&root, self.now())?)
    }

    /// This is what signs from now on; it is stored. Under `rotating`.
    pub(crate) fn adopt(&self, next: Authority) -> Arc<Authority> {
        let next = Arc::new(next);
        self.trust.store(Arc::new(trust_under(&next, &self.quarantine())));
        self.metrics.authority(&next);
        self.highest_number
            .fetch_max(next.bundle().sequence(), Ordering::Relaxed);
        self.authority.send_replace(Arc::clone(&next));
        self.resign_quarantine(&next);
        next
    }

    /// Counts and logs how a rotation ended.
    pub(crate) fn rotated(&self, made: &Result<Arc<Authority>, RotationError>) {
        self.metrics.rotation(made.is_ok());
        match made {
            Ok(next) => tracing::info!(
                issuer_epoch = next.issuer_epoch(),
                not_after = shown(next.issuer_not_after()),
                "new issuer signs"
            ),
            Err(error) => {
                tracing::error!(reason = "rotation", error = %crate::error_chain(error), "no new issuer");
            }
        }
    }
}

/// What a caller knows of our trust domain.
#[derive(Debug, Clone, Copy)]
enum HeldBundle {
    Sequence(u64),
    /// A root alone; `None`: an older version, which does not say which.
    Root(Option<[u8; 32]>),
}

impl HeldBundle {
    /// The links of the bundle chain that it lacks, oldest first.
    fn lacks(self, authority: &Authority) -> Vec<SignedBundle> {
        match self {
            Self::Sequence(sequence) => authority.links_after(sequence),
            Self::Root(root) => authority.links_from_root(&root.unwrap_or_else(|| authority.likely_pin())),
        }
    }
}

fn held_by(request: &pb::IssueRequest) -> HeldBundle {
    if request.bundle_sequence != 0 {
        return HeldBundle::Sequence(request.bundle_sequence);
    }
    let pinned = match &request.attestation {
        Some(Attestation::JoinToken(token)) => JoinToken::parse(token).ok().map(|token| token.root_sha256()),
        _ => None,
    };
    HeldBundle::Root(request.root_sha256.as_slice().try_into().ok().or(pinned))
}

impl Attesting {
    fn takes_something_else(&self) -> Refusal {
        let message = match self {
            Self::Tokens { .. } => "the request carries no attestation that this CA knows (join token, renewal)",
            #[cfg(feature = "kubernetes")]
            Self::Pods(_) => {
                "this CA attests pods alone, by their service-account tokens, at first issue and at each renewal; it redeems \
                 no join tokens and renews no SVID by itself"
            }
        };
        Refusal::new(RefusalReason::AttestationMissing, message)
    }
}

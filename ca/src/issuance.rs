//! The CA itself: from a request to a certificate, in one place and in order.
//!
//! ```text
//! admit -> CSR (key proven) -> clock -> attest (identity) -> key fresh -> sign -> settle (token used up, on disk) -> answer
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::issue_request::Attestation;
use postern_api::refusal::RefusalReason;
use postern_identity::{SharedTrust, TrustBundle};
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::admission::{Admission, REQUESTS};
use crate::attest::Attestor;
use crate::attest::join::ByJoinToken;
#[cfg(feature = "kubernetes")]
use crate::attest::pod::ByPod;
use crate::attest::renewal::ByOwnSvid;
use crate::authority::{Authority, AuthorityError, AuthorityRecord, RootRecord};
use crate::clock::{Clock, shown};
use crate::csr::{self, ProvenKey};
use crate::keys_seen::KeysSeen;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
#[cfg(feature = "kubernetes")]
use crate::replicas::Shared;
#[cfg(feature = "kubernetes")]
use crate::store::secret::SecretError;
use crate::store::{Kind, Store, StoreError};
use crate::tokens::{TokenBook, hex};

#[cfg(test)]
mod tests;

/// State of a running CA; shared by all its services.
pub(crate) struct Ca {
    pub(crate) clock: Clock,
    pub(crate) svid_life: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) trust: SharedTrust,
    authority: watch::Sender<Arc<Authority>>,
    keeping: Keeping,
    attesting: Attesting,
    keys_seen: KeysSeen,
    admission: Admission,
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
    #[error("the root key is not in the store ({0}); put root.json back to rotate")]
    RootOffline(String),
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
    let record: AuthorityRecord = store
        .read(Kind::Authority)?
        .ok_or_else(|| store.damaged(Kind::Authority, "it is missing"))?;
    let authority = record.load(now).map_err(|error| damaged(Kind::Authority, error))?;
    // Only looked at, so that a damaged root is known today and not on the day of the rotation.
    if let Some(root) = store.read::<RootRecord>(Kind::Root)? {
        let root = root.load().map_err(|error| damaged(Kind::Root, error))?;
        if root.cert() != authority.root() {
            return Err(store.damaged(Kind::Root, "it is the root of another store"));
        }
    }
    Ok(authority)
}

impl Ca {
    /// A CA over a directory's store that attests by join tokens.
    pub(crate) fn load(store: Store, svid_life: Duration, clock: Clock, metrics: Metrics) -> Result<Self, StoreError> {
        let authority = load_authority(&store, clock())?;
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
        let keeping = Keeping::Directory(store);
        Ok(Self::new(
            authority,
            keeping,
            (attesting, trust),
            svid_life,
            clock,
            metrics,
        ))
    }

    pub(crate) fn new(
        authority: Authority,
        keeping: Keeping,
        (attesting, trust): (Attesting, SharedTrust),
        svid_life: Duration,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        csr::prepare();
        metrics.authority(&authority);
        Self {
            clock,
            svid_life,
            metrics,
            trust,
            authority: watch::Sender::new(Arc::new(authority)),
            keeping,
            attesting,
            keys_seen: KeysSeen::default(),
            admission: Admission::new(REQUESTS),
            rotating: Arc::default(),
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
        let sequence = request.bundle_sequence;
        let csr = &request.csr;
        let (name, outcome) = match (&self.attesting, request.attestation) {
            (Attesting::Tokens { by_token, .. }, Some(Attestation::JoinToken(token))) => (
                ByJoinToken::NAME,
                self.issue_to(by_token, Zeroizing::new(token), csr, sequence).await,
            ),
            (Attesting::Tokens { by_svid, .. }, Some(Attestation::Renewal(renewal))) => {
                (ByOwnSvid::NAME, self.issue_to(by_svid, renewal, csr, sequence).await)
            }
            #[cfg(feature = "kubernetes")]
            (Attesting::Pods(by_pod), Some(Attestation::KubernetesToken(token))) => (
                ByPod::NAME,
                self.issue_to(by_pod, Zeroizing::new(token), csr, sequence).await,
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
        csr: &[u8],
        bundle_sequence: u64,
    ) -> Result<pb::IssueResponse, Refusal> {
        let key = ProvenKey::from_csr(csr)?;
        let authority = self.authority();
        let now = self.now();
        authority.ready(now)?;
        let attested = attestor.attest(evidence, csr, key.fingerprint(), now).await?;
        let fresh = self.keys_seen.reserve(key.fingerprint())?;
        let signed = authority.sign(
            &attested.id,
            attested.instance.as_ref(),
            key.spki(),
            self.svid_life,
            now,
        )?;
        attestor.settle(attested.claim, now).await?;
        fresh.keep();
        tracing::info!(
            id = %attested.id,
            instance = attested.instance.as_ref().map(|instance| instance.as_str()),
            attestation = A::NAME,
            not_after = shown(signed.not_after),
            issuer_epoch = signed.issuer_epoch,
            key_sha256 = hex(&key.fingerprint()),
            "issued"
        );
        Ok(pb::IssueResponse {
            chain: signed.chain.iter().map(|der| der.to_vec()).collect(),
            bundles: links_from(&authority, bundle_sequence, now),
            issuer_epoch: signed.issuer_epoch,
        })
    }

    /// Counts and logs a refusal.
    pub(crate) fn refused(&self, refusal: &Refusal, attestation: &'static str, caller: IpAddr) {
        self.metrics.refused(refusal.reason());
        tracing::warn!(reason = refusal.reason().as_str(), attestation, caller = %caller, "refused: {refusal}");
    }

    /// A new issuer: prepared, tested, stored, and only then the one that signs and is announced. Once begun it is
    /// finished, even if the caller goes away (a deadline, Ctrl-C): what is stored is what signs.
    pub(crate) async fn rotate(self: &Arc<Self>, why: Why) -> Result<Arc<Authority>, RotationError> {
        let one = self.rotating().await;
        let ca = Arc::clone(self);
        let work = match &self.keeping {
            Keeping::Directory(store) => {
                let store = Arc::clone(store);
                tokio::task::spawn_blocking(move || {
                    let _one = one;
                    let made = ca.replace_issuer(&store);
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

    /// Held by whoever changes what is stored or takes it over.
    pub(crate) async fn rotating(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.rotating).lock_owned().await
    }

    /// Blocks; under `rotating`.
    fn replace_issuer(&self, store: &Store) -> Result<Arc<Authority>, RotationError> {
        let root: RootRecord = store
            .read(Kind::Root)?
            .ok_or_else(|| RotationError::RootOffline(store.path(Kind::Root).display().to_string()))?;
        let next = self.authority().with_new_issuer(&root.load()?, self.now())?;
        store.write(Kind::Authority, &AuthorityRecord::of(&next))?;
        Ok(self.adopt(next))
    }

    /// This is what signs from now on; it is stored. Under `rotating`.
    pub(crate) fn adopt(&self, next: Authority) -> Arc<Authority> {
        let next = Arc::new(next);
        self.trust.store(Arc::new(next.trust()));
        self.metrics.authority(&next);
        self.authority.send_replace(Arc::clone(&next));
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

/// The links of the bundle chain that a holder of bundle `sequence` lacks, oldest first.
pub(crate) fn links_from(authority: &Authority, sequence: u64, now: UnixTime) -> Vec<pb::SignedBundle> {
    authority
        .links()
        .iter()
        .filter(|link| {
            let bundle = TrustBundle::from_document(authority.trust_domain().clone(), &link.document, now);
            // Our own documents read back; should one not, the caller is the better judge.
            bundle.map_or(true, |bundle| bundle.sequence() > sequence)
        })
        .map(Into::into)
        .collect()
}

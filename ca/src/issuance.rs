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
use crate::attest::renewal::ByOwnSvid;
use crate::authority::{Authority, AuthorityError, AuthorityRecord, RootRecord};
use crate::clock::{Clock, shown};
use crate::csr::{self, ProvenKey};
use crate::keys_seen::KeysSeen;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::store::{Kind, Store, StoreError};
use crate::tokens::{TokenBook, hex};

#[cfg(test)]
mod tests;

/// State of a running CA; shared by all its services.
pub(crate) struct Ca {
    pub(crate) clock: Clock,
    pub(crate) svid_life: Duration,
    pub(crate) tokens: Arc<TokenBook>,
    pub(crate) metrics: Metrics,
    pub(crate) trust: SharedTrust,
    authority: watch::Sender<Arc<Authority>>,
    store: Arc<Store>,
    by_token: ByJoinToken,
    by_svid: ByOwnSvid,
    keys_seen: KeysSeen,
    admission: Admission,
    /// One rotation at a time; a rotation whose caller went away still holds it.
    rotating: Arc<tokio::sync::Mutex<()>>,
}

/// Why there is no new issuer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the root key is not in the store ({0}); put root.json back to rotate")]
    RootOffline(String),
    #[error("the rotation was cut short")]
    Cut,
}

impl Ca {
    /// Reads the store; everything in it has been checked when this returns.
    pub(crate) fn load(store: Store, svid_life: Duration, clock: Clock, metrics: Metrics) -> Result<Self, StoreError> {
        csr::prepare();
        let now = clock();
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
        let store = Arc::new(store);
        let tokens = Arc::new(TokenBook::load(Arc::clone(&store))?);
        let trust: SharedTrust = Arc::new(ArcSwap::from_pointee(authority.trust()));
        metrics.authority(&authority);
        Ok(Self {
            clock,
            svid_life,
            by_token: ByJoinToken {
                book: Arc::clone(&tokens),
            },
            by_svid: ByOwnSvid {
                trust: Arc::clone(&trust),
                trust_domain: authority.trust_domain().clone(),
                own_id: authority.own_id().clone(),
            },
            tokens,
            metrics,
            trust,
            authority: watch::Sender::new(Arc::new(authority)),
            store,
            keys_seen: KeysSeen::default(),
            admission: Admission::new(REQUESTS),
            rotating: Arc::default(),
        })
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
        let (name, outcome) = match request.attestation {
            Some(Attestation::JoinToken(token)) => {
                let outcome = self
                    .issue_to(&self.by_token, Zeroizing::new(token), &request.csr, sequence)
                    .await;
                (ByJoinToken::NAME, outcome)
            }
            Some(Attestation::Renewal(renewal)) => (
                ByOwnSvid::NAME,
                self.issue_to(&self.by_svid, renewal, &request.csr, sequence).await,
            ),
            Some(Attestation::KubernetesToken(_)) | None => {
                let message = "the request carries no attestation that this CA knows (join token, renewal)";
                ("none", Err(Refusal::new(RefusalReason::AttestationMissing, message)))
            }
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

    /// A new issuer: prepared, tested, on disk, and only then the one that signs and is announced. Once begun it is
    /// finished, even if the caller goes away (a deadline, Ctrl-C): what is on disk is what signs.
    pub(crate) async fn rotate(self: &Arc<Self>) -> Result<Arc<Authority>, RotationError> {
        let one = Arc::clone(&self.rotating).lock_owned().await;
        let ca = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _one = one;
            let made = ca.replace_issuer();
            ca.rotated(&made);
            made
        })
        .await
        .unwrap_or_else(|_| {
            let cut = Err(RotationError::Cut);
            self.rotated(&cut);
            cut
        })
    }

    /// Blocks; under `rotating`.
    fn replace_issuer(&self) -> Result<Arc<Authority>, RotationError> {
        let root: RootRecord = self
            .store
            .read(Kind::Root)?
            .ok_or_else(|| RotationError::RootOffline(self.store.path(Kind::Root).display().to_string()))?;
        let next = self.authority().with_new_issuer(&root.load()?, self.now())?;
        self.store.write(Kind::Authority, &AuthorityRecord::of(&next))?;
        let next = Arc::new(next);
        self.trust.store(Arc::new(next.trust()));
        self.metrics.authority(&next);
        self.authority.send_replace(Arc::clone(&next));
        Ok(next)
    }

    /// Counts and logs how a rotation ended.
    fn rotated(&self, made: &Result<Arc<Authority>, RotationError>) {
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

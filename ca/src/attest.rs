//! Attestation: evidence in, identity out. The only source of what a certificate says.
//!
//! ```text
//! JoinToken (first issue)      --join::ByJoinToken-->   Attested --settle--> may be answered
//! Renewal (own previous SVID)  --renewal::ByOwnSvid-->  Attested --settle--> may be answered
//! pod's token (each time)      --pod::ByPod---------->  Attested --settle--> may be answered
//! ```
//!
//! A CA attests in one way: tokens and SVIDs, or pods. If a pod's SVID could renew itself, a key that was taken from a pod
//! would outlive it.

use std::future::Future;

use postern_identity::{Instance, SpiffeId};
use rustls_pki_types::UnixTime;

use crate::csr::KeyFingerprint;
use crate::refusal::Refusal;

pub(crate) mod join;
#[cfg(feature = "kubernetes")]
pub(crate) mod pod;
pub(crate) mod renewal;

/// One way to tell who is calling.
pub(crate) trait Attestor {
    /// What the caller shows.
    type Evidence;
    /// What has to be done before the caller may be answered.
    type Claim: Send;

    /// How metrics and logs name it.
    const NAME: &'static str;

    /// Who the evidence says is calling. `request` is the CSR, byte for byte, and `key` its key's fingerprint. Changes
    /// nothing: a request that fails later costs the caller no token.
    fn attest(
        &self,
        evidence: Self::Evidence,
        request: &[u8],
        key: KeyFingerprint,
        now: UnixTime,
    ) -> impl Future<Output = Result<Attested<Self::Claim>, Refusal>> + Send;

    /// Makes the attestation final (a token is used up, durably); the certificate is given out only after this.
    fn settle(&self, claim: Self::Claim, now: UnixTime) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// An identity that holds, and what is left to do.
#[derive(Debug)]
pub(crate) struct Attested<C> {
    pub(crate) id: SpiffeId,
    pub(crate) instance: Option<Instance>,
    /// What was believed, for the ledger: which token, certificate or pod. Nothing secret.
    pub(crate) evidence: String,
    pub(crate) claim: C,
}

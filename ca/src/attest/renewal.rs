//! Renewal: the caller's previous SVID, and the previous key's signature over the new request.

use std::time::Duration;

use postern_api::ca::v1 as pb;
use postern_api::ca_client::RENEWAL_CONTEXT;
use postern_api::refusal::RefusalReason;
use postern_identity::{Role, SharedTrust, SpiffeId, TrustDomain, VerifyError, leaf, verify};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Attested, Attestor};
use crate::clock::shown;
use crate::csr::{self, KeyFingerprint};
use crate::profile::serial_shown;
use crate::refusal::Refusal;

/// A machine that was switched off over night comes back by itself; longer asks for a new token.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Our own chains have two certificates; a foreign issuer's may have a few more.
const MAX_CHAIN: usize = 6;

/// Believes SVIDs under the current bundle.
pub(crate) struct ByOwnSvid {
    pub(crate) trust: SharedTrust,
    pub(crate) trust_domain: TrustDomain,
    /// Never given to a caller: this CA renews itself.
    pub(crate) own_id: SpiffeId,
}

impl Attestor for ByOwnSvid {
    type Evidence = pb::Renewal;
    type Claim = ();

    const NAME: &'static str = "renewal";

    async fn attest(
        &self,
        evidence: pb::Renewal,
        request: &[u8],
        key: KeyFingerprint,
        now: UnixTime,
    ) -> Result<Attested<()>, Refusal> {
        let refuse = |reason, message: String| Err(Refusal::new(reason, message));
        if evidence.chain.len() > MAX_CHAIN {
            return refuse(
                RefusalReason::RenewalChain,
                format!("the chain has more than {MAX_CHAIN} certificates"),
            );
        }
        let chain: Vec<CertificateDer<'static>> = evidence.chain.into_iter().map(CertificateDer::from).collect();
        let Some(previous) = chain.first() else {
            return refuse(
                RefusalReason::RenewalChain,
                "a renewal carries the previous SVID's chain".to_owned(),
            );
        };
        let read = leaf::inspect(previous)
            .map_err(|error| Refusal::new(RefusalReason::RenewalChain, format!("the previous SVID: {error}")))?;
        // The last instant at which it held. If that is past, the bundle and the quarantine are still today's.
        let at = now.min(read.not_after);
        let peer = verify::verify_peer(&chain, Role::Client, &self.trust.load(), at).map_err(|error| {
            let reason = match error {
                VerifyError::Quarantined(_) => RefusalReason::Quarantined,
                _ => RefusalReason::RenewalChain,
            };
            let message = format!("the previous SVID does not verify: {}", crate::error_chain(&error));
            Refusal::new(reason, message)
        })?;
        if peer.is_app() {
            let message = "the previous SVID is an app's, which its proxy's Workload API renews";
            return refuse(RefusalReason::RenewalIdentity, message.to_owned());
        }
        if now.as_secs().saturating_sub(read.not_after.as_secs()) > GRACE.as_secs() {
            let message = format!(
                "the previous SVID expired at {}, more than {} h ago; this process needs a new join token",
                shown(read.not_after),
                GRACE.as_secs() / 3600
            );
            return refuse(RefusalReason::RenewalExpired, message);
        }
        let unreadable = |_| Refusal::new(RefusalReason::RenewalChain, "the previous SVID cannot be read");
        let (_, previous) = X509Certificate::from_der(previous).map_err(unreadable)?;
        csr::renewal_verifier(previous.public_key())?
            .verify_sig(&[RENEWAL_CONTEXT, request].concat(), &evidence.signature)
            .map_err(|_| {
                Refusal::new(
                    RefusalReason::RenewalSignature,
                    "the request is not signed by the previous SVID's key",
                )
            })?;
        if csr::fingerprint(previous.public_key().raw) == key {
            let message = "the CSR has the previous SVID's key; each certificate has a fresh one";
            return refuse(RefusalReason::CsrKeyReused, message.to_owned());
        }
        if peer.id().trust_domain() != self.trust_domain.as_str() || *peer.id() == self.own_id {
            return refuse(
                RefusalReason::RenewalIdentity,
                format!("{} is not renewed here", peer.id()),
            );
        }
        Ok(Attested {
            id: peer.id().clone(),
            instance: peer.instance().cloned(),
            evidence: format!("certificate {}", serial_shown(previous.raw_serial())),
            claim: (),
        })
    }

    async fn settle(&self, (): (), _now: UnixTime) -> Result<(), Refusal> {
        Ok(())
    }
}

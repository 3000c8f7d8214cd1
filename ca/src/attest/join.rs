//! First issue without Kubernetes: a one-time token from whoever started the process.

use std::sync::Arc;

use postern_api::ca_client::JoinToken;
use postern_api::refusal::RefusalReason;
use rustls_pki_types::UnixTime;
use zeroize::Zeroizing;

use super::{Attested, Attestor};
use crate::csr::KeyFingerprint;
use crate::refusal::Refusal;
use crate::tokens::TokenBook;

/// Believes the tokens of the book.
pub(crate) struct ByJoinToken {
    pub(crate) book: Arc<TokenBook>,
}

impl Attestor for ByJoinToken {
    type Evidence = Zeroizing<String>;
    /// The token's id.
    type Claim = String;

    const NAME: &'static str = "join_token";

    async fn attest(
        &self,
        evidence: Self::Evidence,
        _request: &[u8],
        _key: KeyFingerprint,
        now: UnixTime,
    ) -> Result<Attested<String>, Refusal> {
        let token = JoinToken::parse(&evidence)
            .map_err(|error| Refusal::new(RefusalReason::TokenMalformed, error.to_string()))?;
        let grant = self.book.check(&token, now)?;
        Ok(Attested {
            id: grant.id,
            instance: Some(grant.instance),
            evidence: format!("token {}", grant.token_id),
            claim: grant.token_id,
        })
    }

    async fn settle(&self, claim: String, now: UnixTime) -> Result<(), Refusal> {
        self.book.redeem(&claim, now).await
    }
}

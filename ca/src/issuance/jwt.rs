//! JWT-SVIDs: for a caller that proves itself by its SVID in the handshake, and for nobody else.

use std::net::IpAddr;
use std::time::Instant;

use postern_api::ca::v1 as pb;
use postern_api::refusal::RefusalReason;
use postern_identity::VerifiedPeer;

use super::Ca;
use crate::clock::shown;
use crate::ledger::entry::{Event, IssuedJwt};
use crate::refusal::Refusal;
use crate::tokens::hex;

/// How metrics and logs name it.
const NAME: &str = "jwt";
/// A token for many is a token for anybody: each of them could show it to the others.
const MAX_AUDIENCES: usize = 16;
/// Of all audiences together, in bytes: a SPIFFE ID or a URL fits, and a record of the ledger stays small.
const MAX_AUDIENCE: usize = 2_048;

impl Ca {
    /// Answers one request, and counts and logs how it ended.
    pub(crate) async fn issue_jwt(
        &self,
        request: &pb::IssueJwtRequest,
        peer: Option<&VerifiedPeer>,
        caller: IpAddr,
    ) -> Result<pb::IssueJwtResponse, Refusal> {
        let started = Instant::now();
        let outcome = match self.admission.admit(caller) {
            Ok(_admitted) => self.jwt_for(peer, &request.audience, caller).await,
            Err(busy) => Err(busy.into()),
        };
        match &outcome {
            Ok(_) => self.metrics.issued(NAME, started.elapsed().as_secs_f64()),
            Err(refusal) => self.refused(refusal, NAME, caller),
        }
        outcome
    }

    async fn jwt_for(
        &self,
        peer: Option<&VerifiedPeer>,
        audience: &[String],
        caller: IpAddr,
    ) -> Result<pb::IssueJwtResponse, Refusal> {
        let refuse = |reason, message: String| Err(Refusal::new(reason, message));
        let Some(peer) = peer else {
            let message = "a JWT-SVID is for who shows an SVID in the handshake; the caller showed none";
            return refuse(RefusalReason::CallerIdentity, message.to_owned());
        };
        let (authority, now) = (self.authority(), self.now());
        if peer.id().trust_domain() != authority.trust_domain().as_str() || peer.id() == authority.own_id() {
            return refuse(
                RefusalReason::CallerIdentity,
                format!("{} gets no JWT-SVID here", peer.id()),
            );
        }
        if peer.is_app() {
            let message = "the caller's SVID is an app's, which gets its JWT-SVIDs at its proxy's Workload API";
            return refuse(RefusalReason::CallerIdentity, message.to_owned());
        }
        self.not_quarantined(peer.id(), peer.instance())?;
        // The handshake may be long ago.
        if let Err(error) = peer.still_holds(&self.trust.load(), now) {
            return refuse(
                RefusalReason::CallerExpired,
                format!("the caller's SVID no longer holds: {error}"),
            );
        }
        check(audience).map_err(|what| Refusal::new(RefusalReason::JwtAudience, what))?;
        self.identities.admit(peer.id(), peer.instance(), Instant::now())?;
        let signed = authority.sign_jwt(peer.id(), audience, peer.not_after(), now)?;
        self.ledger
            .record(Event::IssuedJwt(IssuedJwt {
                identity: peer.id().to_string(),
                instance: peer.instance().map(ToString::to_string),
                shown: hex(peer.serial()),
                audience: audience.to_vec(),
                caller: caller.to_canonical().to_string(),
                not_after: signed.expires.as_secs(),
                key_id: signed.key_id.clone(),
            }))
            .await?;
        // Who was cut off meanwhile gets nothing: the record says what was signed, and nobody has it.
        self.not_quarantined(peer.id(), peer.instance())?;
        // Whose it is, is in the ledger, which is sealed; a log is read by many.
        tracing::info!(
            attestation = NAME,
            audiences = audience.len(),
            expires = shown(signed.expires),
            key_id = signed.key_id,
            "issued a JWT-SVID"
        );
        Ok(pb::IssueJwtResponse {
            token: signed.token.to_string(),
            expires_unix: i64::try_from(signed.expires.as_secs()).unwrap_or(i64::MAX),
        })
    }
}

fn check(audience: &[String]) -> Result<(), String> {
    if audience.is_empty() {
        return Err("a JWT-SVID has at least one audience".to_owned());
    }
    if audience.len() > MAX_AUDIENCES {
        return Err(format!(
            "{} audiences, at most {MAX_AUDIENCES} are signed for",
            audience.len()
        ));
    }
    let all: usize = audience.iter().map(String::len).sum();
    if all > MAX_AUDIENCE {
        return Err(format!(
            "the audiences have {all} bytes; at most {MAX_AUDIENCE} are signed for"
        ));
    }
    match audience
        .iter()
        .find(|one| one.is_empty() || one.chars().any(char::is_control))
    {
        Some(one) => Err(format!("the audience {one:?} is empty or has control characters")),
        None => Ok(()),
    }
}

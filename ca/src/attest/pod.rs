//! In Kubernetes: the pod's projected service-account token, reviewed by the API server, at first issue and at each
//! renewal.
//!
//! ```text
//! token --shape (16 KiB, a JWT with an expiry)--> Reviewer (deadline, bounded) --judge--> ns, sa, pod UID
//! ```
//!
//! Nothing is remembered between two reviews: a pod that was deleted is refused as soon as the API server says so (it
//! remembers a good review for 10 s itself). Callers hear one sentence, whatever was wrong; the log has the reason.

use std::time::Duration;

use futures_util::future::BoxFuture;
use postern_api::ca_client::KubernetesToken;
use postern_api::refusal::RefusalReason;
use postern_identity::{Instance, SpiffeId, TrustDomain};
use rustls_pki_types::UnixTime;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{Attested, Attestor};
use crate::csr::KeyFingerprint;
use crate::refusal::Refusal;

mod claims;
mod operator;
mod review;
#[cfg(test)]
mod tests;

pub(crate) use review::ByApi;

/// Whom a token must be for, asked of the API server and compared in its answer.
pub(crate) const AUDIENCE: &str = "postern-ca";
/// A review takes some milliseconds; an API server that needs longer has trouble, and the caller's own call ends after 5 s.
const DEADLINE: Duration = Duration::from_secs(3);
/// Reviews under way: an API server serves hundreds at once, and we are not its only client. More wait, within the deadline.
const AT_ONCE: usize = 32;
/// What every caller hears whose token does not hold.
const NOT_ACCEPTED: &str =
    "the service-account token is not accepted: it must be this pod's, for the audience postern-ca";

/// Who can tell whose token it is.
pub(crate) trait Reviewer: Send + Sync {
    fn review<'a>(&'a self, token: &'a str, audience: &'static str) -> BoxFuture<'a, Result<Review, Outage>>;
}

/// What the API server says of a token.
#[derive(Debug, Clone, Default)]
pub(crate) struct Review {
    pub(crate) authenticated: bool,
    pub(crate) audiences: Vec<String>,
    pub(crate) username: String,
    /// Values of the extra `authentication.kubernetes.io/pod-uid`.
    pub(crate) pod_uids: Vec<String>,
    /// Why not, for the log.
    pub(crate) error: Option<String>,
}

/// It did not say anything; for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Outage(pub(crate) String);

/// Believes what the reviewer says.
pub(crate) struct ByPod {
    reviewer: Box<dyn Reviewer>,
    trust_domain: TrustDomain,
    /// Never given to a caller: this CA renews itself.
    own_id: SpiffeId,
    places: Semaphore,
    deadline: Duration,
}

impl ByPod {
    pub(crate) fn new(reviewer: Box<dyn Reviewer>, trust_domain: TrustDomain, own_id: SpiffeId) -> Self {
        Self {
            reviewer,
            trust_domain,
            own_id,
            places: Semaphore::new(AT_ONCE),
            deadline: DEADLINE,
        }
    }

    async fn reviewed(&self, token: &str, audience: &'static str) -> Result<Review, Outage> {
        let asked = async {
            let _place = self.places.acquire().await.map_err(|error| Outage(error.to_string()))?;
            self.reviewer.review(token, audience).await
        };
        timeout(self.deadline, asked)
            .await
            .unwrap_or_else(|_| Err(Outage(format!("no answer within {:?}", self.deadline))))
    }

    fn judge(&self, review: Review) -> Result<Attested<()>, Refusal> {
        let not_accepted = |why: &str| {
            tracing::info!(reason = "service_account_token", "a token is not accepted: {why}");
            Refusal::new(RefusalReason::ServiceAccountToken, NOT_ACCEPTED)
        };
        if !review.authenticated {
            return Err(not_accepted(review.error.as_deref().unwrap_or("not authenticated")));
        }
        if !review.audiences.iter().any(|audience| audience == AUDIENCE) {
            return Err(not_accepted("the API server did not confirm the audience"));
        }
        let (namespace, account) =
            account_of(&review.username).ok_or_else(|| not_accepted("it is not a service account's"))?;
        let id = SpiffeId::for_workload(&self.trust_domain, namespace, account)
            .map_err(|error| not_accepted(&error.to_string()))?;
        let instance = match review.pod_uids.as_slice() {
            [uid] => Instance::parse(uid).ok(),
            _ => None,
        };
        let Some(instance) = instance else {
            let message = format!("the token of {id} is not bound to a pod; use a projected service-account token");
            return Err(Refusal::new(RefusalReason::ServiceAccountUnbound, message));
        };
        if id == self.own_id {
            let message = format!("{id} is the CA itself; nobody else is given it");
            return Err(Refusal::new(RefusalReason::CallerIdentity, message));
        }
        Ok(Attested {
            id,
            evidence: format!("service account {namespace}/{account}, pod {}", instance.as_str()),
            instance: Some(instance),
            claim: (),
        })
    }
}

impl Attestor for ByPod {
    type Evidence = Zeroizing<String>;
    type Claim = ();

    const NAME: &'static str = "kubernetes_token";

    async fn attest(
        &self,
        evidence: Self::Evidence,
        _request: &[u8],
        _key: KeyFingerprint,
        now: UnixTime,
    ) -> Result<Attested<()>, Refusal> {
        let not_accepted = || Refusal::new(RefusalReason::ServiceAccountToken, NOT_ACCEPTED);
        let token = KubernetesToken::parse(&evidence).map_err(|_| not_accepted())?;
        // Not that anything in it is believed: what cannot be a token of ours costs the API server nothing.
        if !claims::may_hold(token.expose(), now) {
            tracing::info!(
                reason = "service_account_token",
                "a token is not accepted: no JWT, no expiry, or expired"
            );
            return Err(not_accepted());
        }
        let review = self.reviewed(token.expose(), AUDIENCE).await.map_err(unavailable)?;
        self.judge(review)
    }

    async fn settle(&self, (): (), _now: UnixTime) -> Result<(), Refusal> {
        Ok(())
    }
}

fn unavailable(outage: Outage) -> Refusal {
    tracing::warn!(
        reason = "token_review_unavailable",
        "no token can be reviewed: {outage}"
    );
    Refusal::new(
        RefusalReason::TokenReviewUnavailable,
        "the CA cannot ask the Kubernetes API whose token this is; try again shortly",
    )
}

/// Namespace and name of `system:serviceaccount:<namespace>:<name>`; both as Kubernetes allows them, no more.
fn account_of(username: &str) -> Option<(&str, &str)> {
    let (namespace, account) = username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let plain = |text: &str, most: usize, dots: bool| {
        let inner =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || (dots && byte == b'.');
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        text.len() <= most && text.bytes().all(inner) && edge(text.bytes().next()) && edge(text.bytes().last())
    };
    (plain(namespace, 63, false) && plain(account, 253, true)).then_some((namespace, account))
}

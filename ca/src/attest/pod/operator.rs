//! Who may operate the quarantine of a cluster: whoever may make a token of one service account, which is nobody's pod and has
//! no rights of its own. So it is RBAC that decides, and control is not in the way.

use postern_api::ca_client::KubernetesToken;
use postern_api::quarantine_wire::{OPERATOR_ACCOUNT, OPERATOR_AUDIENCE};
use postern_api::refusal::RefusalReason;
use rustls_pki_types::UnixTime;

use super::{ByPod, Review, claims, unavailable};
use crate::refusal::Refusal;

/// What every caller hears whose token does not hold.
const NOT_AN_OPERATOR: &str = "the token is not an operator's: one of the service account postern-responder, for the audience \
     postern-ca-operator";

impl ByPod {
    /// The token is an operator's.
    pub(crate) async fn operator(&self, token: &str, now: UnixTime) -> Result<(), Refusal> {
        let refused = || Refusal::new(RefusalReason::ServiceAccountToken, NOT_AN_OPERATOR);
        let token = KubernetesToken::parse(token).map_err(|_| refused())?;
        if !claims::may_hold(token.expose(), now) {
            return Err(refused());
        }
        let review = self
            .reviewed(token.expose(), OPERATOR_AUDIENCE)
            .await
            .map_err(unavailable)?;
        match is_operator(&review) {
            true => Ok(()),
            false => Err(refused()),
        }
    }
}

fn is_operator(review: &Review) -> bool {
    review.authenticated
        && review.audiences.iter().any(|audience| audience == OPERATOR_AUDIENCE)
        && review.username == format!("system:serviceaccount:postern-system:{OPERATOR_ACCOUNT}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review() -> Review {
        Review {
            authenticated: true,
            audiences: vec!["postern-ca-operator".to_owned()],
            username: "system:serviceaccount:postern-system:postern-responder".to_owned(),
            ..Review::default()
        }
    }

    #[test]
    fn an_operators_token_is_of_one_account_and_for_one_audience() {
        assert!(is_operator(&review()));
        let wrong = [
            Review {
                authenticated: false,
                ..review()
            },
            Review {
                audiences: vec!["postern-ca".to_owned()],
                ..review()
            },
            Review {
                audiences: Vec::new(),
                ..review()
            },
            Review {
                username: "system:serviceaccount:shop:postern-responder".to_owned(),
                ..review()
            },
            Review {
                username: "system:serviceaccount:postern-system:postern-control".to_owned(),
                ..review()
            },
            Review {
                username: "postern-responder".to_owned(),
                ..review()
            },
        ];
        for review in wrong {
            assert!(!is_operator(&review), "{review:?}");
        }
    }
}

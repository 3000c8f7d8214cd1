//! The API server as the reviewer: `authentication.k8s.io/v1` TokenReview.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use postern_cluster::confidential;

use super::{Outage, Review, Reviewer};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server.
pub(crate) struct ByApi {
    pub(crate) client: Client,
}

impl Reviewer for ByApi {
    fn review<'a>(&'a self, token: &'a str, audience: &'static str) -> BoxFuture<'a, Result<Review, Outage>> {
        Box::pin(async move {
            let request = TokenReview {
                spec: TokenReviewSpec {
                    audiences: Some(vec![audience.to_owned()]),
                    token: Some(token.to_owned()),
                },
                ..TokenReview::default()
            };
            let answer: TokenReview = confidential::create(&self.client, REVIEWS, &request)
                .await
                .map_err(|error| Outage(crate::error_chain(&error)))?;
            let status = answer
                .status
                .ok_or_else(|| Outage("the review came back without a status".to_owned()))?;
            let user = status.user.unwrap_or_default();
            let mut extra: BTreeMap<String, Vec<String>> = user.extra.unwrap_or_default();
            Ok(Review {
                authenticated: status.authenticated.unwrap_or(false),
                audiences: status.audiences.unwrap_or_default(),
                username: user.username.unwrap_or_default(),
                pod_uids: extra.remove(POD_UID).unwrap_or_default(),
                error: status.error,
            })
        })
    }
}

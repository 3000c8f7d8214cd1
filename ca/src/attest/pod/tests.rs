//! C-3: tokens that do not hold, each by its name.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_cluster::testing::{ApiServer, Reaction, status};
use serde_json::{Value, json};

use super::*;

const UID: &str = "7f2c9a52-13a5-4c0e-9d8f-1b2f0f6f7a11";
const NOW: u64 = 1_800_000_000;

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

fn token_with(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.c2lnbmF0dXJl",
        part(&json!({"alg": "RS256", "kid": "k"})),
        part(claims)
    )
}

fn token() -> String {
    token_with(&json!({"exp": NOW + 3600, "aud": ["postern-ca"]}))
}

fn good() -> Review {
    Review {
        authenticated: true,
        audiences: vec!["postern-ca".to_owned()],
        username: "system:serviceaccount:shop:web".to_owned(),
        pod_uids: vec![UID.to_owned()],
        error: None,
    }
}

/// Says the same each time, and counts how often it was asked.
#[derive(Clone)]
struct Played {
    says: Arc<Mutex<Option<Result<Review, Outage>>>>,
    asked: Arc<AtomicUsize>,
    /// Reviews under way.
    inside: Arc<()>,
    /// Most of them at once.
    most: Arc<AtomicUsize>,
}

impl Played {
    /// `None`: nothing, ever.
    fn new(says: Option<Result<Review, Outage>>) -> Self {
        Self {
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
            inside: Arc::default(),
            most: Arc::default(),
        }
    }
}

impl Reviewer for Played {
    fn review<'a>(&'a self, _token: &'a str, _audience: &'static str) -> BoxFuture<'a, Result<Review, Outage>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let says = self.says.lock().unwrap().clone();
        let inside = Arc::clone(&self.inside);
        // All but the two of the test and of who asks.
        self.most.fetch_max(Arc::strong_count(&inside) - 2, Ordering::SeqCst);
        Box::pin(async move {
            let _inside = inside;
            match says {
                Some(said) => said,
                None => std::future::pending().await,
            }
        })
    }
}

fn by(reviewer: impl Reviewer + 'static) -> ByPod {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let own = SpiffeId::for_workload(&domain, "postern-system", "postern-ca").unwrap();
    ByPod::new(Box::new(reviewer), domain, own)
}

async fn attest(by: &ByPod, token: &str) -> Result<(String, String), Refusal> {
    let attested = by.attest(Zeroizing::new(token.to_owned()), b"", [0; 32], now()).await?;
    Ok((attested.id.to_string(), attested.instance.unwrap().as_str().to_owned()))
}

async fn reason_of(says: Result<Review, Outage>) -> RefusalReason {
    attest(&by(Played::new(Some(says))), &token())
        .await
        .unwrap_err()
        .reason()
}

/// Refused without a word to the API server.
async fn refused_unasked(token: &str) {
    let played = Played::new(Some(Ok(good())));
    let refusal = attest(&by(played.clone()), token).await.unwrap_err();
    assert_eq!(refusal.reason(), RefusalReason::ServiceAccountToken);
    assert_eq!(refusal.to_string(), NOT_ACCEPTED);
    assert_eq!(played.asked.load(Ordering::SeqCst), 0);
}

/// Refused by what the API server says, with the one sentence that all hear.
async fn not_accepted(change: impl FnOnce(&mut Review)) {
    let mut review = good();
    change(&mut review);
    let refusal = attest(&by(Played::new(Some(Ok(review)))), &token()).await.unwrap_err();
    assert_eq!(
        (refusal.reason(), refusal.to_string().as_str()),
        (RefusalReason::ServiceAccountToken, NOT_ACCEPTED)
    );
}

fn unauthenticated(error: &str) -> impl FnOnce(&mut Review) + use<> {
    let error = error.to_owned();
    move |review| {
        *review = Review {
            error: Some(error),
            ..Review::default()
        }
    }
}

#[tokio::test]
async fn a_pods_token_makes_its_service_account_and_its_pods_uid() {
    let (id, instance) = attest(&by(Played::new(Some(Ok(good())))), &token()).await.unwrap();
    assert_eq!(
        (id.as_str(), instance.as_str()),
        ("spiffe://cluster.local/ns/shop/sa/web", UID)
    );
}

#[tokio::test]
async fn c_03_an_expired_token_is_refused_by_us_and_by_the_review() {
    refused_unasked(&token_with(&json!({"exp": NOW - 61}))).await;
    not_accepted(unauthenticated("service account token has expired")).await;
    // Within the leeway of clocks the API server judges.
    let played = Played::new(Some(Ok(good())));
    attest(&by(played), &token_with(&json!({"exp": NOW - 60})))
        .await
        .unwrap();
}

#[tokio::test]
async fn c_03_a_token_without_an_expiry_is_refused_whatever_the_review_would_say() {
    for claims in [
        json!({"aud": ["postern-ca"]}),
        json!({"exp": null}),
        json!({"exp": "never"}),
        json!({"exp": -1}),
        json!([]),
    ] {
        refused_unasked(&token_with(&claims)).await;
    }
}

#[tokio::test]
async fn c_03_a_token_that_is_not_valid_yet_is_refused() {
    not_accepted(unauthenticated("token is not valid yet (nbf)")).await;
}

#[tokio::test]
async fn c_03_a_token_for_another_audience_is_refused_even_if_the_review_says_authenticated() {
    for audiences in [
        vec![],
        vec!["https://kubernetes.default.svc"],
        vec!["postern-ca "],
        vec!["Postern-CA"],
        vec!["vault"],
    ] {
        not_accepted(|review| review.audiences = audiences.into_iter().map(str::to_owned).collect()).await;
    }
}

#[tokio::test]
async fn c_03_a_token_of_another_issuer_is_refused() {
    not_accepted(unauthenticated("invalid bearer token, service account issuer")).await;
}

#[tokio::test]
async fn c_03_a_token_of_a_deleted_pod_is_refused_also_if_it_was_good_a_moment_ago() {
    let played = Played::new(Some(Ok(good())));
    let by = by(played.clone());
    attest(&by, &token()).await.unwrap();
    let gone = Review {
        error: Some("pod is gone".to_owned()),
        ..Review::default()
    };
    *played.says.lock().unwrap() = Some(Ok(gone));
    assert_eq!(
        attest(&by, &token()).await.unwrap_err().reason(),
        RefusalReason::ServiceAccountToken
    );
    assert_eq!(played.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn c_03_a_huge_token_is_refused_and_one_at_the_bound_is_reviewed() {
    let longest = KubernetesToken::MAX_LEN;
    let long = |length: usize| {
        let token = token();
        format!("{token}{}", "A".repeat(length - token.len()))
    };
    refused_unasked(&long(longest + 1)).await;
    attest(&by(Played::new(Some(Ok(good())))), &long(longest))
        .await
        .unwrap();
}

#[tokio::test]
async fn c_03_what_is_no_signed_jwt_is_refused() {
    let unsigned = token().rsplit_once('.').unwrap().0.to_owned();
    for bad in [
        String::new(),
        "opaque".to_owned(),
        // alg none has an empty signature.
        format!("{unsigned}."),
        unsigned,
        format!("{}.more", token()),
        "a.!.b".to_owned(),
        "a.AAAA.b".to_owned(),
    ] {
        refused_unasked(&bad).await;
    }
    not_accepted(unauthenticated(
        "square/go-jose: unexpected signature algorithm \"none\"",
    ))
    .await;
}

#[tokio::test]
async fn c_03_who_is_not_a_service_account_is_refused() {
    for username in [
        "",
        "admin",
        "system:node:n1",
        "system:serviceaccount:shop",
        "system:serviceaccount::web",
        "system:serviceaccount:shop:",
        "system:serviceaccount:shop:web:x",
        "system:serviceaccount:Shop:web",
        "system:serviceaccount:shop:web/../../x",
        "system:serviceaccount:shop.x:web",
        "system:serviceaccount:shop:-web",
        "x:system:serviceaccount:shop:web",
        "System:serviceaccount:shop:web",
    ] {
        not_accepted(|review| review.username = username.to_owned()).await;
    }
    let mut dotted = good();
    dotted.username = "system:serviceaccount:shop-1:web.v1".to_owned();
    let (id, _) = attest(&by(Played::new(Some(Ok(dotted)))), &token()).await.unwrap();
    assert_eq!(id, "spiffe://cluster.local/ns/shop-1/sa/web.v1");
}

#[tokio::test]
async fn c_03_a_token_that_is_not_bound_to_exactly_one_pod_is_refused() {
    for uids in [vec![], vec![UID, UID], vec![""], vec!["a b"]] {
        let mut review = good();
        review.pod_uids = uids.into_iter().map(str::to_owned).collect();
        assert_eq!(reason_of(Ok(review)).await, RefusalReason::ServiceAccountUnbound);
    }
}

#[tokio::test]
async fn the_cas_own_identity_is_given_to_nobody() {
    let mut review = good();
    review.username = "system:serviceaccount:postern-system:postern-ca".to_owned();
    assert_eq!(reason_of(Ok(review)).await, RefusalReason::CallerIdentity);
}

#[tokio::test]
async fn c_03_an_outage_of_the_review_fails_closed_and_says_when_to_come_again() {
    let reason = reason_of(Err(Outage("connection refused".to_owned()))).await;
    assert_eq!(reason, RefusalReason::TokenReviewUnavailable);
    assert!(!reason.is_final() && reason.retry_after().is_some());
}

#[tokio::test]
async fn c_03_a_review_that_never_ends_is_an_outage_after_its_deadline() {
    let mut by = by(Played::new(None));
    assert_eq!(by.deadline, Duration::from_secs(3));
    by.deadline = SOON;
    let refusal = attest(&by, &token()).await.unwrap_err();
    assert_eq!(refusal.reason(), RefusalReason::TokenReviewUnavailable);
    assert_eq!(by.places.available_permits(), AT_ONCE);
}

#[tokio::test]
async fn reviews_under_way_are_bounded_and_whoever_waits_has_the_same_deadline() {
    let played = Played::new(None);
    let mut by = by(played.clone());
    by.deadline = SOON;
    let token = token();
    // All of the first are under way when the last one comes.
    let all = (0..=AT_ONCE).map(|_| attest(&by, &token));
    let outcomes = futures_util::future::join_all(all).await;
    let unavailable = |outcome: &Result<_, Refusal>| {
        outcome
            .as_ref()
            .is_err_and(|refusal| refusal.reason() == RefusalReason::TokenReviewUnavailable)
    };
    assert!(outcomes.iter().all(unavailable));
    assert_eq!(played.most.load(Ordering::SeqCst), AT_ONCE);
    assert_eq!(by.places.available_permits(), AT_ONCE);
}

/// A deadline that passes while a test waits.
const SOON: Duration = Duration::from_millis(50);

/// What a real API server answers, shortened.
fn answer(token: &str) -> Value {
    json!({
        "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "spec": {"token": token, "audiences": ["postern-ca"]},
        "status": {
            "authenticated": true, "audiences": ["postern-ca"],
            "user": {
                "username": "system:serviceaccount:shop:web", "uid": "u", "groups": ["system:serviceaccounts"],
                "extra": {"authentication.kubernetes.io/pod-name": ["web-1"], "authentication.kubernetes.io/pod-uid": [UID]}
            }
        }
    })
}

#[tokio::test]
async fn the_api_server_is_asked_for_our_audience_and_its_answer_is_read() {
    let server = ApiServer::start().await;
    let shown = token();
    let says = answer(&shown);
    server.react(move |_| Reaction::Answer(201, says.clone()));
    let by = by(ByApi {
        client: server.client(),
    });
    let (id, instance) = attest(&by, &shown).await.unwrap();
    assert_eq!(
        (id.as_str(), instance.as_str()),
        ("spiffe://cluster.local/ns/shop/sa/web", UID)
    );
    let calls = server.calls();
    assert_eq!(
        (calls[0].method.as_str(), calls[0].path.as_str()),
        ("POST", REVIEWS_PATH)
    );
    assert_eq!(
        calls[0].body["spec"],
        json!({"token": shown, "audiences": ["postern-ca"]})
    );
}

const REVIEWS_PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

#[tokio::test]
async fn c_03_whatever_else_the_api_server_answers_fails_closed_and_shows_no_token() {
    let server = ApiServer::start().await;
    let by = by(ByApi {
        client: server.client(),
    });
    let shown = token();
    let without_status = json!({"kind": "TokenReview", "metadata": {}, "spec": {"token": shown}});
    for (code, body) in [
        (500, status(500, "InternalError", "etcd")),
        (403, status(403, "Forbidden", "tokenreviews is forbidden")),
        (429, status(429, "TooManyRequests", "later")),
        (201, without_status),
        (201, json!({"spec": {"token": {"not": shown}}})),
        (200, json!("text")),
    ] {
        let says = body.clone();
        server.react(move |_| Reaction::Answer(code, says.clone()));
        let refusal = attest(&by, &shown).await.unwrap_err();
        assert_eq!(refusal.reason(), RefusalReason::TokenReviewUnavailable, "{code} {body}");
        assert!(!refusal.to_string().contains(&shown));
        let outage = ByApi {
            client: server.client(),
        }
        .review(&shown, AUDIENCE)
        .await
        .unwrap_err();
        assert!(!format!("{outage} {outage:?}").contains(&shown), "{outage}");
    }
    server.react(|_| Reaction::Answer(201, json!({"spec": {}, "status": {}})));
    assert_eq!(
        attest(&by, &shown).await.unwrap_err().reason(),
        RefusalReason::ServiceAccountToken
    );
    drop(server);
    assert_eq!(
        attest(&by, &shown).await.unwrap_err().reason(),
        RefusalReason::TokenReviewUnavailable
    );
}

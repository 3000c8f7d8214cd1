#![allow(clippy::unwrap_used)]
use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use postern_identity::{SharedTrust, TrustDomain};
use prometheus_client::registry::Registry;

use super::*;
use crate::Mesh;
use crate::metrics::Metrics;

/// Of an empty mesh.
fn explaining() -> Explaining {
    let mesh = Mesh::named(TrustDomain::parse("cluster.local").unwrap());
    let metrics = Metrics::register(&mut Registry::default());
    Explaining::new(Arc::new(Hub::new(mesh, SharedTrust::default(), metrics)))
}

/// An API server that says yes.
fn access() -> Access {
    let service = tower::service_fn(|_: Request<kube::client::Body>| async {
        let mut review = SubjectAccessReview::default();
        review.status.get_or_insert_default().allowed = true;
        let body = kube::client::Body::from(serde_json::to_vec(&review).unwrap());
        Ok::<_, Infallible>(Response::new(body))
    });
    Access::new(kube::Client::new(service, "default"))
}

fn text() -> Bytes {
    let document = json!({
        "apiVersion": API_VERSION, "kind": "Explanation",
        "spec": { "from": "plaintext", "to": "shop/cart", "toLabels": { "app": "cart" }, "port": 80 },
    });
    Bytes::from(document.to_string())
}

async fn ask<B>(explaining: &Explaining, body: B) -> Result<Value, ExplainError>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let (access, user) = (access(), User::default());
    explaining
        .explained(&access, &user, "shop", &HeaderMap::new(), body)
        .await
}

#[tokio::test(start_paused = true)]
async fn so_many_questions_are_read_at_once_and_the_next_one_waits() {
    let explaining = explaining();
    let at_once = u32::try_from(AT_ONCE).unwrap();
    let all_but_one = explaining.room.acquire_many(at_once - 1).await.unwrap();
    assert!(ask(&explaining, Full::new(text())).await.is_ok());
    let last = explaining.room.acquire().await.unwrap();
    let waits = ask(&explaining, Full::new(text()));
    assert!(timeout(BODY_DEADLINE * 100, waits).await.is_err());
    drop((all_but_one, last));
    assert!(ask(&explaining, Full::new(text())).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_gives_its_place_back() {
    let explaining = explaining();
    let silent = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    let asked = ask(&explaining, StreamBody::new(silent)).await;
    assert!(matches!(asked, Err(ExplainError::Body)), "{asked:?}");
    assert_eq!(explaining.room.available_permits(), AT_ONCE);
}

#[test]
fn a_question_goes_back_as_it_came_with_its_namespace() {
    let (document, question) = read(&text(), "shop").unwrap();
    assert_eq!(document["metadata"], json!({ "namespace": "shop" }));
    assert_eq!((question.to.as_str(), question.port), ("shop/cart", Some(80)));
    let mut sent: Value = serde_json::from_slice(&text()).unwrap();
    sent["metadata"] = json!({ "name": "mine", "labels": { "a": "b" } });
    sent["status"] = json!({ "verdict": "allowed", "madeUp": 1 });
    let (document, _) = read(sent.to_string().as_bytes(), "shop").unwrap();
    assert_eq!(
        document["metadata"],
        json!({ "name": "mine", "labels": { "a": "b" }, "namespace": "shop" })
    );
}

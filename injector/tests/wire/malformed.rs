//! I-1: what is no review gets a status, what is one gets a well-formed answer.

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{Full, StreamBody};
use serde_json::{Value, json};

use crate::caller::JSON;
use crate::world::{NAME, World, pod, review};

#[tokio::test]
async fn a_body_that_is_no_review_is_a_bad_request() {
    let world = World::start().await;
    let whole = review("pods", "shop", pod());
    let with = |change: fn(&mut Value)| {
        let mut changed = whole.clone();
        change(&mut changed);
        changed.to_string().into_bytes()
    };
    let text = whole.to_string().into_bytes();
    let bodies = [
        Vec::new(),
        text[..text.len() - 1].to_vec(),
        text[..text.len() / 2].to_vec(),
        with(|r| r["apiVersion"] = json!("admission.k8s.io/v1beta1")),
        with(|r| r["kind"] = json!("Pod")),
        with(|r| r["request"]["uid"] = json!("")),
        with(|r| drop(r["request"].as_object_mut().unwrap().remove("uid"))),
        with(|r| r["request"]["object"] = json!(null)),
        with(|r| r["request"] = json!(null)),
        with(|r| r["request"]["resource"]["resource"] = json!("deployments")),
        format!("[{}]", "[".repeat(100_000)).into_bytes(),
        b"\xff\xfe\x00".to_vec(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let answer = world.caller().post("/inject", body).await;
        assert_eq!(answer.status, 400, "{shown}: {}", answer.text());
        assert!(!answer.text().trim().is_empty());
    }
}

#[tokio::test]
async fn another_path_method_or_kind_of_body_is_told_so() {
    let world = World::start().await;
    let send = |method: Method, path: &'static str, kind: Option<&'static str>| {
        let request = Request::builder().method(method).uri(path).header(header::HOST, NAME);
        let request = kind
            .into_iter()
            .fold(request, |r, kind| r.header(header::CONTENT_TYPE, kind));
        let body = review("pods", "shop", pod()).to_string();
        let caller = world.caller();
        async move {
            caller
                .send(request.body(Full::new(Bytes::from(body))).unwrap())
                .await
                .unwrap()
                .status
        }
    };
    assert_eq!(send(Method::POST, "/", Some(JSON)).await, 404);
    assert_eq!(send(Method::POST, "/inject/", Some(JSON)).await, 404);
    assert_eq!(send(Method::GET, "/inject", Some(JSON)).await, 405);
    assert_eq!(send(Method::PUT, "/validate-pod", Some(JSON)).await, 405);
    assert_eq!(send(Method::POST, "/inject", None).await, 415);
    assert_eq!(send(Method::POST, "/inject", Some("text/plain")).await, 415);
    assert_eq!(
        send(Method::POST, "/inject", Some("Application/JSON; charset=utf-8")).await,
        200
    );
    assert_eq!(send(Method::POST, "/inject?timeout=10s", Some(JSON)).await, 200);
}

#[tokio::test]
async fn a_body_past_the_bound_is_too_large_whether_its_length_is_told_or_not() {
    let world = World::start().await;
    let most = 8 * 1024 * 1024;
    let answer = world.caller().post("/inject", vec![b' '; most]).await;
    assert_eq!(answer.status, 400, "at the bound it is read");
    let pieces = (0..=most / 65536).map(|_| Ok::<_, std::convert::Infallible>(vec![b' '; 65536]));
    let frames = pieces.map(|piece| piece.map(|piece| hyper::body::Frame::data(Bytes::from(piece))));
    let request = Request::post("/inject")
        .header(header::HOST, NAME)
        .header(header::CONTENT_TYPE, JSON);
    let streamed = request
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .unwrap();
    // The answer may come before all is sent, and the connection then ends.
    if let Ok(answer) = world.caller().send(streamed).await {
        assert_eq!(answer.status, 413);
    }
    let request = Request::post("/inject")
        .header(header::HOST, NAME)
        .header(header::CONTENT_TYPE, JSON);
    let long = request.body(Full::new(Bytes::from(vec![b' '; most + 1]))).unwrap();
    if let Ok(answer) = world.caller().send(long).await {
        assert_eq!(answer.status, 413);
    }
    // It serves on.
    assert!(
        world
            .caller()
            .review("/inject", &review("pods", "shop", pod()))
            .await
            .response()["allowed"]
            == true
    );
}

#[tokio::test]
async fn huge_and_foreign_pods_get_a_well_formed_answer() {
    let world = World::start().await;
    let mut huge = pod();
    let padding = "x".repeat(1000);
    let env: Vec<Value> = (0..3000)
        .map(|n| json!({ "name": format!("E{n}"), "value": padding }))
        .collect();
    huge["spec"]["containers"][0]["env"] = json!(env);
    let mut many = pod();
    let containers = (0..100).map(|n| json!({ "name": format!("c{n}"), "image": "i" }));
    many["spec"]["containers"] = containers.collect();
    let mut foreign = pod();
    foreign["metadata"]["labels"] = json!({ "ключ": "значение", "鍵": "🗝" });
    foreign["metadata"]["annotations"] = json!({ "example.org/ü": "\u{0}\u{202e}" });
    let mut unknown = pod();
    unknown["spec"]["futureField"] = json!({ "a": [1, 2.5, null] });
    unknown["spec"]["containers"][0]["futureField"] = json!(true);
    assert!(huge.to_string().len() > 3_000_000);
    for (name, pod) in [
        ("huge", huge),
        ("many", many),
        ("foreign", foreign),
        ("unknown", unknown),
    ] {
        for path in ["/inject", "/validate-pod"] {
            let response = world
                .caller()
                .review(path, &review("pods", "shop", pod.clone()))
                .await
                .response();
            assert_eq!(response["uid"], "0b3b2c6e-1", "{name} {path}");
            assert!(response["allowed"].is_boolean(), "{name} {path}: {response}");
        }
    }
}

//! What becomes of pods and policies over the wire.

use base64::Engine as _;
use bytes::Bytes;
use http::Method;
use json_patch::Patch;
use serde_json::{Value, json};

use crate::world::{World, namespace, pod, review};

/// The pod with the response's patch.
fn patched(mut pod: Value, response: &Value) -> Value {
    assert_eq!(response["allowed"], true, "{response}");
    if let Some(patch) = response["patch"].as_str() {
        assert_eq!(response["patchType"], "JSONPatch");
        let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        let patch: Patch = serde_json::from_slice(&patch).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
    }
    pod
}

/// Does [`pod`] get a sidecar by this response?
fn is_injected(response: &Value) -> bool {
    has_proxy(&patched(pod(), response))
}

fn has_proxy(pod: &Value) -> bool {
    pod["spec"]["initContainers"]
        .as_array()
        .is_some_and(|all| all.iter().any(|container| container["name"] == "postern-proxy"))
}

#[tokio::test]
async fn a_pod_is_injected_over_http_1_and_2_and_each_has_a_token_of_its_own() {
    let world = World::start().await;
    let mut asked = pod();
    asked["spec"]["containers"][0]["readinessProbe"] = json!({ "httpGet": { "path": "/", "port": 8080 } });
    let pod = asked.clone();
    let asked = review("pods", "shop", asked);
    let one = world.caller().review("/inject", &asked).await.response();
    let mut connection = world.caller().http2().await.unwrap();
    let body = Bytes::from(asked.to_string());
    let two = connection.post("/inject", body).await.unwrap().response();
    assert!(has_proxy(&patched(pod.clone(), &one)) && has_proxy(&patched(pod, &two)));
    assert_ne!(one["patch"], two["patch"], "two pods with one token");
}

#[tokio::test]
async fn an_injected_pod_passes_its_validation_and_a_second_injection_changes_nothing() {
    let world = World::start().await;
    let once = patched(
        pod(),
        &world
            .caller()
            .review("/inject", &review("pods", "shop", pod()))
            .await
            .response(),
    );
    let again = review("pods", "shop", once);
    let response = world.caller().review("/inject", &again).await.response();
    assert_eq!((&response["allowed"], &response["patch"]), (&json!(true), &Value::Null));
    assert_eq!(
        world.caller().review("/validate-pod", &again).await.response()["allowed"],
        true
    );
    let bare = review("pods", "shop", pod());
    let response = world.caller().review("/validate-pod", &bare).await.response();
    assert_eq!(
        (&response["allowed"], &response["status"]["code"]),
        (&json!(false), &json!(403))
    );
}

#[tokio::test]
async fn a_dry_run_is_answered_alike_and_changes_nothing() {
    let world = World::start().await;
    let mut dry = review("pods", "shop", pod());
    dry["request"]["dryRun"] = json!(true);
    assert!(is_injected(&world.caller().review("/inject", &dry).await.response()));
    assert!(world.api.calls().iter().all(|call| call.method == Method::GET));
}

#[tokio::test]
async fn a_bad_annotation_is_refused_by_name() {
    let world = World::start().await;
    let mut wrong = pod();
    wrong["metadata"]["annotations"] = json!({ "postern.dev/skip-outbound-port": "3306" });
    let response = world
        .caller()
        .review("/inject", &review("pods", "shop", wrong))
        .await
        .response();
    assert_eq!(response["allowed"], false);
    assert_eq!(
        (&response["status"]["code"], &response["status"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("skip-outbound-ports"), "{message}");
}

#[tokio::test]
async fn other_operations_pass_unchanged() {
    let world = World::start().await;
    for (path, operation) in [
        ("/inject", "UPDATE"),
        ("/inject", "DELETE"),
        ("/validate-pod", "DELETE"),
        ("/validate-policy", "DELETE"),
    ] {
        let resource = if path == "/validate-policy" {
            "postern.dev/authorizationpolicies"
        } else {
            "pods"
        };
        let mut asked = review(resource, "shop", pod());
        asked["request"]["operation"] = json!(operation);
        if operation == "DELETE" {
            asked["request"]["object"] = Value::Null;
        }
        let response = world.caller().review(path, &asked).await.response();
        assert_eq!(
            response,
            json!({ "uid": "0b3b2c6e-1", "allowed": true }),
            "{path} {operation}"
        );
    }
}

#[tokio::test]
async fn a_debugging_container_is_looked_at() {
    let world = World::start().await;
    let injected = patched(
        pod(),
        &world
            .caller()
            .review("/inject", &review("pods", "shop", pod()))
            .await
            .response(),
    );
    for (user, allowed) in [(1000, true), (15371, false)] {
        let mut debugged = injected.clone();
        debugged["spec"]["ephemeralContainers"] =
            json!([{ "name": "debug", "image": "sh", "securityContext": { "runAsUser": user } }]);
        let mut asked = review("pods", "shop", debugged);
        asked["request"]["operation"] = json!("UPDATE");
        asked["request"]["subResource"] = json!("ephemeralcontainers");
        let response = world.caller().review("/validate-pod", &asked).await.response();
        assert_eq!(response["allowed"], allowed, "{response}");
    }
}

#[tokio::test]
async fn a_pod_stays_outside_only_by_labels_read_just_then() {
    let world = World::start().await;
    let ask = || async {
        world
            .caller()
            .review("/inject", &review("pods", "plain", pod()))
            .await
            .response()
    };
    assert!(!is_injected(&ask().await));
    // Labelled, and no watch event has come yet.
    let labels = json!({ "postern.dev/inject": "enabled" });
    world.api.put("/api/v1/namespaces/plain", namespace("plain", &labels));
    assert!(is_injected(&ask().await));
    // What a review has read is not kept: it may be older by then than what the watch has brought.
    assert!(world.cluster.namespaces.seen("plain").is_none());
}

#[tokio::test]
async fn a_validation_takes_no_pod_for_one_outside_by_labels_of_a_moment_ago() {
    let world = World::start().await;
    let list = "/api/v1/namespaces";
    let plain = namespace("plain", &json!({}));
    world.api.put(
        list,
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": { "resourceVersion": "1" }, "items": [plain],
        }),
    );
    let following = tokio::spawn(world.cluster.namespaces.clone().follow());
    while world.cluster.namespaces.seen("plain").is_none() {
        tokio::task::yield_now().await;
    }
    following.abort();
    let labels = json!({ "postern.dev/inject": "enabled" });
    world.api.put("/api/v1/namespaces/plain", namespace("plain", &labels));
    let asked = review("pods", "plain", pod());
    let response = world.caller().review("/validate-pod", &asked).await.response();
    assert_eq!(response["allowed"], false, "{response}");
}

#[tokio::test]
async fn a_namespace_that_cannot_be_read_is_worth_another_try() {
    let world = World::start().await;
    let asked = review("pods", "nowhere", pod());
    let response = world.caller().review("/inject", &asked).await.response();
    assert_eq!(
        (&response["allowed"], &response["status"]["code"]),
        (&json!(false), &json!(503))
    );
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("namespace nowhere"), "{message}");
}

#[tokio::test]
async fn without_roots_pods_are_refused_until_the_ca_has_written_them() {
    let world = World::start_with(false, true).await;
    let asked = review("pods", "shop", pod());
    let response = world.caller().review("/inject", &asked).await.response();
    assert_eq!(
        (&response["allowed"], &response["status"]["code"]),
        (&json!(false), &json!(503))
    );
    assert!(
        response["status"]["message"]
            .as_str()
            .unwrap()
            .contains("postern-ca-roots")
    );
    world.cluster.roots.take(&"cd".repeat(32)).unwrap();
    assert!(is_injected(&world.caller().review("/inject", &asked).await.response()));
}

#[tokio::test]
async fn a_wrong_policy_is_refused_with_its_path_and_the_nearest_name() {
    let world = World::start().await;
    let policy = |field: &str| {
        json!({
            "apiVersion": "postern.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "cart" },
            "spec": { "rules": [{ "from": [{ "source": { field: ["cluster.local/ns/shop/sa/web"] } }] }] },
        })
    };
    let ask = |field: &str| {
        let asked = review("postern.dev/authorizationpolicies", "shop", policy(field));
        let caller = world.caller();
        async move { caller.review("/validate-policy", &asked).await.response() }
    };
    assert_eq!(ask("principals").await["allowed"], true);
    let response = ask("principal").await;
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("spec.rules[0].from[0].source.principal"), "{message}");
    assert!(message.contains("did you mean `principals`?"), "{message}");
}

/// A measurement: `cargo test --release -p postern-injector --test wire -- --ignored --nocapture p99`.
#[tokio::test]
#[ignore = "a measurement, which asserts nothing about time"]
async fn p99_of_reviews_over_one_connection() {
    let world = World::start().await;
    let mut connection = world.caller().http2().await.unwrap();
    let body = Bytes::from(review("pods", "shop", pod()).to_string());
    let mut took = Vec::new();
    for _ in 0..5000 {
        let begun = std::time::Instant::now();
        assert_eq!(connection.post("/inject", body.clone()).await.unwrap().status, 200);
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    println!(
        "5000 reviews: p50 {:?}, p99 {:?}, most {:?}",
        took[2500], took[4950], took[4999]
    );
}

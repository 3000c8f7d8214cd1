//! Questions that are posted: what comes back, who may ask where, what is no question.

use bytes::Bytes;
use http::StatusCode;
use postern_control::Mesh;
use postern_control::explain::{Offline, Question};
use serde_json::{Value, json};

use super::message;
use super::played::{Front, Played};
use crate::world::{World, domain, id};

const HERE: &str = "/apis/view.postern.dev/v1alpha1/namespaces/shop/explanations";
const ANN: [(&str, &str); 2] = [("x-remote-user", "ann"), ("content-type", "application/json")];
/// As control has it.
const MAX_BODY: usize = 256 * 1024;

const POLICIES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {postern.dev/mode: protect}}
---
apiVersion: postern.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/items/*]}}]
  - to: [{operation: {paths: [/mine]}}]
    when: [{key: 'request.auth.claims[sub]', values: [ann]}]
  - to: [{operation: {hosts: [cart.example]}}]
  - to: [{operation: {paths: [/teller]}}]
    when: [{key: 'source.labels[app]', values: [teller]}]
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: vault, namespace: bank, labels: {app: vault}}
spec: {serviceAccount: vault}
---
apiVersion: postern.dev/v1alpha1
kind: Workload
metadata: {name: teller, namespace: bank, labels: {app: teller}}
spec: {serviceAccount: teller}
";

async fn shop(front: &Front) -> World {
    let files = [("shop.yaml", crate::world::SHOP), ("policies.yaml", POLICIES)];
    World::configured(&files, |config| config.api = Some(front.config())).await
}

fn explanation(spec: &Value) -> Value {
    json!({ "apiVersion": "view.postern.dev/v1alpha1", "kind": "Explanation", "spec": spec })
}

fn get(path: &str) -> Value {
    json!({ "method": "GET", "path": path, "host": "cart.shop" })
}

#[tokio::test]
async fn a_question_comes_back_with_the_answer_that_the_same_documents_give_offline() {
    let front = Front::new(Played::allowing("ann"));
    let world = shop(&front).await;
    let mesh = world.dir.path().join("mesh");
    let offline = Offline::read(std::slice::from_ref(&mesh), &Mesh::named(domain())).unwrap();
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let mut verdicts = Vec::new();
    for spec in [
        json!({ "from": id("web"), "to": "shop/cart", "http": get("/items/7") }),
        json!({ "from": "shop/web", "to": id("cart"), "http": get("/items/7"), "port": 80 }),
        json!({ "from": "shop/web", "to": "shop/cart", "http": get("/") }),
        json!({ "from": "plaintext", "to": "shop/cart", "http": get("/items/7") }),
        json!({ "from": "shop/web", "to": "shop/cart" }),
        json!({ "from": "shop/web", "to": "shop/cart", "http": { "method": "GET", "path": "/items/7" } }),
        json!({ "from": "bank/teller", "to": "shop/cart", "http": get("/teller") }),
        json!({
            "from": id("other"), "fromLabels": { "app": "teller" }, "to": "shop/new", "toLabels": { "app": "cart" }, "port": 81,
            "http": { "method": "POST", "path": "/mine", "host": "x", "headers": [["A", "b"]],
                      "claims": { "iss": "https://id.example", "sub": "ann" } },
            "sourceIp": "10.0.0.9", "destinationIp": "10.0.0.8", "sni": "Cart.Shop", "now": 1_700_000_000,
        }),
    ] {
        let sent = explanation(&spec);
        let (code, got) = client.post(HERE, &ANN, &sent).await;
        assert_eq!(code, StatusCode::CREATED, "{spec}: {got}");
        let question: Question = serde_json::from_value(spec.clone()).unwrap();
        let answer = serde_json::to_string(&offline.answer(&question).unwrap()).unwrap();
        // Offline, files are named as they were given.
        let answer: Value = serde_json::from_str(&answer.replace(&format!("{}/", mesh.display()), "")).unwrap();
        assert_eq!(got["status"], answer, "{spec}");
        assert_eq!(
            (&got["spec"], &got["kind"], &got["metadata"]["namespace"]),
            (&spec, &json!("Explanation"), &json!("shop"))
        );
        verdicts.push(answer["verdict"].as_str().map(str::to_owned));
    }
    let seen = |verdict: Option<&str>| verdicts.iter().any(|found| found.as_deref() == verdict);
    assert!(
        seen(Some("allowed")) && seen(Some("denied")) && seen(None),
        "{verdicts:?}"
    );
}

#[tokio::test]
async fn what_is_asked_next_is_answered_by_what_is_in_force_then() {
    let front = Front::new(Played::allowing("ann"));
    let world = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let asked = explanation(&json!({ "from": "shop/web", "to": "shop/cart", "http": get("/items/7") }));
    let (_, first) = client.post(HERE, &ANN, &asked).await;
    assert_eq!(first["status"]["verdict"], "allowed", "{first}");
    let cart = world.proxy("cart").await.started().await;
    world.write("policies.yaml", &POLICIES.replace("[GET]", "[PUT]"));
    let waited = tokio::time::timeout(crate::world::PATIENCE, async {
        loop {
            let (_, next) = client.post(HERE, &ANN, &asked).await;
            if next["status"]["verdict"] == "denied" {
                return next;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    let denied = waited.await.unwrap();
    assert_eq!(denied["status"]["nearest"]["field"], "methods", "{denied}");
    drop(cart);
}

#[tokio::test]
async fn who_asks_needs_the_right_to_create_explanations_where_the_call_goes() {
    let front = Front::new(Played::default());
    let world = shop(&front).await;
    front.played.allow_in("shop", "ann");
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let asked = explanation(&json!({ "from": "shop/web", "to": "shop/cart", "http": get("/items/7") }));
    let (code, document) = client.post(HERE, &ANN, &asked).await;
    assert_eq!(code, StatusCode::CREATED, "{document}");
    assert_eq!(
        front.played.reviews().pop().unwrap()["resourceAttributes"],
        json!({
            "group": "view.postern.dev", "version": "v1alpha1", "resource": "explanations", "verb": "create", "namespace": "shop",
        })
    );
    let bob = [("x-remote-user", "bob")];
    // Nobody hears what is wrong with a question that he may not ask.
    for body in [&asked, &json!("no question")] {
        let (code, document) = client.post(HERE, &bob, body).await;
        assert_eq!(code, StatusCode::FORBIDDEN, "{document}");
        assert_eq!(
            message(&document),
            "explanations.view.postern.dev is forbidden: User \"bob\" cannot create resource \"explanations\" in API group \
             \"view.postern.dev\" in the namespace \"shop\": RBAC says no"
        );
    }
    let mut nobody = front.dial(&world, None).await;
    assert_eq!(nobody.post(HERE, &ANN, &asked).await.0, StatusCode::UNAUTHORIZED);
    front.played.break_reviews();
    let (code, _) = client.post(HERE, &[("x-remote-user", "eve")], &asked).await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn an_answer_speaks_of_no_namespace_that_was_not_asked_about() {
    let front = Front::new(Played::default());
    let world = shop(&front).await;
    front.played.allow_in("shop", "ann");
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let vault = "spiffe://cluster.local/ns/bank/sa/vault";
    for to in ["bank/vault", vault, "bank/nothing"] {
        let asked = explanation(&json!({ "from": "shop/web", "to": to, "toLabels": { "app": "vault" } }));
        let (code, document) = client.post(HERE, &ANN, &asked).await;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{document}");
        assert!(
            message(&document).contains("is of namespace `bank`: an answer speaks of that namespace's policies"),
            "{document}"
        );
    }
    let mut elsewhere = explanation(&json!({ "from": "shop/web", "to": "shop/cart" }));
    elsewhere["metadata"] = json!({ "namespace": "bank" });
    let (code, document) = client.post(HERE, &ANN, &elsewhere).await;
    assert_eq!(code, StatusCode::BAD_REQUEST, "{document}");
    let before = front.played.reviews().len();

    // A caller by its name is looked up among the workloads of its own namespace, with what it is and its labels.
    for (from, to) in [("bank/teller", "shop/cart"), ("bank/nothing", "shop/cart")] {
        let asked = explanation(&json!({ "from": from, "to": to, "http": get("/teller") }));
        let (code, document) = client.post(HERE, &ANN, &asked).await;
        assert_eq!(code, StatusCode::FORBIDDEN, "{document}");
        assert!(message(&document).contains("in the namespace \"bank\""), "{document}");
    }
    assert_eq!(front.played.reviews().len(), before + 2);
    // An ID is a name that anybody may say.
    let asked = explanation(&json!({ "from": vault, "to": "shop/cart", "http": get("/items/7") }));
    let (code, document) = client.post(HERE, &ANN, &asked).await;
    assert_eq!(
        (code, &document["status"]["verdict"]),
        (StatusCode::CREATED, &json!("denied")),
        "{document}"
    );
    // What may be meant is looked for where the asker may look.
    for (from, to) in [("shop/teller", "shop/cart"), ("shop/web", "shop/vault")] {
        let (code, document) = client
            .post(HERE, &ANN, &explanation(&json!({ "from": from, "to": to })))
            .await;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{document}");
        assert!(!message(&document).contains("bank"), "{document}");
    }
    front.played.allow_in("bank", "ann");
    let asked = explanation(&json!({ "from": "bank/teler", "to": "shop/cart" }));
    let (_, document) = client.post(HERE, &ANN, &asked).await;
    assert!(
        message(&document).ends_with("did you mean `bank/teller`?"),
        "{document}"
    );
}

#[tokio::test]
async fn what_is_no_question_is_refused_in_words() {
    let front = Front::new(Played::allowing("ann"));
    let world = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let asked = explanation(&json!({ "from": "shop/web", "to": "shop/cart" }));
    let with = |pointer: &str, value: Value| {
        let mut asked = asked.clone();
        let (object, field) = pointer.rsplit_once('/').unwrap();
        asked.pointer_mut(object).unwrap()[field] = value;
        asked
    };
    let (bad, invalid) = (StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY);
    for (body, code, says) in [
        (
            with("/spec/fromm", json!("x")),
            bad,
            "spec: unknown field `fromm`; did you mean `from`?",
        ),
        (
            with("/spec/http", json!({ "pth": "/" })),
            bad,
            "spec.http: unknown field `pth`; did you mean `path`?",
        ),
        (
            with("/specs", json!({})),
            bad,
            "unknown field `specs`; did you mean `spec`?",
        ),
        (
            with("/metadata", json!({ "namespce": "shop" })),
            bad,
            "metadata: unknown field `namespce`; did you mean `namespace`?",
        ),
        (with("/spec/port", json!("http")), bad, "expected u16"),
        (with("/spec/sourceIp", json!("here")), bad, "IP address"),
        (
            with("/kind", json!("Edge")),
            bad,
            "not Explanation of view.postern.dev/v1alpha1",
        ),
        (
            with("/apiVersion", json!("view.postern.dev/v2")),
            bad,
            "view.postern.dev/v2",
        ),
        (json!([]), bad, "this is no Explanation: this is no object"),
        (with("/spec", json!([])), bad, "spec: this is no object"),
        (json!({ "spec": {} }), bad, "missing field `apiVersion`"),
        (with("/spec/to", json!("cart")), invalid, "--to: "),
        (
            with("/spec/to", json!("shop/carr")),
            invalid,
            "did you mean `shop/cart`?",
        ),
        (with("/spec/from", json!("web")), invalid, "--from: "),
        (with("/spec/port", json!(0)), invalid, "no port 0"),
        (
            with("/spec/http", json!({ "method": "GET", "path": "/%zz" })),
            invalid,
            "the path `/%zz` is refused",
        ),
    ] {
        let (answered, document) = client.post(HERE, &ANN, &body).await;
        assert_eq!(answered, code, "{body}: {document}");
        assert!(message(&document).contains(says), "{body}: {document}");
        assert_eq!(document["kind"], "Status");
    }
    let twice = asked.to_string().replace("\"to\":", "\"to\":\"shop/web\",\"to\":");
    let (code, document, _) = client.send_body("POST", HERE, &ANN, Bytes::from(twice)).await;
    assert_eq!(code, bad);
    assert!(message(&document).contains("duplicate field `to`"), "{document}");
    for kind in ["application/yaml", "application/vnd.kubernetes.protobuf"] {
        let headers = [("x-remote-user", "ann"), ("content-type", kind)];
        let (code, document) = client.post(HERE, &headers, &asked).await;
        assert_eq!(code, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{document}");
        client = front.dial(&world, Some(&front.proxy())).await;
    }
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        for path in [HERE, &format!("{HERE}/x"), &HERE.replace("namespaces/shop/", "")] {
            let (code, document, _) = client.send(method, path, &ANN).await;
            assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}: {document}");
        }
    }
}

#[tokio::test]
async fn a_body_has_a_longest_length() {
    let front = Front::new(Played::allowing("ann"));
    let world = shop(&front).await;
    let asked = explanation(&json!({ "from": "shop/web", "to": "shop/cart" })).to_string();
    for (length, code) in [
        (MAX_BODY, StatusCode::CREATED),
        (MAX_BODY + 1, StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let mut client = front.dial(&world, Some(&front.proxy())).await;
        let body = Bytes::from(format!("{asked}{}", " ".repeat(length - asked.len())));
        assert_eq!(client.send_body("POST", HERE, &ANN, body).await.0, code, "{length}");
    }
}

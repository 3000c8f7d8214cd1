//! An API server of a few objects in memory: GET, PUT and PATCH with resource versions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::oneshot;

type Interruption = (&'static str, Pin<Box<dyn Future<Output = ()> + Send>>);

const SECRET: &str = "/api/v1/namespaces/postern-system/secrets/postern-injector-tls";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/postern-injector";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/postern-injector";
const API_SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1alpha1.view.postern.dev";

#[derive(Clone, Default)]
pub(super) struct Played {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    interruption: Arc<Mutex<Option<Interruption>>>,
}

impl Played {
    pub(super) fn with_targets() -> Self {
        let played = Self::default();
        let webhook = |name: &str| {
            json!({
                "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": { "service": { "name": "postern-injector", "namespace": "postern-system", "path": "/inject" } },
            })
        };
        let named = |extra: Value| {
            let mut object =
                json!({ "metadata": { "name": "x", "resourceVersion": "1", "labels": { "kept": "yes" } } });
            object
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            object
        };
        let mut objects = played.objects.lock().unwrap();
        objects.insert(SECRET.to_owned(), named(json!({})));
        objects.insert(
            MUTATING.to_owned(),
            named(json!({ "webhooks": [webhook("a"), webhook("b")] })),
        );
        objects.insert(VALIDATING.to_owned(), named(json!({ "webhooks": [webhook("c")] })));
        let spec = json!({ "groupPriorityMinimum": 1000, "versionPriority": 15 });
        objects.insert(API_SERVICE.to_owned(), named(json!({ "spec": spec })));
        drop(objects);
        played
    }

    pub(super) fn client(&self) -> kube::Client {
        let played = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let played = played.clone();
            async move { Ok::<_, Infallible>(played.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// `first` runs to its end before the next request with this method is answered.
    pub(super) fn interrupt_before<T: Send + 'static>(
        &self,
        method: &'static str,
        first: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, receiver) = oneshot::channel();
        let run = Box::pin(async move {
            let _ = done.send(first.await);
        });
        *self.interruption.lock().unwrap() = Some((method, run));
        receiver
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let interruption = {
            let mut waiting = self.interruption.lock().unwrap();
            let matching = waiting.as_ref().is_some_and(|(method, _)| request.method() == *method);
            matching.then(|| waiting.take()).flatten()
        };
        if let Some((_, first)) = interruption {
            first.await;
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut objects = self.objects.lock().unwrap();
        let Some(object) = objects.get_mut(head.uri.path()) else {
            return status(StatusCode::NOT_FOUND, "NotFound");
        };
        if head.method != Method::GET {
            let new: Value = serde_json::from_slice(&body).unwrap();
            let version = new["metadata"]["resourceVersion"].clone();
            if version != object["metadata"]["resourceVersion"] {
                return status(StatusCode::CONFLICT, "Conflict");
            }
            match (&head.method, new["webhooks"].clone()) {
                (&Method::PUT, _) => *object = new,
                // A strategic merge: by name.
                (_, Value::Array(webhooks)) => {
                    for webhook in webhooks {
                        let all = object["webhooks"].as_array_mut().unwrap();
                        let own = all.iter_mut().find(|own| own["name"] == webhook["name"]).unwrap();
                        own["clientConfig"]["caBundle"] = webhook["clientConfig"]["caBundle"].clone();
                    }
                }
                _ => object["spec"]["caBundle"] = new["spec"]["caBundle"].clone(),
            }
            bump(object);
        }
        Response::new(Body::from(object.to_string().into_bytes()))
    }

    pub(super) fn secret(&self) -> Value {
        self.objects.lock().unwrap()[SECRET].clone()
    }

    pub(super) fn remove_secret(&self) {
        self.objects.lock().unwrap().remove(SECRET);
    }

    pub(super) fn annotate(&self, key: &str, value: &str) {
        let mut objects = self.objects.lock().unwrap();
        let secret = objects.get_mut(SECRET).unwrap();
        secret["metadata"]["annotations"][key] = json!(value);
        bump(secret);
    }

    pub(super) fn bundles(&self) -> Vec<Value> {
        let mut objects = self.objects.lock().unwrap();
        places(&mut objects).into_iter().map(|place| place.clone()).collect()
    }

    pub(super) fn webhook_path(&self) -> String {
        let objects = self.objects.lock().unwrap();
        let path = &objects[MUTATING]["webhooks"][0]["clientConfig"]["service"]["path"];
        path.as_str().unwrap().to_owned()
    }

    pub(super) fn spoil_bundles(&self) {
        let mut objects = self.objects.lock().unwrap();
        for place in places(&mut objects) {
            *place = json!("c3BvaWx0");
        }
        objects.values_mut().for_each(bump);
    }
}

fn places(objects: &mut BTreeMap<String, Value>) -> Vec<&mut Value> {
    let mut found = Vec::new();
    for object in objects.values_mut() {
        for (key, value) in object.as_object_mut().unwrap() {
            match key.as_str() {
                "webhooks" => {
                    let webhooks = value.as_array_mut().unwrap().iter_mut();
                    found.extend(webhooks.map(|webhook| &mut webhook["clientConfig"]["caBundle"]));
                }
                "spec" => found.push(&mut value["caBundle"]),
                _ => {}
            }
        }
    }
    found
}

fn bump(object: &mut Value) {
    let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16(),
    });
    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
    *response.status_mut() = code;
    response
}

//! An API server as control sees it: lists in pages, watches from a revision, bookmarks, and a past that is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) const PODS: &str = "/api/v1/pods";
pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const NAMESPACES: &str = "/api/v1/namespaces";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const POLICIES: &str = "/apis/postern.dev/v1alpha1/authorizationpolicies";
pub(crate) const AUTHORIZERS: &str = "/apis/postern.dev/v1alpha1/authorizers";
pub(crate) const ISTIO: &str = "/apis/security.istio.io/v1/authorizationpolicies";
pub(crate) const AUTHENTICATIONS: &str = "/apis/postern.dev/v1alpha1/requestauthentications";
pub(crate) const ISTIO_AUTHENTICATIONS: &str = "/apis/security.istio.io/v1/requestauthentications";
pub(crate) const PEER_AUTHENTICATIONS: &str = "/apis/postern.dev/v1alpha1/peerauthentications";
pub(crate) const ISTIO_PEER_AUTHENTICATIONS: &str = "/apis/security.istio.io/v1/peerauthentications";
pub(crate) const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// What all API servers of a cluster share.
#[derive(Debug, Default)]
pub(crate) struct Etcd {
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: u64,
    /// By collection, then by `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// Revision, collection, event.
    log: Vec<(u64, String, Value)>,
    /// Watches from before it are told that it is gone.
    compacted: u64,
    /// Collections that there are besides the built-in ones.
    istio: bool,
    applied: Vec<(String, Value)>,
}

/// One API server, or one replica's way to it.
#[derive(Debug)]
pub(crate) struct ApiServer {
    pub(crate) etcd: Arc<Etcd>,
    /// While it is true nothing goes through.
    held: watch::Sender<bool>,
    /// Collections that are held though the rest goes through.
    held_only: watch::Sender<BTreeSet<String>>,
    /// Grows when all watches are cut.
    cut: watch::Sender<u64>,
    /// Answers 503 to everything.
    broken: watch::Sender<bool>,
    /// Objects per page, if fewer than were asked for.
    page: usize,
    lists: Mutex<BTreeMap<String, usize>>,
}

impl Etcd {
    fn change(&self, collection: &str, kind: &str, mut object: Value) -> u64 {
        let mut inner = self.inner.lock().unwrap();
        inner.revision += 1;
        let revision = inner.revision;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let key = key(&object);
        let objects = inner.objects.entry(collection.to_owned()).or_default();
        let kind = match kind {
            "DELETED" => {
                objects.remove(&key);
                "DELETED"
            }
            _ if objects.insert(key, object.clone()).is_some() => "MODIFIED",
            _ => "ADDED",
        };
        let event = json!({ "type": kind, "object": object });
        inner.log.push((revision, collection.to_owned(), event));
        drop(inner);
        self.revision.send_replace(revision);
        revision
    }

    /// Creates or replaces; the revision.
    pub(crate) fn put(&self, collection: &str, object: Value) -> u64 {
        self.change(collection, "PUT", object)
    }

    pub(crate) fn delete(&self, collection: &str, object: Value) -> u64 {
        self.change(collection, "DELETED", object)
    }

    /// Something that nobody here watches: a Lease, an Event.
    pub(crate) fn pass(&self) -> u64 {
        self.put("/elsewhere", json!({ "metadata": { "name": "x" } }))
    }

    /// Forgets the past.
    pub(crate) fn compact(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.compacted = inner.revision;
        inner.log.clear();
    }

    pub(crate) fn install_istio(&self, there: bool) {
        let mut inner = self.inner.lock().unwrap();
        inner.istio = there;
        if !there {
            inner.objects.remove(ISTIO);
            inner.objects.remove(ISTIO_AUTHENTICATIONS);
            inner.objects.remove(ISTIO_PEER_AUTHENTICATIONS);
        }
        drop(inner);
        for plural in ["requestauthentications", "peerauthentications", "authorizationpolicies"] {
            match there {
                true => self.put(CRDS, istio_crd(plural)),
                false => self.delete(CRDS, istio_crd(plural)),
            };
        }
    }

    /// What was written, by path.
    pub(crate) fn applied(&self) -> Vec<(String, Value)> {
        self.inner.lock().unwrap().applied.clone()
    }

    /// All objects of a collection.
    pub(crate) fn all(&self, collection: &str) -> Vec<Value> {
        let inner = self.inner.lock().unwrap();
        inner
            .objects
            .get(collection)
            .into_iter()
            .flat_map(|all| all.values().cloned())
            .collect()
    }
}

fn is_named(object: &Value, named: Option<&str>) -> bool {
    named.is_none_or(|named| object["metadata"]["name"] == named)
}

fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

impl ApiServer {
    pub(crate) fn of(etcd: &Arc<Etcd>) -> Arc<Self> {
        Self::paging(etcd, usize::MAX)
    }

    pub(crate) fn paging(etcd: &Arc<Etcd>, page: usize) -> Arc<Self> {
        Arc::new(Self {
            etcd: Arc::clone(etcd),
            held: watch::Sender::default(),
            held_only: watch::Sender::default(),
            cut: watch::Sender::default(),
            broken: watch::Sender::default(),
            page,
            lists: Mutex::default(),
        })
    }

    /// A client that comes through here, without a socket.
    pub(crate) fn client(self: &Arc<Self>) -> kube::Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        kube::Client::new(service, "postern-system")
    }

    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
    pub(crate) fn hold_only(&self, collections: &[&str]) {
        self.held_only
            .send_replace(collections.iter().map(|&c| c.to_owned()).collect());
    }
    pub(crate) fn cut_watches(&self) {
        self.cut.send_modify(|cut| *cut += 1);
    }
    /// Cuts watches as well.
    pub(crate) fn breaks(&self, broken: bool) {
        self.broken.send_replace(broken);
        self.cut_watches();
    }
    /// How often a collection was listed (pages count once).
    pub(crate) fn lists(&self, collection: &str) -> usize {
        self.lists.lock().unwrap().get(collection).copied().unwrap_or(0)
    }

    async fn through(&self, collection: &str) {
        let (mut held, mut only) = (self.held.subscribe(), self.held_only.subscribe());
        loop {
            let _ = held.wait_for(|held| !held).await;
            let _ = only.wait_for(|only| !only.contains(collection)).await;
            if !*held.borrow() {
                return;
            }
        }
    }

    pub(crate) async fn answer<B>(self: Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body + Send,
        B::Error: std::fmt::Debug,
    {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
                .next_back()
        };
        self.through(&path).await;
        if *self.broken.borrow() {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "etcd is away");
        }
        if head.method != http::Method::GET {
            let Ok(bytes) = body.collect().await else {
                panic!("the body was cut")
            };
            let value: Value = serde_json::from_slice(&bytes.to_bytes()).unwrap_or_default();
            return self.write(&head.method, &path, value);
        }
        let named = parameter("fieldSelector").and_then(|selector| {
            let selector = selector.replace("%3D", "=");
            selector.strip_prefix("metadata.name=").map(ToOwned::to_owned)
        });
        // Control may read these two alone.
        let allowed = [
            "authorizationpolicies.security.istio.io",
            "requestauthentications.security.istio.io",
            "peerauthentications.security.istio.io",
        ];
        if path == CRDS && named.as_deref().is_none_or(|named| !allowed.contains(&named)) {
            return failure(StatusCode::FORBIDDEN, "customresourcedefinitions is forbidden");
        }
        let istios = [ISTIO, ISTIO_AUTHENTICATIONS, ISTIO_PEER_AUTHENTICATIONS];
        if istios.contains(&&*path) && !self.etcd.inner.lock().unwrap().istio {
            return failure(StatusCode::NOT_FOUND, "404 page not found");
        }
        if parameter("watch").is_some() {
            let from = parameter("resourceVersion")
                .and_then(|from| from.parse().ok())
                .unwrap_or(0);
            let seconds = parameter("timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(290);
            return self.watch(path, named, from, seconds);
        }
        if self.etcd.inner.lock().unwrap().objects.contains_key(&path) || is_collection(&path) {
            let limit = parameter("limit")
                .and_then(|limit| limit.parse().ok())
                .unwrap_or(usize::MAX);
            let page = (limit.min(self.page), parameter("continue"));
            return self.list(&path, named.as_deref(), page);
        }
        match self.one(&path) {
            Some(object) => document(&object),
            None => failure(StatusCode::NOT_FOUND, "not found"),
        }
    }

    fn list(&self, path: &str, named: Option<&str>, (limit, token): (usize, Option<String>)) -> Response<Body> {
        let (inner, skip) = (
            self.etcd.inner.lock().unwrap(),
            token.and_then(|token| token.parse().ok()).unwrap_or(0),
        );
        if skip == 0 {
            *self.lists.lock().unwrap().entry(path.to_owned()).or_default() += 1;
        }
        let all = inner.objects.get(path).into_iter().flat_map(BTreeMap::values);
        let all: Vec<&Value> = all.filter(|object| is_named(object, named)).collect();
        let items: Vec<&Value> = all.iter().skip(skip).take(limit).copied().collect();
        let mut metadata = json!({ "resourceVersion": inner.revision.to_string() });
        if skip + items.len() < all.len() {
            metadata["continue"] = json!((skip + items.len()).to_string());
        }
        document(&json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items }))
    }

    fn watch(self: &Arc<Self>, collection: String, named: Option<String>, from: u64, seconds: u64) -> Response<Body> {
        let server = Arc::clone(self);
        let (cut, revision) = (self.cut.subscribe(), self.etcd.revision.subscribe());
        let ends = tokio::time::Instant::now() + std::time::Duration::from_secs(seconds);
        let state = (server, cut, revision, (collection, named), from, ends, false);
        let events = futures_util::stream::unfold(state, |mut state| async move {
            let (server, cut, revision, (collection, named), at, ends, over) = &mut state;
            if *over {
                return None;
            }
            loop {
                revision.mark_unchanged();
                let next = {
                    let inner = server.etcd.inner.lock().unwrap();
                    if *at < inner.compacted && inner.revision > *at {
                        *over = true;
                        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                            "reason": "Expired", "message": "too old resource version" });
                        Some((*at, json!({ "type": "ERROR", "object": status })))
                    } else {
                        let mut log = inner.log.iter().filter(|(revision, of, event)| {
                            *revision > *at && of == collection && is_named(&event["object"], named.as_deref())
                        });
                        log.next().map(|(revision, _, event)| (*revision, event.clone()))
                    }
                };
                if let Some((revision, event)) = next {
                    tokio::select! {
                        biased;
                        _ = cut.changed() => return None,
                        () = server.through(collection) => {}
                    }
                    *at = revision;
                    return Some((Ok::<_, Infallible>(line(&event)), state));
                }
                let bookmark_at = *ends - std::time::Duration::from_secs(2);
                tokio::select! {
                    biased;
                    _ = cut.changed() => return None,
                    _ = revision.changed() => {}
                    () = tokio::time::sleep_until(bookmark_at) => {
                        server.through(collection).await;
                        *over = true;
                        let revision = server.etcd.inner.lock().unwrap().revision;
                        let bookmark = json!({ "type": "BOOKMARK", "object": { "apiVersion": "v1", "kind": "Pod",
                            "metadata": { "resourceVersion": revision.to_string() } } });
                        return Some((Ok(line(&bookmark)), state));
                    }
                }
            }
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }

    fn one(&self, path: &str) -> Option<Value> {
        let (collection, key) = split(path)?;
        self.etcd
            .inner
            .lock()
            .unwrap()
            .objects
            .get(&collection)?
            .get(&key)
            .cloned()
    }

    /// Server-side apply of a status, and Leases.
    fn write(&self, method: &http::Method, path: &str, value: Value) -> Response<Body> {
        self.etcd
            .inner
            .lock()
            .unwrap()
            .applied
            .push((path.to_owned(), value.clone()));
        if let Some(object_path) = path.strip_suffix("/status") {
            let Some(mut object) = self.one(object_path) else {
                return failure(StatusCode::NOT_FOUND, "not found");
            };
            let Some((collection, _)) = split(object_path) else {
                return failure(StatusCode::NOT_FOUND, "not found");
            };
            object["status"] = value["status"].clone();
            self.etcd.put(&collection, object.clone());
            return document(&object);
        }
        if *method == http::Method::POST {
            self.etcd.put(path, value.clone());
            return document(&value);
        }
        match split(path) {
            Some((collection, _)) if self.one(path).is_some() => {
                self.etcd.put(&collection, value.clone());
                document(&value)
            }
            _ => failure(StatusCode::NOT_FOUND, "not found"),
        }
    }
}

fn is_collection(path: &str) -> bool {
    [
        PODS,
        SERVICES,
        NAMESPACES,
        SLICES,
        POLICIES,
        AUTHORIZERS,
        ISTIO,
        AUTHENTICATIONS,
        ISTIO_AUTHENTICATIONS,
        PEER_AUTHENTICATIONS,
        ISTIO_PEER_AUTHENTICATIONS,
        CRDS,
    ]
    .contains(&path)
        || path.ends_with("/leases")
}

/// `/apis/g/v/namespaces/n/things/x` is `n/x` of `/apis/g/v/things`; Leases stay in the collection of their namespace.
fn split(path: &str) -> Option<(String, String)> {
    let (before, rest) = path.split_once("/namespaces/")?;
    let mut parts = rest.split('/');
    let (namespace, plural, name) = (parts.next()?, parts.next()?, parts.next()?);
    let collection = if plural == "leases" {
        format!("{before}/namespaces/{namespace}/leases")
    } else {
        format!("{before}/{plural}")
    };
    Some((collection, format!("{namespace}/{name}")))
}

fn line(event: &Value) -> Frame<Bytes> {
    Frame::data(Bytes::from(format!("{event}\n")))
}

fn document(document: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(document.to_string())).boxed_unsync());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}

fn failure(code: StatusCode, message: &str) -> Response<Body> {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "message": message,
        "reason": if code == StatusCode::NOT_FOUND { "NotFound" } else { "InternalError" } });
    let mut response = document(&status);
    *response.status_mut() = code;
    response
}

fn istio_crd(plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.security.istio.io") },
        "spec": {
            "group": "security.istio.io",
            "scope": "Namespaced",
            "names": { "kind": "Kind", "plural": plural },
            "versions": [{ "name": "v1", "served": true, "storage": true }],
        },
    })
}

/// A pod that runs, with our sidecar if it is `meshed`.
pub(crate) fn pod(namespace: &str, name: &str, ip: &str, meshed: bool) -> Value {
    let sidecar = json!([{ "name": "postern-proxy", "image": "p", "restartPolicy": "Always" }]);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": format!("uid-of-{name}"),
            "labels": { "app": name.split('-').next() },
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "serviceAccountName": name.split('-').next(),
            "initContainers": if meshed { sidecar } else { json!([]) },
            "containers": [{ "name": "app", "image": "a", "ports": [{ "containerPort": 8080, "name": "web" }] }],
        },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    })
}

pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// Port 80, named `http`.
pub(crate) fn service(namespace: &str, name: &str, cluster_ip: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "clusterIP": cluster_ip,
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

/// The slice of `service` that leads to port 8080 of these pods.
pub(crate) fn slice(namespace: &str, service: &str, pods: &[&Value]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod["status"]["podIP"]],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"] },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "namespace": namespace, "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

/// `spec` of a policy, whose generation is 1.
pub(crate) fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "postern.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "namespace": namespace, "name": name, "generation": 1, "uid": format!("uid-of-{name}") },
        "spec": spec,
    })
}

/// `spec` of a RequestAuthentication.
pub(crate) fn authentication(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "postern.dev/v1alpha1",
        "kind": "RequestAuthentication",
        "metadata": { "namespace": namespace, "name": name, "generation": 1, "uid": format!("uid-of-{name}") },
        "spec": spec,
    })
}

/// `spec` of a PeerAuthentication.
pub(crate) fn peer_authentication(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "postern.dev/v1alpha1",
        "kind": "PeerAuthentication",
        "metadata": { "namespace": namespace, "name": name, "generation": 1, "uid": format!("uid-of-{name}") },
        "spec": spec,
    })
}

//! An API server that is played: objects by path, writes with a precondition, and faults; over a real socket.
//!
//! It knows GET and PUT of objects that a test put there, and whatever else the test's [`Reaction`] answers. No
//! watches, no admission, no rights.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// GET, PUT, ...
    pub method: Method,
    /// Without the query.
    pub path: String,
    /// `null` if there is none.
    pub body: Value,
}

/// What is done about a request.
#[derive(Debug, Clone)]
pub enum Reaction {
    /// What an API server does.
    Pass,
    /// This status and body, whatever there is.
    Answer(u16, Value),
    /// Nothing is done, and no answer comes.
    Hang,
    /// It is done, and no answer comes.
    Lose,
}

type React = Box<dyn FnMut(&Call) -> Reaction + Send>;

struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    react: React,
    calls: Vec<Call>,
}

/// The server; gone when dropped.
pub struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl ApiServer {
    /// Serves on a free loopback port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            version: 0,
            react: Box::new(|_| Reaction::Pass),
            calls: Vec::new(),
        }));
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            address,
            state,
            accepting,
        }
    }
    /// A kubeconfig that leads to it, for a process of its own.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "played",
            "clusters": [{"name": "played", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "played", "user": {}}],
            "contexts": [{"name": "played", "context": {"cluster": "played", "user": "played"}}]
        })
        .to_string()
    }
    /// A client of it.
    #[must_use]
    pub fn client(&self) -> Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let uri = format!("http://{}", self.address).parse().unwrap();
        let mut config = Config::new(uri);
        // As in `crate::client`.
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }
    /// Puts an object at its path, as if somebody had written it.
    pub fn put(&self, path: &str, object: Value) {
        self.lock().store(path, object);
    }
    /// The object as it is now.
    #[must_use]
    pub fn object(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }
    /// From now on each request is shown to this first.
    pub fn react(&self, react: impl FnMut(&Call) -> Reaction + Send + 'static) {
        self.lock().react = Box::new(react);
    }
    /// Everything that was asked, oldest first.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn pass(&mut self, call: &Call) -> (u16, Value) {
        let Some(found) = self.objects.get(&call.path) else {
            return (404, status(404, "NotFound", &format!("{} is not there", call.path)));
        };
        match call.method.as_str() {
            "GET" => (200, found.clone()),
            "PUT" => {
                let (wanted, is) = (
                    &call.body["metadata"]["resourceVersion"],
                    &found["metadata"]["resourceVersion"],
                );
                if !wanted.is_null() && wanted != is {
                    return (409, status(409, "Conflict", "the object has been modified"));
                }
                (200, self.store(&call.path, call.body.clone()))
            }
            other => (405, status(405, "MethodNotAllowed", other)),
        }
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let call = Call {
        method: head.method,
        path: head.uri.path().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let answer = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.calls.push(call.clone());
        match (state.react)(&call) {
            Reaction::Pass => Some(state.pass(&call)),
            Reaction::Answer(code, body) => Some((code, body)),
            Reaction::Hang => None,
            Reaction::Lose => {
                state.pass(&call);
                None
            }
        }
    };
    let Some((code, body)) = answer else {
        return std::future::pending().await;
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A refusal as an API server writes it.
#[must_use]
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": message, "reason": reason, "code": code})
}

//! The admin socket: what this proxy is, holds and enforces, as JSON. A Unix socket of mode 0600 that app containers do not
//! mount; it shows no key, token or header, and changes nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_identity::bundle::fingerprint;
use postern_policy::{AuthorizationPolicy, StringMatch};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::config::RunArgs;
use crate::flows::hex;
use crate::snapshot::{Destination, Door, Shared, Target};
use crate::status::Status;

/// Operators are few.
const MAX_CONNECTIONS: usize = 8;
/// They send their head at once and read at once.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);

/// What is shown.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) args: RunArgs,
    pub(crate) shared: Arc<Shared>,
    pub(crate) status: Arc<Status>,
}

/// Binds a socket, mode 0600, replacing one that an earlier process left behind.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        // Never removes what is not ours: bind will say that it is in use.
        Ok(_) | Err(_) => {}
    }
    // No other thread runs yet: nobody else's files are made under this mask.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Admin {
    /// Serves until dropped.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) -> Infallible {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                std::future::pending().await
            };
            let Ok((socket, _)) = listener.accept().await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let admin = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    std::future::ready(Ok::<_, Infallible>(
                        admin.answer(request.method(), request.uri().path()),
                    ))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(CONNECTION_DEADLINE)
                    .serve_connection(TokioIo::new(socket), service);
                let _ = timeout(CONNECTION_DEADLINE, connection).await;
                drop(permit);
            });
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, body) = match (method, path) {
            (&Method::GET, "/config") => (StatusCode::OK, self.config()),
            (&Method::GET, "/certs") => (StatusCode::OK, self.certs()),
            (&Method::GET, "/policies") => (StatusCode::OK, self.policies()),
            (&Method::GET, _) => (
                StatusCode::NOT_FOUND,
                json!({"error": "here are /config, /certs and /policies"}),
            ),
            _ => (StatusCode::METHOD_NOT_ALLOWED, json!({"error": "only GET"})),
        };
        let mut response = Response::new(Full::new(Bytes::from(format!("{body:#}\n"))));
        *response.status_mut() = status;
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }

    fn config(&self) -> Value {
        let policy = self.shared.policy.load();
        let workload = policy.as_ref().map(|policy| &policy.workload);
        let ports = workload.map(|workload| {
            let port = |port: &crate::snapshot::Port| {
                json!({"name": &*port.name, "number": port.number, "protocol": port.protocol.as_str(),
                       "listen": port.listen, "app": port.app, "mtls": workload.mtls.of(port.number).as_str()})
            };
            workload.ports.iter().map(port).collect::<Vec<_>>()
        });
        let destinations = self.shared.destinations.known();
        json!({
            "version": postern_api::VERSION,
            "ca": self.args.ca,
            "identity": self.args.identity.source().kind(),
            "control": self.args.control,
            "trust_domain": self.args.trust_domain.as_str(),
            "capture": format!("{:?}", self.args.capture).to_lowercase(),
            "workers": self.args.worker_count(),
            "ready": self.status.readiness().err().map_or(json!(true), |why| json!({"not": why})),
            "workload": workload.map(|w| json!({"namespace": w.namespace, "name": w.name,
                "mode": format!("{:?}", w.mode).to_lowercase(), "mtls": w.mtls.usual.as_str(),
                "mtls_by_port": w.mtls.ports.iter().map(|(port, mode)| (port.to_string(), mode.as_str())).collect::<BTreeMap<_, _>>(),
                "ports": ports})),
            "destinations": destinations.iter().map(|(t, d)| destination(t, d)).collect::<Vec<_>>(),
        })
    }

    fn certs(&self) -> Value {
        let identity = self.shared.identity.load();
        let trust = self.shared.trust.load();
        let bundle = trust.bundles.get(self.args.trust_domain.as_str());
        json!({
            "svid": identity.as_ref().map(|identity| {
                let leaf = identity.svid.leaf();
                json!({"generation": identity.generation, "spiffe_id": leaf.id.as_str(),
                       "instance": leaf.instance.as_ref().map(|i| i.as_str()), "serial": hex(&leaf.serial),
                       "not_before_unix": leaf.not_before.as_secs(), "not_after_unix": leaf.not_after.as_secs()})
            }),
            "bundle": bundle.map(|bundle| json!({
                "trust_domain": bundle.trust_domain().as_str(), "sequence": bundle.sequence(),
                "roots_sha256": bundle.roots().iter().map(|r| hex(&fingerprint(r))).collect::<Vec<_>>()})),
            "quarantine": {
                "version": trust.quarantine_version,
                "cut_off_ourselves": self.shared.is_cut_off(),
                "entries": trust.cut_off().iter().map(ToString::to_string).collect::<Vec<_>>(),
            },
        })
    }

    fn policies(&self) -> Value {
        let policy = self.shared.policy.load();
        json!(policy.as_ref().map(|state| json!({
            "generation": state.generation,
            "policies": state.compiled.policies().iter().map(shown).collect::<Vec<_>>(),
        })))
    }
}

fn destination(target: &Target, destination: &Destination) -> Value {
    let target = match target {
        Target::Name(host, port) => format!("{host}:{port}"),
        Target::Address(address) => address.to_string(),
    };
    let state = match destination {
        Destination::Meshed(service) => json!({"meshed": {
            "service": format!("{}.{}", service.name, service.namespace),
            "endpoints": service.endpoints.iter().map(|e| json!({
                "address": e.address, "workload": &*e.workload, "mesh": e.door != Door::Open,
                "spiffe_ids": e.expected.ids.iter().map(|id| id.as_str()).collect::<Vec<_>>()})).collect::<Vec<_>>()}}),
        Destination::Unmeshed { service, addresses } => json!({"unmeshed": {
            "service": &**service, "addresses": addresses,
        }}),
        Destination::Outside => json!("outside"),
        Destination::Unreachable(failure, detail) => {
            json!({"unreachable": {"reason": failure.facts().reason, "detail": detail}})
        }
    };
    json!({"target": target, "state": state})
}

fn shown(policy: &AuthorizationPolicy) -> Value {
    let texts = |matches: &[StringMatch]| matches.iter().map(text).collect::<Vec<_>>();
    let mut rules = Vec::new();
    for rule in &policy.rules {
        let from = rule.from.iter().map(|s| {
            json!({"principals": texts(&s.principals), "notPrincipals": texts(&s.not_principals),
                   "namespaces": texts(&s.namespaces), "notNamespaces": texts(&s.not_namespaces),
                   "serviceAccounts": texts(&s.service_accounts),
                   "notServiceAccounts": texts(&s.not_service_accounts)})
        });
        let to = rule.to.iter().map(|o| {
            json!({"hosts": texts(&o.hosts), "notHosts": texts(&o.not_hosts), "ports": o.ports,
                   "notPorts": o.not_ports, "methods": texts(&o.methods), "notMethods": texts(&o.not_methods),
                   "paths": texts(&o.paths), "notPaths": texts(&o.not_paths)})
        });
        rules.push(
            json!({"place": rule.place.to_string(), "from": from.collect::<Vec<_>>(),
                          "to": to.collect::<Vec<_>>()}),
        );
    }
    json!({"namespace": policy.namespace, "name": policy.name, "place": policy.place.to_string(),
           "action": format!("{:?}", policy.action).to_uppercase(), "rules": rules})
}

fn text(value: &StringMatch) -> String {
    match value {
        StringMatch::Exact(text) | StringMatch::Template(text) => text.clone(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Present => "*".to_owned(),
        StringMatch::Wildcard(pieces) => pieces.join("*"),
    }
}

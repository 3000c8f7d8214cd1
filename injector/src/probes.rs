//! Probes and lifecycle hooks are pointed at the proxy, which asks the app from inside the pod: a kubelet has no
//! certificate, so under default deny it could not.
//!
//! ```text
//! livenessProbe: {tcpSocket: {port: db}, periodSeconds: 5}
//!   -> {httpGet: {port: 15020, path: /probe/<token>/<container>/liveness}, periodSeconds: 5}
//!   +  POSTERN_PROBES: {"token": ..., "targets": {"<container>/liveness": {"kind": "tcp", "port": 3306, ...}}}
//! ```
//!
//! The proxy does not start with a target that it cannot take, so all of its bounds are checked here, where the refusal
//! names the container.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::{HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Pod, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::annotations::PROXY_PORTS;
use crate::inject::containers::{Placed, of_the_app};
use crate::inject::sidecar::METRICS_PORT;

// What the proxy takes: proxy/src/probes/parse.rs.
/// The kernel takes no longer environment variable.
const MAX_TEXT: usize = 128 * 1024 - "POSTERN_PROBES=\0".len();
const MAX_TARGETS: usize = 500;
const MAX_HEADERS: usize = 64;
const MAX_PATH: usize = 4 * 1024;
const MAX_SERVICE: usize = 1024;
const MAX_TIMEOUT: u64 = 3_600;

/// `POSTERN_PROBES`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Probes {
    /// 32 hexadecimal digits.
    pub(crate) token: String,
    /// By `<container>/<liveness, readiness, startup, post-start or pre-stop>`.
    pub(crate) targets: BTreeMap<String, Target>,
}

/// What the proxy asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Target {
    Http {
        scheme: String,
        port: u16,
        path: String,
        host: Option<String>,
        headers: Vec<(String, String)>,
        timeout_seconds: u64,
    },
    Tcp {
        port: u16,
        host: Option<String>,
        timeout_seconds: u64,
    },
    Grpc {
        port: u16,
        service: String,
        timeout_seconds: u64,
    },
}

/// A probe or hook that is to be replaced.
pub(crate) struct Rewrite {
    pub(crate) list: &'static str,
    pub(crate) index: usize,
    /// Below the container: `[livenessProbe]` or `[lifecycle, preStop]`.
    pub(crate) path: &'static [&'static str],
    pub(crate) container: String,
    pub(crate) value: Value,
}

/// What becomes of a pod's probes.
pub(crate) struct Rewritten {
    /// `POSTERN_PROBES`; without targets there is none.
    pub(crate) probes: Probes,
    pub(crate) rewrites: Vec<Rewrite>,
}

impl Probes {
    pub(crate) fn text(&self) -> Option<String> {
        (!self.targets.is_empty()).then(|| json!(self).to_string())
    }
}

pub(crate) fn is_token(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `known` is what an earlier pass made, or has a token alone.
pub(crate) fn rewrite(pod: &Pod, raw: &Value, known: &Probes, grace: u64) -> Result<Rewritten, String> {
    let mut probes = Probes {
        token: known.token.clone(),
        targets: BTreeMap::new(),
    };
    let mut rewrites = Vec::new();
    for placed in of_the_app(pod, raw) {
        for asked in asked(placed.container, grace) {
            let key = format!("{}/{}", placed.container.name, asked.kind);
            let path = format!("/probe/{}/{key}", known.token);
            let place = || format!("container {}: {}", placed.container.name, asked.path.join("."));
            if asked.is_ours(&path)
                && let Some(target) = known.targets.get(&key)
            {
                probes.targets.insert(key, target.clone());
                continue;
            }
            let target = asked
                .target(placed.container)
                .map_err(|what| format!("{}: {what}", place()))?;
            rewrites.push(Rewrite {
                list: placed.list,
                index: placed.index,
                path: asked.path,
                container: placed.container.name.clone(),
                value: pointed_at_the_proxy(&placed, asked.path, &path),
            });
            probes.targets.insert(key, target);
        }
    }
    if probes.targets.len() > MAX_TARGETS {
        return Err(format!(
            "the pod has {} probes and hooks to rewrite; the proxy takes at most {MAX_TARGETS}",
            probes.targets.len()
        ));
    }
    let length = probes.text().map_or(0, |text| text.replace('$', "$$").len());
    if length > MAX_TEXT {
        return Err(format!(
            "the pod's probes and hooks take {length} bytes together; the proxy takes at most {MAX_TEXT}"
        ));
    }
    Ok(Rewritten { probes, rewrites })
}

/// One that the proxy can ask; `exec` and `sleep` stay with the kubelet.
struct Asked<'a> {
    path: &'static [&'static str],
    kind: &'static str,
    action: Action<'a>,
    timeout: u64,
}

enum Action<'a> {
    Http(&'a HTTPGetAction),
    Tcp(&'a TCPSocketAction),
    Grpc(&'a GRPCAction),
}

fn asked(container: &Container, grace: u64) -> Vec<Asked<'_>> {
    let probes = [
        (&["livenessProbe"][..], "liveness", &container.liveness_probe),
        (&["readinessProbe"], "readiness", &container.readiness_probe),
        (&["startupProbe"], "startup", &container.startup_probe),
    ];
    let mut found = Vec::new();
    for (path, kind, probe) in probes {
        let Some(probe) = probe else { continue };
        let timeout = probe.timeout_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(1);
        if let Some(action) = Action::of(probe.http_get.as_ref(), probe.tcp_socket.as_ref(), probe.grpc.as_ref()) {
            found.push(Asked {
                path,
                kind,
                action,
                timeout: timeout.clamp(1, MAX_TIMEOUT),
            });
        }
    }
    let lifecycle = container.lifecycle.as_ref();
    let hooks = [
        // A kubelet waits for `postStart` without an end, for `preStop` until the grace period is over.
        (
            &["lifecycle", "postStart"][..],
            "post-start",
            lifecycle.and_then(|l| l.post_start.as_ref()),
            MAX_TIMEOUT,
        ),
        (
            &["lifecycle", "preStop"],
            "pre-stop",
            lifecycle.and_then(|l| l.pre_stop.as_ref()),
            grace,
        ),
    ];
    for (path, kind, hook, timeout) in hooks {
        let action = hook.and_then(|hook| Action::of(hook.http_get.as_ref(), hook.tcp_socket.as_ref(), None));
        if let Some(action) = action {
            found.push(Asked {
                path,
                kind,
                action,
                timeout: timeout.clamp(1, MAX_TIMEOUT),
            });
        }
    }
    found
}

impl<'a> Action<'a> {
    fn of(
        http: Option<&'a HTTPGetAction>,
        tcp: Option<&'a TCPSocketAction>,
        grpc: Option<&'a GRPCAction>,
    ) -> Option<Self> {
        http.map(Self::Http).or(tcp.map(Self::Tcp)).or(grpc.map(Self::Grpc))
    }
}

impl Asked<'_> {
    fn is_ours(&self, path: &str) -> bool {
        matches!(&self.action, Action::Http(get) if get.path.as_deref() == Some(path)
            && get.port == IntOrString::Int(i32::from(METRICS_PORT)))
    }

    fn target(&self, container: &Container) -> Result<Target, String> {
        let timeout_seconds = self.timeout;
        match &self.action {
            Action::Http(get) => Ok(Target::Http {
                scheme: scheme(get.scheme.as_deref())?,
                port: port(&get.port, container)?,
                path: checked_path(get.path.as_deref().unwrap_or("/"))?,
                host: host("httpGet", get.host.as_deref())?,
                headers: headers(get)?,
                timeout_seconds,
            }),
            Action::Tcp(socket) => Ok(Target::Tcp {
                port: port(&socket.port, container)?,
                host: host("tcpSocket", socket.host.as_deref())?,
                timeout_seconds,
            }),
            Action::Grpc(grpc) => {
                let service = grpc.service.clone().unwrap_or_default();
                if service.len() > MAX_SERVICE {
                    return Err(format!("grpc.service has more than {MAX_SERVICE} bytes"));
                }
                Ok(Target::Grpc {
                    port: port(&IntOrString::Int(grpc.port), container)?,
                    service,
                    timeout_seconds,
                })
            }
        }
    }
}

/// The same probe with the kubelet's own thresholds, at the proxy. The proxy sends the headers.
fn pointed_at_the_proxy(placed: &Placed<'_>, path: &[&str], asks: &str) -> Value {
    let mut value = path.iter().fold(placed.raw, |value, step| &value[*step]).clone();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !["httpGet", "tcpSocket", "grpc"].contains(&name.as_str()));
        let get = json!({"path": asks, "port": METRICS_PORT, "scheme": "HTTP"});
        fields.insert("httpGet".to_owned(), get);
    }
    value
}

fn scheme(given: Option<&str>) -> Result<String, String> {
    match given {
        None | Some("" | "HTTP") => Ok("http".to_owned()),
        Some("HTTPS") => Ok("https".to_owned()),
        Some(other) => Err(format!("httpGet.scheme `{other}`: HTTP and HTTPS are possible")),
    }
}

/// As the kubelet resolves it: a name is one of the container's own ports.
fn port(given: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match given {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.as_deref().unwrap_or_default();
            let declared = ports.iter().find(|port| port.name.as_deref() == Some(name));
            let number = declared.map(|port| port.container_port).or_else(|| name.parse().ok());
            number.ok_or_else(|| format!("the container declares no port named `{name}`"))?
        }
    };
    match u16::try_from(number) {
        Ok(port) if PROXY_PORTS.contains(&port) => Err(format!(
            "port {port} is the proxy's own; if this pod was copied from a running one, take the original probe"
        )),
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("{number} is no port number")),
    }
}

/// The proxy dials the pod itself, and is nobody's forwarder. The pod's own address is not known yet.
fn host(action: &str, given: Option<&str>) -> Result<Option<String>, String> {
    let Some(name) = given.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let loopback = bare.unwrap_or(name).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if loopback || name == "localhost" {
        return Ok(Some(name.to_owned()));
    }
    Err(format!(
        "{action}.host `{name}`: in the mesh, probes are asked inside of the pod; leave it out, or use localhost (a Host \
         header is set with httpHeaders)"
    ))
}

fn checked_path(path: &str) -> Result<String, String> {
    if path.len() > MAX_PATH {
        return Err(format!("httpGet.path has more than {MAX_PATH} bytes"));
    }
    if path.bytes().any(|b| b.is_ascii_control()) {
        return Err("httpGet.path has control characters".to_owned());
    }
    Ok(path.to_owned())
}

fn headers(get: &HTTPGetAction) -> Result<Vec<(String, String)>, String> {
    let given = get.http_headers.as_deref().unwrap_or_default();
    if given.len() > MAX_HEADERS {
        return Err(format!("httpGet.httpHeaders has more than {MAX_HEADERS} entries"));
    }
    for header in given {
        if header.name.parse::<HeaderName>().is_err() {
            return Err(format!("httpGet.httpHeaders: `{}` is no header name", header.name));
        }
        if HeaderValue::from_bytes(header.value.as_bytes()).is_err() {
            return Err(format!("httpGet.httpHeaders: the value of {} is none", header.name));
        }
    }
    Ok(given.iter().map(|h| (h.name.clone(), h.value.clone())).collect())
}

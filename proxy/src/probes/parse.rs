//! `POSTERN_PROBES`: JSON that the injector wrote into the pod. All of it holds, or the proxy does not start: a probe that
//! is quietly left out would be an app that is never well.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::http::MAX_BODY;
use super::{Asks, MAX_AT_ONCE, Probes, Target, Token, grpc, http as http_probe, tcp};
use crate::app_client::{Host, Question};

/// The kernel takes no longer environment variable (`MAX_ARG_STRLEN`).
pub(super) const MAX_TEXT: usize = 128 * 1024;
/// Five for each of a hundred containers.
pub(super) const MAX_TARGETS: usize = 500;
/// `httpHeaders` of one probe.
pub(super) const MAX_HEADERS: usize = 64;
/// A path with its query, before encoding.
pub(super) const MAX_PATH: usize = 4 * 1024;
/// `timeoutSeconds`: longer than any probe's period, and as long as a slow `preStop` may take.
pub(super) const MAX_TIMEOUT: u64 = 3_600;
/// `grpc.service`, a gRPC service's full name.
const MAX_SERVICE: usize = 1024;
/// What a probe's key ends with, and whether that is a lifecycle hook.
const KINDS: [(&str, bool); 5] = [
    ("liveness", false),
    ("readiness", false),
    ("startup", false),
    ("post-start", true),
    ("pre-stop", true),
];

/// Why the probes are not taken. The token is never part of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbesError {
    #[error("it has {0} bytes, more than {MAX_TEXT}")]
    TooLong(usize),
    #[error("it is not the JSON that is expected: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the token is not 32 lower-case hexadecimal digits")]
    Token,
    #[error("it has {0} targets, more than {MAX_TARGETS}")]
    TooMany(usize),
    #[error("target `{name}`: {what}")]
    Target { name: String, what: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    token: String,
    targets: BTreeMap<String, TargetDocument>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum TargetDocument {
    Http {
        scheme: String,
        port: u16,
        path: String,
        #[serde(default)]
        host: Option<String>,
        #[serde(default)]
        headers: Vec<(String, String)>,
        timeout_seconds: u64,
    },
    Tcp {
        port: u16,
        #[serde(default)]
        host: Option<String>,
        timeout_seconds: u64,
    },
    Grpc {
        port: u16,
        #[serde(default)]
        service: String,
        timeout_seconds: u64,
    },
}

pub(super) fn probes(text: &str, pod: IpAddr) -> Result<Probes, ProbesError> {
    if text.len() > MAX_TEXT {
        return Err(ProbesError::TooLong(text.len()));
    }
    let document: Document = serde_json::from_str(text)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if document.token.len() != 32 || !document.token.bytes().all(hex) {
        return Err(ProbesError::Token);
    }
    if document.targets.len() > MAX_TARGETS {
        return Err(ProbesError::TooMany(document.targets.len()));
    }
    let mut targets = HashMap::new();
    for (name, document) in document.targets {
        let read = target(&name, document, pod).map_err(|what| ProbesError::Target {
            name: name.clone(),
            what,
        })?;
        targets.insert(name.into_boxed_str(), Arc::new(read));
    }
    Ok(Probes {
        token: Token(document.token.into_boxed_str()),
        targets,
        at_once: Arc::new(Semaphore::new(MAX_AT_ONCE)),
    })
}

fn target(name: &str, document: TargetDocument, pod: IpAddr) -> Result<Target, String> {
    let hook = name
        .split_once('/')
        .filter(|(container, _)| is_label(container))
        .and_then(|(_, kind)| KINDS.iter().find(|(word, _)| *word == kind))
        .map(|(_, hook)| *hook)
        .ok_or("expected `<container>/<liveness, readiness, startup, post-start or pre-stop>`")?;
    let (asks, timeout_seconds) = match document {
        TargetDocument::Http {
            scheme,
            port,
            path,
            host,
            headers,
            timeout_seconds,
        } => {
            let question = Question {
                scheme: parse_scheme(&scheme)?,
                host: parse_host(host.as_deref(), pod)?,
                port: parse_port(port)?,
                path: parse_path(&path)?,
                headers: parse_headers(headers)?,
                most: MAX_BODY,
            };
            (Asks::Http(http_probe::Probe { question }), timeout_seconds)
        }
        TargetDocument::Tcp {
            port,
            host,
            timeout_seconds,
        } => {
            let (host, port) = (parse_host(host.as_deref(), pod)?, parse_port(port)?);
            (Asks::Tcp(tcp::Probe { host, port }), timeout_seconds)
        }
        TargetDocument::Grpc { .. } if hook => return Err("there are no gRPC hooks".to_owned()),
        TargetDocument::Grpc {
            port,
            service,
            timeout_seconds,
        } => {
            if service.len() > MAX_SERVICE {
                return Err(format!("the service has more than {MAX_SERVICE} bytes"));
            }
            let (host, port) = (Host::pod(pod), parse_port(port)?);
            (Asks::Grpc(grpc::Probe { host, port, service }), timeout_seconds)
        }
    };
    if !(1..=MAX_TIMEOUT).contains(&timeout_seconds) {
        return Err(format!(
            "timeout_seconds is {timeout_seconds}; 1 to {MAX_TIMEOUT} are possible"
        ));
    }
    Ok(Target {
        asks,
        hook,
        timeout: Duration::from_secs(timeout_seconds),
    })
}

/// A container's name (RFC 1123 label).
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

pub(crate) fn parse_scheme(text: &str) -> Result<Scheme, String> {
    match text {
        "http" => Ok(Scheme::HTTP),
        "https" => Ok(Scheme::HTTPS),
        other => Err(format!("scheme `{other}`: `http` and `https` are possible")),
    }
}

pub(crate) fn parse_port(port: u16) -> Result<u16, String> {
    if port == 0 { Err("port 0".to_owned()) } else { Ok(port) }
}

fn parse_host(host: Option<&str>, pod: IpAddr) -> Result<Host, String> {
    match host {
        None => Ok(Host::pod(pod)),
        Some(name) => Host::named(name, pod)
            .ok_or_else(|| format!("host `{name}` is neither the pod's own address ({pod}) nor a loopback one")),
    }
}

/// What a kubelet makes of `path`: a slash before it where there is none, and no fragment; what may not stand in a URL
/// is encoded.
pub(crate) fn parse_path(text: &str) -> Result<PathAndQuery, String> {
    if text.len() > MAX_PATH {
        return Err(format!("the path has more than {MAX_PATH} bytes"));
    }
    let mut path = String::with_capacity(text.len() + 1);
    if !text.starts_with('/') {
        path.push('/');
    }
    for byte in text.split('#').next().unwrap_or_default().bytes() {
        if byte.is_ascii_control() {
            return Err("the path has control characters".to_owned());
        }
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path.parse().map_err(|error| format!("the path is none: {error}"))
}

fn parse_headers(given: Vec<(String, String)>) -> Result<HeaderMap, String> {
    if given.len() > MAX_HEADERS {
        return Err(format!("it has more than {MAX_HEADERS} headers"));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let parsed: HeaderName = name.parse().map_err(|_| format!("`{name}` is no header name"))?;
        // Values may be secret: not repeated.
        let value =
            HeaderValue::from_bytes(value.as_bytes()).map_err(|_| format!("header `{name}`: the value is none"))?;
        // These are the connection's, and net/http leaves them out as well.
        let framing = [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TRAILER,
            header::TE,
            header::UPGRADE,
        ];
        if !framing.contains(&parsed) {
            headers.append(parsed, value);
        }
    }
    Ok(headers)
}

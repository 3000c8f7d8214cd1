//! `prometheus.io/*`: a scraper finds the app's metrics through the proxy's port, as it could not reach the app's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Settings;
use super::sidecar::{METRICS_PORT, MUTUAL_TLS_PORT};
use crate::annotations::PROXY_PORTS;

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const SCHEME: &str = "prometheus.io/scheme";
/// As for a probe.
const MAX_PATH: usize = 4 * 1024;

/// `POSTERN_APP_METRICS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AppMetrics {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) scheme: String,
}

/// What becomes of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scraped {
    pub(crate) app: Option<AppMetrics>,
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) warning: Option<String>,
}

impl AppMetrics {
    pub(crate) fn text(&self) -> String {
        json!(self).to_string()
    }
}

/// `before` is what an earlier pass found, and moved into the sidecar.
pub(crate) fn scraped(pod: &Pod, before: Option<AppMetrics>, settings: &Settings) -> Scraped {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let get = |key| annotations.get(key).map(String::as_str);
    let port = if settings.metrics.mutual_tls {
        MUTUAL_TLS_PORT
    } else {
        METRICS_PORT
    };
    let ours = |more: &[(&str, &str)]| {
        let own = [(PORT, port.to_string()), (PATH, "/metrics".to_owned())];
        let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
        own.into_iter()
            .chain(more)
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    };
    let named = [PORT, PATH, SCHEME].iter().any(|key| annotations.contains_key(*key));
    // An earlier pass, or nothing but the proxy's own.
    if is_the_proxys(get(PORT)) {
        return Scraped {
            app: before,
            annotations: ours(&[]),
            warning: None,
        };
    }
    match get(SCRAPE) {
        Some("true") => {}
        None if named => {}
        None if settings.metrics.annotations => {
            return Scraped {
                annotations: ours(&[(SCRAPE, "true")]),
                ..Scraped::default()
            };
        }
        // Not to be scraped.
        _ => return Scraped::default(),
    }
    match app(pod, annotations) {
        Ok(app) => Scraped {
            app: Some(app),
            annotations: ours(if annotations.contains_key(SCHEME) {
                &[(SCHEME, "http")]
            } else {
                &[]
            }),
            warning: None,
        },
        Err(what) => Scraped {
            warning: Some(format!(
                "{what}; the app's metrics are not merged into the proxy's, and a scraper without an identity does not \
                 reach them"
            )),
            ..Scraped::default()
        },
    }
}

fn is_the_proxys(port: Option<&str>) -> bool {
    port.is_some_and(|text| text == METRICS_PORT.to_string() || text == MUTUAL_TLS_PORT.to_string())
}

fn app(pod: &Pod, annotations: &BTreeMap<String, String>) -> Result<AppMetrics, String> {
    let port = match annotations.get(PORT) {
        Some(text) => text
            .parse()
            .ok()
            .filter(|port| *port != 0 && !PROXY_PORTS.contains(port))
            .ok_or_else(|| format!("annotation {PORT}: `{text}` is no port of the app"))?,
        // What Prometheus' usual configuration does: the ports that are declared.
        None => {
            first_port(pod).ok_or_else(|| format!("annotation {PORT} is not set, and no container declares a port"))?
        }
    };
    let path = annotations.get(PATH).map_or("/metrics", String::as_str);
    if path.len() > MAX_PATH || path.bytes().any(|b| b.is_ascii_control()) {
        return Err(format!("annotation {PATH} is no path"));
    }
    let scheme = annotations.get(SCHEME).map_or("http", String::as_str);
    if !["http", "https"].contains(&scheme) {
        return Err(format!("annotation {SCHEME}: `{scheme}`: http and https are possible"));
    }
    Ok(AppMetrics {
        port,
        path: path.to_owned(),
        scheme: scheme.to_owned(),
    })
}

fn first_port(pod: &Pod) -> Option<u16> {
    let containers = pod.spec.as_ref()?.containers.iter();
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.find(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))?;
    u16::try_from(tcp.container_port).ok().filter(|port| *port != 0)
}

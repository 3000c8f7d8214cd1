//! What all sidecars have in common: `settings.json`, which the chart writes into ConfigMap `postern-injector`.

use std::collections::BTreeMap;

use postern_identity::TrustDomain;
use serde::{Deserialize, Deserializer};

use crate::annotations::{is_log_filter, is_quantity};

/// Longest wait for what is in flight, as `postern-proxy run --drain-seconds` takes it.
pub(crate) const MAX_DRAIN_SECONDS: u64 = 3_600;

/// The sidecar's image, whom it asks, and its defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The proxy's image, by tag or digest.
    pub image: String,
    /// As in a container.
    pub image_pull_policy: PullPolicy,
    /// The name under which every identity stands.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: TrustDomain,
    /// `host:port` of the CA.
    pub ca: String,
    /// `host:port` of control.
    pub control: String,
    /// Defaults that pods override by annotation.
    pub proxy: Proxy,
    /// How proxies' metrics are found and served.
    pub metrics: Metrics,
}

/// Defaults that pods override by annotation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Proxy {
    /// A log filter such as `info`.
    pub log_level: String,
    /// Which requests get a line.
    pub access_log: AccessLog,
    /// How long a proxy that goes down waits for what is in flight; fitted below the pod's grace period.
    pub drain_seconds: u64,
    /// Of the proxy's container.
    pub resources: Resources,
}

/// As in a container: `cpu` and `memory`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// What is set aside.
    #[serde(deserialize_with = "quantities")]
    pub requests: BTreeMap<String, String>,
    /// What is the most.
    #[serde(deserialize_with = "quantities")]
    pub limits: BTreeMap<String, String>,
}

/// How proxies' metrics are found and served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metrics {
    /// `prometheus.io/*` on injected pods that had none.
    pub annotations: bool,
    /// On port 15021 behind mutual TLS only.
    pub mutual_tls: bool,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// Where the node has none.
    IfNotPresent,
    /// The node has it.
    Never,
}

/// Which requests get a line in the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// None.
    Off,
    /// Denials and failures.
    Denied,
    /// Every one.
    All,
}

/// Why settings are not taken.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not JSON, an unknown or a missing field.
    #[error("not the JSON that is expected: {0}")]
    Json(#[from] serde_json::Error),
    /// A value that is none.
    #[error("{field}: {what}")]
    Value {
        /// Its path.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl Settings {
    /// Reads `settings.json`.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = serde_json::from_str(text)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let refuse = |field, what: String| Err(SettingsError::Value { field, what });
        if self.image.is_empty() || self.image.contains(char::is_whitespace) {
            return refuse("image", format!("`{}` names no image", self.image));
        }
        for (field, address) in [("ca", &self.ca), ("control", &self.control)] {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if !port.is_some_and(|(_, port)| matches!(port.parse::<u16>(), Ok(1..))) {
                return refuse(field, format!("`{address}`: host:port is expected"));
            }
        }
        if !is_log_filter(&self.proxy.log_level) {
            return refuse("proxy.logLevel", format!("`{}` is no log filter", self.proxy.log_level));
        }
        if self.proxy.drain_seconds > MAX_DRAIN_SECONDS {
            return refuse("proxy.drainSeconds", format!("0 to {MAX_DRAIN_SECONDS} are possible"));
        }
        let Resources { requests, limits } = &self.proxy.resources;
        for (name, quantity) in requests.iter().chain(limits) {
            if !is_quantity(quantity) {
                return refuse("proxy.resources", format!("{name}: `{quantity}` is no quantity"));
            }
        }
        Ok(())
    }
}

impl PullPolicy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

impl AccessLog {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Denied => "denied",
            Self::All => "all",
        }
    }
}

fn trust_domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TrustDomain, D::Error> {
    let name = String::deserialize(deserializer)?;
    TrustDomain::parse(&name).map_err(serde::de::Error::custom)
}

/// `1` is as good as `"1"` in a chart's values.
fn quantities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Quantity {
        Text(String),
        Number(serde_json::Number),
    }
    let read = BTreeMap::<String, Quantity>::deserialize(deserializer)?;
    let text = |quantity| match quantity {
        Quantity::Text(text) => text,
        Quantity::Number(number) => number.to_string(),
    };
    Ok(read
        .into_iter()
        .map(|(name, quantity)| (name, text(quantity)))
        .collect())
}

//! The two containers and two or three volumes that are added, as data. All fields that the API server would fill in are there, so
//! that what comes back from it is equal to what was made.

use serde_json::{Value, json};

use super::containers::{INIT, PROXY};
use super::{AccessLog, Settings, workload_api};
use crate::annotations::{Wishes, thousandths};

/// Exempt from capture: nobody else may be it.
pub(crate) const PROXY_UID: i64 = 15_371;
/// Where the kubelet asks.
pub(crate) const METRICS_PORT: u16 = 15_020;
/// Where scrapers with an identity ask.
pub(crate) const MUTUAL_TLS_PORT: u16 = 15_021;
/// The projected token.
pub(crate) const TOKEN_VOLUME: &str = "postern-token";
/// The admin socket.
pub(crate) const RUN_VOLUME: &str = "postern-run";
/// Whom the token is for.
pub(crate) const AUDIENCE: &str = "postern-ca";
/// Where they are mounted.
pub(crate) const MOUNTS: [(&str, &str); 2] = [(TOKEN_VOLUME, "/var/run/secrets/postern"), (RUN_VOLUME, "/run/postern")];
/// Where the app finds the Workload API, if it asks for one: the same path in the proxy and in each of the app's containers.
pub(crate) const WORKLOAD_API: (&str, &str) = ("postern-workload-api", "/run/postern-workload-api");
/// A kubelet's default.
pub(crate) const DEFAULT_GRACE: u64 = 30;
/// The kubelet kills at the end of the grace period; this much of it is for the proxy to go down itself.
const GRACE_LEFT: u64 = 5;

/// What the sidecar depends on.
pub(crate) struct Sidecar<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) wishes: &'a Wishes,
    pub(crate) roots_sha256: &'a [String],
    /// The pod's.
    pub(crate) grace: u64,
    /// `POSTERN_PROBES`.
    pub(crate) probes: Option<String>,
    /// `POSTERN_APP_METRICS`.
    pub(crate) app_metrics: Option<String>,
}

impl Sidecar<'_> {
    /// Container `postern-init`.
    pub(crate) fn init(&self) -> Value {
        let mut skipped = self.wishes.skip_inbound_ports.clone();
        skipped.insert(METRICS_PORT);
        let mut args = vec![
            "redirect".to_owned(),
            "--skip-inbound-ports".to_owned(),
            joined(&skipped),
        ];
        if !self.wishes.skip_outbound_ports.is_empty() {
            args.extend([
                "--skip-outbound-ports".to_owned(),
                joined(&self.wishes.skip_outbound_ports),
            ]);
        }
        if !self.wishes.skip_outbound_cidrs.is_empty() {
            args.extend([
                "--skip-outbound-cidrs".to_owned(),
                joined(&self.wishes.skip_outbound_cidrs),
            ]);
        }
        json!({
            "name": INIT,
            "image": self.settings.image,
            "imagePullPolicy": self.settings.image_pull_policy.as_str(),
            "args": args,
            "resources": self.resources(),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "runAsUser": 0,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        })
    }

    /// Container `postern-proxy`.
    pub(crate) fn proxy(&self) -> Value {
        let settings = self.settings;
        let field = |path: &str| json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}});
        let mut env = vec![
            json!({"name": "POD_IP", "valueFrom": field("status.podIP")}),
            json!({"name": "POSTERN_LOG", "value": self.wishes.log_level.as_ref().unwrap_or(&settings.proxy.log_level)}),
        ];
        let more = [
            ("POSTERN_PROBES", &self.probes),
            ("POSTERN_APP_METRICS", &self.app_metrics),
        ];
        env.extend(more.iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            // $(NAME) would be expanded by the kubelet; $$ is a dollar.
            Some(json!({"name": name, "value": value.replace('$', "$$")}))
        }));
        let mount = |(name, path): &(&str, &str)| match *name {
            TOKEN_VOLUME => json!({"name": name, "mountPath": path, "readOnly": true}),
            _ => json!({"name": name, "mountPath": path}),
        };
        let mounts: Vec<Value> = self.mounts().iter().map(mount).collect();
        json!({
            "name": PROXY,
            "image": settings.image,
            "imagePullPolicy": settings.image_pull_policy.as_str(),
            "restartPolicy": "Always",
            "args": self.args(),
            "env": env,
            "ports": [{"name": "postern-metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}],
            "resources": self.resources(),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": PROXY_UID,
                "runAsNonRoot": true,
                "runAsUser": PROXY_UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            // The app's containers start when this one has an identity and its policies.
            "startupProbe": ready(1, 120),
            "readinessProbe": ready(5, 3),
            "volumeMounts": mounts,
        })
    }

    /// What the proxy mounts.
    pub(crate) fn mounts(&self) -> Vec<(&'static str, &'static str)> {
        let workload_api = self.wishes.workload_api.then_some(WORKLOAD_API);
        MOUNTS.into_iter().chain(workload_api).collect()
    }

    /// The volumes, in the order of [`Sidecar::mounts`].
    pub(crate) fn volumes(&self) -> Vec<Value> {
        let token = json!({"audience": AUDIENCE, "expirationSeconds": 3600, "path": "token"});
        let volume = |(name, _): (&str, &str)| match name {
            TOKEN_VOLUME => {
                let sources = json!([{"serviceAccountToken": token}]);
                json!({"name": name, "projected": {"defaultMode": 420, "sources": sources}})
            }
            _ => json!({"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
        };
        self.mounts().into_iter().map(volume).collect()
    }

    /// How long the proxy may wait for what is in flight.
    pub(crate) fn drain(&self) -> u64 {
        let wanted = self.wishes.drain_seconds.unwrap_or(self.settings.proxy.drain_seconds);
        wanted.min(self.grace.saturating_sub(GRACE_LEFT))
    }

    fn args(&self) -> Vec<String> {
        let settings = self.settings;
        let access_log = self.wishes.access_log.unwrap_or(settings.proxy.access_log);
        let token = format!("{}/token", MOUNTS[0].1);
        let socket = format!("{}/admin.sock", MOUNTS[1].1);
        let metrics = format!("[::]:{METRICS_PORT}");
        let mut args: Vec<String> = vec!["run".to_owned()];
        for (flag, value) in [
            ("--capture", "redirect"),
            ("--ca", &settings.ca),
            ("--control", &settings.control),
            ("--kubernetes-token-file", &token),
            ("--roots-sha256", &self.roots_sha256.join(",")),
            ("--trust-domain", settings.trust_domain.as_str()),
            ("--metrics-listen", &metrics),
            ("--admin-socket", &socket),
            ("--access-log", AccessLog::as_str(access_log)),
            ("--drain-seconds", &self.drain().to_string()),
        ] {
            args.extend([flag.to_owned(), value.to_owned()]);
        }
        if settings.metrics.mutual_tls {
            args.push("--metrics-mutual-tls".to_owned());
        }
        if self.wishes.workload_api {
            // Who has the volume may call: an app's container runs as whatever user its image says.
            let socket = workload_api::socket();
            args.extend(["--workload-api-socket", &socket, "--workload-api-uid", "any"].map(str::to_owned));
        }
        args
    }

    fn resources(&self) -> Value {
        let defaults = &self.settings.proxy.resources;
        let mut merged = json!({"requests": defaults.requests, "limits": defaults.limits});
        for ((kind, name), quantity) in &self.wishes.resources {
            merged[kind][name] = quantity.as_str().into();
        }
        // A default gives way to what the pod asks for; both from the pod have been compared.
        for ((kind, name), quantity) in &self.wishes.resources {
            let other = if *kind == "limits" { "requests" } else { "limits" };
            let (own, default) = (
                thousandths(quantity),
                merged[other][name].as_str().and_then(thousandths),
            );
            let crossed = if *kind == "limits" {
                own < default
            } else {
                default.is_some() && own > default
            };
            if crossed {
                merged[other][name] = quantity.as_str().into();
            }
        }
        merged
    }
}

fn ready(period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": "/readyz", "port": METRICS_PORT, "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": period,
        "successThreshold": 1,
        "failureThreshold": failures,
    })
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(",")
}

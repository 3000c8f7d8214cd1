//! What an earlier pass left in a pod: webhooks are called again if a later one has changed it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};

use super::containers::{INIT, PROXY, ours};
use super::metrics::AppMetrics;
use crate::annotations::INJECTED;
use crate::probes::{Probes, is_token};

/// See the module.
pub(crate) struct Existing {
    /// Both containers are there.
    pub(crate) injected: bool,
    /// With the token that the kubelet has been told, or a new one.
    pub(crate) probes: Probes,
    pub(crate) app_metrics: Option<AppMetrics>,
}

impl Existing {
    /// Refuses what says that it was injected and was not, and the other way round.
    pub(crate) fn read(pod: &Pod, raw: &Value, token: &str) -> Result<Self, String> {
        let annotations = pod.metadata.annotations.as_ref();
        let claims = |key| annotations.is_some_and(|all| all.contains_key(key));
        let containers = [INIT, PROXY].map(|name| ours(pod, raw, name));
        match containers {
            [None, None] if claims(INJECTED) => Err(format!(
                "annotation {INJECTED} is the injector's to write, and this pod has no sidecar: remove it from its template"
            )),
            [None, None] => Ok(Self {
                injected: false,
                probes: Probes {
                    token: token.to_owned(),
                    targets: BTreeMap::new(),
                },
                app_metrics: None,
            }),
            [Some(_), Some(proxy)] if claims(INJECTED) => {
                let variable = |name| {
                    let env = proxy.container.env.as_deref().unwrap_or_default();
                    let value = env.iter().find(|variable| variable.name == name)?.value.as_ref()?;
                    Some(value.replace("$$", "$"))
                };
                let probes = variable("POSTERN_PROBES").and_then(|text| serde_json::from_str::<Probes>(&text).ok());
                Ok(Self {
                    injected: true,
                    probes: probes
                        .filter(|probes| is_token(&probes.token))
                        .unwrap_or_else(|| Probes {
                            token: token.to_owned(),
                            targets: BTreeMap::new(),
                        }),
                    app_metrics: variable("POSTERN_APP_METRICS").and_then(|text| serde_json::from_str(&text).ok()),
                })
            }
            [init, proxy] => {
                let name = if proxy.or(init).is_some_and(|c| c.container.name == INIT) {
                    INIT
                } else {
                    PROXY
                };
                Err(format!(
                    "init container {name} has a name of the mesh's own and was not made by this injector: remove it, and \
                     the sidecar will be added"
                ))
            }
        }
    }
}

/// The first thing that makes `found`, a container of ours, another than `made`. What the API server's own plug-ins and
/// limits change (pull policy, resources, the API token's mount) is theirs to change.
pub(crate) fn difference(found: &Value, made: &Value) -> Option<&'static str> {
    const OURS: [&str; 14] = [
        "image",
        "command",
        "args",
        "workingDir",
        "restartPolicy",
        "securityContext",
        "ports",
        "startupProbe",
        "readinessProbe",
        "livenessProbe",
        "lifecycle",
        "envFrom",
        "volumeDevices",
        "restartPolicyRules",
    ];
    OURS.into_iter()
        .find(|field| given(&found[*field]) != given(&made[*field]))
        .or_else(|| (!same_entries(found, made, "env", is_our_variable)).then_some("env"))
        .or_else(|| (!same_entries(found, made, "volumeMounts", is_our_mount)).then_some("volumeMounts"))
        .or_else(|| {
            found["volumeMounts"]
                .as_array()
                .into_iter()
                .flatten()
                .any(lies_over_ours)
                .then_some("volumeMounts")
        })
}

/// The one mount that is not ours and that our containers may have: Kubernetes itself adds it.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Anything else that is mounted could lie over the program itself.
fn lies_over_ours(mount: &Value) -> bool {
    let path = mount["mountPath"].as_str().unwrap_or_default();
    path.trim_end_matches('/') != SERVICE_ACCOUNT && !mount.as_object().is_some_and(is_our_mount)
}

/// `null` and an empty list are nothing.
fn given(value: &Value) -> Option<&Value> {
    let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    (!empty).then_some(value)
}

/// The entries that are ours are the same, in any order; others may be there.
fn same_entries(found: &Value, made: &Value, list: &str, ours: fn(&Map<String, Value>) -> bool) -> bool {
    let entries = |container: &Value| -> Vec<Value> {
        let all = container[list].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_ours = |entry: &&Value| entry.as_object().is_some_and(ours);
        all.iter().filter(is_ours).cloned().collect()
    };
    let (found, made) = (entries(found), entries(made));
    found.len() == made.len() && made.iter().all(|entry| found.contains(entry))
}

fn is_our_variable(entry: &Map<String, Value>) -> bool {
    let name = entry.get("name").and_then(Value::as_str).unwrap_or_default();
    name == "POD_IP" || name.starts_with("POSTERN_")
}

/// By volume, or by what it would lie over.
fn is_our_mount(entry: &Map<String, Value>) -> bool {
    let text = |field| entry.get(field).and_then(Value::as_str).unwrap_or_default();
    let path = text("mountPath").trim_end_matches('/');
    let ours = super::sidecar::MOUNTS.iter().chain([&super::sidecar::WORKLOAD_API]);
    ours.into_iter().any(|(volume, ours)| {
        text("name") == *volume
            || path == *ours
            || path.strip_prefix(ours).is_some_and(|rest| rest.starts_with('/'))
            || ours.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
    })
}

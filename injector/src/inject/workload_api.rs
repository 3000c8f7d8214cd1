//! The socket of the SPIFFE Workload API in the app's containers, where the pod asks for it.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::containers::{Placed, of_the_app};
use super::patch::{Operations, Step};
use super::sidecar::WORKLOAD_API;
use crate::annotations::{OURS, Wishes};

/// Where clients of the Workload API look (SPIFFE Workload Endpoint section 4).
const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// An entry for a list of one container.
pub(super) struct Addition {
    list: &'static str,
    index: usize,
    /// `volumeMounts` or `env`.
    field: &'static str,
    /// The container has no such list yet.
    first: bool,
    entry: Value,
}

/// The socket's path, in the proxy and in the app.
pub(super) fn socket() -> String {
    format!("{}/workload.sock", WORKLOAD_API.1)
}

/// What the app's containers lack.
pub(super) fn additions(pod: &Pod, raw: &Value, wishes: &Wishes) -> Result<Vec<Addition>, String> {
    if !wishes.workload_api {
        return Ok(Vec::new());
    }
    let (volume, path) = WORKLOAD_API;
    let endpoint = format!("unix://{}", socket());
    let mut additions = Vec::new();
    for placed in of_the_app(pod, raw) {
        let name = &placed.container.name;
        let mounts = placed.container.volume_mounts.as_deref().unwrap_or_default();
        match mounts
            .iter()
            .find(|mount| mount.name == volume || mount.mount_path.trim_end_matches('/') == path)
        {
            None => {
                let mount = json!({"name": volume, "mountPath": path, "readOnly": true});
                additions.push(Addition::to(&placed, "volumeMounts", mount));
            }
            Some(mount) if mount.name == volume && mount.mount_path == path && mount.read_only == Some(true) => {}
            Some(mount) => {
                return Err(format!(
                    "container {name}: its mount of {} at {} is in the way of {OURS}workload-api, whose socket is at {path}",
                    mount.name, mount.mount_path
                ));
            }
        }
        let variables = placed.container.env.as_deref().unwrap_or_default();
        match variables.iter().find(|variable| variable.name == VARIABLE) {
            None => {
                let variable = json!({"name": VARIABLE, "value": endpoint});
                additions.push(Addition::to(&placed, "env", variable));
            }
            Some(variable) if variable.value.as_ref() == Some(&endpoint) => {}
            Some(_) => {
                return Err(format!(
                    "container {name}: it sets {VARIABLE} itself, and {OURS}workload-api would: leave one of them out"
                ));
            }
        }
    }
    Ok(additions)
}

impl Addition {
    fn to(placed: &Placed<'_>, field: &'static str, entry: Value) -> Self {
        Self {
            list: placed.list,
            index: placed.index,
            field,
            first: !placed.raw[field].is_array(),
            entry,
        }
    }

    /// Before our containers are put in front: then every index is another.
    pub(super) fn carried_out(self, operations: &mut Operations) {
        let mut path: Vec<Step<'_>> = vec!["spec".into(), self.list.into(), self.index.into(), self.field.into()];
        if self.first {
            operations.add(&path, json!([self.entry]));
        } else {
            path.push("-".into());
            operations.add(&path, self.entry);
        }
    }
}

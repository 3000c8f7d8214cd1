//! A pod as it was asked for -> the patch that puts it into the mesh.

mod settings;

use std::collections::BTreeMap;

use json_patch::Patch;
use serde_json::Value;

pub use settings::{AccessLog, Metrics, Proxy, PullPolicy, Resources, Settings, SettingsError};

/// What is known of the pod's surroundings.
#[derive(Debug, Clone, Copy)]
pub struct PodContext<'a> {
    /// The pod's namespace: the review's, as a new pod need not name it.
    pub namespace: &'a str,
    /// Labels of the namespace.
    pub labels: &'a BTreeMap<String, String>,
    /// Annotations of the namespace.
    pub annotations: &'a BTreeMap<String, String>,
    /// `roots.sha256` of ConfigMap `postern-ca-roots`, split; empty while the CA has not written it.
    pub roots_sha256: &'a [String],
    /// 32 random lower-case hexadecimal digits, for a pod that has no token yet.
    pub token: &'a str,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It joins the mesh. The patch is empty if it has all that it needs already.
    Injected {
        /// RFC 6902.
        patch: Patch,
        /// Admission warnings, for whoever created it.
        warnings: Vec<String>,
    },
    /// It is allowed, and stays outside of the mesh.
    Skipped {
        /// One word of a closed set, for metrics: `disabled`, `host_network`, `windows`, `mirror_pod`, `not_enabled`, `namespace`.
        reason: &'static str,
        /// An annotation that says why; often empty.
        patch: Patch,
        /// Admission warnings; the reason in a sentence is among them if anybody asked for injection.
        warnings: Vec<String>,
    },
    /// It is not allowed.
    Refused {
        /// Why, and what to do.
        message: String,
    },
}

/// What to do with a pod that is being created.
#[must_use]
pub fn inject(_pod: &Value, _context: &PodContext<'_>, _settings: &Settings) -> Outcome {
    Outcome::Injected {
        patch: Patch(Vec::new()),
        warnings: Vec::new(),
    }
}

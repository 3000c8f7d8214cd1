//! A pod with its surroundings.

use std::collections::BTreeMap;

use postern_injector::inject::{Outcome, PodContext, Settings, inject};
use postern_injector::verify_pod;
use serde::Deserialize;
use serde_json::Value;

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const ROOT: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
pub(crate) const SETTINGS: &str = r#"{"ca":"postern-ca.postern-system.svc:15012","control":"postern-control.postern-system.svc:15010",
"image":"localhost/postern/postern-proxy:0.1.0","imagePullPolicy":"IfNotPresent","metrics":{"annotations":true,"mutualTls":false},
"proxy":{"accessLog":"denied","drainSeconds":25,"logLevel":"info","resources":{"limits":{"memory":"128Mi"},
"requests":{"cpu":"50m","memory":"32Mi"}}},"trustDomain":"cluster.local"}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    namespace: Option<NamespaceDocument>,
    #[serde(default)]
    mutual_tls_metrics: bool,
    #[serde(default)]
    no_metrics_annotations: bool,
    #[serde(default)]
    no_roots: bool,
    pod: Value,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct NamespaceDocument {
    name: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

pub(crate) struct Case {
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) roots: Vec<String>,
    pub(crate) settings: Settings,
    pub(crate) pod: Value,
}

impl Case {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let document: Document = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let mut case = Self::of(document.pod);
        if let Some(namespace) = document.namespace {
            case.namespace = namespace.name.unwrap_or(case.namespace);
            case.labels = namespace.labels;
            case.annotations = namespace.annotations;
        }
        case.settings.metrics.mutual_tls = document.mutual_tls_metrics;
        case.settings.metrics.annotations = !document.no_metrics_annotations;
        if document.no_roots {
            case.roots.clear();
        }
        Ok(case)
    }

    /// In namespace shop, which is in the mesh.
    pub(crate) fn of(pod: Value) -> Self {
        Self {
            namespace: "shop".to_owned(),
            labels: BTreeMap::from([("postern.dev/inject".to_owned(), "enabled".to_owned())]),
            annotations: BTreeMap::new(),
            roots: vec![ROOT.to_owned()],
            settings: Settings::parse(SETTINGS).map_err(|error| error.to_string()).unwrap(),
            pod,
        }
    }

    pub(crate) fn context(&self) -> PodContext<'_> {
        PodContext {
            namespace: &self.namespace,
            labels: &self.labels,
            annotations: &self.annotations,
            roots_sha256: &self.roots,
            token: TOKEN,
        }
    }

    pub(crate) fn inject(&self, pod: &Value) -> Outcome {
        inject(pod, &self.context(), &self.settings)
    }

    /// As [`Case::inject`], where the random token is another.
    pub(crate) fn inject_again(&self, pod: &Value) -> Outcome {
        let token = "ffffffffffffffffffffffffffffffff";
        inject(
            pod,
            &PodContext {
                token,
                ..self.context()
            },
            &self.settings,
        )
    }

    pub(crate) fn verify(&self, pod: &Value) -> Result<Vec<String>, String> {
        verify_pod::verify(pod, &self.context(), &self.settings)
    }

    /// The pod as the API server has it then.
    pub(crate) fn patched(&self, pod: &Value) -> Value {
        apply(pod, &self.inject(pod))
    }
}

pub(crate) fn apply(pod: &Value, outcome: &Outcome) -> Value {
    let mut patched = pod.clone();
    if let Outcome::Injected { patch, .. } | Outcome::Skipped { patch, .. } = outcome {
        json_patch::patch(&mut patched, patch).unwrap();
    }
    patched
}

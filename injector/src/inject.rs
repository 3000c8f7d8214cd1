//! A pod as it was asked for -> the patch that puts it into the mesh.

pub(crate) mod containers;
pub(crate) mod existing;
mod metrics;
mod patch;
mod settings;
pub(crate) mod sidecar;
pub(crate) mod standing;
mod workload_api;

use std::collections::BTreeMap;

use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};

use self::containers::{INIT, PROXY, is_ours};
use self::existing::{Existing, difference};
use self::patch::{Operations, Step};
use self::sidecar::{DEFAULT_GRACE, MOUNTS, Sidecar, WORKLOAD_API};
use self::standing::Standing;
use crate::annotations::{ALLOW_LOOSENING, INJECTED, STATUS, Wishes};
use crate::escape;
use crate::probes::{Rewrite, rewrite};

pub(crate) use settings::MAX_DRAIN_SECONDS;
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

/// What `postern.dev/injected` says.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A pod is created again and again by its controller.
const NO_ROOTS: &str = "the CA has not published its roots yet (ConfigMap postern-system/postern-ca-roots), without which a \
                        proxy would not know whom to believe; try again in a moment";

/// What to do with a pod that is being created.
#[must_use]
pub fn inject(pod: &Value, context: &PodContext<'_>, settings: &Settings) -> Outcome {
    decide(pod, context, settings).unwrap_or_else(|message| Outcome::Refused { message })
}

/// `Err` is why the pod is refused.
fn decide(raw: &Value, context: &PodContext<'_>, settings: &Settings) -> Result<Outcome, String> {
    let pod = read(raw)?;
    match standing::of(&pod, context)? {
        Standing::Meshed => {}
        Standing::Outside { reason, why, mark } => {
            let mut operations = Operations::default();
            if let Some(why) = why.as_ref().filter(|_| mark) {
                let status = json!({"skipped": reason, "why": why}).to_string();
                operations.annotate(raw, [(STATUS.to_owned(), status)]);
            }
            return Ok(Outcome::Skipped {
                reason,
                patch: operations.done(),
                warnings: why.into_iter().collect(),
            });
        }
    }
    let plan = Plan::make(&pod, raw, context, settings)?;
    Ok(plan.carried_out(raw))
}

/// A pod, typed. Fields that are not known here stay in the raw form.
pub(crate) fn read(raw: &Value) -> Result<Pod, String> {
    let pod = Pod::deserialize(raw).map_err(|error| format!("this is no pod that can be read: {error}"))?;
    match &pod.spec {
        Some(spec) if !spec.containers.is_empty() => Ok(pod),
        _ => Err("the pod has no containers".to_owned()),
    }
}

/// What a meshed pod must look like.
pub(crate) struct Plan {
    pub(crate) init: Value,
    pub(crate) proxy: Value,
    pub(crate) volumes: Vec<Value>,
    pub(crate) rewrites: Vec<Rewrite>,
    workload_api: Vec<workload_api::Addition>,
    annotations: Vec<(String, String)>,
    warnings: Vec<String>,
}

impl Plan {
    pub(crate) fn make(pod: &Pod, raw: &Value, context: &PodContext<'_>, settings: &Settings) -> Result<Self, String> {
        if context.roots_sha256.is_empty() {
            return Err(NO_ROOTS.to_owned());
        }
        let existing = Existing::read(pod, raw, context.token)?;
        if let Some(message) = escape::refusal(pod, raw).or_else(|| taken_volume(raw, existing.injected)) {
            return Err(message);
        }
        let none = BTreeMap::new();
        let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
        let wishes = Wishes::read(annotations, may_loosen(context))?;
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let grace = grace.map_or(DEFAULT_GRACE, |seconds| u64::try_from(seconds).unwrap_or(0));
        let rewritten = rewrite(pod, raw, &existing.probes, grace)?;
        let scraped = metrics::scraped(pod, existing.app_metrics, settings);
        let sidecar = Sidecar {
            settings,
            wishes: &wishes,
            roots_sha256: context.roots_sha256,
            grace,
            probes: rewritten.probes.text(),
            app_metrics: scraped.app.as_ref().map(metrics::AppMetrics::text),
        };
        let workload_api = workload_api::additions(pod, raw, &wishes)?;
        let mut warnings = escape::warnings(pod, raw, context);
        warnings.extend(standing::looser_mode(pod, context));
        warnings.extend(wishes.left_out());
        warnings.extend(scraped.warning);
        if let Some(wanted) = wishes.drain_seconds.filter(|wanted| *wanted > sidecar.drain()) {
            warnings.push(format!(
                "annotation postern.dev/drain-seconds: {wanted} does not fit into terminationGracePeriodSeconds {grace}; {} \
                 is used",
                sidecar.drain()
            ));
        }
        let mut status = json!({
            "initContainers": [INIT, PROXY],
            "volumes": sidecar.mounts().iter().map(|(volume, _)| volume).collect::<Vec<_>>(),
            "probes": rewritten.probes.targets.keys().collect::<Vec<_>>(),
        });
        if let Some(app) = &scraped.app {
            status["metrics"] = json!(app);
        }
        let mut annotations = scraped.annotations;
        annotations.push((INJECTED.to_owned(), VERSION.to_owned()));
        annotations.push((STATUS.to_owned(), status.to_string()));
        Ok(Self {
            init: sidecar.init(),
            proxy: sidecar.proxy(),
            volumes: sidecar.volumes(),
            workload_api,
            rewrites: rewritten.rewrites,
            annotations,
            warnings,
        })
    }

    /// Probes first: once our containers are in front, every index is another.
    fn carried_out(mut self, raw: &Value) -> Outcome {
        let mut operations = Operations::default();
        operations.annotate(raw, std::mem::take(&mut self.annotations));
        for rewrite in std::mem::take(&mut self.rewrites) {
            let mut path: Vec<Step<'_>> = vec!["spec".into(), rewrite.list.into(), rewrite.index.into()];
            path.extend(rewrite.path.iter().map(|step| Step::Name(step)));
            operations.replace(&path, rewrite.value);
        }
        for addition in std::mem::take(&mut self.workload_api) {
            addition.carried_out(&mut operations);
        }
        volumes(raw, std::mem::take(&mut self.volumes), &mut operations);
        self.containers(raw, &mut operations);
        Outcome::Injected {
            patch: operations.done(),
            warnings: self.warnings,
        }
    }

    fn containers(&mut self, raw: &Value, operations: &mut Operations) {
        let made = [self.init.take(), self.proxy.take()];
        let path = |index: usize| ["spec".into(), "initContainers".into(), index.into()];
        let Some(there) = raw["spec"]["initContainers"].as_array() else {
            operations.add(&["spec".into(), "initContainers".into()], made.into());
            return;
        };
        let is_mine = |container: &Value| container["name"].as_str().is_some_and(is_ours);
        let mine: Vec<usize> = (0..there.len()).filter(|index| is_mine(&there[*index])).collect();
        let in_place = mine == [0, 1]
            && made
                .iter()
                .zip(there)
                .all(|(made, there)| made["name"] == there["name"]);
        for (index, (made, there)) in made.iter().zip(there).enumerate().filter(|_| in_place) {
            let Some(field) = difference(there, made) else { continue };
            if field != "env" {
                let name = made["name"].as_str().unwrap_or_default();
                self.warnings.push(format!(
                    "init container {name} was changed after it was injected ({field}): put back"
                ));
            }
            operations.replace(&path(index), made.clone());
        }
        if in_place {
            return;
        }
        for index in mine.into_iter().rev() {
            operations.remove(&path(index));
        }
        for made in made.into_iter().rev() {
            operations.add(&path(0), made);
        }
    }
}

fn volumes(raw: &Value, made: Vec<Value>, operations: &mut Operations) {
    let Some(there) = raw["spec"]["volumes"].as_array() else {
        operations.add(&["spec".into(), "volumes".into()], made.into());
        return;
    };
    for made in made {
        match there.iter().position(|volume| volume["name"] == made["name"]) {
            None => operations.add(&["spec".into(), "volumes".into(), "-".into()], made),
            Some(index) if there[index] != made => {
                operations.replace(&["spec".into(), "volumes".into(), index.into()], made);
            }
            Some(_) => {}
        }
    }
}

/// A volume of the pod's own with a name of ours.
fn taken_volume(raw: &Value, injected: bool) -> Option<String> {
    let there = raw["spec"]["volumes"].as_array().filter(|_| !injected)?;
    let taken = |volume: &&Value| {
        let mut ours = MOUNTS.iter().chain([&WORKLOAD_API]);
        ours.any(|(name, _)| volume["name"] == *name)
    };
    let name = there.iter().find(taken)?["name"].as_str()?;
    Some(format!("volume {name}: the name is the mesh's own; choose another"))
}

/// Label or annotation of the namespace.
pub(crate) fn may_loosen(context: &PodContext<'_>) -> bool {
    let by_label = context.labels.get(ALLOW_LOOSENING);
    let says = by_label.or_else(|| context.annotations.get(ALLOW_LOOSENING));
    says.is_some_and(|value| value == "true")
}

#[cfg(test)]
mod tests;

//! Documents of a manifest: which have pods in them, and where.

use std::collections::{BTreeMap, BTreeSet};

use postern_injector::inject::{Outcome, PodContext, Settings, inject as injected_pod};
use serde_json::Value;

/// Documents in a manifest, and items of a list.
const MAX_DOCUMENTS: usize = 10_000;

/// Labels and annotations of a namespace.
pub(super) type Space = (BTreeMap<String, String>, BTreeMap<String, String>);

/// What the webhook would know beside the pod.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// Of objects that name none.
    pub(super) namespace: String,
    pub(super) namespaces: BTreeMap<String, Space>,
    pub(super) roots_sha256: Vec<String>,
    pub(super) settings: Settings,
}

/// The manifest, and what is to be said about it.
#[derive(Debug, Default)]
pub(super) struct Injected {
    pub(super) yaml: String,
    pub(super) warnings: Vec<String>,
    pub(super) refused: Vec<String>,
}

/// Every pod of the manifest gets its proxy; a document without one stays as it is, to the byte. `token` gives a pod's
/// random token.
pub(super) fn inject(
    text: &str,
    surroundings: &Surroundings,
    mut token: impl FnMut() -> String,
) -> Result<Injected, String> {
    let mut out = Injected::default();
    for (i, part) in parts(text)?.into_iter().enumerate() {
        if !out.yaml.is_empty() {
            out.yaml.push_str("---\n");
        }
        let mut document = parsed(part, i)?;
        let before = document.clone();
        each_object(&mut document, &mut |object| {
            one(object, surroundings, &mut token, &mut out)
        });
        if document == before {
            out.yaml.push_str(part);
            if !part.ends_with('\n') {
                out.yaml.push('\n');
            }
        } else {
            out.yaml.push_str(&written(&document)?);
        }
    }
    Ok(out)
}

/// The namespaces of all objects that have pods.
pub(super) fn namespaces(text: &str, default: &str) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    for (i, part) in parts(text)?.into_iter().enumerate() {
        let mut document = parsed(part, i)?;
        each_object(&mut document, &mut |object| {
            if template(object).is_some() {
                names.insert(namespace(object, default).to_owned());
            }
        });
    }
    Ok(names)
}

/// A line that begins with `---` ends a document: nothing within one can begin so (YAML 1.2, 9.1.2).
fn parts(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']));
        if marker {
            parts.push(&text[start..at]);
            start = at + line.len();
        }
        at += line.len();
    }
    parts.push(&text[start..]);
    parts.retain(|part| {
        part.lines()
            .any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    });
    if parts.len() > MAX_DOCUMENTS {
        return Err(format!("there are more than {MAX_DOCUMENTS} documents"));
    }
    Ok(parts)
}

fn parsed(part: &str, i: usize) -> Result<Value, String> {
    // `defaultMode: 0644` is octal to kubectl.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(part, options).map_err(|error| format!("document {}: {error}", i + 1))
}

/// What is read back must be what was meant: a string that some reader takes for a number would change a pod.
fn written(document: &Value) -> Result<String, String> {
    let yaml = serde_saphyr::to_string(document).map_err(|error| error.to_string())?;
    let again: Result<Value, _> = serde_saphyr::from_str(&yaml);
    if again.is_ok_and(|again| again == *document) {
        return Ok(if yaml.ends_with('\n') {
            yaml
        } else {
            format!("{yaml}\n")
        });
    }
    Err("a document cannot be written as YAML without a change; give it as JSON".to_owned())
}

/// The document itself, or the items of a list.
fn each_object(document: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document.get_mut("items").and_then(Value::as_array_mut) {
        Some(items) if is_list => items.iter_mut().take(MAX_DOCUMENTS).for_each(visit),
        _ => visit(document),
    }
}

/// Where an object of this kind has its pod; "" for a pod itself.
fn template(object: &Value) -> Option<&'static str> {
    let path = match (object["apiVersion"].as_str()?, object["kind"].as_str()?) {
        ("v1", "Pod") => "",
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job")
        | ("v1", "ReplicationController") => "/spec/template",
        ("batch/v1", "CronJob") => "/spec/jobTemplate/spec/template",
        _ => return None,
    };
    object.pointer(path).is_some_and(Value::is_object).then_some(path)
}

fn namespace<'o>(object: &'o Value, default: &'o str) -> &'o str {
    object["metadata"]["namespace"].as_str().unwrap_or(default)
}

fn one(object: &mut Value, surroundings: &Surroundings, token: &mut impl FnMut() -> String, out: &mut Injected) {
    let Some(path) = template(object) else { return };
    let space_name = namespace(object, &surroundings.namespace).to_owned();
    let object_name = object["metadata"]["name"]
        .as_str()
        .or(object["metadata"]["generateName"].as_str());
    let subject = format!(
        "{} {space_name}/{}",
        object["kind"].as_str().unwrap_or_default(),
        object_name.unwrap_or_default()
    );
    let none = Space::default();
    let (labels, annotations) = surroundings.namespaces.get(&space_name).unwrap_or(&none);
    let token = token();
    let context = PodContext {
        namespace: &space_name,
        labels,
        annotations,
        roots_sha256: &surroundings.roots_sha256,
        token: &token,
    };
    let Some(pod) = object.pointer_mut(path) else { return };
    let (patch, warnings) = match injected_pod(pod, &context, &surroundings.settings) {
        Outcome::Injected { patch, warnings } | Outcome::Skipped { patch, warnings, .. } => (patch, warnings),
        Outcome::Refused { message } => return out.refused.push(format!("{subject}: {message}")),
    };
    out.warnings
        .extend(warnings.into_iter().map(|warning| format!("{subject}: {warning}")));
    if let Err(error) = json_patch::patch(pod, &patch) {
        out.refused.push(format!("{subject}: the patch does not fit: {error}"));
    }
}

#[cfg(test)]
mod tests;

//! The chart, rendered by `helm`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The namespace that the chart insists on.
pub const NAMESPACE: &str = "postern-system";

/// What `helm template` takes for the cluster's version: a helm that was built as a Go module believes in 1.20.
const KUBERNETES: &str = "1.36.2";

/// The value sets that must render: the defaults, and the files of `charts/postern/ci`.
pub const VALUE_SETS: [&str; 4] = ["defaults", "minimal", "ha", "everything"];

/// The tree that this was built from.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where the chart is.
#[must_use]
pub fn directory() -> PathBuf {
    root().join("charts/postern")
}

/// `helm` with some arguments, in the project's root.
///
/// # Panics
/// If there is no `helm` (ask [`crate::requires`] first).
#[must_use]
pub fn helm(arguments: &[&str]) -> Output {
    let helm = crate::which("helm").expect("helm is here");
    Command::new(helm)
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("helm can be run")
}

/// The chart with one of [`VALUE_SETS`] and `more` arguments; the error is what helm said.
///
/// # Errors
/// If it does not render.
///
/// # Panics
/// If helm renders what is no YAML.
pub fn try_render(set: &str, more: &[&str]) -> Result<Vec<Value>, String> {
    let values = format!("charts/postern/ci/values-{set}.yaml");
    let mut arguments = vec!["template", "postern", "charts/postern", "--kube-version", KUBERNETES];
    if !more.contains(&"--namespace") {
        arguments.extend(["--namespace", NAMESPACE]);
    }
    if set != "defaults" {
        arguments.extend(["--values", &values]);
    }
    arguments.extend(more);
    let out = helm(&arguments);
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("helm renders YAML");
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The chart's objects with one of [`VALUE_SETS`].
///
/// # Panics
/// If it does not render.
#[must_use]
pub fn render(set: &str) -> Vec<Value> {
    try_render(set, &[]).unwrap_or_else(|said| panic!("{set}: {said}"))
}

/// Those of one kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// An object's name; empty if it has none.
#[must_use]
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// A list of strings.
#[must_use]
pub fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

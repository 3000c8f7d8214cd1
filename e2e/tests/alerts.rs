//! Alerts and dashboards: their expressions are PromQL, each alert fires when it should and is quiet when all is well, and
//! every metric that they name is one that a component exposes. On scraped data they are evaluated on a cluster (`e2e/run`).
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use postern_e2e::{chart, requires};
use serde_json::Value;

const ALERTS: &str = "charts/postern/files/alerts.yaml";
const TESTS: &str = "e2e/fixtures/alerts.test.yaml";
const DASHBOARDS: &str = "examples/grafana";

/// Where the metrics of each prefix are registered.
const EXPOSED: [(&str, &str); 4] = [
    ("postern_proxy_", "proxy/src/metrics/exposition.rs"),
    ("postern_ca_", "ca/src/metrics.rs"),
    ("postern_control_", "control/src/metrics.rs"),
    ("postern_injector_", "injector/src/metrics.rs"),
];
/// What the exposition formats add to a name.
const SUFFIXES: [&str; 5] = ["_total", "_bucket", "_sum", "_count", "_seconds"];

fn promtool(arguments: &[&str]) {
    let out = Command::new("promtool")
        .args(arguments)
        .current_dir(chart::root())
        .output()
        .unwrap();
    let said = [out.stdout, out.stderr].concat();
    assert!(
        out.status.success(),
        "promtool {arguments:?}: {}",
        String::from_utf8_lossy(&said)
    );
}

fn read(path: impl AsRef<Path>) -> String {
    let path = chart::root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn alerts() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read(ALERTS)).unwrap();
    let groups = file["groups"].as_array().unwrap();
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

/// The expressions of all dashboards, with their panels' titles.
fn panels() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(chart::root().join(DASHBOARDS)).unwrap() {
        let path = entry.unwrap().path();
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                found.push((text(&panel["title"]), text(&target["expr"])));
            }
        }
    }
    found
}

#[test]
fn promtool_finds_no_fault_with_alerts_or_with_what_they_fire_on() {
    if !requires(&["promtool"], false) {
        return;
    }
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", ALERTS]);
    promtool(&["test", "rules", TESTS]);
}

#[test]
fn every_alert_is_seen_firing_and_seen_quiet() {
    let file: Value = serde_saphyr::from_str(&read(TESTS)).unwrap();
    let cases: Vec<&Value> = file["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap())
        .collect();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let of_it: Vec<bool> = cases
            .iter()
            .filter(|case| case["alertname"] == name)
            .map(|case| !case["exp_alerts"].as_array().unwrap().is_empty())
            .collect();
        assert!(of_it.contains(&true), "{name} never fires in {TESTS}");
        assert!(of_it.contains(&false), "{name} is never quiet in {TESTS}");
        assert!(
            ["warning", "critical"]
                .map(Value::from)
                .contains(&alert["labels"]["severity"]),
            "{name}"
        );
        for annotation in ["summary", "description"] {
            assert!(
                alert["annotations"][annotation].is_string(),
                "{name} has no {annotation}"
            );
        }
    }
}

#[test]
fn every_panel_asks_in_promql() {
    if !requires(&["promtool"], false) {
        return;
    }
    let mut rules = "groups:\n  - name: panels\n    rules:\n".to_owned();
    for (at, (_, expression)) in panels().iter().enumerate() {
        let expression = serde_json::to_string(&expression.replace("$service", ".*")).unwrap();
        writeln!(rules, "      - {{record: panel:{at}, expr: {expression}}}").unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), rules).unwrap();
    promtool(&["check", "rules", file.path().to_str().unwrap()]);
}

#[test]
fn every_metric_of_dashboards_and_alerts_is_exposed_by_a_component() {
    let asked = panels().into_iter().chain(alerts().into_iter().map(|alert| {
        let text = |key: &str| alert[key].as_str().unwrap().to_owned();
        (text("alert"), text("expr"))
    }));
    let mut names = BTreeSet::new();
    for (place, expression) in asked {
        let found: Vec<&str> = metrics(&expression).collect();
        assert!(!found.is_empty(), "{place} asks for no metric of ours: {expression}");
        for metric in found {
            assert!(is_exposed(metric), "{place}: no component exposes {metric}");
            names.insert(metric.to_owned());
        }
    }
    assert!(names.len() > 20, "{names:?}");
    assert!(!is_exposed("postern_proxy_request_total") && !is_exposed("postern_ca_issuer"));
}

/// The words of an expression that begin as our metrics do.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("postern_"))
}

/// Is it registered, as it is or without what the formats add? The proxy writes whole names, the others add a prefix.
fn is_exposed(metric: &str) -> bool {
    let Some((prefix, file)) = EXPOSED.iter().find(|(prefix, _)| metric.starts_with(prefix)) else {
        return false;
    };
    let source = read(file);
    let mut stems = vec![metric];
    while let Some(stem) = stems
        .last()
        .and_then(|stem| SUFFIXES.iter().find_map(|s| stem.strip_suffix(s)))
    {
        stems.push(stem);
    }
    stems.iter().any(|stem| {
        let bare = stem.strip_prefix(prefix).unwrap_or(stem);
        source.contains(&format!("\"{stem}\"")) || source.contains(&format!("\"{bare}\""))
    })
}

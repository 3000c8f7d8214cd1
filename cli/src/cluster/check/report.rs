//! What came of the checks, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::catalog::{Group, Severity};
use super::{Checked, WRONG, code};
use crate::cluster::wrap;

/// Findings shown of one check; JSON has all.
const MAX_SHOWN: usize = 5;
/// What lines are wrapped to.
const WIDTH: usize = 100;
/// Where a check's explanation is.
const DOCS: &str = "docs/checks.md";

pub(super) fn text(checked: &[Checked]) -> String {
    let mut text = String::new();
    let mut group = None;
    for one in checked {
        if group != Some(one.check.group) {
            let gap = if group.is_some() { "\n" } else { "" };
            let _ = writeln!(text, "{gap}{}", heading(one.check.group));
            group = Some(one.check.group);
        }
        check(&mut text, one);
    }
    let count = |wanted: fn(&Checked) -> bool| checked.iter().filter(|one| wanted(one)).count();
    let failed = |one: &Checked| one.verdict.as_ref().is_ok_and(|found| !found.is_empty());
    let errors = checked
        .iter()
        .filter(|one| failed(one) && one.check.severity == Severity::Error)
        .count();
    let warnings = checked
        .iter()
        .filter(|one| failed(one) && one.check.severity == Severity::Warning)
        .count();
    let unknown = count(|one| one.verdict.is_err());
    let passed = count(|one| one.verdict.as_ref().is_ok_and(Vec::is_empty));
    let verdict = match code(checked) {
        0 => "All is well",
        WRONG => "Something is wrong",
        _ => "Nothing wrong was seen, and not all was seen",
    };
    let _ = writeln!(
        text,
        "\n{verdict}: {passed} passed, {errors} failed, {warnings} warned, {unknown} could not be looked at."
    );
    text
}

fn check(text: &mut String, one: &Checked) {
    let (id, title) = (one.check.id, one.check.title);
    match &one.verdict {
        Ok(found) if found.is_empty() => {
            let _ = writeln!(text, "  ok    {id}  {title}");
        }
        Err(unknown) => {
            let _ = writeln!(text, "  ?     {id}  {title}");
            let _ = write!(text, "{}", wrap(&format!("not looked at: {}", unknown.0), 16, WIDTH));
        }
        Ok(found) => {
            let mark = match one.check.severity {
                Severity::Error => "FAIL",
                Severity::Warning => "warn",
            };
            let _ = writeln!(text, "  {mark}  {id}  {title}");
            for finding in found.iter().take(MAX_SHOWN) {
                let _ = write!(
                    text,
                    "{}",
                    wrap(&format!("{}: {}", finding.subject, finding.cause), 16, WIDTH)
                );
                // A command is never wrapped: it is there to be copied.
                let _ = writeln!(text, "                  $ {}", finding.fix);
            }
            if found.len() > MAX_SHOWN {
                let _ = writeln!(
                    text,
                    "                and {} more (--output json has all)",
                    found.len() - MAX_SHOWN
                );
            }
            let _ = writeln!(text, "                {DOCS}#{}", anchor(id));
        }
    }
}

fn heading(group: Group) -> &'static str {
    match group {
        Group::Platform => "The cluster",
        Group::Before => "Before the installation",
        Group::Mesh => "The mesh",
        Group::Proxies => "Workloads and their proxies",
    }
}

pub(super) fn anchor(id: &str) -> String {
    id.to_ascii_lowercase()
}

pub(super) fn json(checked: &[Checked]) -> String {
    let checks: Vec<Value> = checked
        .iter()
        .map(|one| {
            let (result, findings, unknown) = match &one.verdict {
                Ok(found) if found.is_empty() => ("passed", json!([]), None),
                Ok(found) => ("failed", json!(found), None),
                Err(unknown) => ("unknown", json!([]), Some(&unknown.0)),
            };
            json!({
                "id": one.check.id,
                "title": one.check.title,
                "severity": one.check.severity,
                "result": result,
                "findings": findings,
                "unknown": unknown,
                "docs": format!("{DOCS}#{}", anchor(one.check.id)),
            })
        })
        .collect();
    let document = json!({ "ok": code(checked) == 0, "checks": checks });
    format!("{document:#}\n")
}

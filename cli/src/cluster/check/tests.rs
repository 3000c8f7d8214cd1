//! A cluster and a mesh in which all is well; each test breaks one thing, and sees that one check, and no other, fail.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::catalog::{CHECKS, Group};
use super::facts::{Facts, Unknown};
use super::{Checked, Severity, checked, code, report};

mod breaks;
mod healthy;

use breaks::BREAKS;
use healthy::healthy;

fn all_checked(facts: &Facts) -> Vec<Checked> {
    CHECKS.iter().map(|check| checked(check, facts)).collect()
}

/// Ids of the checks that fail; panics if one could not look.
fn failing(facts: &Facts) -> BTreeSet<&'static str> {
    let mut failing = BTreeSet::new();
    for one in all_checked(facts) {
        match one.verdict {
            Ok(found) if found.is_empty() => {}
            Ok(_) => drop(failing.insert(one.check.id)),
            Err(unknown) => panic!("{} could not be looked at: {}", one.check.id, unknown.0),
        }
    }
    failing
}

/// What is broken makes `id` fail, alone, with a cause, a command and words of `says`.
fn only(id: &str, says: &str, broken: &Facts) {
    assert_eq!(failing(broken), BTreeSet::from([id]));
    let check = CHECKS.iter().find(|check| check.id == id).unwrap();
    let found = (check.run)(broken).unwrap();
    for finding in &found {
        assert!(
            !finding.subject.is_empty() && !finding.cause.is_empty() && !finding.fix.is_empty(),
            "{finding:?}"
        );
    }
    let text = format!("{}: {}", found[0].subject, found[0].cause);
    assert!(text.contains(says), "{text}");
}

#[test]
fn nothing_fails_where_all_is_well() {
    assert_eq!(failing(&healthy()), BTreeSet::new());
}

#[test]
fn every_check_has_a_test_that_breaks_its_subject() {
    let broken: Vec<&str> = BREAKS.to_vec();
    let checks: Vec<&str> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(broken, checks);
    assert!(checks.len() >= 25);
}

#[test]
fn ids_are_unique_and_each_is_explained_in_the_documentation() {
    let ids: BTreeSet<&str> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(ids.len(), CHECKS.len());
    let docs = include_str!("../../../../docs/checks.md");
    for check in CHECKS {
        assert!(
            docs.contains(&format!("<a id=\"{}\"></a>", report::anchor(check.id))),
            "{}",
            check.id
        );
        assert!(
            docs.contains(&format!("{}: {}", check.id, check.title)),
            "{}: {}",
            check.id,
            check.title
        );
        let severity = match check.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        assert!(
            docs.contains(&format!("{} ({severity})", check.title)),
            "{} is a {severity}",
            check.id
        );
    }
}

#[test]
fn the_report_names_id_cause_command_and_anchor_within_a_hundred_columns() {
    let mut facts = healthy();
    facts.roots = Err(Unknown("configmaps \"postern-ca-roots\" is forbidden".to_owned()));
    breaks::pc_021(&mut facts);
    let text = report::text(&all_checked(&facts));
    assert!(
        text.lines()
            .filter(|line| !line.contains("$ "))
            .all(|line| line.chars().count() <= 100),
        "{text}"
    );
    for says in [
        "  FAIL  PC-021  the CA's replicas are ready\n",
        "Deployment postern-system/postern-ca: 1 of 2 replicas are ready",
        "$ kubectl -n postern-system describe pods -l app.kubernetes.io/name=postern-ca",
        "docs/checks.md#pc-021\n",
        "not looked at: configmaps \"postern-ca-roots\" is forbidden",
        "\nSomething is wrong: ",
    ] {
        assert!(text.contains(says), "{says}\n{text}");
    }
}

#[test]
fn programs_get_every_check_with_its_result() {
    let mut facts = healthy();
    breaks::pc_021(&mut facts);
    let document: serde_json::Value = serde_json::from_str(&report::json(&all_checked(&facts))).unwrap();
    assert_eq!(document["ok"], false);
    let checks = document["checks"].as_array().unwrap();
    assert_eq!(checks.len(), CHECKS.len());
    let broken = checks.iter().find(|check| check["id"] == "PC-021").unwrap();
    assert_eq!(
        (&broken["result"], &broken["severity"]),
        (&"failed".into(), &"error".into())
    );
    assert_eq!(broken["docs"], "docs/checks.md#pc-021");
    assert!(broken["findings"][0]["fix"].as_str().unwrap().starts_with("kubectl"));
}

#[test]
fn the_exit_code_tells_what_is_wrong_from_what_is_not_known_and_warnings_are_neither() {
    let mut facts = healthy();
    breaks::pc_076(&mut facts);
    assert_eq!(code(&all_checked(&facts)), 0);
    facts.roots = Err(Unknown("forbidden".to_owned()));
    assert_eq!(code(&all_checked(&facts)), 2);
    breaks::pc_021(&mut facts);
    assert_eq!(code(&all_checked(&facts)), 1);
}

#[test]
fn of_a_mesh_that_is_not_installed_one_failure_says_so() {
    let mut facts = healthy();
    facts.namespaces.as_mut().unwrap().remove(0);
    let all = all_checked(&facts);
    let failing: Vec<&str> = all
        .iter()
        .filter(|one| one.verdict.as_ref().is_ok_and(|found| !found.is_empty()))
        .map(|one| one.check.id)
        .collect();
    assert_eq!(failing[0], "PC-020");
    assert!(
        all.iter()
            .filter(|one| one.check.group == Group::Mesh)
            .skip(1)
            .all(|one| one.verdict.is_err())
    );
}

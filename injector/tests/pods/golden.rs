//! Pods and what becomes of them: `golden/NAME.in.yaml` and `golden/NAME.out.yaml`, for people to read. Regenerate with
//! `POSTERN_BLESS=1 cargo test -p postern-injector --test pods`, and review the difference.

use std::path::{Path, PathBuf};

use postern_injector::inject::Outcome;
use serde_json::{Map, Value, json};

use crate::invariants;
use crate::world::Case;

pub(crate) fn golden() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(".in.yaml")?.to_owned();
            Some((name, path))
        })
        .collect();
    cases.sort();
    cases
}

pub(crate) fn read(path: &Path) -> Case {
    Case::parse(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn told(case: &Case) -> Value {
    match case.inject(&case.pod) {
        Outcome::Injected { warnings, .. } => {
            json!({"outcome": "injected", "warnings": warnings, "pod": case.patched(&case.pod)})
        }
        Outcome::Skipped { reason, warnings, .. } => {
            let pod = case.patched(&case.pod);
            let change = if pod == case.pod { json!("unchanged") } else { pod };
            json!({"outcome": "skipped", "reason": reason, "warnings": warnings, "pod": change})
        }
        Outcome::Refused { message } => json!({"outcome": "refused", "message": message}),
    }
}

#[test]
fn every_golden_pod_becomes_what_was_reviewed() {
    let cases = golden();
    assert!(cases.len() >= 50, "{} cases", cases.len());
    let bless = std::env::var_os("POSTERN_BLESS").is_some();
    let mut differ = Vec::new();
    for (name, path) in cases {
        let told = serde_saphyr::to_string(&told(&read(&path))).unwrap();
        let out = path.with_file_name(format!("{name}.out.yaml"));
        if bless {
            std::fs::write(&out, &told).unwrap();
        } else if std::fs::read_to_string(&out).ok().as_deref() != Some(&told) {
            differ.push(name);
        }
    }
    assert!(
        differ.is_empty(),
        "run again with POSTERN_BLESS=1 and review: {differ:?}"
    );
}

/// What the proxy is started with in each of them: its own tests read it (proxy/src/pod.rs), so that what is written here
/// is what is understood there.
#[test]
fn every_golden_sidecar_is_in_the_file_that_the_proxys_tests_read() {
    let mut sidecars = Map::new();
    for (name, path) in golden() {
        let case = read(&path);
        if !matches!(case.inject(&case.pod), Outcome::Injected { .. }) {
            continue;
        }
        let pod = case.patched(&case.pod);
        let mut sidecar = json!({"args": pod["spec"]["initContainers"][1]["args"],
            "redirect": pod["spec"]["initContainers"][0]["args"]});
        for name in ["POSTERN_PROBES", "POSTERN_APP_METRICS"] {
            if let Some(value) = invariants::variable(&pod, name) {
                sidecar["env"][name] = value.into();
            }
        }
        sidecars.insert(name, sidecar);
    }
    let told = format!("{:#}\n", Value::Object(sidecars));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sidecars.json");
    if std::env::var_os("POSTERN_BLESS").is_some() {
        std::fs::write(&path, &told).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap() == told,
        "run again with POSTERN_BLESS=1 and review"
    );
}

#[test]
fn invariants_hold_on_every_golden_pod() {
    let mut injected = 0;
    for (name, path) in golden() {
        let case = read(&path);
        injected += usize::from(matches!(case.inject(&case.pod), Outcome::Injected { .. }));
        invariants::hold(&name, &case);
    }
    assert!(injected >= 20, "{injected}");
}

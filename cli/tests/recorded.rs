//! What a proxy decided, and what `postern explain` says of it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A request at a workload's door.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    source: String,
    destination: String,
    port: u64,
    method: String,
    path: String,
    host: String,
}

/// What became of it: the outcome, and for a denial its reason and rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fate {
    outcome: String,
    reason: Option<String>,
    rule: Option<String>,
}

fn text(line: &Value, field: &str) -> String {
    line[field].as_str().unwrap_or_default().to_owned()
}

/// All different requests that doors with an opinion saw: with a peer, and a head that could be read.
fn recorded(directory: &Path) -> BTreeMap<Asked, Fate> {
    let mut recorded = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_str().unwrap().ends_with("-access.log") {
            continue;
        }
        let log = std::fs::read_to_string(&path).unwrap();
        // The last line may be under way.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let reason = line["reason"].as_str().map(ToOwned::to_owned);
            let by_policy = matches!(reason.as_deref(), None | Some("no_allow_rule" | "deny_rule"));
            if line["direction"] != "inbound" || text(&line, "source").is_empty() || !by_policy {
                continue;
            }
            let asked = Asked {
                source: text(&line, "source"),
                destination: text(&line, "destination"),
                port: line["port"].as_u64().unwrap(),
                method: text(&line, "method"),
                path: text(&line, "path"),
                host: text(&line, "host"),
            };
            let fate = Fate {
                outcome: text(&line, "outcome"),
                reason,
                rule: line["rule"].as_str().map(ToOwned::to_owned),
            };
            let first = recorded.entry(asked.clone()).or_insert_with(|| fate.clone());
            assert_eq!(*first, fate, "{asked:?} has two fates");
        }
    }
    recorded
}

fn explain(over: &[&str], asked: &Asked) -> Value {
    let port = asked.port.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command
        .arg("explain")
        .args(over)
        .args(["--output", "json", "--from", &asked.source, "--to", &asked.destination])
        .args(["--port", &port]);
    if !asked.method.is_empty() {
        command.args(["--method", &asked.method, "--path", &asked.path, "--host", &asked.host]);
    }
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn only_entry(directory: &Path) -> Option<PathBuf> {
    Some(std::fs::read_dir(directory).ok()?.next()?.ok()?.path())
}

#[test]
fn offline_and_live_say_of_every_request_of_a_recorded_run_what_its_proxy_decided() {
    let kept = tempfile::tempdir().unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args([
            "demo",
            "--headless",
            "--for",
            "60s",
            "--certificate-life",
            "20s",
            "--record",
            "--keep",
        ])
        .env("TMPDIR", kept.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Every service has been called, and mallory has been turned away by a rule and for want of one.
    let started = Instant::now();
    let (directory, recorded) = loop {
        let found = only_entry(kept.path()).map(|directory| (recorded(&directory), directory));
        if let Some((recorded, directory)) = found {
            let with = |reason| {
                recorded
                    .values()
                    .filter(|fate| fate.reason.as_deref() == reason)
                    .count()
            };
            if with(None) >= 5 && with(Some("no_allow_rule")) > 0 && with(Some("deny_rule")) > 0 {
                break (directory, recorded);
            }
        }
        assert!(
            started.elapsed() < Duration::from_secs(40),
            "too little is recorded in 40 s"
        );
        assert!(run.try_wait().unwrap().is_none(), "the demo has ended");
        std::thread::sleep(Duration::from_millis(200));
    };
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (socket, documents) = (file("view.sock"), file("documents"));
    for (asked, fate) in &recorded {
        let live = explain(&["--control", &socket], asked);
        let offline = explain(&["--policies", &documents], asked);
        // Files are named as they were given: by their paths here, from control's directory there.
        let place = |answer: &Value| {
            answer["rule"]["place"]
                .as_str()
                .map(|place| place.rsplit('/').next().unwrap().to_owned())
        };
        assert_eq!(place(&live), place(&offline), "{asked:?}");
        for field in ["verdict", "reason", "mode"] {
            assert_eq!(live[field], offline[field], "{asked:?}");
        }
        for field in ["namespace", "policy", "index"] {
            assert_eq!(live["rule"][field], offline["rule"][field], "{asked:?}");
            assert_eq!(
                live["nearest"]["rule"][field], offline["nearest"]["rule"][field],
                "{asked:?}"
            );
        }
        assert_eq!(live["nearest"]["field"], offline["nearest"]["field"], "{asked:?}");
        let verdict = if fate.outcome == "denied" { "denied" } else { "allowed" };
        assert_eq!(live["verdict"], verdict, "{asked:?} {fate:?}: {live}");
        if verdict == "denied" {
            assert_eq!(live["reason"].as_str(), fate.reason.as_deref(), "{asked:?}");
        }
        if let Some(rule) = &fate.rule {
            let live = place(&live).unwrap();
            assert!(live.starts_with(rule.as_str()), "{asked:?}: {live} and {rule}");
        }
    }
    run.kill().unwrap();
    run.wait().unwrap();
}

//! Whole runs of the built program: real processes, real certificates, on loopback.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A run that must be flawless shares the machine with no other run.
static MACHINE: Mutex<()> = Mutex::new(());

/// The shortest run in which each certificate is renewed and one expires.
const SHORT: [&str; 5] = ["--headless", "--for", "12s", "--output", "json"];

fn demo(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_postern"))
        .arg("demo")
        .args(SHORT)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Exit code, the JSON of the last line, and what was said to people.
fn ended(run: Child) -> (Option<i32>, Value, String) {
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = out
        .lines()
        .last()
        .unwrap_or_else(|| panic!("nothing on standard output; said:\n{said}"));
    let json = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"));
    (output.status.code(), json, said)
}

/// Processes that a demo has started.
fn children(demo: u32) -> Vec<String> {
    let tether = format!("--tether\0{demo}\0");
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .filter(|command| command.contains(&tether))
        .collect()
}

fn eventually(what: &str, mut state: impl FnMut() -> bool) {
    let started = Instant::now();
    while !state() {
        assert!(started.elapsed() < Duration::from_secs(30), "no {what} in 30 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the demo says that all its processes run.
fn until_it_runs(run: &mut Child) {
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("five services talk")));
    // Read on, or the demo would one day write to a closed pipe.
    std::thread::spawn(move || lines.for_each(drop));
    assert_eq!(children(run.id()).len(), 12);
}

#[test]
fn every_allowed_request_succeeds_every_attack_is_refused_and_every_certificate_renewed() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let run = demo(&[]);
    let id = run.id();
    let (code, json, said) = ended(run);
    assert_eq!(json["ok"], true, "{json}\n{said}");
    assert_eq!(code, Some(0));
    assert_eq!(json["requests"]["failed"], 0);
    assert!(json["requests"]["allowed"].as_u64().unwrap() > 300, "{json}");
    assert_eq!(json["mutual_tls_percent"], 100.0);
    assert!(json["renewals"].as_u64().unwrap() >= 5, "{json}");
    let attacks = json["attacks"].as_object().unwrap();
    assert_eq!(attacks.len(), 6);
    assert!(attacks.values().all(|fate| fate == "refused"), "{json}");
    for reason in [
        "no_allow_rule",
        "deny_rule",
        "plaintext",
        "no_certificate",
        "expired",
        "path_backslash",
    ] {
        assert!(json["denied_by_reason"][reason].as_u64() > Some(0), "{reason}: {json}");
    }
    for field in ["p50", "p99", "direct_p50", "direct_p99"] {
        assert!(json["latency_us"][field].as_u64() > Some(0), "{json}");
    }
    assert!(children(id).is_empty());
}

#[test]
fn an_open_door_and_a_bypassed_proxy_are_noticed_by_what_the_services_count() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let (open, bypassed) = (demo(&["--insecure-discover-cart"]), demo(&["--insecure-bypass-cart"]));

    let (code, json, said) = ended(open);
    assert_eq!((code, &json["ok"]), (Some(1), &Value::Bool(false)), "{json}");
    for attack in ["plaintext", "wrong_identity", "forged_header", "encoded_path"] {
        assert_eq!(json["attacks"][attack], "PASSED", "{attack}: {json}");
    }
    // A door that lets everybody in still believes no false certificate.
    for attack in ["no_certificate", "expired_certificate"] {
        assert_eq!(json["attacks"][attack], "refused", "{attack}: {json}");
    }
    assert!(json["mutual_tls_percent"].as_f64().unwrap() < 100.0, "{json}");
    assert!(said.contains("not ok: the attack plaintext PASSED"), "{said}");

    let (code, json, said) = ended(bypassed);
    assert_eq!((code, &json["ok"]), (Some(1), &Value::Bool(false)), "{json}");
    assert!(json["mutual_tls_percent"].as_f64().unwrap() < 90.0, "{json}");
    assert!(said.contains("came by mutual TLS"), "{said}");
}

#[test]
fn a_demo_that_is_killed_leaves_no_process_behind() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_postern"))
        .arg("demo")
        .args(SHORT)
        // Nobody is left to remove its directory: it lies where this test removes it.
        .env("TMPDIR", directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until_it_runs(&mut run);
    let id = run.id();
    run.kill().unwrap();
    run.wait().unwrap();
    eventually("end of all its processes", || children(id).is_empty());
}

#[test]
fn an_interrupted_demo_ends_its_processes_removes_its_directory_and_is_not_ok() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_postern"))
        .arg("demo")
        .args(SHORT)
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until_it_runs(&mut run);
    assert_eq!(mode_of_only_entry(directory.path()), 0o700);
    let id = run.id();
    let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (code, json, _) = ended(run);
    assert_eq!((code, &json["ok"]), (Some(1), &Value::Bool(false)));
    assert!(json["why"].to_string().contains("interrupted"), "{json}");
    assert!(children(id).is_empty());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

fn mode_of_only_entry(directory: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    let mut entries = std::fs::read_dir(directory).unwrap();
    let entry = entries.next().unwrap().unwrap();
    assert!(entries.next().is_none());
    entry.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn without_a_terminal_the_demo_says_what_to_do() {
    let output = Command::new(env!("CARGO_BIN_EXE_postern"))
        .arg("demo")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--headless"));
}

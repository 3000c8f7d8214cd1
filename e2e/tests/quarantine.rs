//! `postern quarantine`, from the command to live connections: HTTP/1.1, HTTP/2, a gRPC stream and bytes, in both directions.
//! Needs no root.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Output;

use postern_e2e::live::{Kind, Line};
use postern_e2e::loopback::{Loopback, spiffe_id};
use postern_e2e::process::eventually;
use serde_json::Value;

/// Of each kind.
fn lines(mesh: &Loopback, from: usize, to: usize) -> Vec<Line> {
    Kind::ALL.into_iter().map(|kind| mesh.line(from, to, kind)).collect()
}

/// With the suspect, either way.
fn lines_of(mesh: &Loopback, suspect: usize, others: std::ops::Range<usize>) -> Vec<Line> {
    let both = |other| [lines(mesh, suspect, other), lines(mesh, other, suspect)].concat();
    others.flat_map(both).collect()
}

fn all_answer(lines: &[Line]) {
    for line in lines {
        eventually(&format!("{:?} to {} to be answered", line.kind, line.host), || {
            assert_eq!(line.ended(), None, "{:?} to {}", line.kind, line.host);
            (line.answers() >= 3).then_some(())
        });
    }
}

fn all_end(lines: &[Line]) {
    for line in lines {
        eventually(&format!("the end of {:?} to {}", line.kind, line.host), || line.ended());
    }
}

fn all_are_refused(lines: &[Line]) {
    all_end(lines);
    for line in lines {
        assert_eq!(
            line.answers(),
            0,
            "{:?} to {}: {:?}",
            line.kind,
            line.host,
            line.ended()
        );
    }
}

fn done(output: &Output) -> String {
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    String::from_utf8_lossy(out).into_owned()
}

fn refused(output: &Output) -> String {
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn listed(mesh: &Loopback) -> Value {
    serde_json::from_str(&done(&mesh.quarantine(&["list", "--output", "json"]))).unwrap()
}

fn has_logged(mesh: &Loopback, n: usize, reason: &str) -> bool {
    mesh.access_log(n).iter().any(|line| line["reason"] == reason)
}

#[test]
fn a_quarantined_pod_is_cut_off_on_live_connections_and_new_ones_in_both_directions_until_it_is_lifted() {
    let mesh = Loopback::start(4, "1h");
    let suspects = lines_of(&mesh, 0, 1..4);
    let others = [lines(&mesh, 1, 2), lines(&mesh, 3, 1)].concat();
    all_answer(&[suspects.clone(), others.clone()].concat());

    let said = done(&mesh.quarantine(&["add", "--pod", "shop/w0", "--reason", "CVE-2026-1"]));
    let subject = format!("instance w0 of {}", spiffe_id(0));
    assert!(said.contains("pod shop/w0") && said.contains(&subject), "{said}");
    assert!(said.contains("in force at 4 of 4"), "{said}");
    all_end(&suspects);
    all_are_refused(&lines_of(&mesh, 0, 1..4));
    let before: Vec<u64> = others.iter().map(Line::answers).collect();
    for (line, before) in others.iter().zip(before) {
        eventually("others to go on", || (line.answers() > before).then_some(()));
        assert_eq!(line.ended(), None);
    }

    // It says why, to whoever may read it.
    assert!(mesh.get(0, "/readyz").contains("quarantined"));
    assert!(mesh.get(1, "/readyz").starts_with("ready"));
    // Whoever is first to end a connection has its reason; to the other side the peer is gone.
    let reasons = ["self_quarantined", "peer_quarantined"];
    eventually("an access log", || {
        let logged = |n| reasons.iter().any(|reason| has_logged(&mesh, n, reason));
        (0..4).any(logged).then_some(())
    });
    let metrics = mesh.get(0, "/metrics");
    assert!(metrics.contains("reason=\"self_quarantined\""), "{metrics}");
    let list = listed(&mesh);
    let entry = &list["entries"][0];
    assert_eq!(
        (&entry["instance"], &entry["spiffe_id"]),
        (&"w0".into(), &spiffe_id(0).into())
    );
    assert_eq!(entry["reason"], "CVE-2026-1");
    assert!(entry["by"].as_str().is_some_and(|by| by.contains("uid")), "{entry}");

    done(&mesh.quarantine(&["lift", "--instance", "w0"]));
    assert_eq!(listed(&mesh)["entries"], Value::Array(Vec::new()));
    eventually("readiness", || {
        mesh.get(0, "/readyz").starts_with("ready").then_some(())
    });
    all_answer(&lines_of(&mesh, 0, 1..4));
}

#[test]
fn a_quarantine_outlives_a_lost_ca_and_restarts_of_all_and_a_restarted_suspect_gets_no_certificate() {
    let mut mesh = Loopback::start(3, "1h");
    done(&mesh.quarantine(&["add", "--id", &spiffe_id(0)]));
    mesh.stop_ca();
    all_are_refused(&lines_of(&mesh, 0, 1..3));
    mesh.start_ca();
    mesh.restart_control();
    mesh.restart_proxy_ready(1);
    all_are_refused(&lines(&mesh, 1, 0));
    all_are_refused(&lines(&mesh, 2, 0));
    assert_eq!(listed(&mesh)["entries"][0]["spiffe_id"], Value::from(spiffe_id(0)));

    mesh.restart_proxy(0);
    eventually("the CA's refusal, which says nothing", || {
        let readiness = mesh.get(0, "/readyz");
        assert!(!readiness.contains("quarantine"), "{readiness}");
        readiness.contains("refused").then_some(())
    });
    assert!(
        mesh.ca_log().contains("\"quarantined\""),
        "but its log does: {}",
        mesh.ca_log()
    );
    all_are_refused(&lines(&mesh, 0, 1));

    done(&mesh.quarantine(&["lift", "--id", &spiffe_id(0)]));
    eventually("it to come back by itself", || {
        mesh.get(0, "/readyz").starts_with("ready").then_some(())
    });
    all_answer(&lines_of(&mesh, 0, 1..3));
}

#[test]
fn a_certificate_is_cut_off_by_its_serial_number_and_its_successor_is_not() {
    let mut mesh = Loopback::start(2, "1h");
    let live = lines_of(&mesh, 0, 1..2);
    all_answer(&live);
    let serial = mesh.serial(0);
    // Proxies report their certificates each second.
    let said = eventually("control to know the certificate", || {
        let output = mesh.quarantine(&["add", "--serial", &serial.to_uppercase()]);
        output.status.success().then(|| done(&output))
    });
    assert!(said.contains("shop/w0"), "{said}");
    all_end(&live);
    all_are_refused(&lines_of(&mesh, 0, 1..2));
    mesh.restart_proxy_ready(0);
    all_answer(&lines_of(&mesh, 0, 1..2));
}

#[test]
fn with_control_away_proxies_hear_of_it_with_their_next_certificate() {
    let mut mesh = Loopback::start(2, "10s");
    mesh.stop_control();
    done(&mesh.quarantine_at_the_ca(&["add", "--id", &spiffe_id(0)]));
    let version = listed(&mesh)["version"].as_u64().unwrap();
    eventually("it with a renewal", || {
        let metric = format!("postern_proxy_quarantine_version {version}");
        mesh.get(1, "/metrics").contains(&metric).then_some(())
    });
    all_are_refused(&lines(&mesh, 1, 0));
}

#[test]
fn who_is_not_known_is_answered_with_the_nearest_and_the_mesh_itself_asks_for_force() {
    let mesh = Loopback::start(2, "1h");
    let said = refused(&mesh.quarantine(&["add", "--pod", "shop/w11"]));
    assert!(
        said.contains("there is no pod `shop/w11`") && said.contains("did you mean `shop/w1`"),
        "{said}"
    );
    let misspelt = spiffe_id(0).replace("/shop/", "/shpo/");
    let said = refused(&mesh.quarantine(&["add", "--id", &misspelt]));
    assert!(said.contains(&spiffe_id(0)) && said.contains("--force"), "{said}");
    let control = "spiffe://cluster.local/ns/postern-system/sa/postern-control";
    let said = refused(&mesh.quarantine_at_the_ca(&["add", "--id", control]));
    assert!(said.contains("is control") && said.contains("--force"), "{said}");
    let said = refused(&mesh.quarantine(&["lift", "--id", &spiffe_id(1)]));
    assert!(said.contains("not in quarantine"), "{said}");
    assert!(refused(&mesh.quarantine(&["add", "--serial", "xyz"])).contains("hexadecimal"));
    assert_eq!(
        listed(&mesh)["entries"],
        Value::Array(Vec::new()),
        "and nothing was done"
    );
    // Somebody of another trust domain, say.
    done(&mesh.quarantine(&["add", "--id", &misspelt, "--force"]));
    assert!(done(&mesh.quarantine(&["list"])).contains(&misspelt));
}

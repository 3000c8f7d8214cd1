//! Long streams between real proxies whose certificates live for ten seconds: bytes, a WebSocket, a gRPC stream. Needs no root.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use postern_e2e::live::{Kind, Line};
use postern_e2e::loopback::Loopback;
use postern_e2e::process::eventually;

/// More than three lifetimes.
const LONG: Duration = Duration::from_secs(35);

/// Until the old root leaves: a minute for renewals, and what acknowledging takes.
const TAINTED: Duration = Duration::from_secs(180);

fn metric(mesh: &Loopback, n: usize, series: &str) -> f64 {
    let text = mesh.get(n, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

/// They go on, and nothing is missing, for so long.
fn go_on(mesh: &Loopback, lines: &[Line], span: Duration) {
    let until = Instant::now() + span;
    go_on_until(mesh, lines, || Instant::now() >= until);
}

fn go_on_until(mesh: &Loopback, lines: &[Line], mut enough: impl FnMut() -> bool) {
    let mut before: Vec<u64> = lines.iter().map(Line::answers).collect();
    while !enough() {
        std::thread::sleep(Duration::from_secs(1));
        for (line, before) in lines.iter().zip(&mut before) {
            assert_eq!(line.ended(), None, "{:?}: {:?}", line.kind, mesh.access_log(0));
            let now = line.answers();
            assert!(now > *before, "{:?} stands still", line.kind);
            *before = now;
        }
    }
}

#[test]
fn long_streams_of_every_kind_live_past_their_certificates_through_a_new_issuer_and_end_with_a_quarantine() {
    let mesh = Loopback::start(2, "10s");
    let lines = Kind::STREAMS.map(|kind| mesh.line(0, 1, kind));
    for line in &lines {
        eventually("an answer", || (line.answers() >= 3).then_some(()));
    }
    go_on(&mesh, &lines, LONG);
    let outbound = "postern_proxy_readmissions_total{direction=\"outbound\",result=\"readmitted\"}";
    let inbound = "postern_proxy_readmissions_total{direction=\"inbound\",result=\"readmitted\"}";
    let (asked, agreed) = (metric(&mesh, 0, outbound), metric(&mesh, 1, inbound));
    assert!(asked >= 9.0 && agreed >= asked, "{asked} asked, {agreed} agreed");
    mesh.rotate_issuer();
    go_on(&mesh, &lines, Duration::from_secs(12));
    let said = mesh.quarantine(&["add", "--pod", "shop/w0"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    for line in &lines {
        eventually("the end of it", || line.ended());
    }
}

#[test]
fn long_streams_go_on_when_the_root_that_they_began_under_was_tainted_and_has_left() {
    let mesh = Loopback::start(2, "1h");
    let lines = Kind::STREAMS.map(|kind| mesh.line(0, 1, kind));
    for line in &lines {
        eventually("an answer", || (line.answers() >= 3).then_some(()));
    }
    mesh.taint_root();
    let began = Instant::now();
    go_on_until(&mesh, &lines, || {
        let stage = mesh.root_stage();
        assert!(began.elapsed() < TAINTED, "still {stage}");
        stage == "retired"
    });
    // Proxies hear within a second, and whoever is not believed any more ends within another.
    go_on(&mesh, &lines, Duration::from_secs(5));
    let readmitted = "postern_proxy_readmissions_total{direction=\"outbound\",result=\"readmitted\"}";
    assert!(metric(&mesh, 0, readmitted) >= 3.0, "{}", mesh.get(0, "/metrics"));
}

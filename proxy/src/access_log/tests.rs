#![allow(clippy::unwrap_used)]
use std::time::Duration;

use postern_policy::Reason;

use super::*;
use crate::metrics::Direction;
use crate::outcome::Failure;
use crate::snapshot::Protocol;

fn route() -> RouteKey {
    RouteKey {
        direction: Direction::Inbound,
        source: "spiffe://cluster.local/ns/shop/sa/mallory".into(),
        destination: "spiffe://cluster.local/ns/shop/sa/ledger".into(),
        service: "http".into(),
        port: 80,
        protocol: Protocol::Http1,
        mutual_tls: true,
    }
}

fn finished(failure: Option<Failure>) -> Finished {
    Finished {
        status: failure.map_or(200, |f| f.facts().status),
        failure,
        would_deny: false,
        latency: Duration::from_micros(250),
        sent: 0,
        received: 7,
    }
}

fn entry<'a>(route: &'a RouteKey, finished: &'a Finished, path: &'a str) -> Entry<'a> {
    Entry {
        route,
        peer_address: Some("10.0.0.9:4711".parse().unwrap()),
        method: "GET",
        path,
        host: "ledger.shop",
        decision_id: finished.failure.map(|_| "d-1"),
        policy: Some("shop/ledger"),
        would_deny: None,
        audited: None,
        rule: Some("ledger.yaml:7"),
        finished,
    }
}

fn lines_of(wanted: Wanted, write: impl FnOnce(&AccessLog)) -> Vec<serde_json::Value> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = AccessLog::open(wanted, &Sink::File(path.clone()), Arc::default()).unwrap();
    write(&log);
    let last = finished(Some(Failure::Draining));
    log.write(&entry(&route(), &last, "/the-end"));
    for _ in 0..1_000 {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if wanted == Wanted::Off || (text.contains("/the-end") && text.ends_with('\n')) {
            return text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the last line never came");
}

#[test]
fn a_denial_is_one_line_with_its_decision_id_policy_and_rule() {
    let denied = finished(Some(Failure::Denied(Reason::NoAllowRule)));
    let lines = lines_of(Wanted::Denied, |log| {
        assert!(log.wants(&denied) && !log.wants(&finished(None)));
        log.write(&entry(&route(), &denied, "/x"));
        log.write(&entry(&route(), &finished(None), "/not-wanted"));
    });
    assert_eq!(lines.len(), 2);
    let line = &lines[0];
    for (field, value) in [
        ("outcome", "denied"),
        ("reason", "no_allow_rule"),
        ("decision_id", "d-1"),
        ("policy", "shop/ledger"),
        ("rule", "ledger.yaml:7"),
        ("source", "spiffe://cluster.local/ns/shop/sa/mallory"),
        ("path", "/x"),
        ("tls", "mutual"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert_eq!(line["status"], 403);
}

#[test]
fn text_of_a_client_is_escaped_and_cut_at_max_logged_text() {
    let forged = "/\"}\n{\"outcome\":\"allowed\"\u{1b}[2J";
    let long = format!("/{}", "ü".repeat(MAX_LOGGED_TEXT));
    let denied = finished(Some(Failure::Denied(Reason::NoPolicy)));
    let lines = lines_of(Wanted::All, |log| {
        log.write(&entry(&route(), &denied, forged));
        log.write(&entry(&route(), &denied, &long));
        let exact = "a".repeat(MAX_LOGGED_TEXT);
        log.write(&entry(&route(), &denied, &exact));
        log.write(&entry(&route(), &denied, &format!("{exact}b")));
    });
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["path"], forged);
    assert!(lines[1]["path"].as_str().unwrap().len() <= MAX_LOGGED_TEXT);
    assert_eq!(lines[2]["path"], lines[3]["path"]);
}

#[test]
fn denials_reach_the_flow_report_even_when_no_line_is_wanted_and_are_bounded() {
    let denied = finished(Some(Failure::Denied(Reason::NoPolicy)));
    let log = AccessLog::off(Arc::default());
    assert!(log.wants(&denied));
    log.write(&entry(
        &route(),
        &finished(Some(Failure::UpstreamGone)),
        "/broken-is-not-denied",
    ));
    for _ in 0..MAX_DENIALS + 3 {
        log.write(&entry(&route(), &denied, "/x"));
    }
    let (denials, dropped) = log.denials().take();
    assert_eq!((denials.len(), dropped), (MAX_DENIALS, 3));
    assert_eq!(denials[0].reason, "no_policy");
    assert_eq!(log.denials().take(), (Vec::new(), 0));
}

#[test]
fn a_full_queue_drops_and_counts_and_never_waits() {
    let (lines, queue) = sync_channel(LOG_QUEUE);
    let metrics = Arc::new(Metrics::default());
    let mut log = AccessLog::off(Arc::clone(&metrics));
    log.wanted = Wanted::All;
    log.lines = Some(lines);
    for _ in 0..LOG_QUEUE + 2 {
        log.write(&entry(&route(), &finished(None), "/"));
    }
    assert_eq!(metrics.access_log_dropped.load(Ordering::Relaxed), 2);
    assert_eq!(queue.try_iter().count(), LOG_QUEUE);
}

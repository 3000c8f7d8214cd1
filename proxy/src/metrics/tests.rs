#![allow(clippy::unwrap_used)]
use std::io::Write as _;
use std::process::{Command, Stdio};

use postern_policy::Reason;

use super::*;

fn key(source: &str) -> RouteKey {
    RouteKey {
        direction: Direction::Inbound,
        source: source.into(),
        destination: "spiffe://cluster.local/ns/shop/sa/cart".into(),
        service: "http".into(),
        port: 80,
        protocol: Protocol::Http1,
        mutual_tls: true,
    }
}

fn finished(status: u16, failure: Option<Failure>) -> Finished {
    Finished {
        status,
        failure,
        would_deny: false,
        latency: Duration::from_micros(180),
        sent: 10,
        received: 1_024,
    }
}

fn rendered(metrics: &Arc<Metrics>) -> String {
    postern_telemetry::exposition::render(&metrics.registry(), postern_telemetry::exposition::Format::Text)
}

fn busy() -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::default());
    let route = metrics.route(&key("spiffe://cluster.local/ns/shop/sa/web"));
    route.opened();
    route.finished(&finished(200, None));
    route.finished(&finished(403, Some(Failure::Denied(Reason::NoAllowRule))));
    metrics.denial("shop/cart", "no_allow_rule", false);
    metrics.denial("", "no_policy", true);
    metrics.handshake(Direction::Inbound, None);
    metrics.handshake(Direction::Inbound, Some("expired"));
    metrics.refused_connection(Direction::Inbound, Failure::Plaintext);
    metrics.renewal_failed("ca_unreachable");
    metrics
}

#[test]
fn a_request_shows_with_its_labels_and_a_denial_with_policy_and_reason() {
    let text = rendered(&busy());
    for line in [
        r#"postern_proxy_requests_total{direction="inbound",source="spiffe://cluster.local/ns/shop/sa/web",destination="spiffe://cluster.local/ns/shop/sa/cart",service="http",port="80",protocol="http1",tls="mutual",code="2xx",outcome="allowed"} 1"#,
        r#"postern_proxy_denials_total{policy="shop/cart",reason="no_allow_rule",enforced="true"} 1"#,
        r#"postern_proxy_denials_total{policy="",reason="no_policy",enforced="false"} 1"#,
        r#"postern_proxy_handshakes_total{direction="inbound"} 1"#,
        r#"postern_proxy_handshake_failures_total{direction="inbound",reason="expired"} 1"#,
        r#"postern_proxy_refused_connections_total{direction="inbound",reason="plaintext"} 1"#,
        r#"postern_proxy_request_duration_seconds_bucket{le="0.0002",direction="inbound",service="http",port="80",protocol="http1"} 1"#,
        r#"postern_proxy_request_duration_seconds_bucket{le="+Inf",direction="inbound",service="http",port="80",protocol="http1"} 1"#,
        r#"postern_proxy_connections{direction="inbound"} 1"#,
        r#"postern_proxy_certificate_renewal_failures_total{reason="ca_unreachable"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "missing: {line}\n{text}");
    }
}

#[test]
fn promtool_finds_no_fault_with_the_output() {
    let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        assert!(std::env::var_os("CI").is_none(), "promtool is missing, and this is CI");
        eprintln!("SKIPPED: promtool is not installed (Debian: apt install prometheus)");
        return;
    };
    let text = rendered(&busy());
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn past_max_routes_and_max_denial_series_everything_is_summed_as_other() {
    let metrics = Arc::new(Metrics::default());
    for n in 0..MAX_ROUTES + 10 {
        metrics
            .route(&key(&format!("spiffe://a/{n}")))
            .finished(&finished(200, None));
    }
    for n in 0..MAX_DENIAL_SERIES + 10 {
        metrics.denial(&format!("ns/{n}"), "deny_rule", false);
    }
    let text = rendered(&metrics);
    let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(series("postern_proxy_requests_total{"), MAX_ROUTES + 1);
    assert_eq!(series("postern_proxy_denials_total{"), MAX_DENIAL_SERIES + 1);
    let other = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name) && l.contains("\"other\""));
        line.and_then(|l| l.rsplit(' ').next()).map(str::to_owned)
    };
    assert_eq!(other("postern_proxy_requests_total{").as_deref(), Some("10"));
    assert_eq!(other("postern_proxy_denials_total{").as_deref(), Some("10"));
    // A route that was known before the bound still counts under its own name.
    let before = metrics.route(&key("spiffe://a/0"));
    before.finished(&finished(200, None));
    let known = metrics.counts().into_iter().find(|(k, _)| *k == key("spiffe://a/0"));
    assert_eq!(known.unwrap().1.of(Outcome::Allowed), 2);
}

#[test]
fn workers_count_apart_and_are_summed() {
    let metrics = Arc::new(Metrics::default());
    let here = metrics.route(&key("spiffe://a/b"));
    let there = std::thread::spawn({
        let metrics = Arc::clone(&metrics);
        move || {
            count_as_worker(1);
            metrics.route(&key("spiffe://a/b"))
        }
    })
    .join()
    .unwrap();
    assert!(!Arc::ptr_eq(&here, &there));
    here.finished(&finished(200, None));
    there.finished(&finished(200, None));
    let [(_, counts)] = &metrics.counts()[..] else { panic!() };
    assert_eq!(counts.of(Outcome::Allowed), 2);
    assert_eq!(counts.sent, 20);
}

#[test]
fn a_peer_that_leaves_is_a_failure_and_one_that_is_turned_away_a_denial() {
    let outcome = |failure| finished(0, Some(failure)).outcome();
    assert_eq!(outcome(Failure::PeerGone), Outcome::Failed);
    assert_eq!(outcome(Failure::UpstreamGone), Outcome::Failed);
    assert_eq!(outcome(Failure::Plaintext), Outcome::Denied);
    assert_eq!(outcome(Failure::Denied(Reason::DenyRule)), Outcome::Denied);
    assert_eq!(outcome(Failure::NotHttp), Outcome::Denied);
}

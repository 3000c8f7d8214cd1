#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use postern_api::control::v1 as wire;
use postern_api::flow::{LATENCY_BUCKETS, bucket_of};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::*;
use crate::demo::attack::{Attack, Attempt};
use crate::demo::documents::{WORKLOADS, spiffe_id};
use crate::demo::model::Tried;
use crate::demo::verdict::Fate;

const EDGES: [(&str, &str, wire::Protocol); 7] = [
    ("web", "cart", wire::Protocol::Http1),
    ("cart", "payments", wire::Protocol::Http2),
    ("web", "payments", wire::Protocol::Http2),
    ("payments", "ledger", wire::Protocol::Tcp),
    ("mallory", "cart", wire::Protocol::Http1),
    ("mallory", "payments", wire::Protocol::Http2),
    ("mallory", "ledger", wire::Protocol::Tcp),
];

fn flow(from: &str, to: &str, protocol: wire::Protocol, calls: u64) -> wire::FlowView {
    let allowed = if from == "mallory" { 0 } else { calls };
    let mut latency_buckets = vec![0; LATENCY_BUCKETS];
    latency_buckets[bucket_of(2_500)] = allowed;
    wire::FlowView {
        reporter: format!("shop/{to}"),
        flow: Some(wire::Flow {
            direction: wire::Direction::Inbound as i32,
            source: spiffe_id(from),
            destination: spiffe_id(to),
            protocol: protocol as i32,
            mutual_tls: true,
            allowed,
            denied: calls - allowed,
            latency_buckets,
            ..wire::Flow::default()
        }),
        ..wire::FlowView::default()
    }
}

fn picture(ms: i64, calls: u64) -> wire::Picture {
    let certificate = |name: &str| wire::Certificate {
        issued_unix_ms: 1_000_000,
        not_after_unix_ms: if name == "mallory" { 1_010_000 } else { 1_060_000 },
        renewals: 3,
        ..wire::Certificate::default()
    };
    wire::Picture {
        time_unix_ms: ms,
        workloads: WORKLOADS
            .iter()
            .map(|name| wire::WorkloadView {
                name: (*name).to_owned(),
                connected: true,
                certificate: Some(certificate(name)),
                ..wire::WorkloadView::default()
            })
            .collect(),
        flows: EDGES
            .iter()
            .map(|(from, to, protocol)| flow(from, to, *protocol, calls))
            .collect(),
        denials: vec![wire::Denial {
            time_unix_ms: ms,
            decision_id: "d".to_owned(),
            source: spiffe_id("web"),
            destination: spiffe_id("cart"),
            method: "GET".to_owned(),
            path: "/admin".to_owned(),
            reason: "deny_rule".to_owned(),
            policy: "shop/cart-no-admin".to_owned(),
            rule: "policy.yaml:21".to_owned(),
            ..wire::Denial::default()
        }],
        events: vec![wire::Event {
            time_unix_ms: ms,
            level: "warning".to_owned(),
            text: "the CA is away".to_owned(),
        }],
        issuer_epoch: 1,
        ..wire::Picture::default()
    }
}

fn running() -> Model {
    let mut model = Model::new();
    model.stage = Stage::Running;
    model.ca_runs = true;
    model.policy_file = "/tmp/postern-demo-Ab12Cd/documents/policy.yaml".to_owned();
    model.now_ms = 1_020_000;
    model.take(Arc::new(picture(1_010_000, 0)));
    model.take(Arc::new(picture(1_020_000, 200)));
    let attempt = Attempt {
        nonce: "nonce-1".to_owned(),
        page: "",
        what: "TLS to cart".to_owned(),
        heard: "TLS alert: CertificateRequired".to_owned(),
    };
    let done = Tried::Done(Fate::Refused, vec![attempt.clone()]);
    model.attacks.insert(Attack::NoCertificate, done);
    model
        .attacks
        .insert(Attack::Plaintext, Tried::Done(Fate::Passed, vec![attempt]));
    model.ageing_seconds = Some(40);
    model
}

/// The screen as lines of text, and whether any cell has a colour.
fn drawn(model: &Model, size: (u16, u16), theme: Theme) -> (Vec<String>, bool) {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal.draw(|frame| draw(frame, model, theme)).unwrap();
    let buffer = terminal.backend().buffer();
    let lines = (0..size.1)
        .map(|y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>())
        .collect();
    let coloured = buffer
        .content()
        .iter()
        .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
    (lines, coloured)
}

fn line<'a>(lines: &'a [String], words: &[&str]) -> &'a str {
    lines
        .iter()
        .find(|line| words.iter().all(|word| line.contains(word)))
        .unwrap_or_else(|| panic!("no line with {words:?} in\n{}", lines.join("\n")))
}

#[test]
fn the_smallest_screen_shows_every_edge_certificate_attack_and_key() {
    let (lines, _) = drawn(&running(), (80, 24), Theme::new(false, false));
    line(&lines, &["sa/web", "sa/cart", "HTTP/1.1", "[=] mTLS", "20.0", "ms"]);
    for (from, to, _) in EDGES {
        line(&lines, &[&format!("sa/{from}"), &format!("sa/{to}"), "mTLS"]);
    }
    for workload in WORKLOADS {
        line(
            &lines,
            &[workload, if workload == "mallory" { "EXPIRED" } else { "40 s" }],
        );
    }
    line(&lines, &["1 no certificate", "refused"]);
    line(&lines, &["2 plaintext", "PASSED"]);
    line(&lines, &["6 expired certificate", "in 40 s"]);
    line(
        &lines,
        &["sa/web -> sa/cart GET /admin: deny_rule of shop/cart-no-admin"],
    );
    line(&lines, &["warning the CA is away"]);
    line(&lines, &["/tmp/postern-demo-Ab12Cd/documents/policy.yaml"]);
    line(&lines, &["No namespaces: a local user can dial"]);
    line(&lines, &["kill CA", "start CA", "rotate", "quit"]);
}

#[test]
fn without_colour_no_cell_has_one_and_nothing_is_lost() {
    for size in [(80, 24), (120, 40)] {
        let (plain, coloured) = drawn(&running(), size, Theme::new(false, true));
        assert!(!coloured);
        let (bright, coloured) = drawn(&running(), size, Theme::new(true, true));
        assert!(coloured);
        assert_eq!(plain, bright);
    }
}

#[test]
fn a_larger_screen_shows_what_attackers_heard_and_a_wide_one_whole_identities() {
    let (lines, _) = drawn(&running(), (120, 40), Theme::new(false, true));
    line(&lines, &["1 no certificate", "refused", "TLS to cart: TLS"]);
    line(&lines, &["🔒", "mTLS"]);
    let (lines, _) = drawn(&running(), (140, 40), Theme::new(false, true));
    line(
        &lines,
        &[
            "spiffe://cluster.local/ns/shop/sa/payments",
            "spiffe://cluster.local/ns/shop/sa/ledger",
        ],
    );
}

#[test]
fn the_first_frame_says_what_is_going_on() {
    let mut model = Model::new();
    model.stage = Stage::Starting(vec!["the CA".to_owned(), "control".to_owned()]);
    let (lines, _) = drawn(&model, (80, 24), Theme::new(false, false));
    line(&lines, &["starting a mesh: 2 of 12 processes"]);
    line(&lines, &["ready: the CA, control"]);
    line(&lines, &["quit"]);
}

#[test]
fn a_dead_ca_a_refused_file_and_a_bypass_are_told_in_words() {
    let mut model = running();
    model.ca_runs = false;
    let (lines, _) = drawn(&model, (80, 24), Theme::new(false, false));
    line(&lines, &["CA DOWN"]);
    model.unvouched.insert("cart", 7);
    let (lines, _) = drawn(&model, (80, 24), Theme::new(false, false));
    line(&lines, &["NO PROXY VOUCHED FOR", "cart 7"]);
    let mut bad = picture(1_021_000, 200);
    bad.bad_files = vec![wire::BadFile {
        file: "policy.yaml".to_owned(),
        errors: vec!["policy.yaml:9:5: unknown field `pathz`; did you mean `paths`?".to_owned()],
    }];
    model.take(Arc::new(bad));
    let (lines, _) = drawn(&model, (80, 24), Theme::new(false, false));
    line(&lines, &["REFUSED, last good state in force: policy.yaml:9:5"]);
}

#[test]
fn an_edge_in_clear_says_so_and_names_nobody() {
    let mut model = running();
    let mut picture = picture(1_021_000, 200);
    let mut plain = flow("web", "cart", wire::Protocol::Http1, 1);
    let inner = plain.flow.as_mut().unwrap();
    inner.source.clear();
    inner.mutual_tls = false;
    picture.flows.push(plain);
    model.take(Arc::new(picture));
    let (lines, _) = drawn(&model, (80, 24), Theme::new(false, false));
    line(&lines, &["(nobody)", "IN CLEAR"]);
}

#[test]
fn help_fits_the_smallest_screen() {
    let mut model = running();
    model.help = true;
    let (lines, _) = drawn(&model, (80, 24), Theme::new(false, false));
    line(&lines, &["kill the CA: nothing happens while certificates last"]);
    line(&lines, &["closes this"]);
}

#[test]
fn a_tiny_terminal_is_cut_and_does_not_panic() {
    for size in [(1, 1), (20, 5), (80, 10), (300, 100)] {
        let mut model = running();
        drawn(&model, size, Theme::new(true, true));
        model.help = true;
        drawn(&model, size, Theme::new(true, true));
    }
}

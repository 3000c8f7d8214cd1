//! The canonical-path attacks against real servers: nginx, Apache httpd, Node, Python and a gRPC server behind the proxy. A
//! protected page never comes back, whatever the request; and most of these attacks do work on some server, or they would
//! prove nothing, so each server is asked directly as well.
//!
//! Servers come from `e2e/install`; one that is absent is said loudly, and fails the test where `CI=true`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod corpus;
mod guarded;
mod servers;
#[path = "../world/mod.rs"]
mod world;

use std::time::Instant;

use postern_policy::canonical::{CanonicalPath, CanonicalPathRef};

use corpus::{Attack, Block};
use guarded::{Guarded, directly, directly_h2, in_lanes, tell};
use servers::{MARKER, PUBLIC, Server};
use world::{Canary, run};

/// At least so many attacks work on a server that nothing guards.
const MUST_WORK: usize = 150;

#[test]
fn nginx_behind_the_proxy_shows_no_protected_page() {
    siege("nginx");
}

#[test]
fn apache_behind_the_proxy_shows_no_protected_page() {
    siege("apache");
}

#[test]
fn node_behind_the_proxy_shows_no_protected_page() {
    siege("node");
}

#[test]
fn pythons_http_server_behind_the_proxy_shows_no_protected_page() {
    siege("python http.server");
}

#[test]
fn a_wsgi_app_behind_the_proxy_shows_no_protected_page() {
    siege("python wsgi");
}

fn siege(name: &'static str) {
    let directory = servers::pages();
    let Some(server) = servers::start(name, directory.path()) else {
        return;
    };
    run(async move {
        let started = Instant::now();
        let attacks = corpus::sharp();
        let worked = in_lanes(attacks.clone(), async |attack: &Attack| {
            directly(server.address, &attack.bytes("Connection: close\r\n")).await
        })
        .await;
        let worked = worked.iter().filter(|(_, got)| holds_marker(got)).count();

        let guarded = Guarded::before(server.address).await;
        let mut asked = 0;
        for door in [guarded.denying, guarded.allowing] {
            let answers = guarded.attack(door, attacks.clone()).await;
            asked += answers.len();
            assert_unseen(&server, answers.iter().map(|(attack, got)| (attack.shown(), got)));
            let answers = guarded.attack_h2(door, corpus::blocks()).await;
            asked += answers.len();
            assert_unseen(&server, answers.iter().map(|(block, got)| (shown(block), got)));
            ordinary(&guarded, door).await;
        }
        // Through the caller's own proxy as well.
        let answers = guarded
            .attack_outbound(attacks.iter().step_by(7).cloned().collect())
            .await;
        asked += answers.len();
        assert_unseen(&server, answers.iter().map(|(attack, got)| (attack.shown(), got)));

        tell(&format!(
            "{name} in {:?}: of {} attacks {worked} work on it directly, of {asked} requests none behind the proxy",
            started.elapsed(),
            attacks.len()
        ));
        assert!(worked >= MUST_WORK, "{name}: only {worked} attacks work on it at all");
    });
}

/// What is public is served, over both versions.
async fn ordinary(guarded: &Guarded, door: std::net::SocketAddr) {
    for target in [
        "/public/page",
        "/public//page",
        "/public/x/../page",
        "/%70ublic/page?q=/admin",
    ] {
        let answers = guarded.attack(door, vec![Attack::get(target)]).await;
        let got = String::from_utf8_lossy(&answers[0].1);
        assert!(
            got.starts_with("HTTP/1.1 200") && got.contains(PUBLIC),
            "{target}: {got}"
        );
    }
    let honest = corpus::blocks_to("/public/page", "GET").swap_remove(0);
    let answers = guarded.attack_h2(door, vec![honest]).await;
    let got = String::from_utf8_lossy(&answers[0].1);
    assert!(got.contains(PUBLIC), "over HTTP/2: {got}");
}

#[test]
fn a_grpc_server_behind_the_proxy_answers_no_protected_method() {
    let directory = servers::pages();
    let Some(server) = servers::grpc(directory.path()) else {
        return;
    };
    run(async move {
        let method = "/echo.Admin/Secret";
        let mut blocks = corpus::blocks_to(method, "POST");
        blocks.extend(corpus::spellings(method).into_iter().map(|path| {
            let mut block = corpus::blocks_to(method, "POST").swap_remove(0);
            block[3].1 = path;
            block
        }));
        for block in &mut blocks {
            block.push(("content-type", b"application/grpc".to_vec()));
            block.push(("te", b"trailers".to_vec()));
        }
        let worked = in_lanes(blocks.clone(), async |block| directly_h2(server.address, block).await).await;
        let worked = worked.iter().filter(|(_, got)| holds_marker(got)).count();
        let guarded = Guarded::before_grpc(server.address).await;
        let mut asked = 0;
        for door in [guarded.denying, guarded.allowing] {
            let answers = guarded.attack_h2(door, blocks.clone()).await;
            asked += answers.len();
            assert_unseen(&server, answers.iter().map(|(block, got)| (shown(block), got)));
            let mut honest = corpus::blocks_to("/echo.Echo/Unary", "POST").swap_remove(0);
            honest.push(("content-type", b"application/grpc".to_vec()));
            honest.push(("te", b"trailers".to_vec()));
            let answers = guarded.attack_h2(door, vec![honest]).await;
            assert!(
                String::from_utf8_lossy(&answers[0].1).contains(PUBLIC),
                "an ordinary call: {}",
                answers[0].1.escape_ascii()
            );
        }
        tell(&format!(
            "grpc: of {} attacks {worked} work on it directly, of {asked} requests none behind the proxy",
            blocks.len()
        ));
        // Its router compares bytes: only what leaves the path alone can work.
        assert!(worked >= 10, "only {worked} attacks work on it at all");
    });
}

/// Every path of the corpus, whole: what arrives is the canonical form of what was sent, and a fixed point.
#[test]
fn z_01_what_arrives_is_the_canonical_form_of_what_was_sent_and_a_fixed_point() {
    run(async {
        let app = Canary::start().await;
        let guarded = Guarded::before(app.address).await;
        let targets: Vec<Vec<u8>> = corpus::attacks()
            .into_iter()
            .filter_map(|attack| attack.target)
            .collect();
        let all = targets.len();
        // One after the other, so that it is known what came of which.
        let mut forwarded = 0;
        let mut conn = None;
        for attack in targets.into_iter().map(Attack::get) {
            let before = app.count();
            let got = guarded.one(guarded.denying, &mut conn, &attack).await;
            let seen = app.since(before);
            let sent = attack.target.as_deref().unwrap();
            let text = std::str::from_utf8(sent).unwrap_or("\u{e9}");
            let (path, query) = text
                .split_once('?')
                .map_or((text, ""), |(path, _)| (path, &text[path.len()..]));
            let decided = CanonicalPath::parse(path);
            match (&*seen, decided) {
                ([], Err(_)) => {}
                // Denied; or no target at all, by its query or because the line is another one.
                ([], Ok(_)) => {
                    let status = String::from_utf8_lossy(&got).get(9..12).unwrap_or("").to_owned();
                    assert!(matches!(&*status, "403" | "400" | ""), "{}: {status}", attack.shown());
                }
                ([one], decided) => {
                    let arrived = one.target.split('?').next().unwrap();
                    // A space ends the target: what was sent is then what stood before it.
                    if let Ok(decided) = decided {
                        assert_eq!(arrived, decided.as_str(), "{}", attack.shown());
                        assert_eq!(one.target, format!("{arrived}{query}"), "{}", attack.shown());
                    } else {
                        panic!("{} is refused by policy, and arrived as {}", attack.shown(), one.target);
                    }
                    let again = CanonicalPathRef::check(arrived).unwrap();
                    assert!(again.is_some(), "{arrived} is no fixed point");
                    forwarded += 1;
                }
                (several, _) => panic!("{}: {several:#?}", attack.shown()),
            }
        }
        tell(&format!(
            "echo: of {all} targets {forwarded} were forwarded, each as it was decided"
        ));
        assert!(forwarded > 1_000, "only {forwarded} of {all} were forwarded");
    });
}

fn holds_marker(got: &[u8]) -> bool {
    world::client::find(got, MARKER.as_bytes()).is_some()
}

fn assert_unseen<'a>(server: &Server, answers: impl Iterator<Item = (String, &'a Vec<u8>)>) {
    let seen: Vec<String> = answers
        .filter(|(_, got)| holds_marker(got))
        .map(|(attack, _)| attack)
        .collect();
    assert!(
        seen.is_empty(),
        "{} showed a protected page to {} attacks:\n{}",
        server.name,
        seen.len(),
        seen.join("\n")
    );
}

fn shown(block: &Block) -> String {
    let fields = block
        .iter()
        .map(|(name, value)| format!("{name}={}", value.escape_ascii()));
    fields.collect::<Vec<_>>().join(" ")
}

//! Each end is counted once and, where wanted, written down once, whatever the client put into it.

use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;

use postern_proxy::access_log::{AccessLog, Sink, Wanted};
use postern_proxy::drain::Drain;
use postern_proxy::inbound;
use postern_proxy::limits::MAX_LOGGED_TEXT;
use postern_proxy::metrics::Metrics;
use postern_proxy::snapshot::{Port, Protocol};
use postern_proxy::stream::Stream;
use postern_proxy::worker::Worker;
use tokio::net::TcpListener;

use crate::world::{Canary, Conn, POLICY, Shop, WEB, run, until};

#[test]
fn every_request_is_counted_once_under_what_became_of_it() {
    run(async {
        let app = Canary::answering(|request| match request.target.as_str() {
            "/broken" => (b"no HTTP\r\n\r\n".to_vec(), true),
            "/error" => (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
            other => (crate::world::canary::ok(other), false),
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let count = |outcome: &str, code: &str| {
            let (outcome, code) = (format!("outcome=\"{outcome}\""), format!("code=\"{code}\""));
            shop.cart
                .metric("postern_proxy_requests_total", &["inbound", &outcome, &code])
        };
        let all = || shop.cart.metric("postern_proxy_requests_total", &["inbound"]);
        let mut total = 0;
        for (request, outcome, code) in [
            ("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n", "allowed", "2xx"),
            ("GET /error HTTP/1.1\r\nHost: cart\r\n\r\n", "allowed", "5xx"),
            ("GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n", "denied", "4xx"),
            ("GET /a%2f HTTP/1.1\r\nHost: cart\r\n\r\n", "denied", "4xx"),
            ("GET /a HTTP/1.1\r\n\r\n", "denied", "4xx"),
            (
                "GET /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                "denied",
                "4xx",
            ),
            ("GET /a HTTP/1.1\r\nX : 1\r\n\r\n", "denied", "4xx"),
            ("GET /broken HTTP/1.1\r\nHost: cart\r\n\r\n", "failed", "5xx"),
        ] {
            let before = count(outcome, code);
            let mut conn = shop.h1().await;
            conn.send(request).await;
            conn.answer().await;
            total += 1;
            until(request, || count(outcome, code) == before + 1).await;
            assert_eq!(all(), total, "{request}");
        }
    });
}

#[test]
fn a_denial_has_one_line_with_its_decision_and_no_client_can_forge_another() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let metrics = Arc::new(Metrics::default());
        let log = AccessLog::open(Wanted::Denied, &Sink::File(path.clone()), Arc::clone(&metrics)).unwrap();
        let (_phase, drain) = Drain::new();
        let worker = Worker::new(0, Arc::clone(&shop.cart.shared), log, metrics, drain);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = listener.local_addr().unwrap();
        let port = Port {
            name: "http".into(),
            number: 80,
            protocol: Protocol::Http1,
            listen: door,
            app: shop.app.address,
        };
        tokio::task::spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::task::spawn_local(inbound::serve(Rc::clone(&worker), Stream::Tcp(tcp), port.clone()));
            }
        });
        let lines = || {
            let mut text = String::new();
            std::fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let mut conn = Conn::tls(door, shop.authority.client(WEB, b"postern/h1"))
            .await
            .unwrap();
        let long = "x".repeat(10_000);
        let forging = "/secret/%22,%22decision_id%22:%22forged";
        let targets = ["/secret".to_owned(), format!("/secret/{long}"), forging.to_owned()];
        for (n, target) in targets.iter().enumerate() {
            conn.send(format!("GET {target} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            let denied = conn.answer().await;
            assert_eq!(denied.status, 403);
            until("its line", || lines().len() == n + 1).await;
            let line: serde_json::Value = serde_json::from_str(&lines()[n]).unwrap();
            let text = line.to_string();
            assert!(text.contains(denied.field("x-postern-decision-id").unwrap()), "{text}");
            assert!(text.contains("shop/secret") && text.contains("policy.yaml:"), "{text}");
            assert!(text.contains(WEB) && text.contains("deny_rule"), "{text}");
            assert!(text.len() < 1_000 + MAX_LOGGED_TEXT, "{text}");
        }
        // What went well has none.
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        conn.send("GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        conn.answer().await;
        until("its line", || lines().len() == targets.len() + 1).await;
    });
}

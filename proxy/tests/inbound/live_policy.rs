//! What changes while a connection lives: policy, trust, the peer's certificate. Within a second it is decided anew.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use postern_identity::{BundleSet, SpiffeId};
use postern_policy::Mode;
use postern_proxy::snapshot::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::h2::{Client, grpc_app, request, whole};
use crate::world::{Canary, Conn, MALLORY, POLICY, Shop, WEB, WEB_ONLY, run, soon, until};

/// What DESIGN section 4 promises.
const WITHIN: Duration = Duration::from_secs(1);

/// Everybody but one path.
fn all_but(path: &str) -> String {
    format!(
        "{WEB_ONLY}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: not, namespace: shop}}\nspec:\n  action: DENY\n  rules:\n  - to: [{{operation: {{paths: ['{path}']}}}}]\n"
    )
}

/// Answers with a chunk whenever it is told anything, and never ends.
pub(super) async fn endless() -> Canary {
    Canary::serving(|mut stream, canary, connection| async move {
        let mut read = Vec::new();
        let Some(request) = canary.read_head(&mut stream, &mut read, connection).await else {
            return;
        };
        canary.saw(request);
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
            .await;
        loop {
            match stream.read(&mut [0; 64]).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let _ = stream.write_all(b"4\r\ntick\r\n").await;
                }
            }
        }
    })
    .await
}

/// Takes whatever comes and echoes it.
async fn echo() -> Canary {
    Canary::serving(|mut stream, _, _| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

#[test]
fn z_07_the_next_request_of_a_kept_connection_is_decided_by_the_policy_of_now() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        let mut ask = async |status| {
            conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.status, status);
        };
        ask(200).await;
        shop.cart.policy(&all_but("/a"));
        ask(403).await;
        shop.cart.policy(POLICY);
        ask(200).await;
        // No policy at all: deny.
        shop.cart.policy("");
        ask(403).await;
        assert_eq!(shop.app.requests().len(), 2);
    });
}

#[test]
fn z_07_a_streaming_answer_is_cut_when_policy_says_no_and_goes_on_when_it_still_says_yes() {
    run(async {
        let app = endless().await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let start = async |path: &str| {
            let mut conn = shop.h1().await;
            conn.send(format!(
                "POST {path} HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n"
            ))
            .await;
            assert_eq!(conn.head().await.status, 200);
            assert_eq!(conn.chunk().await, b"hi");
            conn
        };
        let (mut denied, mut allowed) = (start("/denied").await, start("/allowed").await);
        let changed = Instant::now();
        shop.cart.policy(&all_but("/denied"));
        // No last chunk: it is not taken for the whole.
        assert_eq!(denied.rest().await, b"");
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        allowed.send("1\r\nx\r\n").await;
        assert_eq!(allowed.chunk().await, b"tick");
        // Deletion means deny.
        let changed = Instant::now();
        shop.cart.policy("");
        assert_eq!(allowed.rest().await, b"");
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        until("the app was let go", || shop.app.open() == 0).await;
        let denied = shop
            .cart
            .metric("postern_proxy_requests_total", &["inbound", "outcome=\"denied\""]);
        assert_eq!(denied, 2);
    });
}

#[test]
fn z_07_a_request_that_waits_for_its_answer_is_refused_when_policy_says_no() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            let request = canary.read(&mut stream, &mut read, connection).await.unwrap();
            canary.saw(request);
            let _ = stream.read(&mut [0; 1]).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /slow HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        until("the app has it", || shop.app.requests().len() == 1).await;
        let changed = Instant::now();
        shop.cart.policy(&all_but("/slow"));
        assert_eq!(conn.answer().await.status, 403);
        assert!(changed.elapsed() < WITHIN);
        until("the app was let go", || shop.app.open() == 0).await;
    });
}

#[test]
fn z_07_one_stream_of_an_http_2_connection_is_reset_and_the_others_go_on() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let mut start = async |path: &str| {
            let (answer, mut send) = client.send.send_request(request(Method::POST, path), false).unwrap();
            let mut answer = soon("a head", answer).await.unwrap().into_body();
            send.send_data(Bytes::from_static(b"ping"), false).unwrap();
            assert_eq!(soon("data", answer.data()).await.unwrap().unwrap(), "ping");
            (send, answer)
        };
        let (_denied_send, mut denied) = start("/denied").await;
        let (mut send, mut allowed) = start("/allowed").await;
        let changed = Instant::now();
        shop.cart.policy(&all_but("/denied"));
        let end = soon("a reset", denied.data()).await.unwrap().unwrap_err();
        assert!(end.is_reset(), "{end:?}");
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        send.send_data(Bytes::from_static(b"pong"), true).unwrap();
        assert_eq!(soon("data", allowed.data()).await.unwrap().unwrap(), "pong");
        while let Some(data) = soon("the end", allowed.data()).await {
            assert!(data.unwrap().is_empty());
        }
        assert_eq!(
            soon("trailers", allowed.trailers()).await.unwrap().unwrap()["grpc-status"],
            "0"
        );
        // And new ones are taken.
        assert_eq!(client.get("/more").await.unwrap().status, 200);
        assert_eq!(client.get("/denied").await.unwrap().status, 403);
        shop.cart.policy("");
        assert_eq!(client.get("/more").await.unwrap().status, 403);
        assert!(!client.ended.is_finished());
    });
}

#[test]
fn z_07_a_grpc_stream_that_policy_ends_is_told_so_in_its_trailers() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let mut call = request(Method::POST, "/denied");
        call.headers_mut()
            .insert("content-type", http::HeaderValue::from_static("application/grpc"));
        let (answer, mut send) = client.send.send_request(call, false).unwrap();
        let mut answer = soon("a head", answer).await.unwrap().into_body();
        send.send_data(Bytes::from_static(b"ping"), false).unwrap();
        assert_eq!(soon("data", answer.data()).await.unwrap().unwrap(), "ping");
        shop.cart.policy(&all_but("/denied"));
        while let Some(data) = soon("the end", answer.data()).await {
            assert!(data.unwrap().is_empty());
        }
        let trailers = soon("trailers", answer.trailers()).await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert_eq!(trailers["grpc-message"], "deny_rule");
        assert!(trailers.contains_key("x-postern-decision-id"));
        let denials = shop.cart.metric("postern_proxy_denials_total", &["deny_rule", "true"]);
        assert_eq!(denials, 1, "a live denial is counted like any other");
    });
}

#[test]
fn z_07_a_stream_blocked_on_its_reader_is_ended_too() {
    run(async {
        let app = Canary::answering(|_| {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n";
            ([head.as_slice(), &vec![0; 50_000_000]].concat(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /big HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.head().await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let changed = Instant::now();
        shop.cart.policy("");
        until("the connection is gone", || shop.cart.serving() == 0).await;
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        assert!(conn.rest().await.len() < 50_000_000);
    });
}

#[test]
fn z_07_an_opaque_stream_is_cut_when_policy_says_no() {
    run(async {
        let shop = Shop::before(echo().await, Protocol::Tcp, WEB_ONLY).await;
        let mut conn = shop.web(b"postern/tcp").await;
        conn.send("ping").await;
        assert_eq!(conn.exactly(4).await, b"ping");
        // A change that still allows it.
        shop.cart.policy(&format!("{WEB_ONLY}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: other, namespace: shop}}\nspec:\n  action: DENY\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/mallory]}}}}]\n"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        conn.send("pong").await;
        assert_eq!(conn.exactly(4).await, b"pong");
        let changed = Instant::now();
        shop.cart.policy("");
        conn.ends().await;
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        until("the app was let go", || shop.app.open() == 0).await;
    });
}

#[test]
fn z_07_an_upgraded_tunnel_is_cut_when_policy_says_no() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            canary.read_head(&mut stream, &mut read, connection).await.unwrap();
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(switch).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /ws HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        assert_eq!(conn.head().await.status, 101);
        conn.send("ping").await;
        assert_eq!(conn.exactly(4).await, b"ping");
        let changed = Instant::now();
        shop.cart.policy(&all_but("/ws"));
        conn.ends().await;
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        until("the app was let go", || shop.app.open() == 0).await;
    });
}

#[test]
fn z_07_plaintext_that_discover_let_in_ends_when_protect_begins() {
    run(async {
        let shop = Shop::before(echo().await, Protocol::Tcp, WEB_ONLY).await;
        shop.cart.policy_in(Mode::Discover, "");
        let mut conn = Conn::plain(shop.door).await;
        conn.send("ping").await;
        assert_eq!(conn.exactly(4).await, b"ping");
        let changed = Instant::now();
        shop.cart.policy(WEB_ONLY);
        conn.ends().await;
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
    });
}

#[test]
fn monitor_lets_pass_what_it_would_deny_and_counts_it() {
    run(async {
        let shop = Shop::new().await;
        shop.cart.policy_in(Mode::Monitor, POLICY);
        let mut mallory = shop.connect(MALLORY, b"postern/h1").await;
        mallory.send("GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(mallory.answer().await.status, 200);
        let count = |name, label| shop.cart.metric(name, &[label]);
        until("counted", || {
            count("postern_proxy_requests_total", "outcome=\"would_deny\"") == 1
        })
        .await;
        assert_eq!(count("postern_proxy_denials_total", "enforced=\"false\""), 1);
    });
}

#[test]
fn z_07_flapping_policy_fails_no_request_that_every_version_allows() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        for n in 0..200 {
            match n % 3 {
                0 => shop.cart.policy(POLICY),
                1 => shop.cart.policy(&all_but("/x")),
                _ => shop.cart.policy(WEB_ONLY),
            }
            conn.send(format!("GET /{n} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            assert_eq!(conn.answer().await.status, 200);
        }
    });
}

#[test]
fn t_12_a_quarantined_peer_and_one_whose_root_is_withdrawn_are_cut_off_within_a_second() {
    run(async {
        for quarantine in [true, false] {
            let cut_off = |shop: &Shop| {
                shop.cart.trust(|trust| {
                    if quarantine {
                        trust.quarantined_ids.insert(SpiffeId::parse(WEB).unwrap());
                    } else {
                        trust.bundles = BundleSet::default();
                    }
                });
                Instant::now()
            };
            let shop = Shop::before(endless().await, Protocol::Http1, POLICY).await;
            let mut idle = shop.h1().await;
            let mut busy = shop.h1().await;
            busy.send("POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            assert_eq!(busy.head().await.status, 200);
            assert_eq!(busy.chunk().await, b"hi");
            until("both are served", || shop.cart.serving() == 2).await;
            let changed = cut_off(&shop);
            assert_eq!(busy.rest().await, b"");
            idle.ends().await;
            assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
            assert!(connect_fails(&shop).await);

            let shop = Shop::before(echo().await, Protocol::Tcp, WEB_ONLY).await;
            let mut stream = shop.web(b"postern/tcp").await;
            stream.send("ping").await;
            assert_eq!(stream.exactly(4).await, b"ping");
            let changed = cut_off(&shop);
            stream.ends().await;
            assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());

            let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
            let mut client = Client::over(shop.web(b"postern/h2").await).await;
            let (answer, _send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
            let answer = soon("a head", answer).await.unwrap();
            let changed = cut_off(&shop);
            assert!(whole(answer).await.is_err());
            let _ = soon("the end", client.ended).await;
            assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        }
    });
}

async fn connect_fails(shop: &Shop) -> bool {
    match Conn::tls(shop.door, shop.authority.client(WEB, b"postern/h1")).await {
        Err(_) => true,
        Ok(mut conn) => {
            conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            conn.try_answer().await.is_none()
        }
    }
}

#[test]
fn t_12_a_connection_ends_gracefully_before_its_peers_certificate_does() {
    run(async {
        let shop = Shop::before(echo().await, Protocol::Tcp, WEB_ONLY).await;
        let app = Canary::start().await;
        let door = shop.cart.door(81, Protocol::Http1, app.address).await;
        shop.cart.policy(WEB_ONLY);
        let short = |alpn: &[u8]| {
            let svid = shop.authority.svid_for(WEB, None, 3);
            let trust = shop.authority.shared_trust();
            postern_identity::tls::client_config(Some(&svid), trust, &[alpn]).unwrap()
        };
        let began = std::time::SystemTime::now();
        let mut http = Conn::tls(door, short(b"postern/h1")).await.unwrap();
        let mut stream = Conn::tls(shop.door, short(b"postern/tcp")).await.unwrap();
        http.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(http.answer().await.status, 200);
        stream.send("ping").await;
        assert_eq!(stream.exactly(4).await, b"ping");
        http.ends().await;
        let http_ended = began.elapsed().unwrap();
        stream.ends().await;
        let stream_ended = began.elapsed().unwrap();
        assert!(http_ended < Duration::from_secs(3), "HTTP ends before: {http_ended:?}");
        assert!(
            stream_ended < Duration::from_millis(3_900),
            "a stream ends with it: {stream_ended:?}"
        );
        assert_eq!(
            shop.cart.metric(
                "postern_proxy_requests_total",
                &["protocol=\"tcp\"", "outcome=\"denied\""]
            ),
            1
        );
    });
}

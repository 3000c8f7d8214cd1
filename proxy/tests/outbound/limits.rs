//! Bounds and ends of what goes out.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::Method;
use postern_identity::tls::{ClientAuth, alpn, server_config};
use postern_proxy::drain::Phase;
use postern_proxy::limits::{MAX_PEER_CONNECTIONS, RESOLVE_DEADLINE, ROUTES_PER_CONNECTION};
use postern_proxy::snapshot::{Destination, Door, Protocol, Shared};
use postern_proxy::stream::Stream;
use postern_proxy::worker::Worker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::world::canary::{Canary, ok, tls_peer};
use crate::world::h2::{Client, grpc_app, request};
use crate::world::{CART, Conn, GET, Pair, endpoint, meshed, named, pass, run, soon, until};

#[test]
fn max_peer_connections_go_to_one_endpoint_and_one_more_request_is_refused() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let app = Canary::serving(|mut stream, _, _| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        // Plain, as a thousand handshakes prove nothing more.
        let legacy = Destination::Unmeshed {
            service: "legacy.shop".into(),
            addresses: vec![app.address],
        };
        pair.web.knows(named("legacy.shop", 80), legacy);
        let ask = "POST http://legacy.shop/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx";
        let mut held = Vec::new();
        for _ in 0..MAX_PEER_CONNECTIONS {
            let mut conn = pair.client().await;
            conn.send(ask).await;
            held.push(conn);
        }
        until("all are with the app", || app.open() == MAX_PEER_CONNECTIONS).await;
        let mut one_more = pair.client().await;
        one_more.send(ask).await;
        let answer = one_more.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (503, "overloaded\n"));
        // Another endpoint has its own.
        one_more = pair.client().await;
        one_more.send(GET).await;
        assert_eq!(one_more.answer().await.status, 200);
        held.pop();
        until("one is over", || app.open() == MAX_PEER_CONNECTIONS - 1).await;
        one_more = pair.client().await;
        one_more.send(ask).await;
        until("it is taken", || app.open() == MAX_PEER_CONNECTIONS).await;
    });
}

#[test]
fn a_connection_reaches_more_destinations_than_it_remembers() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let names: Vec<String> = (0..ROUTES_PER_CONNECTION + 4)
            .map(|n| format!("cart-{n}.shop"))
            .collect();
        for name in &names {
            let end = endpoint(pair.door, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
            pair.web.knows(named(name, 80), meshed(Protocol::Http1, vec![end]));
        }
        let mut conn = pair.client().await;
        for name in names.iter().chain(&names) {
            conn.send(format!("GET http://{name}/a HTTP/1.1\r\nHost: x\r\n\r\n"))
                .await;
            assert_eq!(conn.answer().await.status, 200, "{name}");
        }
        assert_eq!(pair.app.count(), 2 * names.len());
    });
}

#[test]
fn control_that_does_not_answer_is_a_503_at_the_resolve_deadline() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let (ask, mut asks) = mpsc::channel(16);
        let shared = std::sync::Arc::new(Shared::new(ask));
        shared.trust.store(std::sync::Arc::new(pair.authority.trust()));
        shared
            .publish_identity(pair.authority.svid(crate::world::WEB, None))
            .unwrap();
        shared.policy.store(pair.web.shared.policy.load_full());
        let (worker, _phase) = Worker::standalone(shared);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let explicit = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::task::spawn_local(postern_proxy::outbound::serve_explicit(
                    Rc::clone(&worker),
                    Stream::Tcp(tcp),
                ));
            }
        });
        let mut conn = Conn::plain(explicit).await;
        conn.send(GET).await;
        let _unanswered = soon("the question", asks.recv()).await.unwrap();
        pass(RESOLVE_DEADLINE).await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (503, "control_unavailable\n"));
    });
}

#[test]
fn t_12_what_rides_to_a_peer_ends_with_the_peers_certificate_and_new_requests_stop_before() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let short = pair.authority.svid_for(CART, Some("cart-1"), 4);
        let trust = pair.authority.shared_trust();
        let alpns = [alpn::POSTERN_H1, alpn::POSTERN_TCP];
        let config = server_config(&short, trust, ClientAuth::Required, &alpns).unwrap();
        let peer = tls_peer(config, |mut stream, canary, connection| async move {
            if stream.get_ref().1.alpn_protocol() == Some(alpn::POSTERN_TCP) {
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                canary.saw(request);
                let _ = stream.write_all(&ok("x")).await;
                let _ = stream.flush().await;
            }
        })
        .await;
        let began = SystemTime::now();
        let end = |protocol| endpoint(peer.address, CART, Some("cart-1"), protocol, Door::Sidecar);
        pair.instead(Protocol::Http1, vec![end(Protocol::Http1)]);
        pair.web.knows(
            named("stream.shop", 80),
            meshed(Protocol::Tcp, vec![end(Protocol::Tcp)]),
        );
        let mut conn = pair.client().await;
        conn.send(GET).await;
        assert_eq!(conn.answer().await.status, 200);
        let mut stream = pair.client().await;
        stream
            .send("CONNECT stream.shop:80 HTTP/1.1\r\nHost: x\r\n\r\nping")
            .await;
        assert_eq!(stream.answer_to("HEAD").await.status, 200);
        assert_eq!(stream.exactly(4).await, b"ping");
        // Certificates count whole seconds: it ends 3 to 4 s from now, and USE_MARGIN before that it is not used.
        let refused = async {
            loop {
                conn.send(GET).await;
                let answer = conn.answer().await;
                if answer.status != 200 {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let answer = refused.await;
        assert_eq!((answer.status, answer.text().as_str()), (502, "peer_expired\n"));
        assert!(
            began.elapsed().unwrap() < Duration::from_millis(3_200),
            "{:?}",
            began.elapsed()
        );
        stream.ends().await;
        assert!(
            began.elapsed().unwrap() < Duration::from_millis(4_900),
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn h2_10_a_peer_that_drains_fails_no_idempotent_request() {
    run(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let app = if protocol == Protocol::Http2 {
                grpc_app().await
            } else {
                Canary::start().await
            };
            let pair = Rc::new(Pair::before(app, protocol).await);
            let (done, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let mut loads = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let (pair, done, failed) = (Rc::clone(&pair), Rc::clone(&done), Rc::clone(&failed));
                loads.spawn_local(async move {
                    let mut conn = pair.client().await;
                    for _ in 0..100 {
                        conn.send(GET).await;
                        let answer = conn.answer().await;
                        failed.set(failed.get() + usize::from(answer.status != 200));
                        done.set(done.get() + 1);
                        tokio::time::sleep(Duration::from_millis(3)).await;
                    }
                });
            }
            until("the load runs", || done.get() > 50).await;
            pair.cart.phase.send(Phase::Draining).unwrap();
            while let Some(ended) = loads.join_next().await {
                ended.unwrap();
            }
            assert_eq!((done.get(), failed.get()), (800, 0), "{protocol:?}");
        }
    });
}

#[test]
fn a_dial_that_is_given_up_leaves_the_others_who_wait_one_of_their_own() {
    run(async {
        let pair = Pair::before(grpc_app().await, Protocol::Http2).await;
        // The first to come is kept waiting for ever; whoever comes next is served.
        let config = pair.authority.server(CART, Some("cart-1"), &[alpn::POSTERN_H2]);
        let peer = Canary::serving(move |mut stream, _, connection| {
            let config = std::sync::Arc::clone(&config);
            async move {
                if connection == 0 {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                    return;
                }
                let stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap();
                let mut serving = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = serving.accept().await {
                    let _ = respond.send_response(http::Response::new(()), true);
                }
            }
        })
        .await;
        let end = endpoint(peer.address, CART, Some("cart-1"), Protocol::Http2, Door::Sidecar);
        pair.instead(Protocol::Http2, vec![end]);
        let mut first = Client::over(pair.tunnel().await).await;
        let (answer, mut send) = first.send.send_request(request(Method::GET, "/a"), true).unwrap();
        until("it dials", || peer.connections() == 1).await;
        let mut second = Client::over(pair.tunnel().await).await;
        let waiting = second.send.send_request(request(Method::GET, "/b"), true).unwrap().0;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(peer.connections(), 1, "it waits for the first");
        send.send_reset(h2::Reason::CANCEL);
        drop(answer);
        let began = Instant::now();
        assert_eq!(soon("an answer", waiting).await.unwrap().status(), 200);
        assert!(began.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn an_ipv6_literal_and_a_tunnel_to_the_outside_pass_through() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let Ok(listener) = TcpListener::bind("[::1]:0").await else {
            println!("NOT RUN: no IPv6 loopback here");
            return;
        };
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buf = [0; 1024];
                let n = stream.read(&mut buf).await.unwrap();
                let is_http = buf[..n].starts_with(b"GET /six");
                let answer = if is_http { ok("six") } else { buf[..n].to_vec() };
                stream.write_all(&answer).await.unwrap();
            }
        });
        pair.web.knows(named("[::1]", port), Destination::Outside);
        let mut conn = pair.client().await;
        conn.send(format!("GET http://[::1]:{port}/six HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "six");
        let mut tunnel = pair.client().await;
        tunnel
            .send(format!("CONNECT [::1]:{port} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert_eq!(tunnel.answer_to("HEAD").await.status, 200);
        tunnel.send("\x16\x03\x01 as it is").await;
        assert_eq!(tunnel.rest().await, b"\x16\x03\x01 as it is");
    });
}

#[test]
fn a_client_that_says_close_ends_its_own_connection_and_not_the_peers() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        for _ in 0..5 {
            let mut conn = pair.client().await;
            conn.send("GET http://cart.shop/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .await;
            assert!(conn.answer().await.closes());
            conn.ends().await;
        }
        assert_eq!(pair.web.metric("postern_proxy_handshakes_total", &["outbound"]), 1);
        assert!(
            pair.app
                .requests()
                .iter()
                .all(|request| request.field("connection").is_none())
        );
    });
}

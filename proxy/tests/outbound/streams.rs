//! Through both proxies: streaming, upgrades, server-first protocols, broken ends, drain.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use postern_identity::tls::alpn;
use postern_proxy::drain::Phase;
use postern_proxy::limits::{DETECT_DEADLINE, HEAD_DEADLINE};
use postern_proxy::snapshot::{Door, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::canary::{Canary, ok, tls_peer};
use crate::world::h2::{Client, grpc_app, request};
use crate::world::{CART, Conn, Pair, WAYS, WEB_ONLY, endpoint, pass, run, soon, until};

#[test]
fn each_piece_of_an_answer_arrives_before_the_next_is_made() {
    run(async {
        for way in WAYS {
            let app = Canary::serving(|mut stream, canary, connection| async move {
                let mut read = Vec::new();
                canary.read_head(&mut stream, &mut read, connection).await.unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await
                    .unwrap();
                let mut left = read;
                loop {
                    stream.write_all(&left).await.unwrap();
                    if left.ends_with(b"0\r\n\r\n") {
                        return;
                    }
                    left.resize(1024, 0);
                    match stream.read(&mut left).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => left.truncate(n),
                    }
                }
            })
            .await;
            let pair = Pair::before(app, Protocol::Http1).await;
            let mut conn = way.open(&pair).await;
            conn.send(format!("{}Transfer-Encoding: chunked\r\n\r\n", way.head("POST", "/a")))
                .await;
            assert_eq!(conn.head().await.status, 200);
            for word in ["one", "two", "three"] {
                conn.send(format!("{:x}\r\n{word}\r\n", word.len())).await;
                assert_eq!(conn.chunk().await, word.as_bytes());
            }
            conn.send("0\r\n\r\n").await;
            assert_eq!(conn.chunk().await, b"");
        }
    });
}

#[test]
fn grpc_streams_both_ways_through_both_proxies() {
    run(async {
        let pair = Pair::before(grpc_app().await, Protocol::Http2).await;
        let mut client = Client::over(pair.captured(Protocol::Http2).await).await;
        let (answer, mut send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        let mut answer = soon("a head", answer).await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            send.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
            assert_eq!(soon("data", answer.data()).await.unwrap().unwrap(), word);
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-of-client", "1".parse().unwrap());
        send.send_trailers(trailers).unwrap();
        while let Some(data) = soon("the end", answer.data()).await {
            assert!(data.unwrap().is_empty());
        }
        let trailers = soon("trailers", answer.trailers()).await.unwrap().unwrap();
        assert_eq!(trailers["seen-trailer"], "1");
    });
}

#[test]
fn a_large_body_passes_whole_both_ways_under_back_pressure() {
    run(async {
        for way in WAYS {
            let app = Canary::answering(|request| {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
                ([head.as_bytes(), &request.body].concat(), false)
            })
            .await;
            let pair = Pair::before(app, Protocol::Http1).await;
            let body: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
            let mut conn = way.open(&pair).await;
            conn.send(format!(
                "{}Content-Length: {}\r\n\r\n",
                way.head("POST", "/"),
                body.len()
            ))
            .await;
            conn.send(&body).await;
            assert!(conn.answer().await.body == body);
        }
    });
}

#[test]
fn a_websocket_passes_through_both_proxies() {
    run(async {
        let app = Canary::serving(|stream, _, _| async move {
            use futures_util::{SinkExt, StreamExt};
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() {
                    socket.send(message).await.unwrap();
                }
            }
        })
        .await;
        let pair = Pair::before(app, Protocol::Http1).await;
        use futures_util::{SinkExt, StreamExt};
        use tokio_tungstenite::tungstenite::Message;
        let conn = pair.tunnel().await;
        let (mut socket, _) = soon(
            "a handshake",
            tokio_tungstenite::client_async("ws://cart.shop/ws", conn.io),
        )
        .await
        .unwrap();
        for text in ["one", "two"] {
            socket.send(Message::text(text)).await.unwrap();
            assert_eq!(
                soon("a message", socket.next()).await.unwrap().unwrap(),
                Message::text(text)
            );
        }
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = soon("the end", socket.next()).await {}
        drop(socket);
        until("all is over", || pair.cart.serving() == 0 && pair.app.open() == 0).await;
        // And by absolute-form, as a proxy's client asks for it.
        let mut conn = pair.client().await;
        conn.send(
            "GET http://cart.shop/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
        assert_eq!(conn.head().await.status, 101);
    });
}

#[test]
fn a_denied_websocket_makes_no_tunnel() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let mut conn = pair.client().await;
        conn.send(
            "GET http://cart.shop/secret HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
             GET http://cart.shop/b HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        .await;
        assert_eq!(conn.answer().await.status, 403);
        assert_eq!(conn.answer().await.text(), "/b");
        assert_eq!(pair.app.only().target, "/b");
    });
}

#[test]
fn a_captured_connection_is_served_by_what_it_says_first() {
    run(async {
        let pair = Pair::new(Protocol::Detect).await;
        let mut conn = pair.captured(Protocol::Detect).await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.text(), "/a");
        let seen = pair.app.only();
        assert_eq!(seen.all("host"), ["cart"]);
    });
}

#[test]
fn a_captured_server_that_speaks_first_is_heard_after_the_detect_deadline_or_at_once_where_declared() {
    run(async {
        for protocol in [Protocol::Detect, Protocol::Tcp] {
            let app = Canary::serving(|mut stream, _, _| async move {
                stream.write_all(b"220 ready\r\n").await.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            })
            .await;
            let pair = Pair::with(app, protocol, WEB_ONLY).await;
            let mut conn = pair.captured(protocol).await;
            if protocol == Protocol::Detect {
                assert!(conn.is_quiet(Duration::from_millis(50)).await);
                pass(DETECT_DEADLINE).await;
            }
            assert_eq!(conn.exactly(11).await, b"220 ready\r\n", "{protocol:?}");
            conn.send("EHLO me\r\n").await;
            conn.finish().await;
            assert_eq!(conn.rest().await, b"EHLO me\r\n");
        }
    });
}

#[test]
fn a_denied_opaque_stream_is_reset() {
    run(async {
        let app = Canary::start().await;
        let pair = Pair::with(app, Protocol::Tcp, "").await;
        let mut conn = pair.captured(Protocol::Tcp).await;
        conn.send("hello").await;
        assert_eq!(conn.rest().await, b"");
        assert_eq!(pair.app.connections(), 0);
    });
}

#[test]
fn an_answer_that_the_peer_breaks_off_is_never_whole() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let config = pair
                .authority
                .server(CART, Some("cart-1"), &[alpn::POSTERN_H1, alpn::POSTERN_TCP]);
            let peer = tls_peer(config, |mut stream, canary, connection| async move {
                let mut read = Vec::new();
                let request = canary.read(&mut stream, &mut read, connection).await.unwrap();
                let answer: &[u8] = match request.target.as_str() {
                    "/length" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
                    "/1.0" => b"HTTP/1.0 200 OK\r\n\r\nhello",
                    "/chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                    // Its end would be the end of the stream: without close_notify anybody could have cut it.
                    _ => b"HTTP/1.1 200 OK\r\n\r\nhello",
                };
                stream.write_all(answer).await.unwrap();
                stream.flush().await.unwrap();
                // TCP's end without TLS's.
                let (tcp, _) = stream.into_inner();
                drop(tcp);
            })
            .await;
            let end = endpoint(peer.address, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
            pair.instead(Protocol::Http1, vec![end]);
            for path in ["/length", "/chunks", "/to-the-end", "/1.0"] {
                let mut conn = way.open(&pair).await;
                conn.send(format!("{}\r\n", way.head("GET", path))).await;
                let head = conn.head().await;
                let rest = conn.rest().await;
                let whole = match head.field("content-length") {
                    Some(length) => rest.len() == length.parse::<usize>().unwrap(),
                    None => rest.ends_with(b"0\r\n\r\n"),
                };
                assert!(!whole, "{path}: {head:?} {rest:?}");
            }
            until("counted", || {
                pair.web.metric("postern_proxy_requests_total", &["outcome=\"failed\""]) == 4
            })
            .await;
        }
    });
}

#[test]
fn a_client_that_goes_away_takes_its_request_with_it() {
    run(async {
        for way in WAYS {
            let app = Canary::serving(|mut stream, _, _| async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            })
            .await;
            let pair = Pair::before(app, Protocol::Http1).await;
            let mut conn = way.open(&pair).await;
            conn.send(format!("{}Content-Length: 100\r\n\r\nhello", way.head("POST", "/a")))
                .await;
            until("the app has it", || pair.app.connections() == 1).await;
            drop(conn);
            until("it is over everywhere", || {
                pair.web.serving() == 0 && pair.cart.serving() == 0 && pair.app.open() == 0
            })
            .await;
        }
    });
}

#[test]
fn a_policy_change_at_the_peer_ends_what_streams_through_both_proxies() {
    run(async {
        let pair = Pair::before(grpc_app().await, Protocol::Http2).await;
        let mut client = Client::over(pair.tunnel().await).await;
        let (answer, mut send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        let mut answer = soon("a head", answer).await.unwrap().into_body();
        send.send_data(Bytes::from_static(b"ping"), false).unwrap();
        assert_eq!(soon("data", answer.data()).await.unwrap().unwrap(), "ping");
        let changed = Instant::now();
        pair.cart.policy("");
        assert!(soon("a reset", answer.data()).await.unwrap().is_err());
        assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    });
}

#[test]
fn a_new_answer_of_control_sends_the_next_request_of_a_kept_connection_elsewhere() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let other = Canary::start().await;
            let door = pair.cart.door(81, Protocol::Http1, other.address).await;
            pair.cart.policy(crate::world::POLICY);
            let mut conn = way.open(&pair).await;
            conn.send(format!("{}\r\n", way.head("GET", "/a"))).await;
            assert_eq!(conn.answer().await.status, 200);
            pair.instead(
                Protocol::Http1,
                vec![endpoint(door, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar)],
            );
            conn.send(format!("{}\r\n", way.head("GET", "/a"))).await;
            assert_eq!(conn.answer().await.status, 200);
            assert_eq!((pair.app.count(), other.count()), (1, 1));
        }
    });
}

#[test]
fn draining_lets_a_request_finish_and_says_close() {
    run(async {
        for way in WAYS {
            let app = Canary::serving(|mut stream, canary, connection| async move {
                let mut read = Vec::new();
                while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                    canary.saw(request);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    let _ = stream.write_all(&ok("late")).await;
                }
            })
            .await;
            let pair = Pair::before(app, Protocol::Http1).await;
            let mut idle = pair.client().await;
            let mut conn = way.open(&pair).await;
            conn.send(format!("{}\r\n", way.head("GET", "/a"))).await;
            until("the app has it", || pair.app.count() == 1).await;
            // Both at once, as in a rollout.
            pair.web.phase.send(Phase::Draining).unwrap();
            pair.cart.phase.send(Phase::Draining).unwrap();
            let answer = conn.answer().await;
            assert_eq!((answer.text().as_str(), answer.closes()), ("late", true));
            conn.ends().await;
            idle.finish().await;
            idle.ends().await;
            until("all is over", || pair.web.serving() == 0 && pair.cart.serving() == 0).await;
        }
    });
}

#[test]
fn a_head_that_never_ends_is_cut_here_as_well() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let mut conn: Conn = pair.client().await;
        conn.send("GET http://cart.shop/").await;
        assert!(conn.is_quiet(Duration::from_millis(400)).await);
        pass(HEAD_DEADLINE - Duration::from_secs(3)).await;
        assert!(conn.is_quiet(Duration::from_millis(400)).await);
        pass(Duration::from_secs(3)).await;
        conn.rest().await;
    });
}

//! Honest traffic: keep-alive, streaming both ways, upgrades, gRPC, opaque streams.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use postern_proxy::snapshot::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::smuggling::attack;
use crate::world::canary::{Canary, ok};
use crate::world::h2::{Client, grpc_app, request, whole};
use crate::world::{MALLORY, POLICY, Shop, WEB_ONLY, run, soon, until};

#[test]
fn a_connection_serves_many_requests_and_so_does_the_one_to_the_app() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        for n in 0..20 {
            conn.send(format!("GET /{n} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            let answer = conn.answer().await;
            assert_eq!((answer.status, answer.text()), (200, format!("/{n}")));
        }
        assert_eq!(shop.app.connections(), 1);
    });
}

#[test]
fn pipelined_requests_are_decided_one_by_one_and_answered_in_order() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n");
        conn.send([one("/1"), one("/secret"), one("/3")].concat()).await;
        let statuses = [conn.answer().await, conn.answer().await, conn.answer().await].map(|answer| answer.status);
        assert_eq!(statuses, [200, 403, 200]);
        let targets: Vec<String> = shop.app.requests().into_iter().map(|request| request.target).collect();
        assert_eq!(targets, ["/1", "/3"]);
    });
}

#[test]
fn a_denial_names_its_reason_and_decision_and_keeps_the_connection() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send("GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let denied = conn.answer().await;
        let id = denied.field("x-postern-decision-id").unwrap().to_owned();
        assert_eq!(denied.text(), format!("deny_rule (decision {id})\n"));
        // Which policy it was is nobody's business out there.
        assert!(!format!("{denied:?}").contains("shop/secret"));
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        let mut mallory = shop.connect(MALLORY, b"postern/h1").await;
        mallory.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(mallory.answer().await.text().split(' ').next(), Some("no_allow_rule"));
        shop.app.only();
        let denials = |policy: &str, reason: &str| {
            let (policy, reason) = (format!("policy=\"{policy}\""), format!("reason=\"{reason}\""));
            shop.cart.metric("postern_proxy_denials_total", &[&policy, &reason])
        };
        assert_eq!(
            (denials("shop/secret", "deny_rule"), denials("", "no_allow_rule")),
            (1, 1)
        );
    });
}

#[test]
fn an_http_1_0_client_gets_an_answer_without_chunks_that_ends_with_the_connection() {
    run(async {
        let app = Canary::answering(|_| {
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
            (answer.to_vec(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.0\r\nHost: cart\r\n\r\n").await;
        let answer = conn.answer().await;
        assert_eq!(
            (answer.text().as_str(), answer.field("transfer-encoding")),
            ("hello", None)
        );
        conn.ends().await;
    });
}

#[test]
fn bodies_stream_both_ways_at_once_and_nothing_waits_for_the_whole() {
    run(async {
        // Answers each chunk with the same chunk.
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            canary.read_head(&mut stream, &mut read, connection).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await
                .unwrap();
            let mut buf = [0; 1024];
            let mut left = read;
            loop {
                stream.write_all(&left).await.unwrap();
                if left.ends_with(b"0\r\n\r\n") {
                    return;
                }
                match stream.read(&mut buf).await {
                    Ok(0) | Err(_) => return,
                    Ok(n) => left = buf[..n].to_vec(),
                }
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
        assert_eq!(conn.head().await.status, 200);
        for word in ["one", "two", "three"] {
            conn.send(format!("{:x}\r\n{word}\r\n", word.len())).await;
            assert_eq!(conn.chunk().await, word.as_bytes());
        }
        conn.send("0\r\n\r\n").await;
        assert_eq!(conn.chunk().await, b"");
        // The same over HTTP/2.
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let (answer, mut send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        let mut answer = soon("a head", answer).await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            send.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
            assert_eq!(soon("a chunk", answer.data()).await.unwrap().unwrap(), word);
        }
        send.send_data(Bytes::new(), true).unwrap();
        let rest = soon("the end", answer.data()).await;
        assert!(
            rest.as_ref()
                .is_none_or(|rest| rest.as_ref().is_ok_and(Bytes::is_empty)),
            "{rest:?}"
        );
    });
}

#[test]
fn a_large_body_passes_whole_both_ways() {
    run(async {
        let app = Canary::answering(|request| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
            ([head.as_bytes(), &request.body].concat(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let body: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut conn = shop.h1().await;
        conn.send(format!(
            "POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .await;
        conn.send(&body).await;
        assert!(conn.answer().await.body == body);
    });
}

#[test]
fn grpc_passes_with_its_trailers_and_is_refused_in_its_own_words() {
    run(async {
        let app = grpc_app().await;
        let shop = Shop::before(app, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let mut call = request(Method::POST, "/shop.Cart/Add");
        let grpc = HeaderValue::from_static("application/grpc");
        call.headers_mut().insert("content-type", grpc.clone());
        call.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-of-client", HeaderValue::from_static("1"));
        let answer = client.post(call, b"ping", Some(trailers)).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ping"[..]));
        let trailers = answer.trailers.unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        // The app echoes what it saw.
        assert_eq!(
            (&trailers["seen-te"], &trailers["seen-trailer"]),
            (
                &"trailers".parse::<HeaderValue>().unwrap(),
                &"1".parse::<HeaderValue>().unwrap()
            )
        );
        let mut denied = request(Method::POST, "/secret");
        denied.headers_mut().insert("content-type", grpc);
        let answer = client.request(denied).await.unwrap();
        assert_eq!(
            (answer.status, &answer.fields["grpc-status"]),
            (200, &HeaderValue::from_static("7"))
        );
        let message = answer.fields["grpc-message"].to_str().unwrap();
        assert!(message.starts_with("deny_rule (decision "), "{message}");
    });
}

#[test]
fn many_streams_of_one_connection_share_one_to_the_app() {
    run(async {
        let app = grpc_app().await;
        let shop = Shop::before(app, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let calls: Vec<_> = (0..50)
            .map(|n| {
                client
                    .send
                    .send_request(request(Method::GET, &format!("/{n}")), true)
                    .unwrap()
                    .0
            })
            .collect();
        for call in calls {
            assert_eq!(whole(soon("an answer", call).await.unwrap()).await.unwrap().status, 200);
        }
        // Those that began before it stood each made their own; no more than that.
        let first = shop.app.connections();
        for n in 0..20 {
            assert_eq!(client.get(&format!("/{n}")).await.unwrap().status, 200);
        }
        assert_eq!(shop.app.connections(), first);
    });
}

#[test]
fn an_opaque_stream_passes_with_half_close_also_when_the_server_speaks_first() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(format!("got {}", all.len()).as_bytes()).await.unwrap();
        })
        .await;
        let shop = Shop::before(app, Protocol::Tcp, WEB_ONLY).await;
        let mut conn = shop.web(b"postern/tcp").await;
        assert_eq!(conn.exactly(11).await, b"220 ready\r\n");
        conn.send(vec![7; 300_000]).await;
        conn.finish().await;
        assert_eq!(conn.rest().await, b"got 300000");
        let mut mallory = shop.connect(MALLORY, b"postern/tcp").await;
        assert_eq!(mallory.rest().await, b"");
        assert_eq!(shop.app.connections(), 1);
        until("streams are over", || shop.cart.serving() == 0).await;
    });
}

#[test]
fn a_stream_cannot_go_around_the_http_rules_of_its_port() {
    run(async {
        for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Detect] {
            let shop = Shop::with(protocol, POLICY).await;
            let mut conn = shop.web(b"postern/tcp").await;
            conn.send("GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.rest().await, b"", "{protocol:?}");
            assert_eq!(shop.app.connections(), 0, "{protocol:?}");
        }
        // Whatever the rules look at: where HTTP is declared, that is what is spoken.
        for (protocol, passes) in [
            (Protocol::Http1, false),
            (Protocol::Http2, false),
            (Protocol::Detect, true),
        ] {
            let shop = Shop::with(protocol, WEB_ONLY).await;
            let mut conn = shop.web(b"postern/tcp").await;
            conn.send("GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n")
                .await;
            conn.finish().await;
            assert_eq!(!conn.rest().await.is_empty(), passes, "{protocol:?}");
            assert_eq!(shop.app.connections(), usize::from(passes), "{protocol:?}");
        }
        // Declared opaque: a rule's paths do not count, and the DENY gets broader.
        let shop = Shop::with(Protocol::Tcp, POLICY).await;
        let mut conn = shop.web(b"postern/tcp").await;
        assert_eq!(conn.rest().await, b"");
        assert_eq!(shop.app.connections(), 0);
    });
}

#[test]
fn an_app_that_does_not_listen_is_a_503_and_comes_back_by_itself() {
    run(async {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        let shop = Shop::new().await;
        let door = shop.cart.door(81, Protocol::Http1, address).await;
        shop.cart.policy(POLICY);
        let mut conn = crate::world::Conn::tls(door, shop.authority.client(crate::world::WEB, b"postern/h1"))
            .await
            .unwrap();
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (503, "connect_failed\n"));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buf = [0; 1024];
            let _ = stream.read(&mut buf).await;
            stream.write_all(&ok("back")).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.text(), "back");
    });
}

#[test]
fn a_connection_that_the_app_closed_while_it_rested_is_not_used() {
    run(async {
        let app = Canary::answering(|request| (ok(&request.target), true)).await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        for n in 0..10 {
            // A POST, too: not a byte of it went to the closed one.
            conn.send(format!(
                "POST /{n} HTTP/1.1\r\nHost: cart\r\nContent-Length: 1\r\n\r\nx"
            ))
            .await;
            assert_eq!(conn.answer().await.status, 200, "{n}");
            until("the app closed", || shop.app.open() == 0).await;
        }
        let fate = attack(&shop, &[b"GET /a HTTP/1.1\r\nHost: cart\r\n\r\n"]).await;
        fate.assert_one("after all that");
    });
}

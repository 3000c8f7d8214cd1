//! Our own HTTP/1 relay: its bounds, what it hands to hyper, and clients that do not read what it says.

use std::rc::Rc;
use std::time::Duration;

use postern_proxy::inbound;
use postern_proxy::limits::{
    ANSWER_DEADLINE, BODY_PROGRESS_DEADLINE, LINGER_BYTES, MAX_CHUNK_LINE, MAX_INTERIM, MAX_TRAILER_BYTES, MAX_TRAILERS,
};
use postern_proxy::snapshot::{Port, Protocol};
use postern_proxy::stream::Stream;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;

use super::smuggling::attack;
use crate::world::canary::{Canary, ok};
use crate::world::client::{answers_in, handshake_name};
use crate::world::h2::grpc_app;
use crate::world::{Conn, POLICY, Shop, WEB, pass, run, soon, until};

#[test]
fn h1_13_a_client_that_does_not_read_its_refusals_is_cut_at_the_progress_deadline() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        let many = "GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n".repeat(500);
        // Until the proxy cannot write any more, and so does not read.
        let flooding = async { while conn.try_send(&many).await.is_ok() {} };
        let stands = tokio::time::timeout(Duration::from_secs(3), flooding).await;
        assert!(stands.is_err(), "it was ended at once");
        pass(BODY_PROGRESS_DEADLINE).await;
        until("it is cut", || shop.cart.serving() == 0).await;
        shop.probe().await;
    });
}

#[test]
fn h1_11_an_answer_that_has_no_body_says_nothing_of_one() {
    run(async {
        let app = Canary::answering(|request| {
            let framing = match request.target.as_str() {
                "/length" => "Content-Length: 5\r\n",
                "/zero" => "Content-Length: 0\r\n",
                "/chunked" => "Transfer-Encoding: chunked\r\n",
                _ => return (ok(&request.target), false),
            };
            (format!("HTTP/1.1 204 No Content\r\n{framing}\r\n").into(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        for path in ["/length", "/zero", "/chunked"] {
            let mut conn = shop.h1().await;
            conn.send(format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, 204);
            // RFC 9110 section 8.6, RFC 9112 section 6.1.
            assert_eq!(
                (answer.field("content-length"), answer.field("transfer-encoding")),
                (None, None),
                "{path}"
            );
            conn.send("GET /next HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.text(), "/next", "{path}");
        }
    });
}

/// What the relay hands to hyper it does not get back: a later request with both framings is normalised there, not
/// refused. What is forwarded is chunked alone, and the connection ends.
#[test]
fn h1_01_both_framings_behind_a_request_that_is_hypers_are_forwarded_as_chunked_alone_and_close() {
    run(async {
        let shop = Shop::new().await;
        for first in [
            "GET http://cart/first HTTP/1.1\r\nHost: cart\r\n\r\n",
            "GET /first HTTP/1.0\r\nHost: cart\r\nConnection: keep-alive\r\n\r\n",
            "GET /first HTTP/1.1\r\nHost: cart\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ] {
            let before = shop.app.count();
            let mut conn = shop.h1().await;
            conn.send(first).await;
            assert_eq!(conn.answer().await.text(), "/first");
            conn.send(
                "POST /both HTTP/1.1\r\nHost: cart\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
                 GET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n",
            )
            .await;
            let rest = conn.rest().await;
            let answers = answers_in(&rest).await;
            assert_eq!(answers.len(), 1, "{first}: {answers:?}");
            let seen = shop.app.since(before);
            assert!(
                seen.iter().all(|request| request.target != "/smuggled"),
                "{first}: {seen:#?}"
            );
            assert!(
                seen.iter().all(|request| request.all("content-length").is_empty()),
                "{first}: {seen:#?}"
            );
            shop.probe().await;
        }
        // On its own each of these is refused, whoever would have had it.
        for framing in [
            "Content-Length: 6\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 6",
        ] {
            for line in ["POST http://cart/a HTTP/1.1", "POST /a HTTP/1.0"] {
                let request = format!("{line}\r\nHost: cart\r\n{framing}\r\n\r\n0\r\n\r\n");
                attack(&shop, &[request.as_bytes()]).await.assert_unseen(line);
            }
        }
    });
}

#[test]
fn h1_01_both_framings_for_an_http_2_app_are_one_request_and_close() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send(
            "POST /both HTTP/1.1\r\nHost: cart\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
             GET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n",
        )
        .await;
        conn.rest().await;
        let seen = shop.app.requests();
        assert!(
            seen.len() <= 1 && seen.iter().all(|request| request.target == "/both"),
            "{seen:#?}"
        );
    });
}

#[test]
fn max_interim_answers_pass_and_one_more_is_a_broken_answer() {
    run(async {
        let app = Canary::answering(|request| {
            let count: usize = request.target[1..].parse().unwrap();
            let interims = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(count);
            ([interims.as_bytes(), &ok("final")].concat(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let most = usize::try_from(MAX_INTERIM).unwrap();
        let mut conn = shop.h1().await;
        conn.send(format!("GET /{most} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
        for _ in 0..most {
            assert_eq!(conn.answer().await.status, 103);
        }
        assert_eq!(conn.answer().await.text(), "final");
        let mut conn = shop.h1().await;
        conn.send(format!("GET /{} HTTP/1.1\r\nHost: cart\r\n\r\n", most + 1))
            .await;
        let rest = conn.rest().await;
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    });
}

#[test]
fn h1_07_chunk_lines_and_trailers_pass_up_to_their_bounds_and_no_further() {
    run(async {
        let shop = Shop::new().await;
        let head = "POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n";
        let line = |length: usize| format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(length - "5;\r\n".len()));
        let fields = |count: usize| format!("5\r\nhello\r\n0\r\n{}\r\n", "x: 1\r\n".repeat(count));
        let section = |length: usize| {
            format!(
                "5\r\nhello\r\n0\r\nx: {}\r\n\r\n",
                "x".repeat(length - "x: \r\n\r\n".len())
            )
        };
        for (case, at, past) in [
            ("a chunk's line", line(MAX_CHUNK_LINE), line(MAX_CHUNK_LINE + 1)),
            ("trailers", fields(MAX_TRAILERS), fields(MAX_TRAILERS + 1)),
            (
                "a trailer section",
                section(MAX_TRAILER_BYTES),
                section(MAX_TRAILER_BYTES + 1),
            ),
        ] {
            let fate = attack(&shop, &[head.as_bytes(), at.as_bytes()]).await;
            assert_eq!(fate.assert_one(case).body, b"hello");
            attack(&shop, &[head.as_bytes(), past.as_bytes()])
                .await
                .assert_refused(case);
        }
    });
}

#[test]
fn a_refused_upload_hears_why_although_it_sends_on() {
    run(async {
        let shop = Shop::new().await;
        for body in [10_000, LINGER_BYTES / 2] {
            let mut conn = shop.h1().await;
            let head = format!("POST /secret HTTP/1.1\r\nHost: cart\r\nContent-Length: {body}\r\n\r\n");
            conn.send(head).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            conn.send(vec![7; body]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let answer = conn.answer().await;
            assert_eq!((answer.status, answer.closes()), (403, true), "{body}");
        }
        assert_eq!(shop.app.connections(), 0);
        // One that is here already costs the connection nothing.
        let mut conn = shop.h1().await;
        conn.send(
            "POST /secret HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\n\r\nhelloGET /a HTTP/1.1\r\nHost: cart\r\n\r\n",
        )
        .await;
        assert_eq!(conn.answer().await.status, 403);
        assert_eq!(conn.answer().await.text(), "/a");
    });
}

#[test]
fn requests_behind_a_chunked_one_are_theirs_whatever_the_pieces() {
    run(async {
        let shop = Shop::new().await;
        let all = "POST /1 HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: 1\r\n\r\n\
                   GET /2 HTTP/1.1\r\nHost: cart\r\n\r\n\
                   POST /3 HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\n\r\nworld\
                   GET /4 HTTP/1.1\r\nHost: cart\r\n\r\n";
        for piece in [1, 7, 64, all.len()] {
            let before = shop.app.count();
            let mut conn = shop.h1().await;
            for bytes in all.as_bytes().chunks(piece) {
                conn.send(bytes).await;
                tokio::task::yield_now().await;
            }
            for path in ["/1", "/2", "/3", "/4"] {
                assert_eq!(conn.answer().await.text(), path, "{piece}");
            }
            let bodies: Vec<Vec<u8>> = shop.app.since(before).into_iter().map(|request| request.body).collect();
            assert_eq!(bodies, [&b"hello"[..], b"", b"world", b""], "{piece}");
        }
    });
}

#[test]
fn an_answer_that_arrives_byte_by_byte_is_passed_on_whole() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                canary.saw(request);
                let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n";
                for byte in answer {
                    stream.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        for _ in 0..3 {
            conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.text(), "hello");
        }
        assert_eq!(shop.app.connections(), 1);
    });
}

/// Close_notify takes 24 bytes: where they do not fit any more, nobody waits for the client to make room.
#[test]
fn h1_13_a_client_that_leaves_no_room_for_the_end_is_not_waited_for() {
    run(async {
        let shop = Shop::new().await;
        let room = 4 * 1024;
        let port = Port {
            name: "http".into(),
            number: 80,
            protocol: Protocol::Http1,
            listen: shop.door,
            app: shop.app.address,
        };
        let mut serving = tokio::task::JoinSet::new();
        let mut clients = Vec::new();
        for left in (0..120).step_by(6) {
            let (near, far) = tokio::io::duplex(room);
            let worker = Rc::clone(&shop.cart.worker);
            serving.spawn_local(inbound::serve(worker, Stream::InProcess(far), port.clone()));
            let connector = TlsConnector::from(shop.authority.client(WEB, b"postern/h1"));
            let connected = soon("a handshake", connector.connect(handshake_name(), near)).await;
            let mut conn = Conn::over(connected.unwrap());
            // Its answer's record takes 64 bytes more.
            let path = "x".repeat(room - 40 - left);
            conn.send(format!("GET /{path} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            conn.finish().await;
            // Kept, and never read.
            clients.push(conn);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        pass(BODY_PROGRESS_DEADLINE).await;
        soon("all ends", async { while serving.join_next().await.is_some() {} }).await;
        assert_eq!(clients.len(), shop.app.count());
    });
}

#[test]
fn an_app_that_does_not_read_an_upload_is_a_504_and_no_fault_of_its_client() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let request = canary
                .read_head(&mut stream, &mut Vec::new(), connection)
                .await
                .unwrap();
            canary.saw(request);
            std::future::pending::<()>().await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 100000000\r\n\r\n")
            .await;
        let uploading = async {
            let piece = vec![7; 1_000_000];
            while conn.try_send(&piece).await.is_ok() {}
        };
        assert!(tokio::time::timeout(Duration::from_secs(1), uploading).await.is_err());
        pass(BODY_PROGRESS_DEADLINE).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(shop.cart.serving(), 1, "blamed on the client");
        pass(ANSWER_DEADLINE).await;
        assert_eq!(conn.answer().await.status, 504);
    });
}

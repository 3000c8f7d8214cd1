//! Bodies: chunks, trailers, early and late answers.

use std::cell::RefCell;
use std::rc::Rc;

use postern_proxy::snapshot::Protocol;
use tokio::io::AsyncWriteExt;

use super::smuggling::attack;
use crate::world::canary::{Canary, ok};
use crate::world::{POLICY, Shop, run, until};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n";

#[test]
fn h1_07_a_malformed_chunk_never_makes_a_whole_request_nor_a_second_one() {
    run(async {
        let shop = Shop::new().await;
        let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(17 * 1024));
        for (case, body) in [
            ("plus", "+5\r\nhello\r\n0\r\n\r\n"),
            ("minus", "-5\r\nhello\r\n0\r\n\r\n"),
            ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
            ("not a number", "g\r\nhello\r\n0\r\n\r\n"),
            ("no number", "\r\nhello\r\n0\r\n\r\n"),
            ("overflow", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
            ("overflow to zero", "100000000000000000\r\nhello\r\n0\r\n\r\n"),
            ("underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
            ("LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
            ("LF after the size", "5\nhello\r\n0\r\n\r\n"),
            ("CR after the size", "5\rhello\r\n0\r\n\r\n"),
            ("LF after the data", "5\r\nhello\n0\r\n\r\n"),
            ("no CRLF after the data", "5\r\nhello0\r\n\r\n"),
            ("data past the size", "5\r\nhelloo\r\n0\r\n\r\n"),
            ("data short of the size", "6\r\nhello\r\n0\r\n\r\n"),
            ("17 KiB of extension", &long_extension),
            ("no CRLF at the end", &format!("5\r\nhello\r\n0\r\n{SMUGGLED}")),
            ("a folded trailer", "5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n"),
            ("a space before a trailer's colon", "5\r\nhello\r\n0\r\nX : a\r\n\r\n"),
        ] {
            let head = "POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n";
            let tail = SMUGGLED;
            let fate = attack(&shop, &[format!("{head}{body}{tail}").as_bytes()]).await;
            fate.assert_refused(case);
            let fate = attack(&shop, &[head.as_bytes(), format!("{body}{tail}").as_bytes()]).await;
            fate.assert_refused(case);
        }
    });
}

#[test]
fn h1_07_chunk_extensions_and_leading_zeros_are_not_passed_on() {
    run(async {
        let shop = Shop::new().await;
        let head = "POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "5;name=value\r\nhello\r\n0;last\r\n\r\n",
            "00000005\r\nhello\r\n000\r\n\r\n",
            "5 ;x\r\nhello\r\n0\r\n\r\n",
        ] {
            let fate = attack(&shop, &[format!("{head}{body}").as_bytes()]).await;
            // The canary takes nothing but plain sizes.
            assert_eq!(fate.assert_one(body).body, b"hello");
        }
    });
}

#[test]
fn h1_07_a_body_that_breaks_off_is_never_whole_at_the_app() {
    run(async {
        let shop = Shop::new().await;
        for request in [
            "POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 10\r\n\r\nhello",
            "POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let before = shop.app.requests().len();
            let mut conn = shop.h1().await;
            conn.send(request).await;
            until("the app saw the head", || shop.app.bytes() > 0).await;
            conn.finish().await;
            let rest = conn.rest().await;
            let text = String::from_utf8_lossy(&rest).into_owned();
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
            until("the app saw it break off", || shop.app.requests().len() > before).await;
            assert!(!shop.app.requests()[before].whole);
            shop.probe().await;
        }
    });
}

#[test]
fn h1_08_forbidden_trailers_never_reach_the_app() {
    run(async {
        let shop = Shop::new().await;
        let forbidden = [
            "host",
            "transfer-encoding",
            "content-length",
            "authorization",
            "cookie",
            "x-forwarded-client-cert",
            "x_forwarded_client_cert",
            "x-postern-source",
            "x.postern.source",
            "x-forwarded-for",
            "connection",
            "te",
        ];
        let trailers: String = forbidden.iter().map(|name| format!("{name}: forged\r\n")).collect();
        let request = format!(
            "POST /a HTTP/1.1\r\nHost: cart\r\nTE: trailers\r\nTrailer: x-checksum, {}\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n{trailers}x-checksum: good\r\n\r\n",
            forbidden.join(", ")
        );
        let fate = attack(&shop, &[request.as_bytes()]).await;
        let seen = fate.assert_one("trailers");
        assert_eq!(seen.trailers, [("x-checksum".to_owned(), "good".to_owned())]);
        assert!(seen.fields.iter().all(|(_, value)| value != "forged"), "{seen:#?}");
    });
}

#[test]
fn h1_08_trailers_of_an_answer_reach_the_client_without_what_only_we_may_say() {
    run(async {
        let app = Canary::answering(|_| {
            let answer = "HTTP/1.1 200 OK\r\nTrailer: x-checksum, x-postern-decision-id\r\n\
                          Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-checksum: good\r\n\
                          x-postern-decision-id: forged\r\nset-cookie: a\r\n\r\n";
            (answer.into(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET / HTTP/1.1\r\nHost: cart\r\nTE: trailers\r\n\r\n").await;
        let answer = conn.answer().await;
        assert_eq!(answer.body, b"hi");
        assert_eq!(answer.trailers, [("x-checksum".to_owned(), "good".to_owned())]);
    });
}

#[test]
fn h1_11_an_early_answer_to_an_unread_body_is_passed_on_and_nothing_is_reused_for_others() {
    run(async {
        // Answers as soon as it has the head, and reads a body only by the way.
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read_head(&mut stream, &mut read, connection).await {
                stream.write_all(&ok(&request.target)).await.unwrap();
                let mut unread = request.clone();
                canary.saw(request);
                if canary.read_body(&mut stream, &mut read, &mut unread).await.is_none() {
                    return;
                }
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("POST /early HTTP/1.1\r\nHost: cart\r\nContent-Length: 1000\r\n\r\nhello")
            .await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "/early"));
        // What would be the rest of the body is no request of anybody's.
        shop.probe().await;
        let seen = shop.app.requests();
        assert_ne!(seen[0].connection, seen[1].connection, "{seen:#?}");
        // It is body, however much it looks like a request.
        conn.send(SMUGGLED).await;
        drop(conn);
        shop.probe().await;
    });
}

#[test]
fn h1_11_expect_is_answered_and_the_body_arrives_whole() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            .await;
        assert_eq!(conn.answer().await.status, 100);
        conn.send("hello").await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(shop.app.only().body, b"hello");
        // Sent at once, without waiting for leave.
        conn.send("POST /b HTTP/1.1\r\nHost: cart\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
            .await;
        let mut answer = conn.answer().await;
        if answer.status == 100 {
            answer = conn.answer().await;
        }
        assert_eq!(answer.text(), "/b");
        let fate = attack(
            &shop,
            &[b"POST /a HTTP/1.1\r\nHost: cart\r\nExpect: 200-ok\r\nContent-Length: 5\r\n\r\n"],
        )
        .await;
        fate.assert_unseen("an expectation that nobody knows");
    });
}

#[test]
fn h1_11_a_body_where_there_can_be_none_is_never_taken_for_the_next_answer() {
    run(async {
        let app = Canary::answering(|request| match request.target.as_str() {
            "/head" => (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nX: evil\r\n\r\n".to_vec(), false),
            "/204" => (b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nX: evil\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
            "/304" => (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nX: evil\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
            "/two" => ([ok("first"), b"HTTP/1.1 200 OK\r\nX: evil\r\nContent-Length: 0\r\n\r\n".to_vec()].concat(), false),
            "/over" => (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nX: evil\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
            other => (ok(other), false),
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        for (method, path) in [
            ("HEAD", "/head"),
            ("GET", "/204"),
            ("GET", "/304"),
            ("GET", "/two"),
            ("GET", "/over"),
        ] {
            let mut conn = shop.h1().await;
            conn.send(format!("{method} {path} HTTP/1.1\r\nHost: cart\r\n\r\n"))
                .await;
            let answer = conn.answer_to(method).await;
            assert!(answer.status < 400, "{path}: {answer:?}");
            let spoilt = shop.app.requests().pop().unwrap().connection;
            for _ in 0..3 {
                conn.send("GET /honest HTTP/1.1\r\nHost: cart\r\n\r\n").await;
                let Some(next) = conn.try_answer().await else { break };
                assert_eq!((next.field("x"), next.text().as_str()), (None, "/honest"), "{path}");
            }
            let others = shop.app.requests().pop().unwrap().connection;
            assert_ne!(others, spoilt, "{path}: a connection with more on it was used again");
            let mut other = shop.h1().await;
            other.send("GET /other HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            let next = other.answer().await;
            assert_eq!((next.field("x"), next.text().as_str()), (None, "/other"), "{path}");
        }
    });
}

/// A late second answer comes while the connection rests.
#[test]
fn h1_11_what_an_app_says_unasked_ends_its_connection() {
    run(async {
        let late = Rc::new(RefCell::new(None));
        let kept = Rc::clone(&late);
        let app = Canary::serving(move |mut stream, canary, connection| {
            let kept = Rc::clone(&kept);
            async move {
                let mut read = Vec::new();
                while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                    stream.write_all(&ok(&request.target)).await.unwrap();
                    let unasked = request.target == "/unasked";
                    canary.saw(request);
                    if unasked {
                        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                        let evil = b"HTTP/1.1 200 OK\r\nX: evil\r\nContent-Length: 0\r\n\r\n";
                        let _ = stream.write_all(evil).await;
                        *kept.borrow_mut() = Some(());
                    }
                }
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /unasked HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.text(), "/unasked");
        until("the app said it", || late.borrow().is_some()).await;
        conn.send("GET /honest HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let next = conn.answer().await;
        assert_eq!((next.field("x"), next.text().as_str()), (None, "/honest"));
        let seen = shop.app.requests();
        assert_ne!(seen[0].connection, seen[1].connection);
    });
}

#[test]
fn h1_11_an_answer_that_breaks_http_is_a_502_and_one_that_breaks_off_is_never_whole() {
    run(async {
        let app = Canary::answering(|request| {
            let answer = match request.target.as_str() {
                "/no-http" => "220 mail ready\r\n\r\n",
                "/status" => "HTTP/1.1 99 No\r\n\r\n",
                "/lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
                "/length" => "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
                "/nothing" => "",
                "/short" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
                "/chunk" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                "/101" => "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
                other => panic!("{other}"),
            };
            (answer.into(), true)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        for path in ["/no-http", "/status", "/lengths", "/length", "/nothing", "/101"] {
            let mut conn = shop.h1().await;
            conn.send(format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            assert_eq!(conn.answer().await.status, 502, "{path}");
        }
        for path in ["/short", "/chunk"] {
            let mut conn = shop.h1().await;
            conn.send(format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            assert_eq!(conn.try_answer().await.map(|answer| answer.text()), None, "{path}");
        }
    });
}

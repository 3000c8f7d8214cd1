//! Between versions: HTTP/2 from the peer, HTTP/1.1 at the app, and the other way round; and what of HTTP/1.1 is passed
//! on as it is.

use std::time::Duration;

use http::{HeaderValue, Method};
use postern_proxy::limits::ANSWER_DEADLINE;
use postern_proxy::snapshot::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::canary::{Canary, ok};
use crate::world::h2::{Client, get, grpc_app, request};
use crate::world::{POLICY, Shop, pass, run, until};

#[test]
fn cookies_that_http_2_split_are_one_field_for_an_http_1_app() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"h2").await).await;
        let mut split = get("/a");
        for crumb in ["a=1", "b=2", "c=3"] {
            split.headers_mut().append("cookie", HeaderValue::from_static(crumb));
        }
        assert_eq!(client.request(split).await.unwrap().status, 200);
        // RFC 9113 section 8.2.3.
        assert_eq!(shop.app.only().all("cookie"), ["a=1; b=2; c=3"]);
    });
}

#[test]
fn cookies_stay_split_between_http_2_and_http_2_and_as_they_were_in_http_1() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"h2").await).await;
        let mut split = get("/a");
        for crumb in ["a=1", "b=2"] {
            split.headers_mut().append("cookie", HeaderValue::from_static(crumb));
        }
        assert_eq!(client.request(split).await.unwrap().status, 200);
        assert_eq!(shop.app.only().all("cookie"), ["a=1", "b=2"]);
    });
}

#[test]
fn a_body_without_a_length_is_chunked_for_an_http_1_app_and_one_with_it_is_not() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"h2").await).await;
        let answer = client.post(request(Method::POST, "/a"), b"hello", None).await.unwrap();
        assert_eq!(answer.status, 200);
        let mut sized = request(Method::POST, "/b");
        sized
            .headers_mut()
            .insert("content-length", HeaderValue::from_static("5"));
        assert_eq!(client.post(sized, b"hello", None).await.unwrap().status, 200);
        let seen = shop.app.requests();
        assert_eq!(
            (seen[0].all("transfer-encoding"), seen[0].body.as_slice()),
            (vec!["chunked"], &b"hello"[..])
        );
        assert_eq!(
            (seen[1].all("content-length"), seen[1].body.as_slice()),
            (vec!["5"], &b"hello"[..])
        );
    });
}

#[test]
fn what_belongs_to_a_hop_of_http_1_never_reaches_an_http_2_client() {
    run(async {
        let app = Canary::answering(|_| {
            let answer = b"HTTP/1.1 200 OK\r\nConnection: Upgrade, x-hop\r\nUpgrade: h2,h2c\r\nX-Hop: 1\r\n\
                           Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nTransfer-Encoding: chunked\r\n\
                           X-End: 1\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
            (answer.to_vec(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let answer = client.get("/a").await.unwrap();
        let names: Vec<&str> = answer.fields.keys().map(http::HeaderName::as_str).collect();
        assert_eq!((answer.body.as_slice(), names), (&b"hi"[..], vec!["x-end"]));
    });
}

#[test]
fn an_http_1_client_reaches_an_http_2_app() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send(
            "POST /a HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTE: trailers\r\n\
             Content-Length: 5\r\n\r\nhello",
        )
        .await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        assert_eq!(shop.app.only().target, "/a");
    });
}

#[test]
fn a_switch_of_protocols_has_no_place_in_http_2() {
    run(async {
        let app = Canary::answering(|_| {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
            (answer.to_vec(), true)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        assert_eq!(client.get("/a").await.unwrap().status, 502);
    });
}

#[test]
fn an_answer_to_head_keeps_its_length_and_has_no_body() {
    run(async {
        let app = Canary::answering(|_| (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec(), false)).await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        for _ in 0..3 {
            conn.send("HEAD /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            let answer = conn.answer_to("HEAD").await;
            assert_eq!((answer.status, answer.field("content-length")), (200, Some("5")));
        }
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let answer = client.request(request(Method::HEAD, "/a")).await.unwrap();
        assert_eq!(
            (answer.status, &answer.fields["content-length"], answer.body.len()),
            (200, &HeaderValue::from_static("5"), 0)
        );
    });
}

#[test]
fn informational_answers_do_not_stand_for_the_final_one() {
    run(async {
        let app = Canary::answering(|request| {
            let early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
            ([early.as_slice(), &ok(&request.target)].concat(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        for path in ["/a", "/b"] {
            conn.send(format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
            // A proxy passes interim answers on (RFC 9110 section 15.2).
            for interim in [103, 100] {
                assert_eq!(conn.answer().await.status, interim);
            }
            let answer = conn.answer().await;
            assert_eq!((answer.status, answer.text().as_str()), (200, path));
        }
    });
}

#[test]
fn an_answer_that_ends_with_the_apps_connection_arrives_whole() {
    run(async {
        let app = Canary::answering(|_| (b"HTTP/1.0 200 OK\r\n\r\nold but whole".to_vec(), true)).await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        for _ in 0..3 {
            conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.text(), "old but whole");
        }
    });
}

/// Answers after a while.
async fn late() -> Canary {
    Canary::serving(|mut stream, canary, connection| async move {
        let mut read = Vec::new();
        while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
            let answer = ok(&request.target);
            canary.saw(request);
            let mut gone = [0; 1];
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
                _ = stream.read(&mut gone) => return,
            }
            let _ = stream.write_all(&answer).await;
        }
    })
    .await
}

#[test]
fn a_client_that_closes_its_half_still_gets_its_answer() {
    run(async {
        let shop = Shop::before(late().await, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        conn.finish().await;
        assert_eq!(conn.answer().await.text(), "/a");
        conn.ends().await;
    });
}

/// hyper does not read while an answer is owed, where a client may close its half: that one is gone shows when the answer
/// is written, or at the answer's deadline.
#[test]
fn a_client_that_vanishes_takes_its_request_with_it_at_the_answer_deadline() {
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
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        until("the app has it", || shop.app.count() == 1).await;
        drop(conn);
        tokio::time::sleep(Duration::from_millis(300)).await;
        pass(ANSWER_DEADLINE).await;
        until("the app was let go", || {
            shop.app.open() == 0 && shop.cart.serving() == 0
        })
        .await;
    });
}

/// The app's answers to an HTTP/2 client are read by hyper, not by our relay.
#[test]
fn h1_11_what_an_app_sends_too_much_is_nobodys_answer_over_http_2_either() {
    run(async {
        const EVIL: &str = "HTTP/1.1 200 OK\r\nX: evil\r\nContent-Length: 4\r\n\r\nevil";
        let app = Canary::answering(|request| {
            let head = match request.target.as_str() {
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                "/over" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                other => return (ok(other), false),
            };
            (format!("{head}{EVIL}").into(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for (method, path) in [
            (Method::HEAD, "/head"),
            (Method::GET, "/204"),
            (Method::GET, "/304"),
            (Method::GET, "/over"),
            (Method::GET, "/chunked"),
        ] {
            let answer = client.request(request(method, path)).await.unwrap();
            assert!(
                answer.status < 400 && !answer.fields.contains_key("x"),
                "{path}: {answer:?}"
            );
            for _ in 0..3 {
                let next = client.get("/honest").await.unwrap();
                assert_eq!((next.status, next.body.as_slice()), (200, &b"/honest"[..]), "{path}");
            }
        }
    });
}

#[test]
fn h1_11_a_broken_answer_is_a_502_or_a_reset_stream_over_http_2() {
    run(async {
        let app = Canary::answering(|request| {
            let answer = match request.target.as_str() {
                "/no-http" => "220 mail ready\r\n\r\n",
                "/lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
                "/nothing" => "",
                "/short" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
                "/chunk" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                other => return (ok(other), false),
            };
            (answer.into(), true)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for path in ["/no-http", "/lengths", "/nothing"] {
            assert_eq!(client.get(path).await.unwrap().status, 502, "{path}");
        }
        for path in ["/short", "/chunk"] {
            let broken = client.get(path).await;
            assert!(broken.as_ref().is_err_and(h2::Error::is_reset), "{path}: {broken:?}");
        }
        assert_eq!(client.get("/honest").await.unwrap().status, 200);
    });
}

#[test]
fn h1_07_a_body_that_an_http_2_client_breaks_off_is_never_whole_at_an_http_1_app() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        for sized in [true, false] {
            let before = shop.app.count();
            let bytes = shop.app.bytes();
            let mut client = Client::over(shop.web(b"postern/h2").await).await;
            let mut call = request(Method::POST, "/a");
            if sized {
                call.headers_mut()
                    .insert("content-length", HeaderValue::from_static("10"));
            }
            let (_answer, mut send) = client.send.send_request(call, false).unwrap();
            send.send_data(bytes::Bytes::from_static(b"hello"), false).unwrap();
            until("the app has its beginning", || shop.app.bytes() > bytes).await;
            send.send_reset(h2::Reason::CANCEL);
            until("the app saw it break off", || shop.app.count() > before).await;
            assert!(!shop.app.since(before)[0].whole, "{sized}");
        }
        shop.probe().await;
    });
}

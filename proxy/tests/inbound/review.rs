//! What a review of the relay found, held for ever: each was a way past the rules before it was mended.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use postern_proxy::limits::{HEAD_DEADLINE, MAX_HEAD_BYTES};
use postern_proxy::snapshot::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::canary::{Canary, ok};
use crate::world::{POLICY, Shop, WEB_ONLY, client, pass, run, until};

/// Ends a connection with RST.
fn reset(stream: tokio::net::TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// What the second connection of the app was sent, raw.
async fn second_hears(body: Vec<u8>, framing: &str) -> Vec<u8> {
    let go = Rc::new(tokio::sync::Notify::new());
    let heard: Rc<RefCell<Vec<u8>>> = Rc::default();
    let (g, h) = (Rc::clone(&go), Rc::clone(&heard));
    let app = Canary::serving(move |mut stream, canary, connection| {
        let (g, h) = (Rc::clone(&g), Rc::clone(&h));
        async move {
            if connection == 0 {
                let mut read = Vec::new();
                let request = canary.read(&mut stream, &mut read, connection).await.unwrap();
                canary.saw(request);
                stream.write_all(&ok("first")).await.unwrap();
                canary.read_head(&mut stream, &mut read, connection).await.unwrap();
                // Busy; then it dies.
                g.notified().await;
                reset(stream);
            } else {
                let mut buf = vec![0; 65536];
                while let Ok(n) = stream.read(&mut buf).await {
                    if n == 0 {
                        break;
                    }
                    h.borrow_mut().extend_from_slice(&buf[..n]);
                    if h.borrow().len() > 1000 {
                        let _ = stream.write_all(&ok("second")).await;
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    })
    .await;
    let shop = Shop::before(app, Protocol::Http1, POLICY).await;
    let mut conn = shop.h1().await;
    conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
    assert_eq!(conn.answer().await.text(), "first");
    conn.send(format!("POST /a HTTP/1.1\r\nHost: cart\r\n{framing}\r\n\r\n"))
        .await;
    let up = async {
        let _ = conn.try_send(&body).await;
    };
    let _ = tokio::time::timeout(Duration::from_millis(700), up).await;
    go.notify_one();
    tokio::time::sleep(Duration::from_millis(500)).await;
    heard.take()
}

#[test]
fn h1_01_body_bytes_are_never_sent_as_a_request_when_a_rested_connection_dies() {
    run(async {
        let block =
            "GET /secret HTTP/1.1\r\nHost: cart\r\nx-postern-source: spiffe://cluster.local/ns/shop/sa/admin\r\n\r\n";
        let body = block.repeat(100_000_000 / block.len()).into_bytes();
        let heard = second_hears(body, "Content-Length: 100000000").await;
        assert!(heard.is_empty(), "the app was sent body bytes as a request");
    });
}

#[test]
fn h1_01_chunks_are_never_sent_as_a_request_when_a_rested_connection_dies() {
    run(async {
        let piece = "fff8\r\n".to_owned() + &"x".repeat(0xfff8) + "\r\n";
        let body = piece.repeat(300).into_bytes();
        let heard = second_hears(body, "Transfer-Encoding: chunked").await;
        assert!(heard.is_empty());
    });
}

#[test]
fn z_09_no_body_becomes_a_request_under_another_identity() {
    run(async {
        let go = Rc::new(tokio::sync::Notify::new());
        let g = Rc::clone(&go);
        let app = Canary::serving(move |mut stream, canary, connection| {
            let g = Rc::clone(&g);
            async move {
                let mut read = Vec::new();
                if connection == 0 {
                    canary.read(&mut stream, &mut read, connection).await.unwrap();
                    stream.write_all(&ok("first")).await.unwrap();
                    canary.read_head(&mut stream, &mut read, connection).await.unwrap();
                    g.notified().await;
                    return reset(stream);
                }
                // As llhttp does: empty lines before a request line are passed over (RFC 9112 section 2.2).
                loop {
                    let n = stream.read_buf(&mut read).await.unwrap();
                    if n == 0 {
                        return;
                    }
                    let empty = read.iter().take_while(|b| matches!(b, 13 | 10)).count();
                    read.drain(..empty);
                    if read.is_empty() {
                        continue;
                    }
                    let Some(request) = canary.read_head(&mut stream, &mut read, connection).await else {
                        return;
                    };
                    let text = format!("{} for {:?}", request.target, request.all("x-postern-source"));
                    canary.saw(request);
                    stream.write_all(&ok(&text)).await.unwrap();
                }
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        conn.answer().await;
        let evil =
            "GET /secret HTTP/1.1\r\nHost: cart\r\nx-postern-source: spiffe://cluster.local/ns/shop/sa/admin\r\n\r\n";
        let block = "\r\n".repeat(3900) + evil;
        let body = block.repeat(90_000_000 / block.len());
        conn.send(format!(
            "POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .await;
        let _ = tokio::time::timeout(Duration::from_millis(700), conn.try_send(&body)).await;
        go.notify_one();
        let answer = conn.answer().await;
        assert_ne!(answer.status, 200);
    });
}

#[test]
fn f_04_an_answer_without_a_length_that_is_reset_never_looks_whole() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            canary.read_head(&mut stream, &mut read, connection).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegins").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.write_all(&[b'x'; 8192]).await.unwrap();
            reset(stream);
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let rest = conn.try_answer().await;
        assert!(rest.is_none(), "an answer that was reset looks whole");
    });
}

#[test]
fn f_04_an_opaque_stream_that_is_reset_never_looks_ended() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            let mut buf = [0; 100];
            let _ = stream.read(&mut buf).await;
            stream.write_all(&[b'x'; 8192]).await.unwrap();
            reset(stream);
        })
        .await;
        let shop = Shop::before(app, Protocol::Tcp, WEB_ONLY).await;
        let mut conn = shop.web(b"postern/tcp").await;
        conn.send("hello").await;
        let mut got = Vec::new();
        let end = conn.io.read_to_end(&mut got).await;
        assert!(end.is_err(), "a reset looks like an end");
    });
}

#[test]
fn a_broken_answer_is_one_failed_request_and_no_refused_connection() {
    run(async {
        let app = Canary::answering(|_| (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort".to_vec(), true)).await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert!(conn.try_answer().await.is_none());
        until("recorded", || {
            shop.cart.metric("postern_proxy_requests_total", &["inbound"]) == 1
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(shop.cart.refused("upstream_gone"), 0);
    });
}

fn big(head: usize, extra: &str) -> String {
    let mut text = format!("POST /b HTTP/1.1\r\nHost: cart\r\n{extra}");
    let mut n = 0;
    while text.len() + 7000 < head {
        n += 1;
        text += &format!("x-{n}: {}\r\n", "y".repeat(6990));
    }
    let left = head - text.len() - "x-z: \r\n\r\n".len();
    text + &format!("x-z: {}\r\n\r\n", "y".repeat(left))
}

/// Sent so that the relay reads it as leftovers of a body.
async fn behind(head: &str, body: &str) -> (Vec<u16>, Vec<crate::world::Received>) {
    let shop = Shop::before(Canary::start().await, Protocol::Http1, POLICY).await;
    let mut conn = shop.h1().await;
    conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 1\r\n\r\n")
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    conn.send(format!("b{head}{body}")).await;
    let mut statuses = Vec::new();
    statuses.push(conn.answer().await.status);
    let (rest, _) = conn.until_quiet().await;
    for a in client::answers_in(&rest).await {
        statuses.push(a.status);
    }
    (statuses, shop.app.requests())
}

#[test]
fn h1_09_a_head_past_its_bound_behind_a_body_is_refused() {
    run(async {
        let (statuses, _) = behind(&big(MAX_HEAD_BYTES + 5000, "Content-Length: 4\r\n"), "body").await;
        assert_eq!(statuses, [200, 431]);
    });
}

#[test]
fn h1_13_a_head_that_begins_behind_a_request_has_its_deadline() {
    run(async {
        let shop = Shop::before(Canary::start().await, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\nGET /b HTTP/1.1\r\nHos")
            .await;
        assert_eq!(conn.answer().await.status, 200);
        pass(HEAD_DEADLINE * 3).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(shop.cart.serving(), 0);
    });
}

#[test]
fn an_app_that_dies_after_its_100_is_a_502() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            canary.read_head(&mut stream, &mut read, connection).await.unwrap();
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .await;
        assert_eq!(conn.answer().await.status, 100);
        assert_eq!(conn.answer().await.status, 502);
    });
}

#[test]
fn h1_11_an_answer_before_the_request_is_whole_says_that_the_connection_ends() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            canary.read_head(&mut stream, &mut read, connection).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 10\r\n\r\nhello")
            .await;
        let answer = conn.answer().await;
        conn.send("worldGET /b HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert!(answer.closes());
    });
}

#[test]
fn h1_11_stray_bytes_of_a_rested_connection_are_no_answer() {
    // Answers of a rested upstream that come with its next request's bytes unread.
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                canary.saw(request);
                stream.write_all(&ok("one")).await.unwrap();
                // Too much.
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.write_all(&ok("stray")).await.unwrap();
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        for _ in 0..5 {
            conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.text(), "one");
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    });
}

#[test]
fn z_04_the_host_that_is_forwarded_is_the_one_that_was_decided_on() {
    run(async {
        let shop = Shop::before(Canary::start().await, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nX: y\r\nHOST: CART.Shop:80\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        // Absolute form is hyper's.
        conn.send("GET http://CART.Shop:80/b HTTP/1.1\r\nHost: CART.Shop:80\r\n\r\n")
            .await;
        assert_eq!(conn.answer().await.status, 200);
        for request in shop.app.requests() {
            assert_eq!(request.all("host"), ["cart.shop:80"], "{request:?}");
        }
    });
}

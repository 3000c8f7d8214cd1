//! Every bound at it and one past it.

use std::time::Duration;

use bytes::Bytes;
use postern_proxy::limits::{MAX_HANDSHAKES, MAX_HEAD_BYTES, MAX_HEADERS, MAX_STREAMS};
use postern_proxy::snapshot::Protocol;

use super::smuggling::attack;
use crate::world::h2::{self, Client, grpc_app};
use crate::world::{Canary, Conn, POLICY, Shop, WEB, run, until};

/// A GET with so many fields, Host among them.
fn with_fields(count: usize) -> String {
    let fields: String = (1..count).map(|n| format!("x-{n}: {n}\r\n")).collect();
    format!("GET /a HTTP/1.1\r\nHost: cart\r\n{fields}\r\n")
}

/// A GET whose head has so many bytes.
fn with_bytes(count: usize) -> String {
    let bare = "GET /a HTTP/1.1\r\nHost: cart\r\nX: \r\n\r\n".len();
    let value = "x".repeat(count - bare);
    format!("GET /a HTTP/1.1\r\nHost: cart\r\nX: {value}\r\n\r\n")
}

#[test]
fn h1_09_max_headers_pass_and_one_more_is_431() {
    run(async {
        let shop = Shop::new().await;
        let fate = attack(&shop, &[with_fields(MAX_HEADERS).as_bytes()]).await;
        fate.assert_one("at the bound");
        for past in [MAX_HEADERS + 1, 1_000] {
            let fate = attack(&shop, &[with_fields(past).as_bytes()]).await;
            fate.assert_unseen("past the bound");
            assert_eq!(fate.answers[0].status, 431, "{past}");
        }
    });
}

#[test]
fn h1_09_max_headers_hold_over_http_2_too() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for (count, status) in [(MAX_HEADERS, 200), (MAX_HEADERS + 1, 400), (500, 400)] {
            let mut request = h2::get("/a");
            for n in 0..count {
                let name = http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
                request.headers_mut().insert(name, "1".parse().unwrap());
            }
            // Host comes from the authority and counts as well.
            if status == 200 {
                request.headers_mut().remove("x-0");
            }
            let answer = client.request(request).await.unwrap();
            assert_eq!(answer.status, status, "{count}");
        }
        shop.app.only();
    });
}

#[test]
fn h1_09_max_head_bytes_pass_and_one_more_is_431() {
    run(async {
        let shop = Shop::new().await;
        let fate = attack(&shop, &[with_bytes(MAX_HEAD_BYTES).as_bytes()]).await;
        fate.assert_one("at the bound");
        let whole = with_bytes(MAX_HEAD_BYTES + 1);
        let fate = attack(&shop, &[whole.as_bytes()]).await;
        fate.assert_unseen("past the bound");
        assert_eq!(fate.answers[0].status, 431);
        let (early, late) = whole.split_at(20_000);
        attack(&shop, &[early.as_bytes(), late.as_bytes()])
            .await
            .assert_unseen("in two pieces");
        attack(&shop, &[with_bytes(64 * 1024).as_bytes()])
            .await
            .assert_unseen("64 KiB");
    });
}

#[test]
fn h1_09_a_long_target_or_name_is_refused_however_long_it_is() {
    run(async {
        let shop = Shop::new().await;
        let target = |length| format!("GET /{} HTTP/1.1\r\nHost: cart\r\n\r\n", "a".repeat(length));
        attack(&shop, &[target(8 * 1024).as_bytes()])
            .await
            .assert_one("8 KiB of target");
        attack(&shop, &[target(70_000).as_bytes()])
            .await
            .assert_unseen("70 KB of target");
        let name = format!("GET /a HTTP/1.1\r\nHost: cart\r\n{}", "a".repeat(1_000_000));
        attack(&shop, &[name.as_bytes()])
            .await
            .assert_unseen("a name of a megabyte");
        let method = "A".repeat(100_000);
        attack(&shop, &[method.as_bytes()])
            .await
            .assert_unseen("a method without end");
    });
}

#[test]
fn an_answers_head_past_the_bounds_is_a_502() {
    run(async {
        let app = Canary::answering(|request| {
            let size: usize = request.target[2..].parse().unwrap();
            let fields = match &request.target[..2] {
                "/n" => (1..size).map(|n| format!("x-{n}: 1\r\n")).collect(),
                _ => format!(
                    "x: {}\r\n",
                    "x".repeat(size - "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx: \r\n\r\n".len())
                ),
            };
            (
                format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n").into(),
                false,
            )
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        for (kind, size, status) in [
            ('n', MAX_HEADERS, 200),
            ('n', MAX_HEADERS + 1, 502),
            ('b', MAX_HEAD_BYTES, 200),
            ('b', MAX_HEAD_BYTES + 1, 502),
        ] {
            let mut conn = shop.h1().await;
            conn.send(format!("GET /{kind}{size} HTTP/1.1\r\nHost: cart\r\n\r\n"))
                .await;
            assert_eq!(conn.answer().await.status, status, "{kind} {size}");
        }
    });
}

#[test]
fn h2_04_a_header_list_past_max_head_bytes_is_refused_on_its_decoded_size() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        // RFC 9113 section 6.5.2: name, value and 32 bytes for each field.
        let size_of = |fields: &[(&str, usize)]| {
            fields
                .iter()
                .map(|(name, value)| name.len() + value + 32)
                .sum::<usize>()
        };
        let pseudo = size_of(&[(":method", 3), (":scheme", 4), (":authority", 4), (":path", 2)]);
        let request = |size: usize| {
            let mut request = h2::get("/a");
            let value = "x".repeat(size - pseudo - size_of(&[("x", 0)]));
            request.headers_mut().insert("x", value.parse().unwrap());
            request
        };
        // h2 takes what is smaller than its bound.
        assert_eq!(client.request(request(MAX_HEAD_BYTES - 1)).await.unwrap().status, 200);
        let past = client.request(request(MAX_HEAD_BYTES)).await;
        assert!(
            past.as_ref().is_ok_and(|answer| answer.status == 431) || past.is_err(),
            "{past:?}"
        );
        shop.app.only();
    });
}

#[test]
fn max_streams_run_at_once_and_one_more_is_refused() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut conn = shop.web(b"postern/h2").await;
        let mut bytes = [h2::PREFACE, &h2::frame(h2::SETTINGS, 0, 0, &[])].concat();
        let block = h2::block(&h2::pseudo("/a"));
        for n in 0..=MAX_STREAMS {
            bytes.extend(h2::frame(h2::HEADERS, h2::END_HEADERS, 2 * n + 1, &block));
        }
        conn.send(bytes).await;
        let refused = loop {
            let frame = crate::world::soon("a frame", h2::read_frame(&mut conn.io))
                .await
                .expect("closed");
            match frame.kind {
                h2::RST_STREAM => break frame,
                h2::GOAWAY => panic!("{frame:?}"),
                _ => {}
            }
        };
        // REFUSED_STREAM: it may be tried again.
        assert_eq!((refused.stream, refused.error_code()), (2 * MAX_STREAMS + 1, 7));
        // The others are alive: each answers once its request is whole.
        let mut ends = Vec::new();
        for n in 0..MAX_STREAMS {
            ends.extend(h2::frame(h2::DATA, h2::END_STREAM, 2 * n + 1, &[]));
        }
        conn.send(ends).await;
        until("all of them arrive", || {
            shop.app.requests().len() == MAX_STREAMS as usize
        })
        .await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let answer = client
            .post(h2::request(http::Method::POST, "/b"), b"x", None)
            .await
            .unwrap();
        assert_eq!(answer.body, Bytes::from_static(b"x"));
    });
}

#[test]
fn max_handshakes_are_in_progress_at_once_and_one_more_is_reset() {
    run(async {
        let shop = Shop::new().await;
        let mut stalling = Vec::new();
        for _ in 0..MAX_HANDSHAKES {
            let mut conn = Conn::plain(shop.door).await;
            conn.send(b"\x16\x03").await;
            stalling.push(conn);
        }
        let begun = || shop.cart.worker.supervisor.handshake().is_none();
        until("all have begun", begun).await;
        let refused = Conn::tls(shop.door, shop.authority.client(WEB, b"postern/h1")).await;
        assert!(refused.is_err());
        assert_eq!(shop.cart.refused("overloaded"), 1);
        stalling.pop();
        until("one is over", || !begun()).await;
        shop.probe().await;
        drop(stalling);
        until("all are over", || shop.cart.serving() <= 1).await;
    });
}

#[test]
fn a_worker_takes_no_more_connections_than_it_is_told() {
    run(async {
        let (thread, door) = super::drain::Thread::start(2).await;
        let mut open = vec![thread.connect(door).await.unwrap(), thread.connect(door).await.unwrap()];
        assert!(thread.connect(door).await.is_none());
        open.pop();
        until("one is over", || thread.open() == 1).await;
        assert!(thread.connect(door).await.is_some());
        tokio::time::sleep(Duration::from_millis(1)).await;
    });
}

//! Every wait on a peer ends. The clock is moved to just before each deadline, and past it.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use postern_proxy::limits::{
    ANSWER_DEADLINE, BODY_PROGRESS_DEADLINE, DETECT_DEADLINE, HALF_CLOSE_DEADLINE, HEAD_DEADLINE, IDLE_DEADLINE,
    OPAQUE_IDLE_DEADLINE, PING_DEADLINE, POOL_IDLE,
};
use postern_proxy::snapshot::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::h2::{Client, END_STREAM, HEADERS, PREFACE, SETTINGS, block, frame, get, grpc_app, pseudo, request};
use crate::world::{Canary, Conn, POLICY, Shop, WEB_ONLY, pass, run, soon, until};

/// What real time may pass in a test on a busy machine before its deadline is near.
const SLACK: Duration = Duration::from_secs(3);
/// Longer than the supervisor's tick.
const A_LOOK: Duration = Duration::from_millis(400);

/// Alive a while before the deadline, ended soon after it.
async fn ends_at(conn: &mut Conn, deadline: Duration) -> Vec<u8> {
    // What was sent has to be read before the clock moves.
    assert!(conn.is_quiet(A_LOOK).await, "ended at once");
    pass(deadline - SLACK).await;
    assert!(conn.is_quiet(A_LOOK).await, "ended before its time");
    pass(SLACK).await;
    conn.rest().await
}

#[test]
fn h1_13_a_head_that_never_ends_is_cut_at_the_head_deadline() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n").await;
        assert!(conn.is_quiet(A_LOOK).await);
        // A byte now and then buys no time.
        for _ in 0..6 {
            pass(Duration::from_secs(1)).await;
            conn.send("X").await;
            assert!(conn.is_quiet(Duration::from_millis(20)).await, "cut too early");
        }
        pass(Duration::from_secs(4)).await;
        let rest = conn.rest().await;
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
        assert_eq!(shop.app.connections(), 0);
        until("counted", || shop.cart.refused("head_timeout") == 1).await;
        // The second head of a connection, too.
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        conn.send("GET /b").await;
        ends_at(&mut conn, HEAD_DEADLINE).await;
        shop.probe().await;
    });
}

#[test]
fn h1_13_a_connection_without_a_request_ends_at_the_idle_deadline() {
    run(async {
        let shop = Shop::new().await;
        let mut fresh = shop.h1().await;
        assert_eq!(ends_at(&mut fresh, IDLE_DEADLINE).await, b"");
        let mut kept = shop.h1().await;
        kept.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(kept.answer().await.status, 200);
        assert_eq!(ends_at(&mut kept, IDLE_DEADLINE).await, b"");
    });
}

#[test]
fn h1_13_a_body_that_stops_is_given_up_at_the_progress_deadline() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 10\r\n\r\nhello")
            .await;
        until("the app has its beginning", || shop.app.bytes() > 0).await;
        let rest = ends_at(&mut conn, BODY_PROGRESS_DEADLINE).await;
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
        until("the app saw it break off", || shop.app.open() == 0).await;
        assert!(shop.app.requests().iter().all(|request| !request.whole));
    });
}

#[test]
fn h1_13_a_byte_now_and_then_is_progress() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\n\r\n")
            .await;
        for byte in ["h", "e", "l", "l", "o"] {
            pass(BODY_PROGRESS_DEADLINE - SLACK).await;
            let before = shop.app.bytes();
            conn.send(byte).await;
            until("it arrives", || shop.app.bytes() > before).await;
        }
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(shop.app.only().body, b"hello");
    });
}

#[test]
fn h1_13_a_reader_that_stops_is_cut_at_the_progress_deadline() {
    run(async {
        let size = 50_000_000;
        let app = Canary::answering(move |_| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
            ([head.as_bytes(), &vec![0; size]].concat(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /big HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.head().await.status, 200);
        tokio::time::sleep(A_LOOK).await;
        pass(BODY_PROGRESS_DEADLINE - SLACK).await;
        tokio::time::sleep(A_LOOK).await;
        assert_eq!(shop.cart.serving(), 1, "cut too early");
        pass(SLACK).await;
        until("it is cut", || shop.cart.serving() == 0 && shop.app.open() == 0).await;
        assert!(conn.rest().await.len() < size);
    });
}

#[test]
fn an_app_that_does_not_answer_is_a_504_at_the_answer_deadline() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        until("the app has it", || shop.app.connections() == 1).await;
        let rest = ends_at(&mut conn, ANSWER_DEADLINE).await;
        assert!(rest.starts_with(b"HTTP/1.1 504"), "{}", String::from_utf8_lossy(&rest));
        until("the app was let go", || shop.app.open() == 0).await;
    });
}

#[test]
fn h2_06_a_zero_window_holds_a_bounded_amount_and_ends_at_the_idle_deadline() {
    run(async {
        let body = 1_000_000;
        let app = Canary::answering(move |_| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n");
            ([head.as_bytes(), &vec![7; body]].concat(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let conn = shop.web(b"postern/h2").await;
        let mut client = Client::with(conn, h2::client::Builder::new().initial_window_size(0)).await;
        let mut streams = Vec::new();
        for _ in 0..100 {
            let (answer, _) = client.send.send_request(get("/big"), true).unwrap();
            streams.push(soon("a head", answer).await.unwrap());
        }
        // The app is slowed down: its sockets are full, ours hold no more than a buffer for each.
        assert!(shop.app.open() >= 100);
        pass(IDLE_DEADLINE - SLACK).await;
        tokio::time::sleep(A_LOOK).await;
        assert_eq!(shop.cart.serving(), 1, "cut too early");
        pass(SLACK).await;
        until("it is cut", || shop.cart.serving() == 0 && shop.app.open() == 0).await;
        drop(streams);
    });
}

#[test]
fn a_grpc_stream_may_rest_longer_than_a_body_and_its_client_is_pinged_meanwhile() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let (answer, mut send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        let mut answer = soon("a head", answer).await.unwrap().into_body();
        for _ in 0..3 {
            // In steps: pings are answered in real time.
            for _ in 0..4 {
                pass(Duration::from_secs(15)).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            send.send_data(Bytes::from_static(b"still here"), false).unwrap();
            assert_eq!(soon("data", answer.data()).await.unwrap().unwrap(), "still here");
        }
    });
}

#[test]
fn a_silent_client_without_alpn_is_opaque_after_the_detect_deadline() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Detect, WEB_ONLY).await;
        let mut conn = shop.web(b"").await;
        assert!(conn.is_quiet(Duration::from_millis(50)).await);
        pass(DETECT_DEADLINE).await;
        assert_eq!(conn.exactly(11).await, b"220 ready\r\n");
    });
}

#[test]
fn an_opaque_stream_ends_when_nothing_moves_and_sooner_when_half_of_it_is_closed() {
    run(async {
        // Reads on for ever, and never closes by itself.
        let app = Canary::serving(|mut stream, _, _| async move {
            while stream.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
            std::future::pending::<()>().await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Tcp, WEB_ONLY).await;
        let mut idle = shop.web(b"postern/tcp").await;
        idle.send("ping").await;
        assert!(idle.is_quiet(A_LOOK).await);
        let mut half = shop.web(b"postern/tcp").await;
        half.send("ping").await;
        half.finish().await;
        assert_eq!(ends_at(&mut half, HALF_CLOSE_DEADLINE).await, b"");
        assert!(idle.is_quiet(A_LOOK).await);
        pass(OPAQUE_IDLE_DEADLINE - HALF_CLOSE_DEADLINE).await;
        assert_eq!(idle.rest().await, b"");
    });
}

#[test]
fn a_connection_to_the_app_rests_no_longer_than_the_pool_allows() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        pass(POOL_IDLE - SLACK).await;
        tokio::time::sleep(A_LOOK).await;
        assert_eq!(shop.app.open(), 1);
        pass(SLACK).await;
        until("it is closed", || shop.app.open() == 0).await;
    });
}

#[test]
fn h2_06_a_client_that_stops_before_its_first_request_ends_at_the_idle_deadline() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        let half_a_head = frame(HEADERS, END_STREAM, 1, &block(&pseudo("/a")));
        for (case, bytes) in [
            ("nothing", Vec::new()),
            ("half of the preface", PREFACE[..10].to_vec()),
            ("a greeting", greeting.clone()),
            ("half a head", [greeting, half_a_head].concat()),
        ] {
            let mut conn = shop.web(b"postern/h2").await;
            conn.send(bytes).await;
            until("it is served", || shop.cart.serving() == 1).await;
            tokio::time::sleep(A_LOOK).await;
            pass(IDLE_DEADLINE - SLACK).await;
            tokio::time::sleep(A_LOOK).await;
            assert_eq!(shop.cart.serving(), 1, "{case}: ended too early");
            pass(SLACK).await;
            tokio::time::sleep(A_LOOK).await;
            // Whoever does not answer pings either has had its time.
            pass(PING_DEADLINE + PING_DEADLINE).await;
            until(case, || shop.cart.serving() == 0).await;
        }
    });
}

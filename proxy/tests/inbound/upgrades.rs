//! WebSocket and other upgrades: a tunnel after the app's 101, and not before.

use postern_proxy::snapshot::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::canary::{Canary, ok};
use crate::world::{POLICY, Shop, run};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: cart\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Agrees to any upgrade, and then echoes.
async fn switching_app() -> Canary {
    Canary::serving(|mut stream, canary, connection| async move {
        let mut read = Vec::new();
        while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
            let upgrade = request.field("upgrade").map(str::to_owned);
            canary.saw(request);
            let Some(upgrade) = upgrade else {
                stream.write_all(&ok("plain")).await.unwrap();
                continue;
            };
            let answer =
                format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {upgrade}\r\n\r\nwelcome");
            stream.write_all(answer.as_bytes()).await.unwrap();
            loop {
                if stream.write_all(&read).await.is_err() {
                    return;
                }
                read.resize(1024, 0);
                match stream.read(&mut read).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => read.truncate(n),
                }
            }
            let _ = stream.write_all(b"bye").await;
            return;
        }
    })
    .await
}

#[test]
fn h1_10_an_upgrade_becomes_a_tunnel_after_the_apps_101_and_ends_half_by_half() {
    run(async {
        let shop = Shop::before(switching_app().await, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        // What comes right behind the request belongs to the tunnel.
        conn.send(format!("{UPGRADE}early")).await;
        let answer = conn.head().await;
        assert_eq!((answer.status, answer.field("upgrade")), (101, Some("websocket")));
        assert_eq!(conn.exactly(12).await, b"welcomeearly");
        conn.send("GET /secret HTTP/1.1\r\n\r\n").await;
        assert_eq!(conn.exactly(24).await, b"GET /secret HTTP/1.1\r\n\r\n");
        conn.finish().await;
        assert_eq!(conn.rest().await, b"bye");
        assert_eq!(shop.app.only().field("connection"), Some("upgrade"));
    });
}

#[test]
fn h1_10_a_request_behind_an_upgrade_that_was_answered_200_is_decided_like_any_other() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send(format!("{UPGRADE}GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "/ws");
        // hyper goes on reading requests: no tunnel, and no request without a decision.
        if let Some(next) = conn.try_answer().await {
            assert_eq!(next.status, 403);
        }
        assert_eq!(shop.app.only().target, "/ws");
        shop.probe().await;
    });
}

#[test]
fn h1_10_an_upgrade_to_http_2_or_to_several_protocols_is_not_passed_on() {
    run(async {
        let shop = Shop::before(switching_app().await, Protocol::Http1, POLICY).await;
        for (upgrade, connection) in [
            ("h2c", "Upgrade, HTTP2-Settings"),
            ("H2C", "upgrade"),
            ("h2", "upgrade"),
            ("HTTP/2.0", "upgrade"),
            ("websocket, h2c", "upgrade"),
            ("websocket\r\nUpgrade: h2c", "upgrade"),
            ("websocket", "keep-alive"),
        ] {
            let before = shop.app.requests().len();
            let mut conn = shop.h1().await;
            conn.send(format!(
                "GET /a HTTP/1.1\r\nHost: cart\r\nConnection: {connection}\r\nUpgrade: {upgrade}\r\n\
                 HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
            ))
            .await;
            assert_eq!(conn.answer().await.text(), "plain", "{upgrade}");
            let seen = &shop.app.requests()[before];
            for name in ["upgrade", "http2-settings", "connection"] {
                assert_eq!(seen.field(name), None, "{upgrade}");
            }
        }
    });
}

#[test]
fn h1_10_an_app_that_switches_unasked_is_refused() {
    run(async {
        let app = Canary::answering(|_| {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nbytes";
            (answer.to_vec(), false)
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 502);
        conn.ends().await;
    });
}

/// The tunnel would begin inside of the body: whatever the client sends then is this connection's business alone.
#[test]
fn h1_10_a_101_before_the_whole_body_concerns_no_other_request() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read_head(&mut stream, &mut read, connection).await {
                let plain = request.field("upgrade").is_none();
                canary.saw(request);
                if plain {
                    stream.write_all(&ok("plain")).await.unwrap();
                    continue;
                }
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
                let _ = stream.read_to_end(&mut read).await;
                return;
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
            let mut conn = shop.h1().await;
            conn.send(format!(
                "POST /ws HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{framing}\r\n\r\n5\r\n"
            ))
            .await;
            let answer = conn.head().await;
            conn.send("GET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            let before = shop.app.requests().last().unwrap().connection;
            shop.probe().await;
            assert_ne!(
                shop.app.requests().last().unwrap().connection,
                before,
                "{framing}: {answer:?}"
            );
            drop(conn);
            shop.probe().await;
        }
    });
}

//! HTTP/2 connections that want more than their share.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use postern_proxy::limits::{MAX_LOCAL_RESETS, MAX_STREAMS};
use postern_proxy::snapshot::Protocol;

use super::http2::{greeted, next_of};
use crate::world::h2::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    block, frame, grpc_app, pseudo, request,
};
use crate::world::{Canary, POLICY, Shop, run, soon, until};

#[test]
fn h2_02_rapid_resets_end_the_connection_and_the_app_sees_next_to_nothing() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let mut conn = greeted(&shop).await;
        let block = block(&pseudo("/a"));
        let mut sent = 0;
        'flood: for burst in 0..100_u32 {
            let mut bytes = Vec::new();
            for n in 0..100 {
                let stream = 2 * (100 * burst + n) + 1;
                bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
                bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            }
            if conn.try_send(bytes).await.is_err() {
                break 'flood;
            }
            sent += 100;
            tokio::task::yield_now().await;
            if shop.cart.serving() == 0 {
                break;
            }
        }
        assert!(sent <= 1_000, "{sent} resets were taken");
        if let Some(end) = next_of(&mut conn, &[GOAWAY]).await {
            // ENHANCE_YOUR_CALM
            assert_eq!(end.error_code(), 11);
        }
        until("it has ended", || shop.cart.serving() == 0).await;
        let most = MAX_STREAMS as usize * 11 / 10;
        assert!(shop.app.connections() <= most, "{}", shop.app.connections());
        shop.probe().await;
    });
}

/// Resets that come once each request is with the app: a client that cancels, however often. Work that it caused is
/// cancelled too, and never more than the stream limit runs at once.
#[test]
fn h2_02_slow_resets_cancel_their_work_at_the_app() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            let request = canary.read(&mut stream, &mut read, connection).await.unwrap();
            canary.saw(request);
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for n in 0..150 {
            let (answer, mut send) = client.send.send_request(crate::world::h2::get("/a"), true).unwrap();
            until("the app has it", || shop.app.requests().len() == n + 1).await;
            send.send_reset(h2::Reason::CANCEL);
            drop(answer);
            until("it is cancelled", || shop.app.open() == 0).await;
        }
    });
}

#[test]
fn h2_03_resets_that_bad_frames_provoke_end_the_connection_at_their_bound() {
    run(async {
        type Bad = fn(u32) -> Vec<u8>;
        let cases: [(&str, Bad); 4] = [
            ("WINDOW_UPDATE of 0", |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4])),
            ("WINDOW_UPDATE past the most", |stream| {
                frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())
            }),
            ("DATA after the end", |stream| frame(DATA, 0, stream, b"x")),
            ("HEADERS after the end", |stream| {
                frame(HEADERS, END_HEADERS, stream, &block(&pseudo("/a")))
            }),
        ];
        for (case, bad) in cases {
            // It never answers, so that streams stay open.
            let app = Canary::serving(|mut stream, _, _| async move {
                let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
            })
            .await;
            let shop = Shop::before(app, Protocol::Http1, POLICY).await;
            let mut conn = greeted(&shop).await;
            let block = block(&pseudo("/a"));
            let mut streams = 0;
            for n in 0..4_000_u32 {
                let stream = 2 * n + 1;
                let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
                bytes.extend(bad(stream));
                if conn.try_send(bytes).await.is_err() || shop.cart.serving() == 0 {
                    break;
                }
                streams += 1;
                if n % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            until("it has ended", || shop.cart.serving() == 0).await;
            assert!(streams <= 4 * MAX_LOCAL_RESETS, "{case}: {streams}");
            until("the app was let go", || shop.app.open() == 0).await;
        }
    });
}

#[test]
fn h2_04_a_flood_of_continuations_ends_the_connection() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let mut conn = greeted(&shop).await;
        conn.send(frame(HEADERS, END_STREAM, 1, &block(&pseudo("/a")))).await;
        let filler = block(&[("x", &[b'x'; 1_000])]);
        let mut sent = 0;
        while sent < 10_000 && conn.try_send(frame(CONTINUATION, 0, 1, &filler)).await.is_ok() {
            sent += 1;
            if shop.cart.serving() == 0 {
                break;
            }
        }
        until("it has ended", || shop.cart.serving() == 0).await;
        assert!(sent < 10_000);
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

/// Frames that ask for an answer each, from a client that reads none: h2 holds one answer back and stops reading, so that
/// TCP holds the flood; what is never answered meets a bound of h2's.
#[test]
fn h2_05_floods_whose_answers_are_never_read_stand_or_end() {
    run(async {
        type Flood = fn(u32) -> Vec<u8>;
        let floods: [(&str, Flood); 3] = [
            ("PING", |_| frame(PING, 0, 0, &[7; 8])),
            ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[])),
            ("empty DATA", |n| match n {
                0 => {
                    let mut fields = pseudo("/a");
                    fields[0].1 = b"POST";
                    frame(HEADERS, END_HEADERS, 1, &block(&fields))
                }
                _ => frame(DATA, 0, 1, &[]),
            }),
        ];
        for (case, flood) in floods {
            let shop = Shop::with(Protocol::Http1, POLICY).await;
            let mut conn = greeted(&shop).await;
            let (mut n, mut taken) = (0, 0);
            // More than all socket buffers on the way can hold.
            let over = loop {
                let bytes: Vec<u8> = (0..1_000).flat_map(|k| flood(n + k)).collect();
                n += 1_000;
                match tokio::time::timeout(Duration::from_millis(500), conn.try_send(&bytes)).await {
                    Ok(Ok(())) => taken += bytes.len(),
                    Ok(Err(_)) | Err(_) => break true,
                }
                if taken > 64 << 20 {
                    break false;
                }
            };
            assert!(over, "{case}: {taken} bytes were taken");
            shop.probe().await;
        }
    });
}

#[test]
fn h2_10_a_client_that_goes_away_takes_its_requests_with_it() {
    run(async {
        let shop = Shop::before(grpc_app().await, Protocol::Http2, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        let (answer, mut send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
        let _answer = soon("a head", answer).await.unwrap();
        client.ended.abort();
        until("it is over", || shop.cart.serving() == 0).await;
        let failed = || {
            shop.cart
                .metric("postern_proxy_requests_total", &["outcome=\"failed\""])
        };
        until("it is counted", || failed() == 1).await;
    });
}

#[test]
fn h2_05_bent_frames_harm_nobody_else() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let honest = block(&pseudo("/a"));
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut conn = greeted(&shop).await;
            let mut bytes = Vec::new();
            for n in 0..rng.u32(1..12) {
                let stream = match rng.u8(..3) {
                    0 => 0,
                    1 => 2 * rng.u32(..4) + 1,
                    _ => rng.u32(..8),
                };
                let payload = match rng.u8(..3) {
                    0 => honest.clone(),
                    1 => (0..rng.usize(..40)).map(|_| rng.u8(..)).collect(),
                    _ => rng.u32(..).to_be_bytes().to_vec(),
                };
                let kind = if n == 0 { HEADERS } else { rng.u8(..11) };
                let mut bent = frame(kind, rng.u8(..), stream, &payload);
                if rng.u8(..8) == 0 {
                    let at = rng.usize(..bent.len());
                    bent[at] = rng.u8(..);
                }
                bytes.extend(bent);
            }
            conn.send(bytes).await;
            conn.finish().await;
        }
        until("all are over", || shop.cart.serving() == 0).await;
        let seen = shop.app.requests();
        assert!(
            seen.iter().all(|request| request.target == "/a" || !request.whole),
            "{seen:#?}"
        );
        shop.probe().await;
    });
}

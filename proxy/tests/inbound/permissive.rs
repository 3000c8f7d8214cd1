//! `discover` and `monitor`: our own mTLS is terminated, everything else passes as it is.

use std::time::Duration;

use postern_identity::tls::{ClientAuth, alpn, server_config};
use postern_policy::Mode;
use postern_proxy::limits::HANDSHAKE_DEADLINE;
use postern_proxy::snapshot::Protocol;
use tokio::io::AsyncWriteExt;

use crate::world::authority::hostile_client;
use crate::world::canary::{Canary, ok, tls_peer};
use crate::world::h2::{Client, grpc_app, request};
use crate::world::{CART, Conn, MALLORY, POLICY, Shop, WEB, WEB_ONLY, pass, run, until};

#[test]
fn our_own_protocols_are_terminated_and_their_peers_named() {
    run(async {
        let shop = Shop::new().await;
        shop.cart.policy_in(Mode::Discover, POLICY);
        let mut conn = shop.connect(MALLORY, b"postern/h1").await;
        conn.send("GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(shop.app.only().all("x-postern-source"), [MALLORY]);
    });
}

#[test]
fn the_apps_own_tls_passes_as_bytes() {
    run(async {
        let shop = Shop::new().await;
        let svid = shop.authority.svid(CART, None);
        let config = server_config(
            &svid,
            shop.authority.shared_trust(),
            ClientAuth::Optional,
            &[alpn::HTTP_1_1],
        );
        let app = tls_peer(config.unwrap(), |stream, canary, connection| async move {
            canary
                .serve(stream, connection, &|request| (ok(&request.target), false))
                .await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Detect, WEB_ONLY).await;
        shop.cart.policy_in(Mode::Monitor, WEB_ONLY);
        for offered in [&[alpn::HTTP_1_1][..], &[]] {
            let mut conn = Conn::tls(shop.door, hostile_client(None, offered)).await.unwrap();
            conn.send("GET /own HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.text(), "/own");
        }
        // Not a field of ours in it: we could not look inside.
        assert!(shop.app.requests().iter().all(|request| request.fields.len() == 1));
        let opaque = shop
            .cart
            .metric("postern_proxy_requests_total", &["protocol=\"tcp\"", "tls=\"none\""]);
        assert!(opaque <= 2);
    });
}

#[test]
fn plaintext_is_served_by_what_it_says_first() {
    run(async {
        let shop = Shop::new().await;
        shop.cart.policy_in(Mode::Discover, POLICY);
        let mut conn = Conn::plain(shop.door).await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);

        let shop = Shop::before(grpc_app().await, Protocol::Detect, POLICY).await;
        shop.cart.policy_in(Mode::Discover, POLICY);
        let mut client = Client::over(Conn::plain(shop.door).await).await;
        let answer = client
            .post(request(http::Method::POST, "/a"), b"ping", None)
            .await
            .unwrap();
        assert_eq!(answer.body, b"ping");

        let echo = Canary::serving(|mut stream, _, _| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await;
        let shop = Shop::before(echo, Protocol::Detect, WEB_ONLY).await;
        shop.cart.policy_in(Mode::Discover, WEB_ONLY);
        let mut conn = Conn::plain(shop.door).await;
        conn.send("EHLO me\r\n").await;
        conn.finish().await;
        assert_eq!(conn.rest().await, b"EHLO me\r\n");
    });
}

#[test]
fn whoever_offers_our_protocols_must_prove_itself_here_too() {
    run(async {
        let shop = Shop::new().await;
        shop.cart.policy_in(Mode::Discover, POLICY);
        let expired = shop.authority.card(WEB, |params| {
            params.not_after = crate::world::authority::in_seconds(-1);
        });
        for card in [None, Some(expired)] {
            if let Ok(mut conn) = Conn::tls(shop.door, hostile_client(card, &[b"postern/h1"])).await {
                conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
                assert!(conn.try_answer().await.is_none());
            }
        }
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

#[test]
fn a_client_hello_that_never_ends_or_grows_past_its_bound_is_the_apps_business() {
    run(async {
        let app = Canary::serving(|mut stream, canary, _| async move {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = tokio::io::AsyncReadExt::read(&mut stream, &mut buf).await {
                canary.counted(n);
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Detect, WEB_ONLY).await;
        shop.cart.policy_in(Mode::Discover, WEB_ONLY);
        // A handshake message of 64,000 bytes: past the bound it is passed on as it is.
        let mut hello = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xfa, 0];
        hello.resize(5 + 0x4000, 0);
        let second = [&[0x16, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
        let mut conn = Conn::plain(shop.door).await;
        conn.send([hello, second].concat()).await;
        until("the app has it", || shop.app.bytes() == 2 * (5 + 0x4000)).await;
        let mut dribbling = Conn::plain(shop.door).await;
        dribbling.send(b"\x16\x03\x01\x02\x00\x01\x00").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(shop.app.connections(), 1);
        pass(HANDSHAKE_DEADLINE).await;
        until("the app has it", || shop.app.bytes() == 2 * (5 + 0x4000) + 7).await;
    });
}

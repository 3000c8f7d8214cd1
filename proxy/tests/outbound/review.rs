//! What a review of the relay found, held for ever.

use std::net::SocketAddr;
use std::time::Duration;

use postern_proxy::limits::HEAD_DEADLINE;
use postern_proxy::outcome::Failure;
use postern_proxy::snapshot::{Destination, Door, Protocol, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::canary::{Canary, ok};
use crate::world::{CART, Conn, POLICY, Pair, Proxy, WAYS, WEB, endpoint, meshed, named, pass, run, until};

#[test]
fn a_request_with_nowhere_to_go_is_recorded_once_whoever_answers_it() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let original = "10.96.0.1:80".parse().unwrap();
        // Declared http at first, then gone.
        let mut conn = pair.captured(Protocol::Http1).await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        conn.answer().await;
        let all = || pair.web.metric("postern_proxy_requests_total", &["outbound"]);
        until("1", || all() == 1).await;
        pair.web.knows(
            Target::Address(original),
            Destination::Unreachable(Failure::UnknownDestination, String::new()),
        );
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 502);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let allowed = pair
            .web
            .metric("postern_proxy_requests_total", &["outbound", "allowed"]);
        assert_eq!(allowed, 1);
        assert_eq!(all(), 2);
    });
}

#[test]
fn a_connection_that_rests_after_a_refusal_is_not_cut_for_its_head() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let original = "10.96.0.1:80".parse().unwrap();
        let mut conn = pair.captured(Protocol::Http1).await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        conn.answer().await;
        pair.web.knows(
            Target::Address(original),
            Destination::Unreachable(Failure::UnknownDestination, String::new()),
        );
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let answer = conn.answer().await;
        assert!(!answer.closes());
        pass(HEAD_DEADLINE).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let refused = pair
            .web
            .metric("postern_proxy_refused_connections_total", &["outbound", "head_timeout"]);
        assert_eq!(refused, 0);
        assert!(
            conn.is_quiet(Duration::from_millis(300)).await,
            "an idle connection was cut for a head that was whole"
        );
    });
}

#[test]
fn what_a_client_does_ejects_no_endpoint() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let slow = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                canary.saw(request);
                tokio::time::sleep(Duration::from_millis(300)).await;
                stream.write_all(&ok("slow")).await.unwrap();
            }
        })
        .await;
        let other = Proxy::new(&pair.authority, CART, "cart-2");
        let door2 = other.door(80, Protocol::Http1, slow.address).await;
        other.policy(POLICY);
        pair.instead(
            Protocol::Http1,
            vec![endpoint(door2, CART, Some("cart-2"), Protocol::Http1, Door::Sidecar)],
        );
        {
            let mut conn = pair.tunnel().await;
            conn.send("GET /a HTTP/1.1\r\nHost: cart.shop\r\n\r\n").await;
        }
        pair.instead(
            Protocol::Http1,
            vec![
                endpoint(door2, CART, Some("cart-2"), Protocol::Http1, Door::Sidecar),
                endpoint(pair.door, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar),
            ],
        );
        let mut conn = pair.tunnel().await;
        let ask = async |conn: &mut Conn| {
            conn.send("GET /a HTTP/1.1\r\nHost: cart.shop\r\n\r\n").await;
            conn.answer().await.text()
        };
        // Until it is known which of them is slow; on a busy machine both are at first.
        let (mut asked, mut quick) = (0, 0);
        while quick < 10 {
            quick = if ask(&mut conn).await == "/a" { quick + 1 } else { 0 };
            asked += 1;
            assert!(asked < 200, "the slow endpoint is taken as often as the quick one");
        }
        for _ in 0..16 {
            let mut bad = pair.tunnel().await;
            bad.send("POST /a HTTP/1.1\r\nHost: cart.shop\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            bad.send("zz\r\n").await;
            assert_eq!(bad.try_answer().await.unwrap().status, 400);
        }
        let mut then = Vec::new();
        for _ in 0..5 {
            then.push(ask(&mut conn).await);
        }
        assert!(
            then.iter().any(|text| text == "/a"),
            "a healthy endpoint was ejected for what its client did"
        );
    });
}

#[test]
fn an_ejected_endpoint_is_passed_over_by_new_connections_too() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        // Closes whatever comes.
        let dead = Canary::serving(|stream, _, _| async move { drop(stream) }).await;
        pair.instead(
            Protocol::Http1,
            vec![
                endpoint(pair.door, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar),
                endpoint(dead.address, CART, Some("cart-2"), Protocol::Http1, Door::Sidecar),
            ],
        );
        for way in WAYS {
            for _ in 0..60 {
                let mut conn = way.open(&pair).await;
                conn.send(format!("{}\r\n", way.head("GET", "/a"))).await;
                assert_eq!(conn.answer().await.status, 200);
            }
        }
        assert!(dead.connections() <= 10);
    });
}

#[test]
fn a_name_outside_of_the_mesh_that_leads_into_it_is_not_reached_in_clear() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        // The app behind the cart's proxy, by a name that control knows nothing of.
        let port = pair.app.address.port();
        pair.web.knows(named("localhost", port), Destination::Outside);
        let inside = || {
            let cart = endpoint(pair.door, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
            meshed(Protocol::Http1, vec![cart])
        };
        for ip in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(ip.parse().unwrap(), port);
            pair.web.knows(Target::Address(address), inside());
        }
        let mut conn = pair.client().await;
        conn.send(format!("GET http://localhost:{port}/a HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "/a");
        assert_eq!(pair.app.only().all("x-postern-source"), [WEB], "it came by mutual TLS");
    });
}

#[test]
fn what_goes_in_clear_ends_when_its_destination_joins_the_mesh() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let clear = Canary::serving(|mut stream, _, _| async move {
            let mut read = [0; 64];
            while let Ok(n @ 1..) = stream.read(&mut read).await {
                let _ = stream.write_all(&read[..n]).await;
            }
        })
        .await;
        let original: SocketAddr = "10.96.0.9:7000".parse().unwrap();
        let target = Target::Address(original);
        let unmeshed = Destination::Unmeshed {
            service: "old.shop".into(),
            addresses: vec![clear.address],
        };
        pair.web.knows(target.clone(), unmeshed);
        let mut conn = Conn::plain(pair.web.captured(original).await).await;
        conn.send("ping").await;
        assert_eq!(conn.exactly(4).await, b"ping");
        let cart = endpoint(pair.door, CART, Some("cart-1"), Protocol::Tcp, Door::Sidecar);
        pair.web.knows(target, meshed(Protocol::Tcp, vec![cart]));
        conn.ends().await;
    });
}

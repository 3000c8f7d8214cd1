//! Z-11: a request never rides a connection that was admitted for someone else.

use std::time::Duration;

use http::Method;
use postern_identity::tls::alpn;
use postern_identity::{BundleSet, SpiffeId};
use postern_proxy::limits::{MAX_IDLE_PER_KEY, POOL_IDLE};
use postern_proxy::snapshot::{Door, Protocol};

use crate::world::canary::{Canary, ok, tls_peer};
use crate::world::h2::{Client, grpc_app, request, whole};
use crate::world::{CART, GET, MALLORY, Pair, WEB, endpoint, meshed, named, pass, run, soon, until};

async fn ask(pair: &Pair, host: &str) -> u16 {
    let mut conn = pair.client().await;
    conn.send(format!("GET http://{host}/a HTTP/1.1\r\nHost: x\r\n\r\n"))
        .await;
    conn.answer().await.status
}

/// Handshakes that the web's proxy has made.
fn dialled(pair: &Pair) -> u64 {
    pair.web.metric("postern_proxy_handshakes_total", &["outbound"])
}

#[test]
fn z_11_clients_of_one_identity_share_what_rests() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        for _ in 0..10 {
            assert_eq!(ask(&pair, "cart.shop").await, 200);
        }
        assert_eq!((dialled(&pair), pair.app.connections()), (1, 1));
    });
}

#[test]
fn z_11_two_sets_of_accepted_identities_never_share_an_address() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        assert_eq!(ask(&pair, "cart.shop").await, 200);
        // The same address, but whoever else should answer there: the connection at rest is not theirs.
        for (name, id, instance) in [("other.shop", MALLORY, None), ("third.shop", CART, Some("cart-9"))] {
            let end = endpoint(pair.door, id, instance, Protocol::Http1, Door::Sidecar);
            pair.web.knows(named(name, 80), meshed(Protocol::Http1, vec![end]));
            assert_eq!(ask(&pair, name).await, 502, "{name}");
        }
        // One that may have any instance is another key, too.
        let any = endpoint(pair.door, CART, None, Protocol::Http1, Door::Sidecar);
        pair.web
            .knows(named("any.shop", 80), meshed(Protocol::Http1, vec![any]));
        assert_eq!(dialled(&pair), 1);
        assert_eq!(ask(&pair, "any.shop").await, 200);
        assert_eq!(dialled(&pair), 2);
        assert_eq!(pair.app.count(), 2);
    });
}

#[test]
fn z_11_two_generations_of_our_identity_never_share() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let mut kept = pair.client().await;
        kept.send(GET).await;
        assert_eq!(kept.answer().await.status, 200);
        for generation in 2..5 {
            pair.web
                .shared
                .publish_identity(pair.authority.svid(WEB, Some("web-1")))
                .unwrap();
            // On the client's own old connection as well.
            kept.send(GET).await;
            assert_eq!(kept.answer().await.status, 200);
            assert_eq!(dialled(&pair), generation);
        }
        // What rested under older generations is let go.
        until("one is left", || pair.cart.serving() == 1).await;
    });
}

#[test]
fn z_11_another_identity_of_ours_is_who_the_next_request_comes_from() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        assert_eq!(ask(&pair, "cart.shop").await, 200);
        pair.web
            .shared
            .publish_identity(pair.authority.svid(MALLORY, Some("web-1")))
            .unwrap();
        assert_eq!(ask(&pair, "cart.shop").await, 403);
        assert_eq!(pair.app.only().all("x-postern-source"), [WEB]);
    });
}

#[test]
fn a_connection_at_rest_is_not_used_once_its_peer_is_no_longer_believed() {
    run(async {
        for quarantine in [true, false] {
            let pair = Pair::new(Protocol::Http1).await;
            assert_eq!(ask(&pair, "cart.shop").await, 200);
            pair.web.trust(|trust| {
                if quarantine {
                    trust.quarantined_ids.insert(SpiffeId::parse(CART).unwrap());
                } else {
                    trust.bundles = BundleSet::default();
                }
            });
            assert_eq!(ask(&pair, "cart.shop").await, 502);
            until("it is closed", || pair.cart.serving() == 0).await;
            assert_eq!(pair.app.count(), 1);
        }
    });
}

#[test]
fn a_stream_in_flight_ends_within_a_second_of_its_peers_quarantine() {
    run(async {
        let pair = Pair::before(grpc_app().await, Protocol::Http2).await;
        let mut client = Client::over(pair.tunnel().await).await;
        let (answer, _send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        let answer = soon("a head", answer).await.unwrap();
        let changed = std::time::Instant::now();
        pair.web.trust(|trust| {
            trust.quarantined_ids.insert(SpiffeId::parse(CART).unwrap());
        });
        assert!(whole(answer).await.is_err());
        assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    });
}

#[test]
fn requests_over_http_2_share_the_one_connection_that_is_being_made() {
    run(async {
        let pair = Pair::before(grpc_app().await, Protocol::Http2).await;
        let mut client = Client::over(pair.tunnel().await).await;
        let calls: Vec<_> = (0..50)
            .map(|_| client.send.send_request(request(Method::GET, "/a"), true).unwrap().0)
            .collect();
        for call in calls {
            assert_eq!(whole(soon("an answer", call).await.unwrap()).await.unwrap().status, 200);
        }
        assert_eq!((dialled(&pair), pair.cart.serving()), (1, 1));
    });
}

#[test]
fn more_streams_than_one_connection_takes_go_over_another() {
    run(async {
        let pair = Pair::before(grpc_app().await, Protocol::Http2).await;
        let mut clients = Vec::new();
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut client = Client::over(pair.tunnel().await).await;
            for _ in 0..75 {
                let (answer, send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
                streams.push((soon("a head", answer).await.unwrap(), send));
            }
            clients.push(client);
        }
        assert_eq!(dialled(&pair), 2);
        for (answer, mut send) in streams {
            send.send_data(bytes::Bytes::new(), true).unwrap();
            assert_eq!(whole(answer).await.unwrap().status, 200);
        }
    });
}

#[test]
fn no_more_connections_rest_than_the_bound_and_none_longer() {
    run(async {
        let peer = tls_peer_of(&crate::world::Authority::new("cluster.local")).await;
        drop(peer);
        let pair = Pair::before(slow().await, Protocol::Http1).await;
        let mut clients = Vec::new();
        for _ in 0..MAX_IDLE_PER_KEY + 1 {
            let mut conn = pair.client().await;
            conn.send(GET).await;
            clients.push(conn);
        }
        for conn in &mut clients {
            assert_eq!(conn.answer().await.status, 200);
        }
        assert_eq!(dialled(&pair), MAX_IDLE_PER_KEY as u64 + 1);
        until("one is closed", || pair.cart.serving() == MAX_IDLE_PER_KEY).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(pair.cart.serving(), MAX_IDLE_PER_KEY);
        pass(POOL_IDLE).await;
        until("all are closed", || pair.cart.serving() == 0).await;
    });
}

/// Answers when many have asked.
async fn slow() -> Canary {
    Canary::serving(|mut stream, canary, connection| async move {
        let mut read = Vec::new();
        while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
            canary.saw(request);
            until("all have asked", || canary.count() > MAX_IDLE_PER_KEY).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &ok("all")).await;
        }
    })
    .await
}

async fn tls_peer_of(authority: &crate::world::Authority) -> Canary {
    let config = authority.server(CART, None, &[alpn::POSTERN_H1]);
    tls_peer(config, |stream, canary, connection| async move {
        canary.serve(stream, connection, &|_| (ok("x"), false)).await;
    })
    .await
}

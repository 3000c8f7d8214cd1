//! Who may answer: exactly whom the destination may have, or nothing is sent.

use std::sync::Arc;

use postern_identity::tls::{ClientAuth, alpn, server_config};
use postern_identity::{Expected, SpiffeId};
use postern_proxy::snapshot::{Door, Endpoint, Protocol};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::world::canary::{ok, tls_peer};
use crate::world::{Answer, Authority, CART, Canary, GET, MALLORY, Pair, Proxy, WAYS, Way, endpoint, run, soon};

/// A TLS server that counts what it is sent after the handshake, and answers it.
async fn peer(config: Arc<rustls::ServerConfig>) -> Canary {
    tls_peer(config, |stream, canary, connection| async move {
        canary
            .serve(stream, connection, &|request| (ok(&request.target), false))
            .await;
    })
    .await
}

const H1: &[&[u8]] = &[alpn::POSTERN_H1, alpn::POSTERN_TCP];

fn cart_at(app: &Canary) -> Endpoint {
    endpoint(app.address, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar)
}

async fn ask(pair: &Pair, way: Way) -> Answer {
    let mut conn = way.open(pair).await;
    conn.send(format!("{}Content-Length: 5\r\n\r\nhello", way.head("POST", "/a")))
        .await;
    conn.answer().await
}

async fn unbound() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[test]
fn t_10_a_peer_with_a_valid_but_unexpected_identity_is_sent_nothing() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            for (case, id, instance) in [
                ("another identity", MALLORY, Some("cart-1")),
                ("another instance of the same", CART, Some("cart-2")),
                ("the same without its instance", CART, None),
            ] {
                let impostor = peer(pair.authority.server(id, instance, H1)).await;
                pair.instead(Protocol::Http1, vec![cart_at(&impostor)]);
                let answer = ask(&pair, way).await;
                assert_eq!((answer.status, answer.text().as_str()), (502, "wrong_peer\n"), "{case}");
                assert_eq!((impostor.bytes(), impostor.count()), (0, 0), "{case}");
                assert_eq!(impostor.connections(), 1, "{case}");
                // An opaque stream neither.
                pair.instead(
                    Protocol::Tcp,
                    vec![Endpoint {
                        protocol: Protocol::Tcp,
                        ..cart_at(&impostor)
                    }],
                );
                let mut conn = pair.client().await;
                conn.send("CONNECT cart.shop:80 HTTP/1.1\r\nHost: x\r\n\r\nsecret")
                    .await;
                assert_eq!(conn.answer().await.status, 502, "{case}");
                assert_eq!(impostor.bytes(), 0, "{case}");
            }
            assert_eq!(pair.app.connections(), 0);
            let counted = pair.web.metric(
                "postern_proxy_handshake_failures_total",
                &["outbound", "reason=\"wrong_peer\""],
            );
            assert_eq!(counted, 6);
        }
    });
}

#[test]
fn t_10_an_endpoint_that_expects_nobody_is_never_spoken_to() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let honest = peer(pair.authority.server(CART, Some("cart-1"), H1)).await;
            let nobody = Expected {
                ids: Vec::new(),
                instance: None,
            };
            pair.instead(
                Protocol::Http1,
                vec![Endpoint {
                    expected: nobody,
                    ..cart_at(&honest)
                }],
            );
            assert_eq!(ask(&pair, way).await.text(), "wrong_peer\n");
            assert_eq!(honest.bytes(), 0);
        }
    });
}

#[test]
fn one_of_several_identities_that_a_destination_may_have_is_accepted() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let honest = peer(pair.authority.server(CART, None, H1)).await;
            let several = Expected {
                ids: [MALLORY, CART].map(|id| SpiffeId::parse(id).unwrap()).to_vec(),
                instance: None,
            };
            pair.instead(
                Protocol::Http1,
                vec![Endpoint {
                    expected: several,
                    ..cart_at(&honest)
                }],
            );
            assert_eq!(ask(&pair, way).await.status, 200);
        }
    });
}

#[test]
fn a_peer_that_does_not_verify_is_sent_nothing() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let foreign = Authority::new("evil.local");
            let impostor = Authority::new("cluster.local");
            let trust = || pair.authority.shared_trust();
            let expired = server_config(
                &pair.authority.svid_for(CART, Some("cart-1"), -1),
                trust(),
                ClientAuth::Optional,
                H1,
            );
            for (reason, config) in [
                (
                    "unknown_trust_domain",
                    foreign.server("spiffe://evil.local/ns/shop/sa/cart", None, H1),
                ),
                ("bad_chain", impostor.server(CART, Some("cart-1"), H1)),
                ("expired", expired.unwrap()),
                (
                    "no_common_protocol",
                    pair.authority.server(CART, Some("cart-1"), &[alpn::POSTERN_H2]),
                ),
                ("no_common_protocol", pair.authority.server(CART, Some("cart-1"), &[])),
            ] {
                let peer = peer(config).await;
                pair.instead(Protocol::Http1, vec![cart_at(&peer)]);
                let answer = ask(&pair, way).await;
                assert_eq!((answer.status, answer.text()), (502, format!("{reason}\n")));
                assert_eq!(peer.bytes(), 0, "{reason}");
            }
            // Whoever does not speak TLS.
            let plain = Canary::serving(|mut stream, canary, _| async move {
                let mut all = Vec::new();
                let _ =
                    tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                        .await;
                let _ = stream.read_to_end(&mut all).await;
                canary.counted(all.len());
                assert!(!all.windows(5).any(|window| window == b"hello"));
            })
            .await;
            pair.instead(Protocol::Http1, vec![cart_at(&plain)]);
            assert_eq!(ask(&pair, way).await.text(), "not_tls\n");
        }
    });
}

#[test]
fn a_peer_that_does_not_believe_us_is_a_502_that_says_so() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let svid = pair.authority.svid(CART, Some("cart-1"));
            let elsewhere = Authority::new("evil.local").shared_trust();
            let config = server_config(&svid, elsewhere, ClientAuth::Required, H1).unwrap();
            let stranger = peer(config).await;
            pair.instead(Protocol::Http1, vec![cart_at(&stranger)]);
            let answer = ask(&pair, way).await;
            assert_eq!((answer.status, answer.text().as_str()), (502, "refused_by_peer\n"));
            assert_eq!(stranger.bytes(), 0);
        }
    });
}

#[test]
fn a_foreign_spiffe_server_is_spoken_to_in_what_is_declared() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            for alpn in [&[alpn::HTTP_1_1][..], &[]] {
                let envoy = peer(pair.authority.server(CART, None, alpn)).await;
                let door = endpoint(envoy.address, CART, None, Protocol::Http1, Door::Spiffe);
                pair.instead(Protocol::Http1, vec![door]);
                assert_eq!(ask(&pair, way).await.text(), "/a");
                assert_eq!(envoy.only().body, b"hello");
            }
        }
    });
}

#[test]
fn another_endpoint_is_tried_where_one_was_not_reached() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let honest = || endpoint(pair.door, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
            let impostor = peer(pair.authority.server(MALLORY, None, H1)).await;
            let dead = Endpoint {
                address: unbound().await,
                ..honest()
            };
            pair.instead(Protocol::Http1, vec![dead, cart_at(&impostor), honest()]);
            for _ in 0..20 {
                // A POST, too: nothing of it was sent.
                assert_eq!(ask(&pair, way).await.status, 200);
            }
            assert_eq!((pair.app.count(), impostor.bytes()), (20, 0));
        }
    });
}

#[test]
fn an_opaque_stream_tries_another_endpoint_too() {
    run(async {
        let echo = Canary::serving(|mut stream, _, _| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await;
        let pair = Pair::before(echo, Protocol::Tcp).await;
        let honest = || endpoint(pair.door, CART, Some("cart-1"), Protocol::Tcp, Door::Sidecar);
        let dead = Endpoint {
            address: unbound().await,
            ..honest()
        };
        pair.instead(Protocol::Tcp, vec![dead, honest()]);
        for _ in 0..8 {
            let mut conn = pair.tunnel().await;
            conn.send("ping").await;
            assert_eq!(conn.exactly(4).await, b"ping");
        }
    });
}

#[test]
fn nobody_to_ask_is_a_503_with_its_reason() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            pair.instead(Protocol::Http1, Vec::new());
            let answer = ask(&pair, way).await;
            assert_eq!((answer.status, answer.text().as_str()), (503, "no_endpoint\n"));
            let gone = endpoint(unbound().await, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
            pair.instead(Protocol::Http1, vec![gone]);
            let answer = ask(&pair, way).await;
            assert_eq!((answer.status, answer.text().as_str()), (503, "connect_failed\n"));
        }
    });
}

#[test]
fn our_own_expired_or_missing_identity_is_a_503_and_nothing_is_dialled() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            assert_eq!(ask(&pair, way).await.status, 200);
            let before = pair.web.metric("postern_proxy_handshakes_total", &["outbound"]);
            // A second's margin is what a new connection needs.
            pair.web
                .shared
                .publish_identity(pair.authority.svid_for(crate::world::WEB, Some("web-1"), 1))
                .unwrap();
            let answer = ask(&pair, way).await;
            assert_eq!((answer.status, answer.text().as_str()), (503, "identity_expired\n"));
            assert_eq!(pair.web.metric("postern_proxy_handshakes_total", &["outbound"]), before);
            // Renewed, it goes on.
            pair.web
                .shared
                .publish_identity(pair.authority.svid(crate::world::WEB, Some("web-1")))
                .unwrap();
            assert_eq!(ask(&pair, way).await.status, 200);

            let unready = Proxy::unready(&pair.authority, crate::world::WEB);
            let explicit = unready.explicit().await;
            for reason in ["no_identity\n", "control_unavailable\n"] {
                let mut conn = crate::world::Conn::plain(explicit).await;
                conn.send(GET).await;
                let answer = conn.answer().await;
                assert_eq!((answer.status, answer.text().as_str()), (503, reason));
                unready
                    .shared
                    .publish_identity(pair.authority.svid(crate::world::WEB, None))
                    .unwrap();
            }
        }
    });
}

#[test]
fn a_dial_that_hangs_fails_all_who_wait_within_one_deadline() {
    run(async {
        let pair = Pair::new(Protocol::Http2).await;
        // Accepts, and never shakes hands.
        let silent = Canary::serving(|mut stream, _, _| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let end = Endpoint {
            protocol: Protocol::Http2,
            ..cart_at(&silent)
        };
        pair.instead(Protocol::Http2, vec![end]);
        let mut waiting = Vec::new();
        for _ in 0..10 {
            let mut conn = pair.client().await;
            conn.send(GET).await;
            waiting.push(conn);
        }
        crate::world::until("it dials", || silent.connections() == 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        crate::world::pass(postern_proxy::limits::HANDSHAKE_DEADLINE).await;
        for mut conn in waiting {
            let answer = soon("an answer", conn.answer()).await;
            assert_eq!((answer.status, answer.text().as_str()), (502, "handshake_timeout\n"));
        }
        assert_eq!(silent.connections(), 1);
    });
}

//! What is sent twice: only what was never sent, or what may be.

use std::time::Duration;

use postern_identity::tls::alpn;
use postern_proxy::snapshot::{Door, Protocol};
use tokio::io::AsyncWriteExt;

use crate::world::canary::{ok, tls_peer};
use crate::world::{CART, Canary, Pair, Received, WAYS, Way, endpoint, run, until};

/// A sidecar that closes without an answer where `drops` says so (request, how many it has seen on this connection).
async fn peer(pair: &Pair, drops: impl Fn(&Received, usize) -> bool + Clone + 'static) -> Canary {
    let config = pair.authority.server(CART, Some("cart-1"), &[alpn::POSTERN_H1]);
    let peer = tls_peer(config, move |mut stream, canary, connection| {
        let drops = drops.clone();
        async move {
            let mut read = Vec::new();
            let mut served = 0;
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                served += 1;
                let drop = drops(&request, served);
                let answer = ok(&request.target);
                canary.saw(request);
                if drop || stream.write_all(&answer).await.is_err() {
                    return;
                }
                let _ = stream.flush().await;
            }
        }
    })
    .await;
    let end = endpoint(peer.address, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
    pair.instead(Protocol::Http1, vec![end]);
    peer
}

/// The proxy keeps a copy of what goes over a connection that has rested.
async fn rest() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

async fn ask(pair: &Pair, way: Way, method: &str, more: &str) -> (u16, String) {
    let mut conn = way.open(pair).await;
    conn.send(format!("{}{more}", way.head(method, "/a"))).await;
    let answer = conn.answer_to(method).await;
    (answer.status, answer.text())
}

const NO_BODY: &str = "\r\n";
const BODY: &str = "Content-Length: 5\r\n\r\nhello";

#[test]
fn an_idempotent_request_goes_out_once_more_where_a_rested_connection_breaks_off() {
    run(async {
        for way in WAYS {
            for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
                let pair = Pair::new(Protocol::Http1).await;
                let peer = peer(&pair, |_, served| served == 2).await;
                assert_eq!(ask(&pair, way, "GET", NO_BODY).await.0, 200);
                rest().await;
                assert_eq!(ask(&pair, way, method, NO_BODY).await.0, 200, "{method}");
                assert_eq!((peer.count(), peer.connections()), (3, 2), "{method}");
            }
        }
    });
}

#[test]
fn a_post_and_whatever_has_a_body_is_never_sent_twice() {
    run(async {
        for way in WAYS {
            for (method, more) in [
                ("POST", BODY),
                ("POST", NO_BODY),
                ("PATCH", NO_BODY),
                ("PUT", BODY),
                ("GET", BODY),
            ] {
                let pair = Pair::new(Protocol::Http1).await;
                let peer = peer(&pair, |_, served| served == 2).await;
                assert_eq!(ask(&pair, way, "GET", NO_BODY).await.0, 200);
                rest().await;
                let answer = ask(&pair, way, method, more).await;
                assert_eq!(answer, (502, "upstream_gone\n".to_owned()), "{method}");
                assert_eq!(peer.count(), 2, "{method}");
            }
        }
    });
}

#[test]
fn nothing_is_retried_more_than_once_nor_on_a_fresh_connection() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let peer = peer(&pair, |_, served| served == 2 || served == 1).await;
            assert_eq!(ask(&pair, way, "GET", NO_BODY).await.0, 502);
            assert_eq!(peer.count(), 1, "it had not rested");

            let pair = Pair::new(Protocol::Http1).await;
            let first = std::rc::Rc::new(std::cell::Cell::new(true));
            let peer = self::peer(&pair, move |_, _| !first.replace(false)).await;
            assert_eq!(ask(&pair, way, "GET", NO_BODY).await.0, 200);
            rest().await;
            assert_eq!(ask(&pair, way, "GET", NO_BODY).await.0, 502);
            assert_eq!(peer.count(), 3, "once, and once more");
        }
    });
}

#[test]
fn a_connection_that_was_closed_while_it_rested_costs_no_request() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let config = pair.authority.server(CART, Some("cart-1"), &[alpn::POSTERN_H1]);
            let peer = tls_peer(config, |mut stream, canary, connection| async move {
                let mut read = Vec::new();
                let request = canary.read(&mut stream, &mut read, connection).await.unwrap();
                let answer = ok(&request.target);
                canary.saw(request);
                stream.write_all(&answer).await.unwrap();
                stream.shutdown().await.unwrap();
            })
            .await;
            let end = endpoint(peer.address, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
            pair.instead(Protocol::Http1, vec![end]);
            for _ in 0..10 {
                assert_eq!(ask(&pair, way, "POST", BODY).await.0, 200);
                until("it closed", || peer.open() == 0).await;
            }
            assert_eq!(peer.count(), 10);
        }
    });
}

#[test]
fn retries_are_a_share_of_requests_however_bad_the_peer() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            // Every second request of a connection breaks off.
            let peer = peer(&pair, |_, served| served == 2).await;
            let mut failed = 0;
            for _ in 0..60 {
                rest().await;
                failed += usize::from(ask(&pair, way, "GET", NO_BODY).await.0 != 200);
            }
            let retried = peer.count() - 60;
            assert!(retried <= 10 + 60 / 5, "{retried} retries");
            assert!(failed > 0, "the budget ran out at no time");
        }
    });
}

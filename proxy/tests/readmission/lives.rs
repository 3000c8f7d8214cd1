//! Through both proxies, for several lifetimes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Method;
use postern_identity::Instance;
use postern_identity::tls::{self, ClientAuth, alpn};
use postern_proxy::limits::POOL_IDLE;
use postern_proxy::snapshot::{Door, Identity, Protocol, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use crate::world::canary::Canary;
use crate::world::h2::{Client, grpc_app, request};
use crate::world::{Authority, CART, Conn, GET, POLICY, Pair, Proxy, WEB, WEB_ONLY, endpoint, meshed, run, soon};

/// Of each SVID; renewed at half of it, as the workload does.
const LIFE: i64 = 8;
/// More than three of them.
const LONG: Duration = Duration::from_secs(26);
/// Between two messages.
const BEAT: Duration = Duration::from_millis(20);

/// From now on both proxies have SVIDs that end soon, and renew them.
async fn short_lived(pair: &Pair) {
    renew(pair, true, true);
    let (web, cart) = (pair.web.shared.clone(), pair.cart.shared.clone());
    let svids: Vec<_> = (1..16)
        .map(|n| {
            let until = (n + 2) * LIFE / 2;
            let of_web = pair.authority.svid_for(WEB, Some("web-1"), until);
            (of_web, pair.authority.svid_for(CART, Some("cart-1"), until))
        })
        .collect();
    tokio::task::spawn_local(async move {
        for (of_web, of_cart) in svids {
            // Not both at once: nobody renews in step.
            tokio::time::sleep(Duration::from_millis(LIFE as u64 * 250)).await;
            web.publish_identity(of_web).unwrap();
            tokio::time::sleep(Duration::from_millis(LIFE as u64 * 250)).await;
            cart.publish_identity(of_cart).unwrap();
        }
    });
}

/// Gives them SVIDs that end in [`LIFE`].
fn renew(pair: &Pair, web: bool, cart: bool) {
    let svid = |id, instance| pair.authority.svid_for(id, Some(instance), LIFE);
    if web {
        pair.web.shared.publish_identity(svid(WEB, "web-1")).unwrap();
    }
    if cart {
        pair.cart.shared.publish_identity(svid(CART, "cart-1")).unwrap();
    }
}

fn readmitted(pair: &Pair) -> [u64; 2] {
    let of = |proxy: &Proxy, direction: &str| {
        let labels = [direction, "result=\"readmitted\""];
        proxy.metric("postern_proxy_readmissions_total", &labels)
    };
    [of(&pair.web, "outbound"), of(&pair.cart, "inbound")]
}

/// Those that the cart's proxy has accepted; handshakes of readmissions, which may come at any time, are none.
async fn connections(pair: &Pair) -> u64 {
    let now = || {
        let handshakes = ["direction=\"inbound\""];
        pair.cart.metric("postern_proxy_handshakes_total", &handshakes) - readmitted(pair)[1]
    };
    loop {
        let seen = now();
        // A readmission is counted a moment after its handshake.
        tokio::time::sleep(Duration::from_millis(300)).await;
        if now() == seen {
            return seen;
        }
    }
}

fn asked_in_vain(pair: &Pair, reason: &str) -> u64 {
    let reason = format!("result=\"{reason}\"");
    pair.web
        .metric("postern_proxy_readmissions_total", &["outbound", &reason])
}

async fn echo() -> Canary {
    Canary::serving(|mut stream, _, _| async move {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            if stream.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Echoes numbered messages for `span`; an error is the number of the one that did not come back.
async fn talk(conn: &mut Conn, span: Duration) -> Result<u64, u64> {
    let until = Instant::now() + span;
    let mut n = 0;
    while Instant::now() < until {
        let message = numbered(n);
        if conn.try_send(&message).await.is_err() {
            return Err(n);
        }
        let mut back = vec![0; message.len()];
        if soon("an echo", conn.io.read_exact(&mut back)).await.is_err() {
            return Err(n);
        }
        assert!(back == message, "message {n} is not what was sent");
        n += 1;
        tokio::time::sleep(BEAT).await;
    }
    Ok(n)
}

fn numbered(n: u64) -> Vec<u8> {
    n.to_be_bytes().repeat(64)
}

fn lived(pair: &Pair) {
    let [of_web, of_cart] = readmitted(pair);
    assert!(of_web >= 3 && of_cart >= of_web, "{of_web} and {of_cart} readmissions");
}

#[test]
fn an_opaque_stream_lives_for_three_lifetimes_of_its_svids_and_loses_no_byte() {
    run(async {
        let pair = Pair::with(echo().await, Protocol::Tcp, WEB_ONLY).await;
        short_lived(&pair).await;
        let mut conn = pair.captured(Protocol::Tcp).await;
        let said = talk(&mut conn, LONG).await;
        assert!(said.is_ok_and(|n| n > 300), "{said:?}");
        lived(&pair);
        assert_eq!(pair.app.connections(), 1, "it is the one that it was");
        // What was admitted once is decided on still.
        pair.cart.policy("");
        assert_eq!(conn.rest().await, b"");
    });
}

#[test]
fn a_websocket_lives_for_three_lifetimes_and_loses_no_message() {
    run(async {
        let app = Canary::serving(|stream, _, _| async move {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_binary() && socket.send(message).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let pair = Pair::before(app, Protocol::Http1).await;
        short_lived(&pair).await;
        let conn = pair.captured(Protocol::Http1).await;
        let opening = tokio_tungstenite::client_async("ws://cart.shop/ws", conn.io);
        let (mut socket, _) = soon("a handshake", opening).await.unwrap();
        let until = Instant::now() + LONG;
        let mut n = 0;
        while Instant::now() < until {
            socket.send(Message::binary(numbered(n))).await.unwrap();
            let back = soon("a message", socket.next()).await.unwrap().unwrap();
            assert_eq!(back, Message::binary(numbered(n)), "message {n}");
            n += 1;
            tokio::time::sleep(BEAT).await;
        }
        lived(&pair);
        assert_eq!(pair.app.connections(), 1);
    });
}

#[test]
fn a_grpc_stream_lives_for_three_lifetimes_and_new_calls_go_over_new_connections() {
    run(async {
        let pair = Pair::before(grpc_app().await, Protocol::Http2).await;
        short_lived(&pair).await;
        let mut client = Client::over(pair.captured(Protocol::Http2).await).await;
        let (answer, mut send) = client.send.send_request(request(Method::POST, "/a"), false).unwrap();
        let mut answer = soon("a head", answer).await.unwrap().into_body();
        let until = Instant::now() + LONG;
        let mut n = 0_u64;
        while Instant::now() < until {
            send.send_data(Bytes::from(n.to_be_bytes().to_vec()), false).unwrap();
            let mut back = Vec::new();
            while back.len() < 8 {
                back.extend(soon("data", answer.data()).await.unwrap().unwrap());
            }
            assert_eq!(back, n.to_be_bytes(), "message {n}");
            n += 1;
            tokio::time::sleep(BEAT).await;
        }
        lived(&pair);
        let before = connections(&pair).await;
        let (other, mut end) = client.send.send_request(request(Method::POST, "/b"), false).unwrap();
        soon("another call's head", other).await.unwrap();
        end.send_data(Bytes::new(), true).unwrap();
        let after = connections(&pair).await;
        assert_eq!(after, before + 1, "a readmitted connection takes no new request");
        // The stream knows nothing of all that.
        send.send_data(Bytes::from_static(b"on"), false).unwrap();
        assert_eq!(soon("data", answer.data()).await.unwrap().unwrap(), "on");
    });
}

#[test]
fn a_peer_that_does_not_know_how_is_asked_once_and_the_stream_ends_at_its_expiry() {
    run(async {
        let pair = Pair::with(echo().await, Protocol::Tcp, WEB_ONLY).await;
        renew(&pair, true, false);
        // Of a version before: it has no such ALPN.
        let svid = pair.authority.svid(CART, Some("cart-1"));
        let trust = &pair.cart.shared.trust;
        let mut old = Identity::new(100, svid.clone(), trust).unwrap();
        let spoken = [
            alpn::POSTERN_H2,
            alpn::POSTERN_H1,
            alpn::POSTERN_TCP,
            alpn::H2,
            alpn::HTTP_1_1,
        ];
        old.server = tls::server_config(&svid, trust.clone(), ClientAuth::Required, &spoken).unwrap();
        pair.cart.shared.identity.store(Some(std::sync::Arc::new(old)));
        let mut conn = pair.captured(Protocol::Tcp).await;
        assert!(talk(&mut conn, Duration::from_millis(1_500)).await.is_ok());
        pair.web
            .shared
            .publish_identity(pair.authority.svid(WEB, Some("web-1")))
            .unwrap();
        assert!(talk(&mut conn, LONG).await.is_err());
        assert_eq!(asked_in_vain(&pair, "unsupported"), 1);
        assert_eq!(readmitted(&pair), [0, 0]);
    });
}

#[test]
fn an_endpoint_of_which_control_does_not_say_so_is_not_asked() {
    run(async {
        let pair = Pair::with(echo().await, Protocol::Tcp, WEB_ONLY).await;
        renew(&pair, true, false);
        let mut silent = endpoint(pair.door, CART, Some("cart-1"), Protocol::Tcp, Door::Sidecar);
        silent.readmits = false;
        pair.instead(Protocol::Tcp, vec![silent]);
        let mut conn = pair.tunnel().await;
        assert!(talk(&mut conn, Duration::from_millis(1_500)).await.is_ok());
        pair.web
            .shared
            .publish_identity(pair.authority.svid(WEB, Some("web-1")))
            .unwrap();
        assert!(talk(&mut conn, LONG).await.is_err());
        let all = pair.web.metric("postern_proxy_readmissions_total", &[]);
        assert_eq!((all, readmitted(&pair)), (0, [0, 0]));
    });
}

#[test]
fn without_a_renewal_of_ones_own_nothing_is_asked_and_the_stream_ends_at_its_expiry() {
    run(async {
        let pair = Pair::with(echo().await, Protocol::Tcp, WEB_ONLY).await;
        renew(&pair, true, false);
        let mut conn = pair.captured(Protocol::Tcp).await;
        assert!(talk(&mut conn, LONG).await.is_err());
        assert_eq!(pair.web.metric("postern_proxy_readmissions_total", &[]), 0);
    });
}

#[test]
fn a_stream_to_oneself_lives_on_as_well() {
    run(async {
        let authority = Authority::new("cluster.local");
        let web = Proxy::new(&authority, WEB, "web-1");
        let door = web.door(80, Protocol::Tcp, echo().await.address).await;
        web.policy(WEB_ONLY);
        let original = "10.96.0.1:80".parse().unwrap();
        let own = endpoint(door, WEB, Some("web-1"), Protocol::Tcp, Door::Sidecar);
        web.knows(Target::Address(original), meshed(Protocol::Tcp, vec![own]));
        let svid = |life| authority.svid_for(WEB, Some("web-1"), life);
        web.shared.publish_identity(svid(LIFE)).unwrap();
        let mut conn = Conn::plain(web.captured(original).await).await;
        assert!(talk(&mut conn, Duration::from_secs(2)).await.is_ok());
        web.shared.publish_identity(svid(600)).unwrap();
        assert!(talk(&mut conn, Duration::from_secs(LIFE as u64)).await.is_ok());
        let labels = |direction| [direction, "result=\"readmitted\""];
        for direction in ["inbound", "outbound"] {
            let readmitted = web.metric("postern_proxy_readmissions_total", &labels(direction));
            assert_eq!(readmitted, 1, "{direction}");
        }
    });
}

#[test]
fn a_connection_at_rest_is_not_readmitted() {
    run(async {
        let pair = Pair::with(Canary::start().await, Protocol::Http1, POLICY).await;
        renew(&pair, true, true);
        let mut conn = pair.client().await;
        conn.send(GET).await;
        assert_eq!(conn.answer().await.status, 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
        pair.web
            .shared
            .publish_identity(pair.authority.svid(WEB, Some("web-1")))
            .unwrap();
        tokio::time::sleep(Duration::from_secs(LIFE as u64)).await;
        assert!(Duration::from_secs(LIFE as u64) < POOL_IDLE);
        let asked = |proxy: &Proxy| proxy.metric("postern_proxy_readmissions_total", &[]);
        assert_eq!((asked(&pair.web), asked(&pair.cart)), (0, 0));
    });
}

#[test]
fn a_peer_in_quarantine_is_not_readmitted_and_its_stream_ends_at_once() {
    run(async {
        let pair = Pair::with(echo().await, Protocol::Tcp, WEB_ONLY).await;
        short_lived(&pair).await;
        let mut conn = pair.captured(Protocol::Tcp).await;
        assert!(talk(&mut conn, Duration::from_secs(LIFE as u64)).await.is_ok());
        let before = readmitted(&pair);
        assert!(before[0] >= 1, "{before:?}");
        let web = Instance::parse("web-1").unwrap();
        pair.cart.trust(|trust| trust.quarantined_instances.extend([web]));
        assert!(talk(&mut conn, LONG).await.is_err());
        tokio::time::sleep(Duration::from_secs(LIFE as u64 / 2)).await;
        assert_eq!(readmitted(&pair), before);
    });
}

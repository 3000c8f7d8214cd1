//! What a port takes by PeerAuthentication, beside the workload's mode: mutual TLS alone, plaintext alone, or either.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postern_identity::tls::{ClientAuth, alpn, server_config};
use postern_policy::peer_authentication::PortModes;
use postern_policy::{Mode, MtlsMode};
use postern_proxy::limits::DETECT_DEADLINE;
use postern_proxy::snapshot::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::authority::hostile_client;
use crate::world::canary::{Canary, ok, tls_peer};
use crate::world::{CART, Conn, POLICY, Shop, WEB, WEB_ONLY, run, soon, until};

/// What DESIGN section 4 promises.
const WITHIN: Duration = Duration::from_secs(1);
const GET: &str = "GET /a HTTP/1.1\r\nHost: cart\r\n\r\n";
/// Anybody may.
const ANYBODY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec: {action: ALLOW, rules: [{}]}
";

fn at(port: u16, mode: MtlsMode, usual: MtlsMode) -> PortModes {
    PortModes {
        usual,
        ports: BTreeMap::from([(port, mode)]),
    }
}

/// Port 80 of the cart takes this, and its other ports what a workload of the mode takes.
fn put(shop: &Shop, mode: Mode, taken: MtlsMode, policy: &str) {
    shop.cart.policy_at(mode, at(80, taken, MtlsMode::usual(mode)), policy);
}

/// Takes whatever comes and echoes it.
async fn echo() -> Canary {
    Canary::serving(|mut stream, canary, _| async move {
        let (mut read, mut write) = stream.split();
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = read.read(&mut buf).await {
            canary.counted(n);
            let _ = write.write_all(&buf[..n]).await;
        }
    })
    .await
}

#[test]
fn strict_refuses_plaintext_in_every_mode_and_only_on_its_port() {
    run(async {
        for mode in [Mode::Discover, Mode::Monitor, Mode::Protect] {
            let shop = Shop::with(Protocol::Detect, ANYBODY).await;
            let other = shop.cart.door(81, Protocol::Detect, shop.app.address).await;
            put(&shop, mode, MtlsMode::Strict, ANYBODY);
            for first in [GET.as_bytes(), b"\x15", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO"] {
                let mut conn = Conn::plain(shop.door).await;
                let _ = conn.try_send(first).await;
                conn.ends().await;
            }
            assert_eq!(
                (shop.app.connections(), shop.cart.refused("plaintext")),
                (0, 4),
                "{mode:?}"
            );
            // Whoever proves itself comes in, also without a protocol of ours.
            for offered in [&b"postern/h1"[..], b"http/1.1"] {
                let mut conn = shop.connect(WEB, offered).await;
                conn.send(GET).await;
                assert_eq!(conn.answer().await.status, 200);
            }
            let mut conn = Conn::plain(other).await;
            let _ = conn.try_send(GET).await;
            let served = conn.try_answer().await.is_some();
            assert_eq!(served, mode != Mode::Protect, "{mode:?}");
        }
    });
}

#[test]
fn permissive_in_protect_lets_rules_decide_about_callers_without_identity() {
    run(async {
        let without_mallory = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not, namespace: shop}
spec: {action: ALLOW, rules: [{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/mallory]}}]}]}
";
        for (policy, in_clear) in [(ANYBODY, 200), (WEB_ONLY, 403), (without_mallory, 403), ("", 403)] {
            let shop = Shop::with(Protocol::Detect, policy).await;
            put(&shop, Mode::Protect, MtlsMode::Permissive, policy);
            let mut conn = Conn::plain(shop.door).await;
            conn.send("GET /a HTTP/1.1\r\nHost: cart\r\nX-Postern-Source: forged\r\n\r\n")
                .await;
            assert_eq!(conn.answer().await.status, in_clear, "{policy}");
            if in_clear == 200 {
                assert!(shop.app.only().all("x-postern-source").is_empty());
            }
            let mut conn = shop.h1().await;
            conn.send(GET).await;
            let proven = if policy.is_empty() { 403 } else { 200 };
            assert_eq!(conn.answer().await.status, proven, "{policy}");
        }
    });
}

#[test]
fn permissive_in_protect_passes_the_apps_own_tls_only_where_rules_let_bytes_pass() {
    run(async {
        let authority = crate::world::Authority::new("cluster.local");
        let svid = authority.svid(CART, None);
        let config = server_config(&svid, authority.shared_trust(), ClientAuth::Optional, &[alpn::HTTP_1_1]);
        let app = tls_peer(config.unwrap(), |stream, canary, connection| async move {
            canary
                .serve(stream, connection, &|request| (ok(&request.target), false))
                .await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Detect, ANYBODY).await;
        put(&shop, Mode::Protect, MtlsMode::Permissive, ANYBODY);
        let mut conn = Conn::tls(shop.door, hostile_client(None, &[alpn::HTTP_1_1]))
            .await
            .unwrap();
        conn.send("GET /own HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.text(), "/own");
        // Rules that look into HTTP refuse what nobody can look into.
        let looking = format!("{ANYBODY}---{}", POLICY.split("---").nth(1).unwrap());
        put(&shop, Mode::Protect, MtlsMode::Permissive, &looking);
        assert!(
            Conn::tls(shop.door, hostile_client(None, &[alpn::HTTP_1_1]))
                .await
                .is_err()
        );
    });
}

#[test]
fn where_plaintext_alone_is_taken_tls_reaches_the_app_as_it_is_our_own_too() {
    run(async {
        for (mode, protocol) in [
            (Mode::Protect, Protocol::Tcp),
            (Mode::Protect, Protocol::Detect),
            (Mode::Monitor, Protocol::Http1),
        ] {
            let shop = Shop::before(echo().await, protocol, ANYBODY).await;
            put(&shop, mode, MtlsMode::Disable, ANYBODY);
            // A ClientHello that would be ours.
            let hello = {
                let mut client = rustls::ClientConnection::new(
                    shop.authority.client(WEB, b"postern/h1"),
                    crate::world::client::handshake_name(),
                )
                .unwrap();
                let mut hello = Vec::new();
                client.write_tls(&mut hello).unwrap();
                hello
            };
            let mut conn = Conn::plain(shop.door).await;
            conn.send(&hello).await;
            assert_eq!(conn.exactly(hello.len()).await, hello, "{mode:?} {protocol:?}");
            assert_eq!(shop.app.bytes(), hello.len());
        }
    });
}

#[test]
fn where_plaintext_alone_is_taken_rules_decide_all_the_same() {
    run(async {
        let looking = format!("{ANYBODY}---{}", POLICY.split("---").nth(1).unwrap());
        let shop = Shop::with(Protocol::Detect, &looking).await;
        put(&shop, Mode::Protect, MtlsMode::Disable, &looking);
        let mut conn = Conn::plain(shop.door).await;
        conn.send(GET).await;
        assert_eq!(conn.answer().await.status, 200);
        conn.send("GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 403);
        // Our own TLS is bytes here, and rules that look into HTTP refuse those.
        assert!(
            Conn::tls(shop.door, shop.authority.client(WEB, b"postern/h1"))
                .await
                .is_err()
        );
        put(&shop, Mode::Protect, MtlsMode::Disable, WEB_ONLY);
        let mut conn = Conn::plain(shop.door).await;
        conn.send(GET).await;
        assert_eq!(conn.answer().await.status, 403, "nobody is the web there");
        assert_eq!(shop.app.count(), 1);
    });
}

#[test]
fn a_server_that_speaks_first_waits_for_nothing_where_bytes_are_taken_in_clear() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            let _ = stream.write_all(b"220 ready\r\n").await;
            let _ = stream.read(&mut [0; 64]).await;
        })
        .await;
        let shop = Shop::before(app, Protocol::Tcp, ANYBODY).await;
        put(&shop, Mode::Protect, MtlsMode::Disable, ANYBODY);
        let began = Instant::now();
        let mut conn = Conn::plain(shop.door).await;
        assert_eq!(conn.exactly(11).await, b"220 ready\r\n");
        assert!(began.elapsed() < DETECT_DEADLINE, "{:?}", began.elapsed());
    });
}

#[test]
fn open_plaintext_ends_within_a_second_of_a_strict_document_whatever_the_mode() {
    run(async {
        for mode in [Mode::Discover, Mode::Monitor, Mode::Protect] {
            let shop = Shop::before(echo().await, Protocol::Tcp, ANYBODY).await;
            put(&shop, mode, MtlsMode::Permissive, ANYBODY);
            let mut in_clear = Conn::plain(shop.door).await;
            in_clear.send("ping").await;
            assert_eq!(in_clear.exactly(4).await, b"ping");
            let mut proven = shop.web(b"postern/tcp").await;
            proven.send("ping").await;
            assert_eq!(proven.exactly(4).await, b"ping");
            // What others say of other ports is nobody's business here.
            let modes = at(81, MtlsMode::Strict, MtlsMode::Permissive);
            shop.cart.policy_at(mode, modes, ANYBODY);
            assert!(in_clear.is_quiet(Duration::from_millis(400)).await, "{mode:?}");
            let changed = Instant::now();
            put(&shop, mode, MtlsMode::Strict, ANYBODY);
            in_clear.ends().await;
            assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
            proven.send("pong").await;
            assert_eq!(proven.exactly(4).await, b"pong");
            // Nor does mutual TLS end for a document that asks for less.
            put(&shop, mode, MtlsMode::Disable, ANYBODY);
            assert!(proven.is_quiet(Duration::from_millis(400)).await);
        }
    });
}

#[test]
fn a_kept_plaintext_connection_ends_with_a_strict_document_between_its_requests_and_in_them() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                let waits = request.target == "/waits";
                canary.saw(request);
                if waits {
                    let _ = stream.read(&mut [0; 1]).await;
                    return;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, ANYBODY).await;
        put(&shop, Mode::Monitor, MtlsMode::Permissive, ANYBODY);
        let mut rests = Conn::plain(shop.door).await;
        rests.send(GET).await;
        assert_eq!(rests.answer().await.status, 200);
        let mut waits = Conn::plain(shop.door).await;
        waits.send("GET /waits HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        until("the app has it", || shop.app.requests().len() == 2).await;
        let mut proven = shop.h1().await;
        proven.send(GET).await;
        assert_eq!(proven.answer().await.status, 200);

        let changed = Instant::now();
        put(&shop, Mode::Monitor, MtlsMode::Strict, ANYBODY);
        let answer = waits.answer().await;
        assert_eq!((answer.status, answer.closes()), (400, true));
        rests.ends().await;
        waits.ends().await;
        assert!(changed.elapsed() < WITHIN, "{:?}", changed.elapsed());
        proven.send(GET).await;
        assert_eq!(proven.answer().await.status, 200);
        let plaintext = shop
            .cart
            .metric("postern_proxy_denials_total", &["reason=\"plaintext\""]);
        assert_eq!(plaintext, 1, "the request that was cut");
    });
}

#[test]
fn a_connection_that_came_in_before_a_strict_document_gets_no_first_request_after_it() {
    run(async {
        let shop = Shop::with(Protocol::Detect, ANYBODY).await;
        put(&shop, Mode::Discover, MtlsMode::Permissive, ANYBODY);
        // Not told apart yet: it is admitted by what holds when it says something.
        let mut conn = Conn::plain(shop.door).await;
        conn.send("GET ").await;
        soon("accepted", async {
            while shop.cart.serving() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        put(&shop, Mode::Discover, MtlsMode::Strict, ANYBODY);
        let _ = conn.try_send("/a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        if let Some(answer) = conn.try_answer().await {
            assert_eq!((answer.status, answer.closes()), (400, true));
        }
        conn.ends().await;
        assert_eq!(shop.app.count(), 0);
    });
}

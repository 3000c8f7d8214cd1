//! Who gets past the handshake, and what the rest is told: nothing.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use postern_proxy::limits::HANDSHAKE_DEADLINE;
use postern_proxy::snapshot::Protocol;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::world::client::handshake_name;
use crate::world::h2::Client;
use crate::world::{Authority, Conn, POLICY, Shop, WEB, hostile_client, pass, run, soon, until};

const REQUEST: &str = "GET /a HTTP/1.1\r\nHost: cart\r\n\r\n";

/// A ClientHello as TLS 1.2 has it: no supported_versions.
fn tls12_hello() -> Vec<u8> {
    let mut extensions = Vec::new();
    extensions.extend_from_slice(&[0, 10, 0, 4, 0, 2, 0, 23]);
    extensions.extend_from_slice(&[0, 13, 0, 4, 0, 2, 4, 3]);
    extensions.extend_from_slice(&[0, 11, 0, 2, 1, 0]);
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&extensions);
    let mut message = vec![1, 0];
    message.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend_from_slice(&body);
    let mut record = vec![0x16, 3, 1];
    record.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend_from_slice(&message);
    record
}

#[test]
fn t_07_tls_1_2_is_refused_with_an_alert() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = Conn::plain(shop.door).await;
        conn.send(tls12_hello()).await;
        let answer = conn.rest().await;
        // A fatal alert: protocol_version (RFC 8446 section 6.2).
        assert_eq!((answer[0], &answer[5..]), (0x15, &[2, 70][..]), "{answer:?}");
        let counted = || shop.cart.refused("incompatible_tls");
        until("counted", || counted() == 1).await;
        shop.probe().await;
    });
}

#[test]
fn t_07_plaintext_is_reset_without_a_word() {
    run(async {
        let shop = Shop::new().await;
        for first in [
            &b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n"[..],
            b"\0",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x15",
        ] {
            let mut tcp = TcpStream::connect(shop.door).await.unwrap();
            tcp.write_all(first).await.unwrap();
            let mut read = Vec::new();
            let ended = soon("a reset", tcp.read_to_end(&mut read)).await;
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(read.is_empty());
        }
        assert_eq!(shop.cart.refused("plaintext"), 4);
        // Whose first byte is TLS's own, and nothing else is.
        let mut conn = Conn::plain(shop.door).await;
        conn.send(b"\x16GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        conn.rest().await;
        assert_eq!((shop.app.connections(), shop.app.bytes()), (0, 0));
        shop.probe().await;
    });
}

#[test]
fn t_07_an_unknown_application_protocol_is_refused() {
    run(async {
        let shop = Shop::new().await;
        for alpn in [
            &b"http/1.0"[..],
            b"postern/h3",
            b"POSTERN/H1",
            b"spdy/3",
            b"postern/mux",
        ] {
            let connected = Conn::tls(shop.door, shop.authority.client(WEB, alpn)).await;
            assert!(connected.is_err(), "{}", String::from_utf8_lossy(alpn));
        }
        until("counted", || shop.cart.refused("no_common_protocol") == 5).await;
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

#[test]
fn t_07_a_client_hello_past_64_kib_is_refused() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = Conn::plain(shop.door).await;
        let mut left = 70_000_usize;
        let mut first = true;
        while left > 0 {
            let size = left.min(16_000);
            let mut record = vec![0x16, 3, 1];
            record.extend_from_slice(&u16::try_from(size).unwrap().to_be_bytes());
            let mut payload = vec![0; size];
            if first {
                payload[..4].copy_from_slice(&[1, 1, 0x11, 0x70]);
            }
            first = false;
            record.extend_from_slice(&payload);
            if conn.try_send(record).await.is_err() {
                break;
            }
            left -= size;
        }
        conn.rest().await;
        until("counted", || {
            shop.cart.metric("postern_proxy_handshake_failures_total", &["inbound"]) == 1
        })
        .await;
        shop.probe().await;
    });
}

#[test]
fn t_07_a_dribbled_client_hello_is_cut_at_the_handshake_deadline_and_a_split_one_is_fine() {
    run(async {
        let shop = Shop::new().await;
        for dribbled in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
            let mut conn = Conn::plain(shop.door).await;
            conn.send(dribbled).await;
            assert!(conn.is_quiet(Duration::from_millis(50)).await);
            pass(HANDSHAKE_DEADLINE - Duration::from_secs(1)).await;
            assert!(
                conn.is_quiet(Duration::from_millis(50)).await,
                "cut too early: {dribbled:?}"
            );
            pass(Duration::from_secs(1)).await;
            conn.ends().await;
        }
        assert_eq!(shop.cart.refused("handshake_timeout"), 3);
        // An honest one, a byte at a time.
        let (near, far) = tokio::io::duplex(1);
        let door = shop.door;
        tokio::task::spawn_local(async move {
            let mut far = far;
            let mut tcp = TcpStream::connect(door).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut far, &mut tcp, 1, 4096).await;
        });
        let connecting = TlsConnector::from(shop.authority.client(WEB, b"postern/h1")).connect(handshake_name(), near);
        let mut conn = Conn::over(soon("a handshake", connecting).await.unwrap());
        conn.send(REQUEST).await;
        assert_eq!(conn.answer().await.status, 200);
    });
}

#[test]
fn t_09_there_are_no_tickets_and_the_second_handshake_is_as_full_as_the_first() {
    run(async {
        let shop = Shop::new().await;
        let card = shop.authority.card(WEB, |_| {});
        let config = hostile_client(Some(card), &[b"postern/h1"]);
        for _ in 0..3 {
            let tcp = TcpStream::connect(shop.door).await.unwrap();
            let connector = TlsConnector::from(Arc::clone(&config));
            let mut stream = connector.connect(handshake_name(), tcp).await.unwrap();
            stream.write_all(REQUEST.as_bytes()).await.unwrap();
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.tls13_tickets_received(), 0);
            assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
            assert!(!session.is_early_data_accepted());
        }
    });
}

#[test]
fn a_foreign_spiffe_client_calls_over_h2_http_1_1_or_without_alpn() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        for alpn in [&b"http/1.1"[..], b""] {
            let mut conn = shop.web(alpn).await;
            assert_eq!(conn.alpn.as_deref(), Some(alpn).filter(|alpn| !alpn.is_empty()));
            conn.send(REQUEST).await;
            assert_eq!(conn.answer().await.status, 200);
        }
        let mut client = Client::over(shop.web(b"h2").await).await;
        assert_eq!(client.get("/h2").await.unwrap().status, 200);
        assert_eq!(client.get("/secret").await.unwrap().status, 403);
        // The app declares HTTP/1.1: that is what it was spoken to in.
        assert_eq!(shop.app.requests().len(), 3);
    });
}

#[test]
fn a_foreign_client_without_alpn_is_served_by_what_it_says_first() {
    run(async {
        let shop = Shop::with(Protocol::Detect, POLICY).await;
        let mut conn = shop.web(b"").await;
        conn.send("GE").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        conn.send("T /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        // Neither HTTP/1 nor HTTP/2: the rules of this port need HTTP.
        let mut conn = shop.web(b"").await;
        conn.send("EHLO mail.example.org\r\n").await;
        assert_eq!(conn.rest().await, b"");
        assert_eq!(shop.app.requests().len(), 1);
        shop.probe().await;
    });
}

#[test]
fn a_proxy_without_identity_or_policy_resets_whoever_calls() {
    run(async {
        let authority = Authority::new("cluster.local");
        let app = crate::world::Canary::start().await;
        for (identity, policy, reason) in [(false, true, "no_identity"), (true, false, "control_unavailable")] {
            let cart = crate::world::Proxy::unready(&authority, crate::world::CART);
            let door = cart.door(80, Protocol::Http1, app.address).await;
            if identity {
                let svid = authority.svid(crate::world::CART, None);
                cart.shared.publish_identity(svid).unwrap();
            }
            if policy {
                cart.policy(POLICY);
            }
            assert!(Conn::tls(door, authority.client(WEB, b"postern/h1")).await.is_err());
            until("counted", || cart.refused(reason) == 1).await;
        }
        assert_eq!(app.connections(), 0);
    });
}

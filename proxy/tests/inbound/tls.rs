//! Who gets past the handshake, and what the rest is told: nothing.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use postern_proxy::limits::HANDSHAKE_DEADLINE;
use postern_proxy::snapshot::Protocol;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::HandshakeKind;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::world::authority::{in_seconds, uri};
use crate::world::client::handshake_name;
use crate::world::h2::Client;
use crate::world::{Authority, Card, Conn, POLICY, Shop, WEB, hostile_client, pass, run, soon, until};

const REQUEST: &str = "GET /a HTTP/1.1\r\nHost: cart\r\n\r\n";

/// It gets no answer, the app sees nothing, and the failure is counted for what it is.
async fn assert_refused(shop: &Shop, case: &str, card: Option<Card>, reason: &str) {
    let counted = || {
        let reason = format!("reason=\"{reason}\"");
        let labels = ["inbound", reason.as_str()];
        shop.cart.metric("postern_proxy_handshake_failures_total", &labels)
    };
    let before = counted();
    let config = hostile_client(card, &[b"postern/h1"]);
    // In TLS 1.3 the client believes that it is through before the server has seen its certificate.
    if let Ok(mut conn) = Conn::tls(shop.door, config).await {
        conn.send(REQUEST).await;
        assert!(conn.try_answer().await.is_none(), "{case}: answered");
    }
    until(&format!("{case}: counted as {reason}"), || counted() == before + 1).await;
    assert_eq!((shop.app.connections(), shop.app.bytes()), (0, 0), "{case}");
}

#[test]
fn t_08_without_a_certificate_or_its_key_nothing_passes() {
    run(async {
        let shop = Shop::new().await;
        assert_refused(&shop, "none", None, "no_certificate").await;
        let mut stolen = shop.authority.card(WEB, |_| {});
        let other = KeyPair::generate().unwrap();
        stolen.key = PrivateKeyDer::Pkcs8(other.serialize_der().into());
        assert_refused(&shop, "another's certificate", Some(stolen), "tls").await;
        shop.probe().await;
    });
}

#[test]
fn t_01_expired_and_not_yet_valid_certificates_are_refused_without_grace() {
    run(async {
        let shop = Shop::new().await;
        let expired = shop.authority.card(WEB, |params| {
            params.not_before = in_seconds(-120);
            params.not_after = in_seconds(-1);
        });
        assert_refused(&shop, "expired", Some(expired), "expired").await;
        let early = shop.authority.card(WEB, |params| params.not_before = in_seconds(30));
        assert_refused(&shop, "not yet valid", Some(early), "not_yet_valid").await;
        shop.probe().await;
    });
}

#[test]
fn t_02_another_trust_domain_and_malformed_ids_are_refused() {
    run(async {
        let shop = Shop::new().await;
        let foreign = Authority::new("evil.local").card("spiffe://evil.local/ns/shop/sa/web", |_| {});
        assert_refused(&shop, "their root, their name", Some(foreign), "unknown_trust_domain").await;
        let impostor = Authority::new("cluster.local").card(WEB, |_| {});
        assert_refused(&shop, "their root, our name", Some(impostor), "bad_chain").await;
        for (id, reason) in [
            ("spiffe://evil.local/ns/shop/sa/web", "unknown_trust_domain"),
            ("spiffe://cluster.local.evil/ns/shop/sa/web", "unknown_trust_domain"),
            ("spiffe://cluster.loca1/ns/shop/sa/web", "unknown_trust_domain"),
        ] {
            let card = shop.authority.card(id, |_| {});
            assert_refused(&shop, id, Some(card), reason).await;
        }
        for id in [
            "spiffe://Cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/",
            "spiffe://cluster.local//ns/shop/sa/web",
            "spiffe://cluster.local/ns/../sa/web",
            "spiffe://cluster.local/ns/shop/sa/web?x",
            "spiffe://cluster.local/ns/shop/sa/web#x",
            "spiffe://cluster.local:443/ns/shop/sa/web",
            "spiffe://me@cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/w%65b",
            "spiffe://cluster.local",
            "https://cluster.local/ns/shop/sa/web",
        ] {
            let card = shop.authority.card(id, |_| {});
            assert_refused(&shop, id, Some(card), "leaf_spiffe_id").await;
        }
        shop.probe().await;
    });
}

#[test]
fn t_03_exactly_one_uri_names_the_peer() {
    run(async {
        let shop = Shop::new().await;
        type Change = fn(&mut CertificateParams);
        let cases: [(&str, Change, &str); 4] = [
            (
                "two URIs",
                |p| {
                    p.subject_alt_names
                        .push(uri("spiffe://cluster.local/ns/shop/sa/ledger"))
                },
                "leaf_san",
            ),
            ("none", |p| p.subject_alt_names.clear(), "leaf_san"),
            (
                "a DNS name alone",
                |p| p.subject_alt_names = vec![SanType::DnsName("web.shop".try_into().unwrap())],
                "leaf_san",
            ),
            (
                "the URI as common name",
                |p| {
                    p.subject_alt_names.clear();
                    p.distinguished_name.push(DnType::CommonName, WEB);
                },
                "leaf_san",
            ),
        ];
        for (case, change, reason) in cases {
            let card = shop.authority.card(WEB, change);
            assert_refused(&shop, case, Some(card), reason).await;
        }
        shop.probe().await;
    });
}

#[test]
fn t_04_a_leaf_that_may_do_more_or_less_than_a_leaf_is_refused() {
    run(async {
        let shop = Shop::new().await;
        let before = shop.cart.metric("postern_proxy_handshake_failures_total", &["inbound"]);
        type Change = fn(&mut CertificateParams);
        let cases: [(&str, Change); 4] = [
            ("a CA", |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            ("keyCertSign", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            ("no digitalSignature", |p| {
                p.key_usages = vec![KeyUsagePurpose::KeyAgreement]
            }),
            ("for servers alone", |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
            }),
        ];
        for (case, change) in cases {
            let card = shop.authority.card(WEB, change);
            let config = hostile_client(Some(card), &[b"postern/h1"]);
            if let Ok(mut conn) = Conn::tls(shop.door, config).await {
                conn.send(REQUEST).await;
                assert!(conn.try_answer().await.is_none(), "{case}: answered");
            }
        }
        let failures = || shop.cart.metric("postern_proxy_handshake_failures_total", &["inbound"]);
        until("all are counted", || failures() == before + 4).await;
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

#[test]
fn t_05_self_signed_and_overlong_chains_are_refused() {
    run(async {
        let shop = Shop::new().await;
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(WEB)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_after = in_seconds(3_600);
        let own = Card {
            chain: vec![params.self_signed(&key).unwrap().der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        };
        let reason = "reason=";
        let before = shop
            .cart
            .metric("postern_proxy_handshake_failures_total", &["inbound", reason]);
        let mut junk = shop.authority.card(WEB, |_| {});
        let last = junk.chain[1].clone();
        junk.chain.extend(std::iter::repeat_n(last, 20));
        for card in [own, junk] {
            let config = hostile_client(Some(card), &[b"postern/h1"]);
            if let Ok(mut conn) = Conn::tls(shop.door, config).await {
                conn.send(REQUEST).await;
                assert!(conn.try_answer().await.is_none());
            }
        }
        let failures = || {
            shop.cart
                .metric("postern_proxy_handshake_failures_total", &["inbound", reason])
        };
        until("both are counted", || failures() == before + 2).await;
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

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
            b"postern/renew",
            b"postern/mux",
        ] {
            let connected = Conn::tls(shop.door, shop.authority.client(WEB, alpn)).await;
            assert!(connected.is_err(), "{}", String::from_utf8_lossy(alpn));
        }
        until("counted", || shop.cart.refused("no_common_protocol") == 6).await;
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

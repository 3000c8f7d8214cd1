//! Whose certificate is believed, and who that lets in.

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::PrivateKeyDer;

use crate::world::authority::{in_seconds, uri};
use crate::world::{Authority, Card, Conn, Shop, WEB, hostile_client, run, until};

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

#[test]
fn z_05_an_identity_that_only_looks_like_an_allowed_one_is_denied() {
    run(async {
        let shop = Shop::new().await;
        for id in [
            "spiffe://cluster.local/ns/shop/sa/webx",
            "spiffe://cluster.local/ns/shop/sa/we",
            "spiffe://cluster.local/ns/shop/sa/Web",
            "spiffe://cluster.local/ns/shop/sa/w.b",
            "spiffe://cluster.local/ns/shop/sa/web/x",
            "spiffe://cluster.local/ns/shop2/sa/web",
            "spiffe://cluster.local/ns/shop/ns/shop/sa/web",
            "spiffe://cluster.local/x/cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/web",
        ] {
            let mut conn = shop.connect(id, b"postern/h1").await;
            conn.send(REQUEST).await;
            assert_eq!(conn.answer().await.status, 403, "{id}");
        }
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

#[test]
fn z_08_a_rule_for_another_port_or_no_rule_at_all_opens_nothing() {
    run(async {
        let shop = Shop::new().await;
        for policy in [
            "",
            "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: other-port, namespace: shop}
spec:
  action: ALLOW
  rules:
  - to: [{operation: {ports: ['81']}}]
",
            "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
",
        ] {
            shop.cart.policy(policy);
            let mut conn = shop.h1().await;
            conn.send(REQUEST).await;
            assert_eq!(conn.answer().await.status, 403, "{policy}");
            let mut stream = shop.web(b"postern/tcp").await;
            stream.send("x").await;
            assert_eq!(stream.rest().await, b"");
        }
        assert_eq!(shop.app.connections(), 0);
    });
}

//! Conditions: fields of the head as the app will see them, labels of the verified peer, addresses and server names; what an
//! AUDIT policy marks.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderValue, Method};
use postern_identity::{Instance, SpiffeId};
use postern_policy::Mode;
use postern_proxy::snapshot::{Peers, Protocol};

use crate::world::h2::{Client, request};
use crate::world::{Conn, MALLORY, Shop, WEB, run, soon};

/// One rule for the web, with these conditions.
fn when(conditions: &str) -> String {
    policy(
        "ALLOW",
        &format!("from: [{{source: {{namespaces: [shop]}}}}], when: [{conditions}]"),
    )
}

fn policy(action: &str, rule: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {}, namespace: shop}}\n\
         spec: {{action: {action}, rules: [{{{rule}}}]}}\n---\n",
        action.to_lowercase()
    )
}

async fn status(conn: &mut Conn, fields: &str) -> u16 {
    conn.send(format!("GET /a HTTP/1.1\r\nHost: cart\r\n{fields}\r\n"))
        .await;
    conn.answer().await.status
}

#[test]
fn z_06_a_field_allows_only_if_all_of_its_values_do_and_denies_if_any_does() {
    let allow = when("{key: 'request.headers[x-role]', values: [admin]}");
    let deny = policy("ALLOW", "") + &policy("DENY", "when: [{key: 'request.headers[X-Role]', values: [guest]}]");
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        for (fields, if_allow, if_deny) in [
            ("X-Role: admin\r\n", 200, 200),
            ("x-role:  admin \r\n", 200, 200),
            ("", 403, 200),
            ("X-Role: Admin\r\n", 403, 200),
            ("X-Role: guest\r\n", 403, 403),
            ("X-Role: admin\r\nX-Role: guest\r\n", 403, 403),
            ("X-Role: guest\r\nX-Role: admin\r\n", 403, 403),
            ("X-Role: admin, guest\r\n", 403, 403),
            ("X-Role: admin\r\nX_Role: guest\r\n", 403, 403),
            ("X-Role: admin\r\nx.role: guest\r\n", 403, 403),
            ("X-Role: adm\u{ef}n\r\n", 403, 403),
            // What `Connection` takes away the app does not see.
            ("X-Role: admin\r\nConnection: x-role\r\n", 403, 200),
        ] {
            shop.cart.policy(&allow);
            assert_eq!(status(&mut conn, fields).await, if_allow, "ALLOW {fields:?}");
            shop.cart.policy(&deny);
            assert_eq!(status(&mut conn, fields).await, if_deny, "DENY {fields:?}");
        }
    });
}

#[test]
fn z_06_a_value_with_a_comma_is_not_evaded_by_two_lines() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        let named = "when: [{key: 'request.headers[x-role]', values: ['admin, guest']}]";
        for (fields, if_allow, if_deny) in [
            ("X-Role: admin, guest\r\n", 200, 403),
            ("X-Role: admin\r\nX-Role: guest\r\n", 403, 403),
            ("X-Role: admin\r\n", 403, 200),
        ] {
            shop.cart.policy(&policy("ALLOW", named));
            assert_eq!(status(&mut conn, fields).await, if_allow, "ALLOW {fields:?}");
            shop.cart.policy(&(policy("ALLOW", "") + &policy("DENY", named)));
            assert_eq!(status(&mut conn, fields).await, if_deny, "DENY {fields:?}");
        }
    });
}

#[test]
fn z_06_a_field_of_http_2_is_decided_as_one_of_http_1() {
    run(async {
        let allow = when("{key: 'request.headers[x-role]', values: [admin]}");
        let shop = Shop::with(Protocol::Http1, &allow).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for (fields, status) in [
            (&[("x-role", "admin")][..], 200),
            (&[("x-role", "admin"), ("x-role", "admin")], 200),
            (&[("x-role", "admin"), ("x-role", "guest")], 403),
            (&[("x-role", "admin"), ("x_role", "guest")], 403),
            (&[], 403),
        ] {
            let mut asked = request(Method::GET, "/a");
            for (name, value) in fields {
                asked.headers_mut().append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(client.request(asked).await.unwrap().status, status, "{fields:?}");
        }
    });
}

/// Labels of the web's two pods, and of its namespace.
fn peers(of_first: &str, region: &str) -> Peers {
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let id = SpiffeId::parse(WEB).unwrap();
    let pod = |name: &str, tier: &str| (Instance::parse(name).unwrap(), (id.clone(), labels("tier", tier)));
    Peers {
        trust_domain: Some(postern_identity::TrustDomain::parse("cluster.local").unwrap()),
        instances: [pod("web-1", of_first), pod("web-2", "back")].into(),
        namespaces: [("shop".to_owned(), labels("region", region))].into(),
    }
}

#[test]
fn a_label_is_the_verified_instances_and_of_nobody_else() {
    run(async {
        let shop = Shop::new().await;
        let connect = async |id: &str, instance: &str| {
            let config = shop.authority.client_with(id, instance, b"postern/h1");
            Conn::tls(shop.door, config).await.unwrap()
        };
        let by_label = when("{key: 'source.labels[tier]', values: [front]}");
        shop.cart.peers(peers("front", "eu"));
        shop.cart.policy(&by_label);
        let mut first = connect(WEB, "web-1").await;
        assert_eq!(status(&mut first, "").await, 200);
        assert_eq!(status(&mut connect(WEB, "web-2").await, "").await, 403);
        assert_eq!(
            status(&mut connect(WEB, "web-3").await, "").await,
            403,
            "nobody knows it"
        );
        assert_eq!(
            status(&mut connect(MALLORY, "web-1").await, "").await,
            403,
            "another's instance"
        );
        assert_eq!(status(&mut shop.h1().await, "").await, 403, "no instance");

        // Of the connection that stands, too.
        shop.cart.peers(peers("back", "eu"));
        shop.cart.policy(&by_label);
        assert_eq!(status(&mut first, "").await, 403);

        // What nobody knows is denied by a rule that denies; who has no instance meets none.
        shop.cart
            .policy(&(policy("ALLOW", "") + &policy("DENY", "when: [{key: 'source.labels[tier]', values: [front]}]")));
        assert_eq!(status(&mut first, "").await, 200);
        assert_eq!(status(&mut connect(WEB, "web-3").await, "").await, 403);
        assert_eq!(status(&mut shop.h1().await, "").await, 200);
    });
}

#[test]
fn a_namespaces_label_is_that_of_the_verified_identity() {
    run(async {
        let shop = Shop::new().await;
        let by_region = when("{key: 'source.namespace.labels[region]', values: [eu, eu-west]}");
        let mut conn = shop.h1().await;
        shop.cart.policy(&by_region);
        assert_eq!(status(&mut conn, "").await, 403, "control has told nothing yet");
        shop.cart.peers(peers("front", "eu"));
        shop.cart.policy(&by_region);
        assert_eq!(status(&mut conn, "").await, 200);
        assert_eq!(status(&mut conn, "region: eu\r\nx-region: eu\r\n").await, 200);
        shop.cart.peers(peers("front", "us"));
        shop.cart.policy(&by_region);
        assert_eq!(
            status(&mut conn, "region: eu\r\nx-region: eu\r\n").await,
            403,
            "never a field's"
        );
    });
}

#[test]
fn a_stream_is_cut_when_a_later_policy_looks_at_a_field_that_was_not_kept() {
    run(async {
        let app = super::live_policy::endless().await;
        let kept = when("{key: 'request.headers[x-role]', values: [admin]}");
        let shop = Shop::before(app, Protocol::Http1, &kept).await;
        let mut conn = shop.h1().await;
        conn.send(
            "POST /a HTTP/1.1\r\nHost: cart\r\nX-Role: admin\r\nX-Tenant: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;
        assert_eq!(conn.head().await.status, 200);
        assert_eq!(conn.chunk().await, b"hi");
        // The same field, other values that still allow.
        shop.cart
            .policy(&when("{key: 'request.headers[x-role]', values: [admin, root]}"));
        conn.send("1\r\nx\r\n").await;
        assert_eq!(conn.chunk().await, b"tick");
        shop.cart
            .policy(&when("{key: 'request.headers[x-tenant]', values: [a]}"));
        assert_eq!(soon("the stream is cut", conn.rest()).await, b"");
    });
}

#[test]
fn addresses_ports_and_server_names_are_those_of_the_connection() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        for (condition, expected) in [
            ("{key: source.ip, values: [127.0.0.0/8]}", 200),
            ("{key: source.ip, values: [10.0.0.0/8]}", 403),
            ("{key: source.ip, notValues: [127.0.0.1]}", 403),
            ("{key: remote.ip, values: [127.0.0.1]}", 200),
            ("{key: destination.ip, values: [127.0.0.1]}", 200),
            ("{key: destination.ip, values: [127.0.0.2]}", 403),
            ("{key: destination.port, values: ['80']}", 200),
            ("{key: destination.port, values: ['81']}", 403),
            ("{key: source.trustDomain, values: [cluster.local]}", 200),
            ("{key: source.trustDomain, notValues: [cluster.local]}", 403),
            ("{key: source.principal, values: ['*/sa/web']}", 200),
            ("{key: connection.sni, values: [nobody.else]}", 403),
            // Proxies of the mesh send none.
            ("{key: connection.sni, values: ['*']}", 403),
        ] {
            shop.cart.policy(&when(condition));
            // Who is believed about others is nobody.
            let fields = "X-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\n";
            assert_eq!(status(&mut conn, fields).await, expected, "{condition}");
        }

        let mut named = (*shop.authority.client(WEB, b"postern/h1")).clone();
        named.enable_sni = true;
        let mut conn = Conn::tls(shop.door, Arc::new(named)).await.unwrap();
        for (name, expected) in [("nobody.invalid", 200), ("*.invalid", 200), ("nobody.else", 403)] {
            shop.cart
                .policy(&when(&format!("{{key: connection.sni, values: ['{name}']}}")));
            assert_eq!(status(&mut conn, "").await, expected, "{name}");
        }
    });
}

#[test]
fn what_an_audit_policy_marks_is_counted_whatever_becomes_of_it() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        let audit = policy("AUDIT", "to: [{operation: {methods: [GET]}}]");
        shop.cart.policy(&(policy("ALLOW", "") + &audit));
        assert_eq!(status(&mut conn, "").await, 200);
        shop.cart.policy(&audit);
        assert_eq!(status(&mut conn, "").await, 403, "AUDIT allows nothing");
        let marked = || {
            shop.cart
                .metric("postern_proxy_audited_total", &["policy=\"shop/audit\""])
        };
        assert_eq!(marked(), 2);
        conn.send("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert_eq!(conn.answer().await.status, 403);
        assert_eq!(marked(), 2);
    });
}

#[test]
fn in_monitor_what_would_be_denied_is_counted_with_its_policy_and_let_through() {
    run(async {
        let shop = Shop::new().await;
        shop.cart.policy_in(
            Mode::Monitor,
            &policy("DENY", "when: [{key: 'request.headers[x-role]', values: [guest]}]"),
        );
        let mut conn = shop.h1().await;
        assert_eq!(status(&mut conn, "X-Role: guest\r\n").await, 200);
        let would = shop.cart.metric(
            "postern_proxy_denials_total",
            &["policy=\"shop/deny\"", "reason=\"deny_rule\"", "enforced=\"false\""],
        );
        assert_eq!(would, 1);
        let (denials, _) = shop.cart.worker.access_log.denials().take();
        assert_eq!(denials.len(), 1, "{denials:?}");
        assert!(
            denials[0].would_deny && denials[0].policy == "shop/deny" && denials[0].reason == "deny_rule",
            "{denials:?}"
        );
        assert!(denials[0].rule.starts_with("policy.yaml:"), "{denials:?}");
    });
}

//! One effective authority, and what of a request line changes no decision.

use super::smuggling::attack;
use crate::world::{Shop, run};

#[test]
fn h1_12_a_request_without_exactly_one_well_formed_host_is_refused() {
    run(async {
        let shop = Shop::new().await;
        for (case, head) in [
            ("none", "GET /a HTTP/1.1\r\n"),
            ("none, HTTP/1.0", "GET /a HTTP/1.0\r\n"),
            ("none, absolute-form", "GET http://cart/a HTTP/1.1\r\n"),
            ("empty", "GET /a HTTP/1.1\r\nHost:\r\n"),
            ("two", "GET /a HTTP/1.1\r\nHost: cart\r\nHost: other\r\n"),
            ("two alike", "GET /a HTTP/1.1\r\nHost: cart\r\nHost: cart\r\n"),
            ("a list", "GET /a HTTP/1.1\r\nHost: cart, other\r\n"),
            ("userinfo", "GET /a HTTP/1.1\r\nHost: me@cart\r\n"),
            ("a path", "GET /a HTTP/1.1\r\nHost: cart/b\r\n"),
            ("a query", "GET /a HTTP/1.1\r\nHost: cart?b\r\n"),
            ("a scheme", "GET /a HTTP/1.1\r\nHost: http://cart\r\n"),
            ("no port after the colon", "GET /a HTTP/1.1\r\nHost: cart:http\r\n"),
            ("port too large", "GET /a HTTP/1.1\r\nHost: cart:65536\r\n"),
            ("a space", "GET /a HTTP/1.1\r\nHost: cart x\r\n"),
            (
                "an alias",
                "GET /a HTTP/1.1\r\nHost: cart\r\nHo_st: x\r\nContent_Length: 1\r\n",
            ),
            (
                "other than the target's",
                "GET http://other/a HTTP/1.1\r\nHost: cart\r\n",
            ),
            (
                "another port than the target's",
                "GET http://cart:81/a HTTP/1.1\r\nHost: cart\r\n",
            ),
            (
                "userinfo in the target",
                "GET http://me@cart/a HTTP/1.1\r\nHost: cart\r\n",
            ),
            ("another scheme", "GET ftp://cart/a HTTP/1.1\r\nHost: cart\r\n"),
        ] {
            attack(&shop, &[format!("{head}\r\n").as_bytes()])
                .await
                .assert_unseen(case);
        }
    });
}

#[test]
fn h1_12_absolute_form_with_the_same_host_goes_on_in_origin_form() {
    run(async {
        let shop = Shop::new().await;
        let request = "GET http://CART/a?b HTTP/1.1\r\nHost: cart\r\n\r\n";
        let fate = attack(&shop, &[request.as_bytes()]).await;
        assert_eq!(fate.assert_one("absolute").target, "/a?b");
    });
}

#[test]
fn z_04_method_case_is_the_apps_business_and_an_override_header_changes_no_decision() {
    run(async {
        let shop = Shop::with(
            postern_proxy::snapshot::Protocol::Http1,
            "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: read, namespace: shop}
spec:
  action: ALLOW
  rules:
  - to: [{operation: {methods: [GET]}}]
",
        )
        .await;
        for method in ["POST", "get", "Get", "GETT", "FOO", "TRACE", "HEAD"] {
            let request = format!("{method} /a HTTP/1.1\r\nHost: cart\r\nX-HTTP-Method-Override: GET\r\n\r\n");
            let mut conn = shop.h1().await;
            conn.send(&request).await;
            assert_eq!(conn.answer_to(method).await.status, 403, "{method}");
        }
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\nX-HTTP-Method-Override: DELETE\r\n\r\n")
            .await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(shop.app.only().method, "GET");
    });
}

#[test]
fn z_04_the_case_and_the_trailing_dot_of_a_host_change_no_decision() {
    run(async {
        let shop = Shop::with(
            postern_proxy::snapshot::Protocol::Http1,
            "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec:
  action: ALLOW
  rules: [{}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admin, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {hosts: [admin.shop, 'admin.shop:*']}}]
",
        )
        .await;
        for host in [
            "admin.shop",
            "ADMIN.shop",
            "Admin.Shop:80",
            "admin.shop.",
            "admin.shop.:80",
            "admin.shop:8080",
        ] {
            for target in ["/a".to_owned(), format!("http://{host}/a")] {
                let mut conn = shop.h1().await;
                conn.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
                    .await;
                let status = conn.answer().await.status;
                assert!(matches!(status, 400 | 403), "{target} at {host}: {status}");
            }
        }
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        shop.app.only();
    });
}

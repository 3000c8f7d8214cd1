//! A DENY rule about a field cannot be got past by how the field is sent: to the relay, to hyper, over HTTP/2.

use http::{HeaderName, HeaderValue};
use postern_proxy::snapshot::Protocol;

use crate::world::h2::{Client, get};
use crate::world::{Shop, run};

/// Everything, but nothing with these fields.
fn denying(conditions: &[(&str, &str)]) -> String {
    let rules: String = conditions
        .iter()
        .map(|(name, value)| format!("  - when: [{{key: 'request.headers[{name}]', values: ['{value}']}}]\n"))
        .collect();
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: all, namespace: shop}}
spec:
  rules: [{{}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: fields, namespace: shop}}
spec:
  action: DENY
  rules:
{rules}"
    )
}

/// The status over HTTP/1.1: in origin-form (our relay reads it) and in absolute-form (hyper does).
async fn statuses(shop: &Shop, fields: &str) -> [u16; 2] {
    let mut statuses = [0; 2];
    for (target, status) in ["/a", "http://cart/a"].into_iter().zip(&mut statuses) {
        let mut conn = shop.h1().await;
        conn.send(format!("POST {target} HTTP/1.1\r\nHost: cart\r\n{fields}\r\n"))
            .await;
        *status = conn.answer().await.status;
    }
    statuses
}

#[test]
fn z_10_connection_hides_no_field_from_a_denial_that_it_cannot_take_away() {
    run(async {
        let policy = denying(&[
            ("content-type", "application/xml"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "*"),
            ("content-length", "7"),
            ("te", "trailers"),
            ("x-debug", "on"),
        ]);
        let shop = Shop::with(Protocol::Http1, &policy).await;
        for fields in [
            "Content-Type: application/xml\r\n",
            "Content-Type: application/xml\r\nConnection: content-type\r\n",
            "Connection: Content-Type, close\r\nContent-Type: application/xml\r\n",
            "Upgrade: websocket\r\nConnection: upgrade\r\n",
            "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
            "Transfer-Encoding: chunked\r\n\r\n0\r\n",
            "Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n\r\n0\r\n",
            "Content-Length: 7\r\n\r\n1234567",
            "Content-Length: 7\r\nConnection: content-length\r\n\r\n1234567",
            "TE: trailers\r\n",
            "TE: trailers\r\nConnection: te\r\n",
            "X-Debug: on\r\n",
            "X_Debug: on\r\nConnection: x-debug\r\n",
        ] {
            assert_eq!(statuses(&shop, fields).await, [403, 403], "{fields:?}");
        }
        assert_eq!(shop.app.count(), 0);
        // What `Connection` does take away, the app does not see.
        let taken = "X-Debug: on\r\nConnection: x-debug\r\nContent-Length: 0\r\n";
        assert_eq!(statuses(&shop, taken).await, [200, 200]);
        for seen in shop.app.requests() {
            assert!(seen.all("x-debug").is_empty(), "{seen:#?}");
        }
    });
}

#[test]
fn a_cookie_in_crumbs_is_denied_as_the_whole_that_the_app_reads_and_by_each_crumb() {
    run(async {
        let shop = Shop::with(
            Protocol::Http1,
            &denying(&[("cookie", "a=1; b=2"), ("cookie", "evil=*")]),
        )
        .await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for (crumbs, status) in [
            (&["a=1; b=2"][..], 403),
            (&["a=1", "b=2"], 403),
            (&["x=1", "evil=1"], 403),
            (&["a=1", "b=3"], 200),
            (&["a=1"], 200),
        ] {
            let mut request = get("/a");
            for crumb in crumbs {
                let name = HeaderName::from_static("cookie");
                request.headers_mut().append(name, HeaderValue::from_static(crumb));
            }
            assert_eq!(client.request(request).await.unwrap().status, status, "{crumbs:?}");
            let lines: String = crumbs.iter().map(|crumb| format!("Cookie: {crumb}\r\n")).collect();
            let fields = format!("{lines}Content-Length: 0\r\n");
            assert_eq!(statuses(&shop, &fields).await, [status; 2], "{crumbs:?}");
        }
    });
}

//! An app that calls its own service goes through its own inbound, and is authorized like anybody else.

use postern_policy::peer_authentication::PortModes;
use postern_policy::{Mode, MtlsMode};
use postern_proxy::snapshot::{Door, Endpoint, Protocol, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::h2::{Client, grpc_app, request};
use crate::world::{Authority, CART, Canary, Conn, POLICY, Proxy, WEB, WEB_ONLY, endpoint, meshed, named, run};

/// The web, whose service is itself.
async fn web(app: &Canary, protocol: Protocol, policy: &str) -> (Authority, Proxy) {
    let authority = Authority::new("cluster.local");
    let web = Proxy::new(&authority, WEB, "web-1");
    let door = web.door(80, protocol, app.address).await;
    web.policy(policy);
    let own = || endpoint(door, WEB, Some("web-1"), protocol, Door::Sidecar);
    web.knows(named("web.shop", 80), meshed(protocol, vec![own()]));
    (authority, web)
}

#[test]
fn a_call_to_oneself_is_authorized_and_carries_our_own_identity() {
    run(async {
        let app = Canary::start().await;
        let (_authority, web) = web(&app, Protocol::Http1, POLICY).await;
        let mut conn = Conn::plain(web.explicit().await).await;
        for (path, status) in [("/a", 200), ("/secret", 403), ("/b", 200)] {
            conn.send(format!("GET http://web.shop{path} HTTP/1.1\r\nHost: x\r\n\r\n"))
                .await;
            assert_eq!(conn.answer().await.status, status, "{path}");
        }
        assert_eq!(app.count(), 2);
        assert!(
            app.requests()
                .iter()
                .all(|request| request.all("x-postern-source") == [WEB])
        );
        // In process: the listener never saw it.
        assert_eq!(web.serving(), 1);
        let both = |direction| web.metric("postern_proxy_requests_total", &[direction, "tls=\"mutual\""]);
        assert_eq!((both("direction=\"inbound\""), both("direction=\"outbound\"")), (3, 3));
        // Nobody may: neither may we.
        web.policy("");
        conn.send("GET http://web.shop/a HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 403);
    });
}

#[test]
fn a_captured_call_to_ones_own_address_reaches_the_app_there() {
    run(async {
        let app = Canary::start().await;
        let (_authority, web) = web(&app, Protocol::Http1, POLICY).await;
        // Redirect capture: the endpoint is the app's own address.
        let own = Endpoint {
            address: app.address,
            ..endpoint(app.address, WEB, Some("web-1"), Protocol::Http1, Door::Sidecar)
        };
        let original = "10.96.0.1:80".parse().unwrap();
        web.knows(Target::Address(original), meshed(Protocol::Http1, vec![own]));
        let mut conn = Conn::plain(web.captured(original).await).await;
        conn.send("GET /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(app.only().all("x-postern-source"), [WEB]);
        conn.send("GET /secret HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 403);
    });
}

#[test]
fn grpc_and_opaque_streams_reach_oneself_too() {
    run(async {
        let app = grpc_app().await;
        let (_authority, proxy) = web(&app, Protocol::Http2, POLICY).await;
        let mut conn = Conn::plain(proxy.explicit().await).await;
        conn.send("CONNECT web.shop:80 HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(conn.answer_to("HEAD").await.status, 200);
        let mut client = Client::over(conn).await;
        let answer = client
            .post(request(http::Method::POST, "/a"), b"ping", None)
            .await
            .unwrap();
        assert_eq!(
            (answer.body.as_slice(), &answer.trailers.unwrap()["grpc-status"]),
            (&b"ping"[..], &"0".parse().unwrap())
        );

        let app = Canary::serving(|mut stream, _, _| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
        })
        .await;
        for (policy, passes) in [(WEB_ONLY, true), ("", false)] {
            let (_authority, proxy) = web(&app, Protocol::Tcp, policy).await;
            let mut conn = Conn::plain(proxy.explicit().await).await;
            conn.send("CONNECT web.shop:80 HTTP/1.1\r\nHost: x\r\n\r\nping").await;
            assert_eq!(conn.answer_to("HEAD").await.status, 200);
            if passes {
                assert_eq!(conn.exactly(11).await, b"220 ready\r\n");
                conn.finish().await;
                assert_eq!(conn.rest().await, b"ping");
            } else {
                conn.ends().await;
            }
        }
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn another_instance_or_identity_at_ones_own_address_is_not_oneself() {
    run(async {
        // Closes on whatever is no HTTP.
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut first = [0; 1];
            if stream.peek(&mut first).await.is_ok_and(|n| n == 1 && first == *b"G") {
                canary
                    .serve(stream, connection, &|_| (crate::world::canary::ok("oneself"), true))
                    .await;
            } else {
                let _ = stream.read(&mut [0; 4096]).await;
            }
        })
        .await;
        let (_authority, web) = web(&app, Protocol::Http1, POLICY).await;
        let explicit = web.explicit().await;
        for (id, instance) in [(WEB, Some("web-2")), (CART, Some("web-1"))] {
            // The app's port, where no TLS is spoken: were it taken for ourselves, it would be answered.
            let end = endpoint(app.address, id, instance, Protocol::Http1, Door::Sidecar);
            web.knows(named("web.shop", 80), meshed(Protocol::Http1, vec![end]));
            let mut conn = Conn::plain(explicit).await;
            conn.send("GET http://web.shop/a HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert_eq!(conn.answer().await.status, 502);
        }
        assert_eq!((app.connections(), app.count()), (2, 0));
    });
}

#[test]
fn where_we_take_plaintext_alone_a_call_to_oneself_passes_our_own_inbound_all_the_same() {
    run(async {
        let app = Canary::start().await;
        let (_authority, web) = web(&app, Protocol::Http1, POLICY).await;
        let anybody = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec: {action: ALLOW, rules: [{to: [{operation: {paths: [/a]}}]}]}
";
        let modes = PortModes {
            usual: MtlsMode::Strict,
            ports: [(80, MtlsMode::Disable)].into(),
        };
        web.policy_at(Mode::Protect, modes, anybody);
        // Redirect capture: the endpoint is the app's own address, which our packets would reach directly.
        let own = |workload: &str, instance: &str| {
            let mut end = endpoint(app.address, WEB, Some(instance), Protocol::Http1, Door::Open);
            end.expected.ids.clear();
            end.workload = workload.into();
            end
        };
        let original = "10.96.0.1:80".parse().unwrap();
        web.knows(
            Target::Address(original),
            meshed(Protocol::Http1, vec![own("shop/w", "web-1")]),
        );
        let mut conn = Conn::plain(web.captured(original).await).await;
        for (path, status) in [("/a", 200), ("/b", 403)] {
            conn.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            assert_eq!(conn.answer().await.status, status, "{path}");
        }
        assert!(app.only().all("x-postern-source").is_empty(), "nobody proved anything");
        // Of another instance, or another namespace's, it is not ourselves: it is called where it is.
        for (workload, instance) in [("shop/w", "web-2"), ("other/w", "web-3")] {
            web.knows(
                Target::Address(original),
                meshed(Protocol::Http1, vec![own(workload, instance)]),
            );
            let mut conn = Conn::plain(web.captured(original).await).await;
            conn.send("GET /b HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert_eq!(conn.answer().await.status, 200);
        }
    });
}

//! The explicit port: an HTTP proxy and CONNECT.

use http::{HeaderMap, Method};
use postern_proxy::outcome::Failure;
use postern_proxy::snapshot::{Destination, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::h2::{Client, grpc_app, request};
use crate::world::{Canary, GET, Pair, WEB, named, run, until};

#[test]
fn an_absolute_form_request_reaches_the_app_in_origin_form_under_our_identity() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let mut conn = pair.client().await;
        conn.send(
            "GET http://Cart.Shop/a/b?c HTTP/1.1\r\nHost: other\r\nHost: another\r\nProxy-Connection: keep-alive\r\n\
             Proxy-Authorization: Basic x\r\nX-Postern-Source: forged\r\nAccept: */*\r\n\r\n",
        )
        .await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "/a/b?c"));
        let seen = pair.app.only();
        assert_eq!(seen.all("host"), ["cart.shop"]);
        assert_eq!(seen.all("x-postern-source"), [WEB]);
        assert_eq!(seen.field("accept"), Some("*/*"));
        for name in ["proxy-connection", "proxy-authorization"] {
            assert_eq!(seen.field(name), None);
        }
        // Kept, and so is the one between the proxies.
        for _ in 0..5 {
            conn.send(GET).await;
            assert_eq!(conn.answer().await.status, 200);
        }
        assert_eq!(pair.cart.serving(), 1);
    });
}

#[test]
fn one_connection_of_a_client_reaches_several_destinations() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let plain = Canary::start().await;
        let unmeshed = Destination::Unmeshed {
            service: "legacy.shop".into(),
            addresses: vec![plain.address],
        };
        pair.web.knows(named("legacy.shop", 80), unmeshed);
        let mut conn = pair.client().await;
        for n in 0..6 {
            let host = ["cart.shop", "legacy.shop"][n % 2];
            conn.send(format!("GET http://{host}/{n} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
                .await;
            assert_eq!(conn.answer().await.text(), format!("/{n}"));
        }
        assert_eq!((pair.app.count(), plain.count()), (3, 3));
        let encrypted = |tls| pair.web.metric("postern_proxy_requests_total", &["outbound", tls]);
        assert_eq!((encrypted("tls=\"mutual\""), encrypted("tls=\"none\"")), (3, 3));
    });
}

#[test]
fn a_destination_outside_of_the_mesh_is_looked_up_and_passed_through() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let outside = Canary::start().await;
        let port = outside.address.port();
        pair.web.knows(named("127.0.0.1", port), Destination::Outside);
        let mut conn = pair.client().await;
        conn.send(format!("GET http://127.0.0.1:{port}/out HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "/out");
        assert_eq!(outside.only().all("host"), [format!("127.0.0.1:{port}")]);
    });
}

#[test]
fn an_unknown_host_is_a_502_that_names_the_nearest() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let mut conn = pair.client().await;
        conn.send("GET http://crat.shop/a HTTP/1.1\r\nHost: crat.shop\r\n\r\n")
            .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 502);
        assert_eq!(
            answer.text(),
            "unknown_destination: no such service; did you mean `cart.shop`?\n"
        );
        // The connection goes on.
        conn.send(GET).await;
        assert_eq!(conn.answer().await.status, 200);
        let mut tunnel = pair.client().await;
        tunnel
            .send("CONNECT crat.shop:80 HTTP/1.1\r\nHost: crat.shop\r\n\r\n")
            .await;
        let answer = tunnel.answer().await;
        assert_eq!(answer.status, 502);
        assert!(answer.text().contains("did you mean `cart.shop`?"));
        let mut grpc = pair.client().await;
        grpc.send("POST http://crat.shop/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n").await;
        let answer = grpc.answer().await;
        assert_eq!((answer.status, answer.field("grpc-status")), (200, Some("14")));
        assert!(answer.field("grpc-message").unwrap().contains("cart.shop"));
    });
}

#[test]
fn what_is_no_proxy_request_is_a_400() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        for line in [
            "GET /a",
            "OPTIONS *",
            "GET https://cart.shop/a",
            "GET ftp://cart.shop/a",
            "GET http://me@cart.shop/a",
            "GET http://cart.shop:0/a",
            "CONNECT cart.shop",
            "CONNECT cart.shop:0",
            "CONNECT me:secret@cart.shop:80",
            "CONNECT /a",
            "CONNECT http://cart.shop/",
        ] {
            let mut conn = pair.client().await;
            conn.send(format!("{line} HTTP/1.1\r\nHost: cart.shop\r\n\r\n")).await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, 400, "{line}");
            conn.ends().await;
        }
        assert_eq!(pair.app.connections(), 0);
    });
}

#[test]
fn the_proxy_does_not_call_itself() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        let port = pair.explicit.port();
        pair.web.knows(named("127.0.0.1", port), Destination::Outside);
        for request in [
            format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
            format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n"),
        ] {
            let mut conn = pair.client().await;
            conn.send(request).await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, 502);
            assert!(answer.text().contains("this proxy itself"));
        }
    });
}

#[test]
fn http_1_in_a_tunnel_is_decided_request_by_request() {
    run(async {
        for protocol in [Protocol::Http1, Protocol::Detect] {
            let pair = Pair::new(protocol).await;
            let mut conn = pair.tunnel().await;
            for (path, status) in [("/a", 200), ("/secret", 403), ("/b", 200)] {
                conn.send(format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")).await;
                assert_eq!(conn.answer().await.status, status, "{path}");
            }
            // No tunnel in a tunnel.
            conn.send("CONNECT cart.shop:80 HTTP/1.1\r\nHost: cart\r\n\r\n").await;
            assert_eq!(conn.answer().await.status, 400);
            assert_eq!(pair.app.count(), 2);
        }
    });
}

#[test]
fn http_1_right_behind_a_connect_is_not_lost() {
    run(async {
        let pair = Pair::new(Protocol::Detect).await;
        let mut conn = pair.client().await;
        conn.send("CONNECT cart.shop:80 HTTP/1.1\r\nHost: x\r\n\r\nGET /early HTTP/1.1\r\nHost: cart\r\n\r\n")
            .await;
        assert_eq!(conn.answer_to("HEAD").await.status, 200);
        assert_eq!(conn.answer().await.text(), "/early");
    });
}

#[test]
fn grpc_in_a_tunnel_passes_with_its_trailers() {
    run(async {
        for protocol in [Protocol::Http2, Protocol::Detect] {
            let pair = Pair::before(grpc_app().await, protocol).await;
            let mut client = Client::over(pair.tunnel().await).await;
            let mut call = request(Method::POST, "/shop.Cart/Add");
            call.headers_mut()
                .insert("content-type", "application/grpc".parse().unwrap());
            call.headers_mut().insert("te", "trailers".parse().unwrap());
            let mut trailers = HeaderMap::new();
            trailers.insert("x-of-client", "1".parse().unwrap());
            let answer = client.post(call, b"ping", Some(trailers)).await.unwrap();
            assert_eq!(answer.body, b"ping");
            let trailers = answer.trailers.unwrap();
            assert_eq!(
                (&trailers["grpc-status"], &trailers["seen-trailer"]),
                (&"0".parse().unwrap(), &"1".parse().unwrap())
            );
            let seen = pair.app.only();
            assert_eq!(
                (seen.all("x-postern-source"), seen.field("te")),
                (vec![WEB], Some("trailers"))
            );
        }
    });
}

#[test]
fn an_opaque_tunnel_opens_when_the_peer_has_and_passes_half_close() {
    run(async {
        let app = Canary::serving(|mut stream, _, _| async move {
            stream.write_all(b"220 ready\r\n").await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
        })
        .await;
        let pair = Pair::before(app, Protocol::Tcp).await;
        let mut conn = pair.tunnel().await;
        assert_eq!(conn.exactly(11).await, b"220 ready\r\n");
        conn.send("over and ").await;
        conn.send("out").await;
        conn.finish().await;
        assert_eq!(conn.rest().await, b"over and out");
        until("all is over", || pair.web.serving() == 0 && pair.cart.serving() == 0).await;
        // Nobody there: the answer to CONNECT says so.
        pair.instead(Protocol::Tcp, Vec::new());
        let mut conn = pair.client().await;
        conn.send("CONNECT cart.shop:80 HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (503, "no_endpoint\n"));
    });
}

#[test]
fn a_destination_that_must_not_be_reached_says_why() {
    run(async {
        let pair = Pair::new(Protocol::Http1).await;
        for (failure, status) in [(Failure::NoPeerIdentity, 502), (Failure::ControlUnavailable, 503)] {
            let nowhere = Destination::Unreachable(failure, "for a reason".to_owned());
            pair.web.knows(named("cart.shop", 80), nowhere);
            let mut conn = pair.client().await;
            conn.send(GET).await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.text(), format!("{}: for a reason\n", failure.facts().reason));
        }
    });
}

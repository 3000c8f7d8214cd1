//! What the app may believe: our identity fields, once, and ours.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use postern_policy::Mode;
use postern_proxy::snapshot::Protocol;
use tokio::io::AsyncWriteExt;

use crate::world::h2::{Client, request};
use crate::world::{CART, Canary, Conn, POLICY, Received, Shop, WEB, run};

/// Every name that some server behind us could take for one of ours.
const FORGED: [&str; 14] = [
    "x-forwarded-client-cert",
    "X-Forwarded-Client-Cert",
    "x_forwarded_client_cert",
    "x.forwarded.client.cert",
    "x-forwarded_client.cert",
    "x-postern-source",
    "X-POSTERN-SOURCE",
    "x_postern_source",
    "x.postern.source",
    "x-postern_source",
    "x-postern-anything",
    "x-envoy-peer-metadata",
    "x_forwarded_for",
    "x_real_ip",
];

/// Exactly ours, and nothing that folds to them.
fn assert_ours(seen: &Received, case: &str) {
    assert_eq!(seen.all("x-postern-source"), [WEB], "{case}: {seen:#?}");
    let xfcc = seen.all("x-forwarded-client-cert");
    assert_eq!(xfcc.len(), 1, "{case}: {seen:#?}");
    let (by, hash, uri) = {
        let mut parts = xfcc[0].split(';');
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
    };
    assert_eq!((by, uri), (&*format!("By={CART}"), &*format!("URI={WEB}")), "{case}");
    let hash = hash.strip_prefix("Hash=").unwrap();
    assert!(
        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
        "{case}: {hash}"
    );
    for (name, value) in seen.fields.iter().chain(&seen.trailers) {
        assert!(!value.contains("forged"), "{case}: {name}: {value}");
    }
}

#[test]
fn z_09_a_forged_identity_field_in_any_spelling_is_replaced_by_ours() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        let mut all = String::new();
        for name in FORGED {
            let line = format!("{name}: forged\r\n");
            all.push_str(&line);
            // Before and after others, once and twice.
            for fields in [
                line.clone(),
                format!("{line}{line}"),
                format!("X-A: 1\r\n{line}X-B: 2\r\n"),
            ] {
                conn.send(format!("GET /a HTTP/1.1\r\n{fields}Host: cart\r\n\r\n"))
                    .await;
                assert_eq!(conn.answer().await.status, 200, "{name}");
                assert_ours(shop.app.requests().last().unwrap(), name);
            }
        }
        conn.send(format!("GET /a HTTP/1.1\r\nHost: cart\r\n{all}\r\n")).await;
        assert_eq!(conn.answer().await.status, 200);
        assert_ours(shop.app.requests().last().unwrap(), "all at once");
    });
}

#[test]
fn z_09_a_forged_identity_field_over_http_2_is_replaced_by_ours() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for name in FORGED {
            let name = name.to_lowercase();
            let mut request = request(Method::POST, "/a");
            for value in ["forged", "forged again"] {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                request.headers_mut().append(name, HeaderValue::from_static(value));
            }
            request
                .headers_mut()
                .append("trailer", HeaderValue::from_str(&name).unwrap());
            let mut trailers = HeaderMap::new();
            let trailer = HeaderName::from_bytes(name.as_bytes()).unwrap();
            trailers.append(trailer, HeaderValue::from_static("forged"));
            let answer = client.post(request, b"hello", Some(trailers)).await.unwrap();
            assert_eq!(answer.status, 200, "{name}");
            assert_ours(shop.app.requests().last().unwrap(), &name);
        }
    });
}

#[test]
fn z_10_connection_cannot_take_away_what_we_set_nor_what_frames() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        for named in [
            "x-postern-source",
            "X-Postern-Source, X-Forwarded-Client-Cert",
            "x-forwarded-client-cert, x_postern_source",
            "HOST",
            "content-length",
            "host, Content-Length, content-type, trailer",
            "keep-alive, x-postern-source ,,",
        ] {
            conn.send(format!(
                "POST /a HTTP/1.1\r\nHost: cart\r\nConnection: {named}\r\nX-Postern-Source: forged\r\n\
                 Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
            ))
            .await;
            assert_eq!(conn.answer().await.status, 200, "{named}");
            let seen = shop.app.requests().pop().unwrap();
            assert_ours(&seen, named);
            assert_eq!(seen.field("content-type"), Some("text/plain"), "{named}");
            assert_eq!(
                (seen.body.as_slice(), seen.all("connection").len()),
                (&b"hello"[..], 0),
                "{named}"
            );
        }
    });
}

#[test]
fn z_10_what_connection_names_and_what_belongs_to_one_hop_ends_here() {
    run(async {
        let shop = Shop::new().await;
        let mut conn = shop.h1().await;
        conn.send(
            "GET /a HTTP/1.1\r\nHost: cart\r\nConnection: X-Hop, keep-alive\r\nConnection: x-OTHER\r\nX-Hop: 1\r\n\
             X-Other: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: x\r\n\
             TE: gzip\r\nAuthorization: Bearer x\r\nTraceparent: 00-1-2-03\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
        )
        .await;
        assert_eq!(conn.answer().await.status, 200);
        let seen = shop.app.only();
        let mut names: Vec<&str> = seen.fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let left = [
            "authorization",
            "host",
            "traceparent",
            "x-forwarded-client-cert",
            "x-forwarded-for",
            "x-postern-source",
        ];
        assert_eq!(names, left);
    });
}

#[test]
fn z_09_an_anonymous_caller_of_a_permissive_port_has_no_identity_field_at_all() {
    run(async {
        let shop = Shop::new().await;
        shop.cart.policy_in(Mode::Discover, POLICY);
        let mut conn = Conn::plain(shop.door).await;
        let forged: String = FORGED.iter().map(|name| format!("{name}: forged\r\n")).collect();
        conn.send(format!("GET /a HTTP/1.1\r\nHost: cart\r\n{forged}\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 200);
        let seen = shop.app.only();
        assert_eq!(
            seen.fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["host"]
        );
    });
}

#[test]
fn z_09_an_app_cannot_speak_in_our_name_to_its_client() {
    run(async {
        let app = Canary::serving(|mut stream, canary, connection| async move {
            let mut read = Vec::new();
            while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                canary.saw(request);
                let answer = "HTTP/1.1 200 OK\r\nX-Postern-Decision-Id: forged\r\nX-Postern-Source: forged\r\n\
                              X-Forwarded-Client-Cert: forged\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\n\
                              Content-Length: 0\r\nX-Own: 1\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let shop = Shop::before(app, Protocol::Http1, POLICY).await;
        let mut conn = shop.h1().await;
        conn.send("GET /a HTTP/1.1\r\nHost: cart\r\n\r\n").await;
        let answer = conn.answer().await;
        let mut names: Vec<&str> = answer.fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-own"]);
    });
}

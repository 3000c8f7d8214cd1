//! HTTP/2 from peers that mean harm.

use postern_proxy::snapshot::Protocol;

use crate::world::h2::{
    Client, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, block, frame, pseudo,
    read_frame,
};
use crate::world::{Conn, POLICY, Shop, run, soon, until};

/// A raw connection, greeted.
pub(crate) async fn greeted(shop: &Shop) -> Conn {
    let mut conn = shop.web(b"postern/h2").await;
    conn.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    conn
}

/// Frames until one of these kinds comes, or the end.
pub(crate) async fn next_of(conn: &mut Conn, kinds: &[u8]) -> Option<Frame> {
    loop {
        let frame = soon("a frame", read_frame(&mut conn.io)).await?;
        if kinds.contains(&frame.kind) {
            return Some(frame);
        }
    }
}

/// What became of one stream with these fields: reset or answered, and with what.
async fn fate(shop: &Shop, fields: &[(&str, &[u8])]) -> Option<Frame> {
    let mut conn = greeted(shop).await;
    conn.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields)))
        .await;
    next_of(&mut conn, &[RST_STREAM, GOAWAY, HEADERS]).await
}

#[test]
fn h2_08_malformed_pseudo_fields_and_fields_of_http_1_are_stream_errors() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let without = |name: &str| pseudo("/a").into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
        let with = |name: &'static str, value: &'static [u8]| {
            let mut fields = pseudo("/a");
            fields.push((name, value));
            fields
        };
        let first = |name: &'static str, value: &'static [u8]| {
            let mut fields = pseudo("/a");
            fields.insert(0, (name, value));
            fields
        };
        type Fields<'a> = Vec<(&'a str, &'a [u8])>;
        let cases: Vec<(&str, Fields<'_>)> = vec![
            ("no method", without(":method")),
            ("no path", without(":path")),
            ("no scheme", without(":scheme")),
            ("two methods", with(":method", b"GET")),
            ("two paths", with(":path", b"/b")),
            ("two authorities", with(":authority", b"cart")),
            ("an unknown one", with(":magic", b"1")),
            ("one of answers", with(":status", b"200")),
            ("a late one", first("x", b"1")),
            ("connection", with("connection", b"close")),
            ("keep-alive", with("keep-alive", b"1")),
            ("proxy-connection", with("proxy-connection", b"1")),
            ("transfer-encoding", with("transfer-encoding", b"chunked")),
            ("upgrade", with("upgrade", b"websocket")),
            ("te", with("te", b"gzip")),
            ("upper case", with("X-Upper", b"1")),
            ("a space in a name", with("x y", b"1")),
            ("a colon in a name", with("x:y", b"1")),
            ("no name", with("", b"1")),
            ("CR LF in a value", with("x", b"1\r\nx-postern-source: forged")),
            ("LF in a value", with("x", b"1\n2")),
            ("NUL in a value", with("x", b"1\x002")),
            (
                "CR LF in a path",
                vec![
                    (":method", b"GET"),
                    (":scheme", b"http"),
                    (":authority", b"cart"),
                    (":path", b"/a HTTP/1.1\r\nX: y"),
                ],
            ),
            (
                "a space in a path",
                vec![
                    (":method", b"GET"),
                    (":scheme", b"http"),
                    (":authority", b"cart"),
                    (":path", b"/a b"),
                ],
            ),
            (
                "an empty path",
                vec![
                    (":method", b"GET"),
                    (":scheme", b"http"),
                    (":authority", b"cart"),
                    (":path", b""),
                ],
            ),
            (
                "CR LF in the method",
                vec![
                    (":method", b"GET /x HTTP/1.1\r\nX:"),
                    (":scheme", b"http"),
                    (":authority", b"cart"),
                    (":path", b"/a"),
                ],
            ),
            (
                "CR LF in the authority",
                vec![
                    (":method", b"GET"),
                    (":scheme", b"http"),
                    (":authority", b"cart\r\nx: y"),
                    (":path", b"/a"),
                ],
            ),
            ("a length beyond the end", with("content-length", b"5")),
        ];
        for (case, fields) in cases {
            let ended = fate(&shop, &fields).await;
            // A stream error, or the connection's: never an answer of the app.
            let refused = ended
                .as_ref()
                .is_none_or(|frame| frame.kind != HEADERS || is_refusal(frame));
            assert!(refused, "{case}: {ended:?}");
            assert_eq!(shop.app.connections(), 0, "{case}");
        }
        shop.probe().await;
    });
}

/// An HPACK block that begins with a status of the 4xx: indexed 400 or 404, or a literal.
fn is_refusal(frame: &Frame) -> bool {
    matches!(frame.payload.first(), Some(0x8c | 0x8d))
        || frame.payload.windows(3).any(|window| window.starts_with(b"4"))
}

#[test]
fn h2_08_a_target_or_authority_that_means_two_things_is_a_400() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        for (case, fields) in [
            ("a path without a slash", [("GET", "http", "cart", "a")]),
            ("an asterisk", [("OPTIONS", "http", "cart", "*")]),
            ("an absolute path", [("GET", "http", "cart", "http://other/a")]),
            ("another scheme", [("GET", "ftp", "cart", "/a")]),
            ("userinfo", [("GET", "http", "me@cart", "/a")]),
            ("an empty authority", [("GET", "http", "", "/a")]),
            ("a path in the authority", [("GET", "http", "cart/b", "/a")]),
        ] {
            let (method, scheme, authority, path) = fields[0];
            let fields = [
                (":method", method.as_bytes()),
                (":scheme", scheme.as_bytes()),
                (":authority", authority.as_bytes()),
                (":path", path.as_bytes()),
            ];
            let ended = fate(&shop, &fields).await;
            assert!(
                ended
                    .as_ref()
                    .is_none_or(|frame| frame.kind != HEADERS || is_refusal(frame)),
                "{case}: {ended:?}"
            );
            assert_eq!(shop.app.connections(), 0, "{case}");
        }
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for host in ["other", "cart:81", "cart, other"] {
            let mut differing = crate::world::h2::get("/a");
            differing.headers_mut().insert("host", host.parse().unwrap());
            assert_eq!(client.request(differing).await.unwrap().status, 400, "{host}");
        }
        let mut alike = crate::world::h2::get("/a");
        alike.headers_mut().insert("host", "cart".parse().unwrap());
        assert_eq!(client.request(alike).await.unwrap().status, 200);
        assert_eq!(shop.app.only().all("host"), ["cart"]);
    });
}

#[test]
fn h2_08_connect_is_refused() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        let plain: [(&str, &[u8]); 2] = [(":method", b"CONNECT"), (":authority", b"cart:22")];
        let extended: [(&str, &[u8]); 5] = [
            (":method", b"CONNECT"),
            (":protocol", b"websocket"),
            (":scheme", b"http"),
            (":authority", b"cart"),
            (":path", b"/ws"),
        ];
        for fields in [&plain[..], &extended] {
            let ended = fate(&shop, fields).await;
            assert!(
                ended
                    .as_ref()
                    .is_none_or(|frame| frame.kind != HEADERS || is_refusal(frame)),
                "{ended:?}"
            );
        }
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

#[test]
fn h2_08_a_body_that_differs_from_its_length_is_never_whole_at_the_app() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        for (length, body) in [("4", "hello"), ("6", "hello")] {
            let mut conn = greeted(&shop).await;
            let mut fields = pseudo("/a");
            fields[0].1 = b"POST";
            fields.push(("content-length", length.as_bytes()));
            let mut bytes = frame(HEADERS, END_HEADERS, 1, &block(&fields));
            bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
            conn.send(bytes).await;
            let ended = next_of(&mut conn, &[RST_STREAM, GOAWAY, HEADERS]).await;
            assert!(
                ended
                    .as_ref()
                    .is_none_or(|frame| frame.kind != HEADERS || is_refusal(frame)),
                "{length}: {ended:?}"
            );
        }
        until("the app was let go", || shop.app.open() == 0).await;
        assert!(
            shop.app.requests().iter().all(|request| !request.whole),
            "{:#?}",
            shop.app.requests()
        );
        shop.probe().await;
    });
}

#[test]
fn h2_07_a_malformed_header_block_is_a_connection_error() {
    run(async {
        let shop = Shop::with(Protocol::Http1, POLICY).await;
        for garbage in [
            // Index 0; an index past the table; a table size past the bound; a truncated literal; bad Huffman padding.
            &b"\x80"[..],
            b"\xff\xff\xff\xff\x0f",
            b"\x3f\xff\xff\xff\x0f",
            b"\x10\x7f",
            b"\x10\x81\x00\x81\x00",
        ] {
            let mut conn = greeted(&shop).await;
            conn.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, garbage)).await;
            let end = next_of(&mut conn, &[GOAWAY, HEADERS, RST_STREAM]).await;
            assert!(
                end.as_ref().is_none_or(|frame| frame.kind == GOAWAY),
                "{garbage:?}: {end:?}"
            );
        }
        assert_eq!(shop.app.connections(), 0);
        shop.probe().await;
    });
}

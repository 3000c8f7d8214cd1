//! The bytes that are decided on are the bytes that are forwarded.

use postern_proxy::snapshot::Protocol;

use crate::world::h2::Client;
use crate::world::{Canary, Conn, POLICY, Shop, run};

/// An app that forgives: it decodes, twice, resolves dots (also with parameters), takes a backslash for a slash and NUL
/// for the end, and says which page it would return. (One that also takes `/secret;x` or `/;/secret` for `/secret` must be guarded by
/// ALLOW rules; parameters are legal and matched as they stand.)
fn page(target: &str) -> &'static str {
    let path = target.split(['?', '#']).next().unwrap();
    let decoded = decode(&decode(path.as_bytes()));
    let text = String::from_utf8_lossy(&decoded).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        let segment = segment.split('\0').next().unwrap();
        match segment.split(';').next().unwrap() {
            _ if segment.is_empty() => {}
            "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    if segments.first() == Some(&"secret") {
        "SECRET"
    } else {
        "public"
    }
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let value = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match value {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

async fn shop() -> Shop {
    let app = Canary::answering(|request| (crate::world::canary::ok(page(&request.target)), false)).await;
    Shop::before(app, Protocol::Http1, POLICY).await
}

/// What came of a target: the status, and what the app was asked for.
async fn ask(shop: &Shop, conn: &mut Option<Conn>, target: &[u8]) -> (u16, Option<String>) {
    let before = shop.app.count();
    let mut open = match conn.take() {
        Some(open) => open,
        None => shop.h1().await,
    };
    open.send([b"GET ", target, b" HTTP/1.1\r\nHost: cart\r\n\r\n"].concat())
        .await;
    let Some(answer) = open.try_answer().await else {
        return (0, None);
    };
    assert!(
        !answer.text().contains("SECRET"),
        "{:?}",
        String::from_utf8_lossy(target)
    );
    if !answer.closes() {
        *conn = Some(open);
    }
    let forwarded = shop.app.since(before).pop();
    (answer.status, forwarded.map(|request| request.target))
}

#[test]
fn z_01_every_single_encoding_after_and_inside_a_protected_path_is_decided_as_it_is_forwarded() {
    run(async {
        let shop = shop().await;
        let mut conn = None;
        for byte in 0..=255_u8 {
            for encoded in [format!("%{byte:02X}"), format!("%{byte:02x}")] {
                for target in [
                    format!("/secret{encoded}"),
                    format!("/secret/{encoded}"),
                    format!("/{encoded}secret"),
                    format!("/{encoded}/secret"),
                    format!("/x/..{encoded}secret"),
                ] {
                    let (status, forwarded) = ask(&shop, &mut conn, target.as_bytes()).await;
                    match (status, forwarded) {
                        // What was forwarded is canonical: asked for as it stands, it is decided alike and not changed.
                        (200, Some(path)) => {
                            let again = ask(&shop, &mut conn, path.as_bytes()).await;
                            assert_eq!(again, (200, Some(path.clone())), "{target}");
                        }
                        (400 | 403 | 0, None) => {}
                        other => panic!("{target}: {other:?}"),
                    }
                }
            }
        }
    });
}

#[test]
fn z_02_what_servers_read_differently_is_a_400() {
    run(async {
        let shop = shop().await;
        for target in [
            &b"/a%2fb"[..],
            b"/a%2Fb",
            b"/a%5cb",
            b"/a\\b",
            b"/..%2fsecret",
            b"/x/%2e%2e/secret",
            b"/x/.%2e/secret",
            b"/%2e/secret",
            b"/x/..;/secret",
            b"/x/.;a=b/secret",
            b"/x/..%3b/secret",
            b"/..",
            b"/../secret",
            b"/a%00",
            b"/a%0a",
            b"/a%7f",
            b"/a%",
            b"/a%4",
            b"/a%zz",
            b"/a%c0%af",
            b"/a%ff",
            b"/a%ed%a0%80",
            b"/\xc3\xa9",
            b"/\xff",
            b"/a\"b",
            b"/a<b",
            b"/a[b",
            b"/a^b",
            b"/a`b",
            b"/a{b}",
            b"/a|b",
            b"*",
            b"a",
            b"//",
        ]
        .into_iter()
        .filter(|target| *target != b"//")
        {
            let (status, forwarded) = ask(&shop, &mut None, target).await;
            let shown = String::from_utf8_lossy(target);
            assert_eq!((status, forwarded), (400, None), "{shown}");
        }
    });
}

#[test]
fn z_02_what_has_one_meaning_is_forwarded_in_one_form_and_decided_in_it() {
    run(async {
        let shop = shop().await;
        let mut conn = None;
        for (target, forwarded) in [
            ("/", "/"),
            ("//", "/"),
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/%61", "/a"),
            ("/%7euser", "/~user"),
            ("/a%c3%a9", "/a%C3%A9"),
            ("/a%252e", "/a%252e"),
            ("/a%20b", "/a%20b"),
            ("/a;v=1", "/a;v=1"),
            ("/a/", "/a/"),
            ("/a.", "/a."),
            ("/a*b", "/a*b"),
            ("/secre", "/secre"),
            ("/secretx", "/secretx"),
            ("/a?b=%2f..//c", "/a?b=%2f..//c"),
            ("/a?", "/a?"),
        ] {
            let got = ask(&shop, &mut conn, target.as_bytes()).await;
            assert_eq!(got, (200, Some(forwarded.to_owned())), "{target}");
        }
        for target in [
            "/secret",
            "/secret/",
            "/secret/x",
            "/secret?x",
            "//secret",
            "/x/../secret",
            "/./secret",
            "/%73ecret",
            "/s%65cre%74",
            "/secret//x",
            "http://cart/secret",
            "http://cart//secret",
        ] {
            let got = ask(&shop, &mut conn, target.as_bytes()).await;
            assert_eq!(got, (403, None), "{target}");
        }
    });
}

/// A fragment never goes over the wire (RFC 9112 section 3.2).
#[test]
fn z_02_a_fragment_is_refused() {
    run(async {
        let shop = shop().await;
        for target in [&b"/secret#x"[..], b"/a#/../secret", b"/a?b#c"] {
            assert_eq!(ask(&shop, &mut None, target).await, (400, None));
        }
    });
}

#[test]
fn z_02_paths_over_http_2_are_read_alike() {
    run(async {
        let shop = shop().await;
        let mut client = Client::over(shop.web(b"postern/h2").await).await;
        for (path, status) in [
            ("/secret", 403),
            ("//secret", 403),
            ("/x/../secret", 403),
            ("/%73ecret", 403),
            ("/a%2fb", 400),
            ("/x/..;/secret", 400),
            ("/a%00", 400),
            ("/a//b", 200),
        ] {
            let answer = client.get(path).await.unwrap();
            assert_eq!(answer.status, status, "{path}");
            assert!(!answer.body.starts_with(b"SECRET"));
        }
        assert_eq!(shop.app.only().target, "/a/b");
    });
}

//! Requests that two readers could read differently: refused and closed, or forwarded in one canonical form.

use std::time::Duration;

use crate::world::client::answers_in;
use crate::world::{Answer, Received, Shop, run};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: cart\r\n\r\n";

/// What became of bytes that were sent on one connection.
#[derive(Debug)]
pub(crate) struct Fate {
    pub answers: Vec<Answer>,
    /// Did the proxy end the connection?
    pub closed: bool,
    /// What the app saw meanwhile.
    pub seen: Vec<Received>,
}

/// Sends `pieces` one after the other, and afterwards lets a neighbour pass.
pub(crate) async fn attack(shop: &Shop, pieces: &[&[u8]]) -> Fate {
    let before = shop.app.count();
    let mut conn = shop.h1().await;
    for (at, piece) in pieces.iter().enumerate() {
        if at > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        conn.send(piece).await;
    }
    let (bytes, closed) = conn.until_quiet().await;
    let seen = shop.app.since(before);
    shop.probe().await;
    Fate {
        answers: answers_in(&bytes).await,
        closed,
        seen,
    }
}

impl Fate {
    /// 4xx or nothing, closed, and no whole request at the app.
    pub(crate) fn assert_refused(&self, case: &str) {
        assert!(self.closed, "{case}: kept open: {self:#?}");
        assert!(self.answers.len() <= 1, "{case}: {self:#?}");
        assert!(
            self.answers.iter().all(|answer| (400..500).contains(&answer.status)),
            "{case}: {self:#?}"
        );
        assert!(self.seen.iter().all(|request| !request.whole), "{case}: {self:#?}");
        assert!(
            self.seen.iter().all(|request| request.target != "/smuggled"),
            "{case}: {self:#?}"
        );
    }

    /// Refused before a byte of it reached the app.
    pub(crate) fn assert_unseen(&self, case: &str) {
        self.assert_refused(case);
        assert!(self.seen.is_empty(), "{case}: {self:#?}");
    }

    /// One request reached the app and was answered.
    pub(crate) fn assert_one(&self, case: &str) -> &Received {
        assert_eq!(self.answers.len(), 1, "{case}: {self:#?}");
        assert_eq!(self.answers[0].status, 200, "{case}: {self:#?}");
        assert_eq!(self.seen.len(), 1, "{case}: {self:#?}");
        assert!(self.seen[0].whole, "{case}: {self:#?}");
        &self.seen[0]
    }
}

/// Both framings at once are never guessed about.
#[test]
fn h1_01_both_framings_at_once_are_refused_in_every_order() {
    run(async {
        let shop = Shop::new().await;
        for (case, framing) in [
            ("CL.TE", "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"),
            ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n"),
            (
                "CL.CL.TE",
                "Content-Length: 6\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            ),
            (
                "TE between",
                "Content-Length: 6\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n",
            ),
        ] {
            let head = format!("POST /a HTTP/1.1\r\nHost: cart\r\n{framing}\r\n");
            let body = format!("0\r\n\r\n{SMUGGLED}");
            let whole = format!("{head}{body}");
            let at_once = attack(&shop, &[whole.as_bytes()]).await;
            let split = attack(&shop, &[head.as_bytes(), body.as_bytes()]).await;
            let (early, late) = whole.split_at(head.len() / 2);
            let torn = attack(&shop, &[early.as_bytes(), late.as_bytes()]).await;
            for fate in [at_once, split, torn] {
                fate.assert_unseen(case);
            }
        }
    });
}

#[test]
fn h1_01_a_length_that_is_no_number_is_refused_beside_chunked_too() {
    run(async {
        let shop = Shop::new().await;
        let request =
            "POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        attack(&shop, &[request.as_bytes()]).await.assert_unseen("CL x, TE");
    });
}

#[test]
fn h1_02_a_transfer_encoding_that_is_not_exactly_chunked_is_refused() {
    run(async {
        let shop = Shop::new().await;
        for line in [
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunkedx",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: chunked;q=1",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: \u{b}chunked",
            "Transfer-Encoding: chunked\u{b}",
            "Transfer-Encoding:",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding\t: chunked",
            " Transfer-Encoding: chunked",
            "X: y\r\n Transfer-Encoding: chunked",
            "Transfer-Encoding:\r\n chunked",
            "Transfer_Encoding: chunked",
            "Transfer.Encoding: chunked",
        ] {
            let request = format!("POST /a HTTP/1.1\r\nHost: cart\r\n{line}\r\n\r\n0\r\n\r\n{SMUGGLED}");
            attack(&shop, &[request.as_bytes()]).await.assert_unseen(line);
        }
    });
}

#[test]
fn h1_02_chunked_in_any_case_is_chunked() {
    run(async {
        let shop = Shop::new().await;
        for line in ["Transfer-Encoding: CHUNKED", "transfer-encoding:\tChunked "] {
            let request = format!("POST /a HTTP/1.1\r\nHost: cart\r\n{line}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
            let fate = attack(&shop, &[request.as_bytes()]).await;
            assert_eq!(fate.assert_one(line).body, b"abc");
        }
    });
}

#[test]
fn h1_03_http_1_0_has_no_transfer_encoding() {
    run(async {
        let shop = Shop::new().await;
        for connection in ["", "Connection: keep-alive\r\n"] {
            let request = format!(
                "POST /a HTTP/1.0\r\nHost: cart\r\n{connection}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            );
            attack(&shop, &[request.as_bytes()]).await.assert_unseen(connection);
        }
    });
}

#[test]
fn h1_03_what_follows_an_http_1_0_request_without_length_is_never_a_second_request() {
    run(async {
        let shop = Shop::new().await;
        let request = format!("POST /a HTTP/1.0\r\nHost: cart\r\n\r\n{SMUGGLED}");
        let fate = attack(&shop, &[request.as_bytes()]).await;
        assert!(fate.assert_one("HTTP/1.0").body.is_empty());
        assert!(fate.closed);
    });
}

#[test]
fn h1_04_a_content_length_that_is_not_one_number_is_refused() {
    run(async {
        let shop = Shop::new().await;
        for length in [
            "5\r\nContent-Length: 6",
            "6\r\nContent-Length: 5",
            "5, 5",
            "5, 6",
            "5,",
            "+5",
            "-5",
            "-0",
            "0x5",
            "5 5",
            "5e0",
            "5.0",
            "",
            "five",
            "18446744073709551616",
            "18446744073709551615",
            "99999999999999999999999999",
            "\u{665}",
        ] {
            let request = format!("POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: {length}\r\n\r\nhello{SMUGGLED}");
            attack(&shop, &[request.as_bytes()]).await.assert_unseen(length);
        }
        for alias in ["Content_Length", "Content.Length", "content_length"] {
            let request = format!("POST /a HTTP/1.1\r\nHost: cart\r\n{alias}: 5\r\n\r\nhello");
            attack(&shop, &[request.as_bytes()]).await.assert_unseen(alias);
        }
    });
}

/// A second length has no honest sender, even if it agrees.
#[test]
fn h1_04_equal_lengths_are_refused_like_differing_ones() {
    run(async {
        let shop = Shop::new().await;
        let request = "POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello";
        attack(&shop, &[request.as_bytes()]).await.assert_unseen("5 and 5");
    });
}

#[test]
fn h1_05_a_malformed_field_line_is_refused() {
    run(async {
        let shop = Shop::new().await;
        for (case, line) in [
            ("obs-fold", &b"X: a\r\n b"[..]),
            ("obs-fold with a tab", b"X: a\r\n\tb"),
            ("leading whitespace", b" X: a"),
            ("space before the colon", b"X : a"),
            ("tab before the colon", b"X\t: a"),
            ("no name", b": a"),
            ("no colon", b"X"),
            ("NUL in a value", b"X: a\0b"),
            ("NUL in a name", b"X\0: a"),
            ("CR in a value", b"X: a\rb"),
            ("CR before the colon", b"X\r: a"),
            ("escape in a value", b"X: a\x1bb"),
            ("DEL in a value", b"X: a\x7fb"),
            ("a high byte in a name", b"X\xff: a"),
            ("a space in a name", b"X Y: a"),
            ("a slash in a name", b"X/Y: a"),
        ] {
            let request = [&b"GET /a HTTP/1.1\r\nHost: cart\r\n"[..], line, b"\r\n\r\n"].concat();
            attack(&shop, &[&request]).await.assert_unseen(case);
            let first = [&b"GET /a HTTP/1.1\r\n"[..], line, b"\r\nHost: cart\r\n\r\n"].concat();
            attack(&shop, &[&first]).await.assert_unseen(case);
        }
    });
}

#[test]
fn h1_05_a_malformed_request_line_is_refused() {
    run(async {
        let shop = Shop::new().await;
        for line in [
            "GET  /a HTTP/1.1",
            "GET /a  HTTP/1.1",
            "GET\t/a HTTP/1.1",
            "GET /a HTTP/1.1 ",
            " GET /a HTTP/1.1",
            "GET /a",
            "GET /a HTTP/2.0",
            "GET /a HTTP/1.2",
            "GET /a HTTP/0.9",
            "GET /a http/1.1",
            "GET /a HTTP/01.1",
            "GET /a HTTPS/1.1",
            "G\u{0}T /a HTTP/1.1",
            "G(T /a HTTP/1.1",
            "GET /a\u{0}b HTTP/1.1",
            "GET a HTTP/1.1",
            "GET  HTTP/1.1",
        ] {
            let request = format!("{line}\r\nHost: cart\r\n\r\n");
            attack(&shop, &[request.as_bytes()]).await.assert_unseen(line);
        }
    });
}

#[test]
fn h1_06_a_bare_line_feed_is_no_line_end() {
    run(async {
        let shop = Shop::new().await;
        for request in [
            "GET /a HTTP/1.1\nHost: cart\n\n",
            "GET /a HTTP/1.1\r\nHost: cart\nX: y\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: cart\r\nX: y\n\r\n",
        ] {
            attack(&shop, &[request.as_bytes()]).await.assert_unseen(request);
        }
    });
}

#[test]
fn h1_06_a_bare_carriage_return_is_no_line_end() {
    run(async {
        let shop = Shop::new().await;
        for request in [
            "GET /a HTTP/1.1\rHost: cart\r\r",
            "GET /a HTTP/1.1\r\nHost: cart\rX: y\r\n\r\n",
            "GET /a HTTP/1.1\r\r\nHost: cart\r\n\r\n",
        ] {
            attack(&shop, &[request.as_bytes()]).await.assert_unseen(request);
        }
    });
}

#[test]
fn h1_10_connect_is_refused() {
    run(async {
        let shop = Shop::new().await;
        for target in ["cart:80", "127.0.0.1:22", "/a", "http://cart/"] {
            let request = format!("CONNECT {target} HTTP/1.1\r\nHost: cart:80\r\n\r\n{SMUGGLED}");
            let fate = attack(&shop, &[request.as_bytes()]).await;
            fate.assert_unseen(target);
        }
    });
}

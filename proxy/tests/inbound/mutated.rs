//! Requests that no catalogue lists: honest ones, bent at random from a fixed seed. Whatever comes of them, the app sees
//! nothing but canonical requests that policy allows (the canary asserts the form), and neighbours are served.

use crate::world::{Shop, run};

const HONEST: [&str; 6] = [
    "GET /a/b?c=d HTTP/1.1\r\nHost: cart\r\nAccept: */*\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "GET http://cart/a HTTP/1.1\r\nHost: cart\r\nConnection: close, x\r\nX: 1\r\n\r\n",
    "GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n",
    "POST /secret/x HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n1\r\nx\r\n0\r\nX: 1\r\n\r\n",
];

const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"%2f",
    b"%2e",
    b"%",
    b"//",
    b"/../",
    b"/secret",
    b"\\",
    b"#",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: other\r\n",
    b"X-Postern-Source: forged\r\n",
    b"0\r\n\r\n",
    b"\xff",
    b"GET /secret HTTP/1.1\r\nHost: cart\r\n\r\n",
];

fn bend(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = HONEST[rng.usize(..HONEST.len())].as_bytes().to_vec();
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..bytes.len());
        match rng.u8(..4) {
            0 => {
                bytes.remove(at);
            }
            1 => bytes[at] = rng.u8(..),
            2 => {
                let to = (at + rng.usize(1..20)).min(bytes.len());
                let twice = bytes[at..to].to_vec();
                bytes.splice(at..at, twice);
            }
            _ => {
                let piece = PIECES[rng.usize(..PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
        if bytes.is_empty() {
            bytes.push(b'G');
        }
    }
    bytes
}

#[test]
fn h1_14_bent_requests_reach_the_app_in_canonical_form_or_not_at_all() {
    run(async {
        let shop = Shop::new().await;
        for seed in 0..600 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let bytes = bend(&mut rng);
            let before = shop.app.count();
            let mut conn = shop.h1().await;
            conn.send(&bytes).await;
            conn.finish().await;
            let answered = conn.rest().await;
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            for seen in shop.app.since(before) {
                let path = seen.target.split('?').next().unwrap();
                assert!(
                    path != "/secret" && !path.starts_with("/secret/"),
                    "{seed}: {shown:?}: {seen:#?}"
                );
                assert_eq!(seen.all("x-postern-source"), [crate::world::WEB], "{seed}: {shown:?}");
            }
            assert!(
                answered.is_empty() || answered.starts_with(b"HTTP/1.1 "),
                "{seed}: {shown:?}"
            );
        }
        shop.probe().await;
    });
}

//! Answers that no catalogue lists, bent at random from a fixed seed by a peer that means harm. Whoever asks next gets its
//! own answer or none, whatever came before on the connection between the proxies.

use std::cell::Cell;
use std::rc::Rc;

use postern_identity::tls::alpn;
use postern_proxy::snapshot::{Door, Protocol};
use tokio::io::AsyncWriteExt;

use crate::world::canary::{ok, tls_peer};
use crate::world::{CART, Pair, WAYS, endpoint, run};

const HONEST: [&str; 5] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
];

const PIECES: [&str; 14] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    ":",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
];

fn bend(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = HONEST[rng.usize(..HONEST.len())].as_bytes().to_vec();
    if rng.bool() {
        bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    }
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..bytes.len());
        match rng.u8(..3) {
            0 => {
                bytes.remove(at);
            }
            1 => bytes[at] = rng.u8(..),
            _ => {
                let piece = PIECES[rng.usize(..PIECES.len())].bytes();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

#[test]
fn h1_14_a_bent_answer_is_never_taken_for_anothers() {
    run(async {
        for way in WAYS {
            let pair = Pair::new(Protocol::Http1).await;
            let seed = Rc::new(Cell::new(0_u64));
            let seeds = Rc::clone(&seed);
            let config = pair.authority.server(CART, Some("cart-1"), &[alpn::POSTERN_H1]);
            let peer = tls_peer(config, move |mut stream, canary, connection| {
                let seeds = Rc::clone(&seeds);
                async move {
                    let mut read = Vec::new();
                    while let Some(request) = canary.read(&mut stream, &mut read, connection).await {
                        let bent = request.target == "/bent";
                        let answer = match bent {
                            true => bend(&mut fastrand::Rng::with_seed(seeds.get())),
                            false => ok(&request.target),
                        };
                        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                        if bent {
                            // What it left open is over, so that nobody waits for the rest.
                            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                            if seeds.get().is_multiple_of(2) {
                                return;
                            }
                        }
                    }
                }
            })
            .await;
            let end = endpoint(peer.address, CART, Some("cart-1"), Protocol::Http1, Door::Sidecar);
            pair.instead(Protocol::Http1, vec![end]);
            for n in 0..150 {
                seed.set(n);
                let mut conn = way.open(&pair).await;
                conn.send(format!("{}\r\n", way.head("GET", "/bent"))).await;
                // Whatever comes of it, for as long as it takes the peer to say it.
                let asked = tokio::time::timeout(std::time::Duration::from_millis(15), conn.rest()).await;
                drop(asked);
                let mut other = way.open(&pair).await;
                let path = format!("/honest-{n}");
                other.send(format!("{}\r\n", way.head("GET", &path))).await;
                let answer = other.answer().await;
                assert_eq!((answer.status, answer.text()), (200, path), "{way:?} {n}");
            }
        }
    });
}

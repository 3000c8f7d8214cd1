//! Who reaches the port without being an API server: it holds what it may, and no more.

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::caller::{Caller, JSON};
use crate::world::{NAME, World, pod, review};

const MAX_BODY: usize = 8 * 1024 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A request of the greatest length, of which nothing has come yet.
async fn announced(stranger: &Caller) -> TlsStream<TcpStream> {
    let mut stream = stranger.tls(b"http/1.1").await.unwrap();
    let head = format!(
        "POST /inject HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: {JSON}\r\nExpect: 100-continue\r\nContent-Length: \
         {MAX_BODY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// The injector asks for the body: it has all that it wants before it reads.
async fn asked_for(stream: &mut TlsStream<TcpStream>) {
    let mut said = [0; CONTINUE.len()];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(said, CONTINUE);
}

#[tokio::test]
async fn an_api_servers_pods_are_admitted_while_a_stranger_holds_all_the_room_it_may() {
    let world = World::start().await;
    let stranger = world.caller().from([127, 0, 0, 2]);
    let mut first = announced(&stranger).await;
    asked_for(&mut first).await;
    first.write_all(&vec![b' '; MAX_BODY - 1]).await.unwrap();
    first.flush().await.unwrap();
    let mut others = Vec::new();
    for _ in 1..64 {
        others.push(announced(&stranger).await);
    }
    let mut large = pod();
    large["metadata"]["annotations"] = serde_json::json!({ "example.org/large": "x".repeat(1024 * 1024) });
    let mut connection = world.caller().http2().await.unwrap();
    let honest = async {
        for pod in [pod(), large] {
            let body = Bytes::from(review("pods", "shop", pod).to_string());
            assert_eq!(
                connection.post("/inject", body).await.unwrap().response()["allowed"],
                true
            );
        }
    };
    tokio::select! {
        biased;
        () = honest => {}
        // What it may hold, it may hold until its time is over.
        _ = first.read_u8() => panic!("the stranger was answered first"),
    }
    drop(others);
}

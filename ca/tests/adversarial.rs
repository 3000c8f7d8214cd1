//! Hostile callers at the CA's port (rows C of the catalogue).
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use postern_api::ca_client::{self, ALPN, ca_id};
use postern_api::transport;
use postern_identity::tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use world::{WEB, World, csr, domain, new_key, reason, root_of};

mod world;

#[tokio::test]
async fn c_02_a_key_is_certified_once_for_whomever() {
    let world = World::new().await;
    let key = new_key();
    world.issue_for(csr(&key)).await.unwrap();
    let token = world.token("spiffe://cluster.local/ns/shop/sa/cart", "cart-1").await;
    let attestation = |text: &str| postern_api::ca::v1::issue_request::Attestation::JoinToken(text.to_owned());
    let status = world.issue(csr(&key), attestation(token.expose())).await.unwrap_err();
    assert_eq!(reason(&status), "csr_key_reused");
    // The token is still good, with a key of one's own.
    world.issue(csr(&new_key()), attestation(token.expose())).await.unwrap();
}

#[tokio::test]
async fn c_04_a_csr_past_its_bound_and_a_body_past_its_bound_are_refused() {
    let world = World::new().await;
    let status = world.issue_for(vec![0x30; 16 * 1024 + 1]).await.unwrap_err();
    assert_eq!(reason(&status), "csr_too_large");
    let status = world.issue_for(vec![0x30; 10 * 1024 * 1024]).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    world.issue_for(csr(&new_key())).await.unwrap();
}

#[tokio::test]
async fn c_04_a_body_that_never_ends_is_given_up() {
    let world = World::new().await;
    let config = tls::pinned_client_config(root_of(&world.store()), ca_id(&domain()).unwrap(), ALPN).unwrap();
    let stream = transport::dial(&world.address(), config).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://ca/postern.ca.v1.CertificateAuthority/Issue")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = client.ready().await.unwrap().send_request(request, false).unwrap();
    // A message of 100 bytes, of which one comes.
    body.send_data(Bytes::from_static(&[0, 0, 0, 0, 100, 1]), false)
        .unwrap();
    let given_up = tokio::time::timeout(Duration::from_secs(30), answer)
        .await
        .expect("the CA does not wait for ever");
    if let Ok(answer) = given_up {
        assert_ne!(answer.headers().get("grpc-status").unwrap(), "0");
    }
    world.first_issue(WEB, "web-1").await;
}

#[tokio::test]
async fn whoever_speaks_no_tls_or_another_ca_s_tls_gets_nothing_and_others_are_served() {
    let (world, other) = (World::new().await, World::new().await);
    let mut plain = tokio::net::TcpStream::connect(world.running.listen).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Closed, perhaps after a TLS alert; never HTTP/2.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    // A client certificate of another CA, trusting the right root.
    let foreign = other.first_issue(WEB, "web-1").await;
    let ours = world.first_issue(WEB, "web-1").await;
    let trust = world::trust_of(&ours.bundle);
    let config = tls::client_config(Some(&foreign.svid), trust, ALPN).unwrap();
    let mut stream = transport::dial(&world.address(), config).await.unwrap();
    // TLS 1.3: the client hears of it at its first read.
    let mut byte = [0];
    assert!(matches!(stream.read(&mut byte).await, Err(_) | Ok(0)));
    let trust = world::trust_of(&ours.bundle);
    ca_client::renew(&world.address(), &ours.svid, &trust).await.unwrap();
}

#[tokio::test]
async fn only_h2_is_spoken() {
    let world = World::new().await;
    let config = tls::pinned_client_config(root_of(&world.store()), ca_id(&domain()).unwrap(), &[b"http/1.1"]).unwrap();
    assert!(transport::dial(&world.address(), config).await.is_err());
}

#[tokio::test]
async fn c_05_an_address_that_stalls_its_handshakes_does_not_stop_the_others() {
    let world = World::new().await;
    let mut stalled = Vec::new();
    for _ in 0..300 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        stalled.push(socket.connect(world.running.listen).await.unwrap());
    }
    // Past its share an address is turned away at once; without it, all places would be taken for five seconds.
    let last = stalled.last_mut().unwrap();
    assert!(matches!(last.read(&mut [0]).await, Err(_) | Ok(0)));
    assert!(
        stalled[0]
            .try_read(&mut [0])
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    );
    world.first_issue(WEB, "web-1").await;
    assert!(
        stalled[0]
            .try_read(&mut [0])
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    );
}

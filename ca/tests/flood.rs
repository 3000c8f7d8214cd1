//! One caller that floods the CA, and fifty that only want their next certificates.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use postern_api::ca::v1 as pb;
use postern_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use postern_api::ca::v1::issue_request::Attestation;
use postern_api::ca_client::{ALPN, ca_id};
use postern_api::refusal::{RETRY_HEADER, RefusalReason};
use postern_api::transport;
use postern_identity::tls;
use rcgen::KeyPair;
use rustls_pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;
use world::{World, csr, domain, new_key, renewal, root_of};

mod world;

const OTHERS: u8 = 50;
const RENEWALS: usize = 4;

/// From an address of its own, as pods are: all of 127.0.0.0/8 is this machine.
async fn dial(world: &World, from: IpAddr) -> CertificateAuthorityClient<Channel> {
    let config = tls::pinned_client_config(root_of(&world.store()), ca_id(&domain()).unwrap(), ALPN).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let tcp = socket.connect(world.running.listen).await.unwrap();
    let name = ServerName::IpAddress(world.running.listen.ip().into());
    let stream = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    CertificateAuthorityClient::new(transport::channel_over("the CA", stream).await.unwrap())
}

fn request(csr: Vec<u8>, attestation: Attestation) -> pb::IssueRequest {
    pb::IssueRequest {
        csr,
        attestation: Some(attestation),
        bundle_sequence: 0,
        ..pb::IssueRequest::default()
    }
}

/// One with its first certificate.
async fn joined(
    world: &World,
    client: &mut CertificateAuthorityClient<Channel>,
    account: &str,
) -> (KeyPair, Vec<Vec<u8>>) {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let token = world.token(&id, account).await;
    let key = new_key();
    let attestation = Attestation::JoinToken(token.expose().to_owned());
    let answer = client.issue(request(csr(&key), attestation)).await.unwrap();
    (key, answer.into_inner().chain)
}

#[tokio::test]
async fn c_05_while_one_caller_floods_the_ca_fifty_others_renew_without_one_refusal() {
    let world = World::new().await;
    let over = Arc::new(AtomicBool::new(false));
    let mut flooding = JoinSet::new();
    let greedy: IpAddr = Ipv4Addr::new(127, 0, 0, 2).into();
    let mut client = dial(&world, greedy).await;
    let (key, chain) = joined(&world, &mut client, "greedy").await;
    for _ in 0..8 {
        let client = dial(&world, greedy).await;
        for _ in 0..16 {
            let (mut client, over) = (client.clone(), Arc::clone(&over));
            let csr = csr(&new_key());
            let attestation = renewal(&chain, &key, &csr);
            let request = request(csr, attestation);
            flooding.spawn(async move {
                let mut refused = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    if let Err(status) = client.issue(request.clone()).await {
                        let reason = RefusalReason::of(&status).unwrap();
                        let hint = status.metadata().contains_key(RETRY_HEADER);
                        if !refused.contains(&(reason, hint)) {
                            refused.push((reason, hint));
                        }
                    }
                }
                refused
            });
        }
    }
    let mut renewing = JoinSet::new();
    for n in 1..=OTHERS {
        let mut client = dial(&world, Ipv4Addr::new(127, 0, 1, n).into()).await;
        let (mut key, mut chain) = joined(&world, &mut client, &format!("web-{n}")).await;
        renewing.spawn(async move {
            for _ in 0..RENEWALS {
                let next = new_key();
                let csr = csr(&next);
                let attestation = renewal(&chain, &key, &csr);
                chain = client.issue(request(csr, attestation)).await?.into_inner().chain;
                key = next;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(renewed) = renewing.join_next().await {
        renewed.unwrap().unwrap();
    }
    over.store(true, Ordering::SeqCst);
    let mut reasons = Vec::new();
    while let Some(refused) = flooding.join_next().await {
        reasons.extend(refused.unwrap());
    }
    // It was shown the door, for what it is, and when to come again.
    assert!(reasons.contains(&(RefusalReason::BusyIdentity, true)), "{reasons:?}");
    let allowed = [
        RefusalReason::BusyIdentity,
        RefusalReason::BusyCaller,
        RefusalReason::CsrKeyReused,
    ];
    assert!(
        reasons.iter().all(|(reason, _)| allowed.contains(reason)),
        "{reasons:?}"
    );
}

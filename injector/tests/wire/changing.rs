//! I-5 and I-6: certificates that change and injectors that go down under load, and what readiness says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use postern_cluster::serving::Status;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::caller::Caller;
use crate::world::{World, minted, pod, published, review};

#[tokio::test]
async fn a_certificate_changes_under_load_and_no_request_fails() {
    let world = World::start().await;
    let (second, key) = minted();
    let both = [world.authority.clone(), second.clone()];
    let caller = Caller::new(world.running.listen, &both);
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = JoinSet::new();
    for fresh in [true, true, false, false] {
        let (caller, stop, count) = (caller.clone(), Arc::clone(&stop), Arc::clone(&count));
        load.spawn(async move {
            let body = Bytes::from(review("pods", "shop", pod()).to_string());
            let mut connection = caller.http2().await?;
            while !stop.load(Ordering::Relaxed) {
                if fresh {
                    connection = caller.http2().await?;
                }
                let answer = connection.post("/inject", body.clone()).await?;
                assert_eq!(answer.response()["allowed"], true);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, String>(())
        });
    }
    let reached = |least: usize| {
        let count = Arc::clone(&count);
        async move {
            while count.load(Ordering::Relaxed) < least {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    reached(50).await;
    world.cluster.certificate.serve(key, published());
    reached(count.load(Ordering::Relaxed) + 50).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap().unwrap();
    }
    // And it is the new one that is served.
    assert!(Caller::new(world.running.listen, &[second]).http2().await.is_ok());
    assert!(world.caller().http2().await.is_err());
}

#[tokio::test]
async fn an_injector_that_goes_down_answers_what_has_come_and_ends_connections_in_good_order() {
    let world = World::start().await;
    let caller = world.caller();
    let body = Bytes::from(review("pods", "shop", pod()).to_string());
    let mut early = caller.http2().await.unwrap();
    assert_eq!(early.post("/inject", body.clone()).await.unwrap().status, 200);
    let stopping = tokio::spawn(world.running.stop());
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Not every node has heard yet.
    let mut late = caller.http2().await.unwrap();
    assert_eq!(late.post("/inject", body.clone()).await.unwrap().status, 200);
    assert_eq!(early.post("/inject", body.clone()).await.unwrap().status, 200);
    stopping.await.unwrap();
    assert!(early.post("/inject", body).await.is_err());
    assert!(caller.http2().await.is_err());
}

#[tokio::test]
async fn without_a_certificate_no_handshake_succeeds_and_readiness_says_why() {
    let world = World::start_with(true, false).await;
    let readiness = || async {
        let mut tcp = TcpStream::connect(world.running.metrics).await.unwrap();
        let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        tcp.write_all(request).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        text
    };
    assert!(world.caller().http2().await.is_err());
    assert!(readiness().await.contains("there is no serving certificate yet"));
    let key = minted().1;
    let unpublished = Status {
        published: false,
        ..published()
    };
    world.cluster.certificate.serve(Arc::clone(&key), unpublished);
    assert!(readiness().await.contains("503") && readiness().await.contains("caBundle"));
    let expired = Status {
        not_after: Some(1_000_000_000),
        ..published()
    };
    world.cluster.certificate.serve(Arc::clone(&key), expired);
    assert!(readiness().await.contains("503") && readiness().await.contains("has expired"));
    world.cluster.certificate.serve(key, published());
    assert!(readiness().await.contains("namespaces are not known"));
}

#[tokio::test]
async fn one_address_has_64_connections_and_gets_them_back() {
    let world = World::start().await;
    let caller = world.caller();
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(caller.http2().await.unwrap());
    }
    assert!(caller.http2().await.is_err());
    open.pop();
    // The other side has to see it first.
    while caller.http2().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

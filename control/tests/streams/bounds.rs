//! Bounds of a stream and of their number, at each and one past it.

use postern_api::control::v1 as wire;
use tonic::Code;
use wire::proxy_message::Message as ToControl;

use crate::world::{World, named};

/// What one proxy may follow: twice what it keeps (4,096).
const MAX_DESTINATIONS: u64 = 8192;

/// Control took 1,024 where the proxy keeps 4,096, and broke the stream at each name past them.
#[tokio::test]
async fn a_proxy_follows_as_many_destinations_as_it_keeps_and_those_under_way() {
    let world = World::shop().await;
    let mut web = world.proxy("web").await.started().await;
    let out = web.out.clone().unwrap();
    let asking = tokio::spawn(async move {
        for n in 0..MAX_DESTINATIONS {
            let message = Some(named(n, &format!("s{n}.example.com"), 443));
            out.send(wire::ProxyMessage { message }).await.unwrap();
        }
    });
    web.until(|held| held.destinations.len() as u64 == MAX_DESTINATIONS)
        .await;
    asking.await.unwrap();
    // A question under a number that is followed already is no new one.
    web.send(named(0, "cart", 80)).await;
    web.until(|held| held.endpoints(0) == ["cart"]).await;
    // One is released for each that comes: the stream holds.
    for n in MAX_DESTINATIONS..MAX_DESTINATIONS + 10 {
        web.send(ToControl::Release(wire::Release {
            id: n - MAX_DESTINATIONS,
        }))
        .await;
        web.send(named(n, "cart", 80)).await;
        web.until(|held| held.endpoints(n) == ["cart"]).await;
    }
    web.send(named(u64::MAX, "cart", 80)).await;
    let status = web.ends().await.unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "too many destinations on one stream")
    );
}

#[tokio::test]
async fn of_one_workload_four_streams_stand_and_a_fifth_is_refused_until_one_ends() {
    let world = World::shop().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(world.proxy("cart").await.started().await);
    }
    let status = world.proxy("cart").await.ends().await.unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "too many streams")
    );
    // Others are not concerned.
    world.proxy("web").await.started().await;
    let mut first = streams.remove(0);
    first.out = None;
    first.ends().await;
    world.proxy("cart").await.started().await;
}

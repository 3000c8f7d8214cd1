//! Bounds of a stream and of their number, at each and one past it.

use tonic::Code;

use crate::world::World;

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

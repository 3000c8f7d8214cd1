//! What replicas of control show each other, and nobody else.

use std::sync::Arc;

use postern_api::ca_client::{ALPN, control_id};
use postern_api::control::v1 as wire;
use postern_api::control::v1::view_client::ViewClient;
use postern_api::transport;
use postern_identity::{Expected, Svid, tls};
use tonic::Code;

use crate::world::{World, domain, id, trust_of};

async fn picture(world: &World, svid: Option<&Svid>) -> Result<wire::Picture, tonic::Status> {
    let trust = trust_of(world.authority.bundle());
    let config = tls::client_config(svid, Arc::clone(&trust), ALPN).unwrap();
    let expected = Expected {
        ids: vec![control_id(&domain()).unwrap()],
        instance: None,
    };
    let channel = transport::connect(&world.running.listen.to_string(), config, &trust, &expected)
        .await
        .map_err(|error| tonic::Status::unauthenticated(error.to_string()))?;
    let mut pictures = ViewClient::new(channel)
        .watch(wire::WatchRequest::default())
        .await?
        .into_inner();
    Ok(pictures.message().await?.unwrap())
}

#[tokio::test]
async fn control_shows_its_picture_to_control() {
    let world = World::shop().await;
    let _cart = world.proxy("cart").await.started().await;
    let svid = world
        .authority
        .svid(control_id(&domain()).unwrap().as_str(), None, 3600);
    let picture = picture(&world, Some(&svid)).await.unwrap();
    assert!(
        picture
            .workloads
            .iter()
            .any(|workload| workload.name == "cart" && workload.connected)
    );
    assert_eq!(
        (picture.replica.len(), &*picture.control_version),
        (16, postern_api::VERSION)
    );
    assert_eq!(picture.roots_sha256.len(), 1);
    assert!(picture.certificate.unwrap().not_after_unix_ms > 0);
}

#[tokio::test]
async fn a_workload_is_not_shown_who_talks_to_whom() {
    let world = World::shop().await;
    let ca = "spiffe://cluster.local/ns/postern-system/sa/postern-ca";
    for (id, instance) in [(id("cart"), Some("cart")), (ca.to_owned(), None)] {
        let svid = world.authority.svid(&id, instance, 3600);
        let refused = picture(&world, Some(&svid)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{id}");
    }
    assert!(picture(&world, None).await.is_err());
}

//! Istio's AuthorizationPolicies and RequestAuthentications, where the API server has them: the definition of each kind is
//! watched, so that all replicas hear of it at once, and know up to when there is none.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::complaint::Complaint;
use super::follow::{Follower, NoSuchKind};
use super::world::{Change, Item, Kind};
use crate::hub::Hub;

/// Control may read these two definitions alone: RBAC by name holds for lists and watches of exactly such a selector.
const POLICIES: &str = "metadata.name=authorizationpolicies.security.istio.io";
/// See [`POLICIES`].
const AUTHENTICATIONS: &str = "metadata.name=requestauthentications.security.istio.io";
const VERSION: &str = "v1";
/// A definition is there a moment before its kind is served, and gone a moment after: until the next try.
const SETTLE: Duration = Duration::from_secs(1);
/// Changes of one object.
const QUEUE: usize = 16;

/// Follows those of a kind while they are there. They go when the API server says that there is no such kind, and not before.
pub(super) async fn follow(kind: Kind, hub: Arc<Hub>, client: Client, out: mpsc::Sender<Change>) -> NoSuchKind {
    let (told, mut definitions) = mpsc::channel(QUEUE);
    // Both end with this function.
    let (mut watching, mut following) = (JoinSet::new(), JoinSet::new());
    watching.spawn(super::keep_on(Follower {
        api: Api::<CustomResourceDefinition>::all(client.clone()),
        kind,
        fields: match kind {
            Kind::IstioAuthentications => AUTHENTICATIONS,
            _ => POLICIES,
        },
        keep: |definition| serves(&definition).then_some(Item::Definition),
        hub: Arc::clone(&hub),
        wanted: hub.watch_wanted(),
        out: told,
        complaint: Complaint::default(),
        deaf_until: Instant::now(),
    }));
    let mut there = false;
    loop {
        let heard = tokio::select! {
            heard = definitions.recv() => heard,
            // Not served yet, or not any more: the definition will say so. Never of an empty set.
            Some(_) = following.join_next() => {
                following.spawn(after(SETTLE, istios(kind, &hub, &client, &out)));
                continue;
            }
        };
        let Some(heard) = heard else { return NoSuchKind };
        let (now, revision) = match heard {
            Change::Listed { items, revision, .. } => (!items.is_empty(), revision),
            Change::Set { item, revision, .. } => (item.is_some(), revision),
            Change::Confirmed { revision, .. } | Change::Absent { revision, .. } => (there, revision),
            failed @ Change::Failed { .. } => {
                // While they are followed it is they who count.
                if !there && out.send(failed).await.is_err() {
                    return NoSuchKind;
                }
                continue;
            }
        };
        there = now;
        if !there {
            // Nothing of it may come after the word that it is gone.
            following.shutdown().await;
            if out.send(Change::Absent { kind, revision }).await.is_err() {
                return NoSuchKind;
            }
        } else if following.is_empty() {
            following.spawn(after(Duration::ZERO, istios(kind, &hub, &client, &out)));
        }
    }
}

type Istios = Follower<kube::core::DynamicObject, super::Keep>;

fn istios(kind: Kind, hub: &Arc<Hub>, client: &Client, out: &mpsc::Sender<Change>) -> Istios {
    super::rules("security.istio.io", VERSION, kind, hub, client, out.clone())
}

async fn after(wait: Duration, mut follower: Istios) -> NoSuchKind {
    tokio::time::sleep(wait).await;
    follower.run().await
}

fn serves(definition: &CustomResourceDefinition) -> bool {
    let versions = &definition.spec.versions;
    versions.iter().any(|version| version.name == VERSION && version.served)
}

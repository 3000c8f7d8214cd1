//! Istio's AuthorizationPolicies, where the API server has them; looked for again and again.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::follow::{CALL_DEADLINE, NoSuchKind, within};
use super::world::{Change, Kind};
use crate::hub::Hub;

const CRD: &str = "authorizationpolicies.security.istio.io";
const VERSION: &str = "v1";
/// How often it is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// And until it is known for the first time.
const LOOK_SOON: Duration = Duration::from_secs(1);

/// Follows them while they are there. Their policies go when the API server says that there is no such kind, and not before.
pub(super) async fn follow(hub: &Hub, client: Client, out: mpsc::Sender<Change>) -> NoSuchKind {
    let (kind, mut complaint) = (Kind::IstioPolicies, super::Complaint::default());
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    loop {
        let mut wait = LOOK_AGAIN;
        match within(CALL_DEADLINE, definitions.get_opt(CRD)).await {
            Ok(Some(definition)) if serves(&definition) => {
                let mut follower = super::policies("security.istio.io", VERSION, kind, hub, &client, out.clone());
                let NoSuchKind = follower.run().await;
                // Gone, or not served yet: the definition says which.
                wait = LOOK_SOON;
            }
            Ok(_) => {
                complaint.over();
                if out.send(Change::Absent { kind }).await.is_err() {
                    return NoSuchKind;
                }
            }
            Err(error) => {
                let why = format!("customresourcedefinitions {CRD}: {}", super::follow::why(&error));
                complaint.say(&why);
                let _ = out.send(Change::Failed { kind, why }).await;
                wait = LOOK_SOON;
            }
        }
        tokio::time::sleep(wait).await;
    }
}

fn serves(definition: &CustomResourceDefinition) -> bool {
    let versions = &definition.spec.versions;
    versions.iter().any(|version| version.name == VERSION && version.served)
}

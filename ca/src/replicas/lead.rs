//! What one of the replicas does, the leader: rotate the issuer in time, and publish the roots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use postern_cluster::lease::Leadership;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use crate::authority::{Authority, sha256};
use crate::clock::until;
use crate::issuance::{Ca, Why, bringing};
use crate::pem;
use crate::serve::{ISSUER_LOOK, ROTATION_RETRY};
use crate::tokens::hex;

/// Reading or writing the ConfigMap.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// After a failed publication of the roots.
const PUBLISH_RETRY: Duration = Duration::from_secs(5);
/// Where the injector finds what a pod pins.
const SUMS: &str = "roots.sha256";

/// The ConfigMap by which pods, and control, know the roots.
#[derive(Clone)]
pub(crate) struct RootsMap {
    api: Api<ConfigMap>,
    place: String,
    name: String,
}

impl RootsMap {
    pub(crate) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            place: format!("{namespace}/{name}"),
            name: name.to_owned(),
        }
    }

    /// Namespace and name.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The SHA-256 sums of the roots that were published, as they stand there; `None`: no CA ever published here.
    pub(crate) async fn published(&self) -> Result<Option<String>, String> {
        let sums = self.read().await?.data.and_then(|mut data| data.remove(SUMS));
        Ok(sums.filter(|sums| !sums.is_empty()))
    }

    async fn read(&self) -> Result<ConfigMap, String> {
        timeout(CALL_DEADLINE, self.api.get(&self.name))
            .await
            .map_err(slow)?
            .map_err(|error| format!("ConfigMap {}: {error}", self.place))
    }

    async fn publish(&self, authority: &Authority) -> Result<(), String> {
        let wanted = published(authority);
        let mut map = self.read().await?;
        if map.data.as_ref() == Some(&wanted) {
            return Ok(());
        }
        map.data = Some(wanted);
        timeout(
            CALL_DEADLINE,
            self.api.replace(&self.name, &PostParams::default(), &map),
        )
        .await
        .map_err(slow)?
        .map_err(|error| error.to_string())?;
        tracing::info!(config_map = self.place, "roots are published");
        Ok(())
    }
}

fn slow(_: Elapsed) -> String {
    format!("no answer within {CALL_DEADLINE:?}")
}

fn published(authority: &Authority) -> BTreeMap<String, String> {
    let roots = authority.bundle().roots();
    let pems: String = roots
        .iter()
        .map(|root| pem::encode("CERTIFICATE", root).to_string())
        .collect();
    let sums: Vec<String> = roots.iter().map(|root| hex(&sha256(root))).collect();
    BTreeMap::from([
        ("roots.pem".to_owned(), pems),
        (SUMS.to_owned(), sums.join(",")),
        ("trust-domain".to_owned(), authority.trust_domain().to_string()),
    ])
}

/// Does what one replica does, whenever and for as long as it is this one.
pub(crate) async fn lead(ca: Arc<Ca>, mut leadership: watch::Receiver<Option<Leadership>>, roots: Option<RootsMap>) {
    let mut changes = ca.watch();
    let mut told: Option<String> = None;
    loop {
        ca.metrics.leading(false);
        ca.leave_mounted();
        if leadership.wait_for(Option::is_some).await.is_err() {
            return;
        }
        ca.metrics.leading(true);
        while leadership.borrow().is_some() {
            changes.mark_unchanged();
            // First: what follows builds on a bundle that everybody takes.
            ca.keep_numbers_growing().await;
            ca.look_at_mounted().await;
            let mut wait = rotate_if_due(&ca).await;
            if ca.mounted.is_some() {
                wait = wait.min(bringing::LOOK);
            }
            if let Some(next) = ca.advance_root().await {
                wait = wait.min(next.max(Duration::from_secs(1)));
            }
            if let Some(roots) = &roots {
                let failed = roots.publish(&ca.authority()).await.err();
                if failed.is_some() {
                    wait = wait.min(PUBLISH_RETRY);
                }
                if let Some(error) = failed.as_ref().filter(|error| told.as_ref() != Some(*error)) {
                    tracing::error!(
                        reason = "roots",
                        "the roots cannot be published in ConfigMap {}: {error}",
                        roots.place
                    );
                }
                told = failed;
            }
            tokio::select! {
                () = sleep(wait) => {}
                // Receivers remember what they have seen: nothing is lost.
                _ = changes.changed() => {}
                gone = leadership.changed() => if gone.is_err() { return },
            }
        }
    }
}

/// How long until the next look.
async fn rotate_if_due(ca: &Arc<Ca>) -> Duration {
    let authority = ca.authority();
    let (due, now) = (authority.rotation_due(ca.svid_life), ca.now());
    if now >= due && authority.can_outlive_itself() && ca.mounted.is_none() {
        return match ca.rotate(Why::Due).await {
            Ok(_) => Duration::ZERO,
            Err(_) => ROTATION_RETRY,
        };
    }
    if now < due {
        until(due, now).min(ISSUER_LOOK)
    } else {
        ISSUER_LOOK
    }
}

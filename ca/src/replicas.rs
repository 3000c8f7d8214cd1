//! Replicas that share one Secret: found the CA once, take over what another replica wrote, and, as the leader, rotate the
//! issuer and publish the roots.
//!
//! ```text
//! found_or_load: Secret --empty--> a new CA, written if still empty --lost the race--> read again
//! follow:        every 5 s: Secret --changed, checked--> the authority that signs (a damaged one changes nothing)
//! lead:          issuer due -> rotate (written only over what was read); roots -> ConfigMap
//! ```
//!
//! Issuing needs none of this: serial numbers are random, and every issuer that ever signs is under the published root.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use postern_api::ca_client::Backoff;
use postern_cluster::lease::Leadership;
use postern_identity::TrustDomain;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::authority::{Authority, AuthorityError, AuthorityRecord, Root, RootRecord, sha256};
use crate::clock::{Clock, until};
use crate::issuance::{Ca, RotationError, Why};
use crate::pem;
use crate::serve::{ISSUER_LOOK, ROTATION_RETRY};
use crate::store::Kind;
use crate::store::secret::{SecretError, SecretStore, record};
use crate::tokens::hex;

#[cfg(test)]
mod tests;

/// How soon a replica signs with an issuer that another one made.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// While the API server does not answer at the start.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Lost races in a row; each means that another replica succeeded.
const RACES: usize = 8;
/// Reading or writing the ConfigMap.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// After a failed publication of the roots.
const PUBLISH_RETRY: Duration = Duration::from_secs(5);

/// What a CA is founded with.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Such as `cluster.local`; kept for ever.
    pub trust_domain: TrustDomain,
    /// The root's life.
    pub root_life: Duration,
    /// The life of each issuer made from now on.
    pub issuer_life: Duration,
}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoundingError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the new CA cannot be written down")]
    Encoding(#[from] serde_json::Error),
}

/// The CA in the Secret, founded if there is none. Waits for the API server as long as it takes.
pub(crate) async fn found_or_load(
    store: &SecretStore,
    founding: &Founding,
    clock: &Clock,
) -> Result<Authority, FoundingError> {
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    loop {
        match attempt(store, founding, clock()).await {
            Err(FoundingError::Secret(error)) if error.is_outage() => {
                tracing::warn!("the CA's state is not there yet: {}", crate::error_chain(&error));
                sleep(backoff.after_failure(rand_share())).await;
            }
            done => return done,
        }
    }
}

async fn attempt(store: &SecretStore, founding: &Founding, now: UnixTime) -> Result<Authority, FoundingError> {
    let stored = store.read().await?;
    if let Some(authority) = stored.authority(now)? {
        return Ok(suits(store, founding, authority)?);
    }
    let root = Root::create(&founding.trust_domain, founding.root_life, now)?;
    let authority = Authority::found(&founding.trust_domain, &root, founding.issuer_life, now)?;
    let records = vec![
        record(Kind::Root, &RootRecord::of(&root))?,
        record(Kind::Authority, &AuthorityRecord::of(&authority))?,
    ];
    store.write(stored, records).await?;
    tracing::info!(
        secret = store.place(),
        trust_domain = %founding.trust_domain,
        root_sha256 = hex(&authority.root_sha256()),
        "a new CA is founded"
    );
    Ok(authority)
}

/// One that was read is ours to sign with.
fn suits(store: &SecretStore, founding: &Founding, authority: Authority) -> Result<Authority, SecretError> {
    if *authority.trust_domain() != founding.trust_domain {
        return Err(SecretError::TrustDomain {
            place: store.place(),
            found: authority.trust_domain().to_string(),
            wanted: founding.trust_domain.to_string(),
        });
    }
    Ok(authority.with_issuer_life(founding.issuer_life))
}

/// A store that this CA shares with its replicas.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: SecretStore,
    pub(crate) founding: Founding,
}

impl Shared {
    /// A new issuer, unless another replica has just made one; under the CA's lock.
    pub(crate) async fn rotate(&self, ca: &Ca, why: Why) -> Result<Arc<Authority>, RotationError> {
        for _ in 0..RACES {
            let now = ca.now();
            let stored = self.store.read().await?;
            let read = stored
                .authority(now)?
                .ok_or_else(|| RotationError::Gone(self.store.place()))?;
            self.take(ca, suits(&self.store, &self.founding, read)?);
            let current = ca.authority();
            if why == Why::Due && now < current.rotation_due(ca.svid_life) {
                return Ok(current);
            }
            let root = stored
                .root()?
                .ok_or_else(|| RotationError::RootOffline(format!("Secret {}", self.store.place())))?;
            let next = current.with_new_issuer(&root, now)?;
            let record = record(Kind::Authority, &AuthorityRecord::of(&next)).map_err(|_| RotationError::Cut)?;
            match self.store.write(stored, vec![record]).await {
                Ok(()) => return Ok(ca.adopt(next)),
                Err(SecretError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RotationError::Races)
    }

    /// What another replica wrote is what signs from now on.
    fn take(&self, ca: &Ca, read: Authority) {
        let held = ca.authority();
        if read.is(&held) {
            return;
        }
        let epoch = read.issuer_epoch();
        if read.root() != held.root() {
            tracing::error!(
                root_sha256 = hex(&read.root_sha256()),
                "Secret {} holds a CA with another root, which signs from now on: every pod of the mesh must be re-created",
                self.store.place()
            );
        } else if epoch < held.issuer_epoch() {
            tracing::warn!(
                epoch,
                "Secret {} was put back to an older issuer, which signs from now on",
                self.store.place()
            );
        } else {
            tracing::info!(issuer_epoch = epoch, "another replica's new issuer signs from now on");
        }
        ca.adopt(read);
    }

    /// Looks for what other replicas wrote, for ever.
    pub(crate) async fn follow(self, ca: Arc<Ca>, poll: Duration) {
        let mut seen: Option<String> = None;
        let mut told: Option<String> = None;
        loop {
            sleep(poll).await;
            // Not while this process writes: an older reading must not follow a newer writing.
            let _one = ca.rotating().await;
            let trouble = match self.look(&ca, &mut seen).await {
                Ok(()) => None,
                Err(error) => Some((error.outcome(), crate::error_chain(&error))),
            };
            ca.metrics
                .state_read(trouble.as_ref().map_or("done", |(outcome, _)| outcome));
            let text = trouble.map(|(_, text)| text);
            if told != text {
                match &text {
                    Some(text) => tracing::error!(
                        reason = "state",
                        "this replica goes on with the issuer that it has: {text}"
                    ),
                    None => tracing::info!("the CA's state can be read again"),
                }
                told = text;
            }
        }
    }

    async fn look(&self, ca: &Ca, seen: &mut Option<String>) -> Result<(), RotationError> {
        let stored = self.store.read().await?;
        if seen.is_some() && seen.as_deref() == stored.version() {
            return Ok(());
        }
        let read = stored
            .authority(ca.now())?
            .ok_or_else(|| RotationError::Gone(self.store.place()))?;
        self.take(ca, suits(&self.store, &self.founding, read)?);
        // Only what was taken need not be read again: trouble is told for as long as it lasts.
        *seen = stored.version().map(str::to_owned);
        Ok(())
    }
}

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

    async fn publish(&self, authority: &Authority) -> Result<(), String> {
        let slow = |_| format!("no answer within {CALL_DEADLINE:?}");
        let wanted = published(authority);
        let mut map = timeout(CALL_DEADLINE, self.api.get(&self.name))
            .await
            .map_err(slow)?
            .map_err(|error| error.to_string())?;
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

fn published(authority: &Authority) -> BTreeMap<String, String> {
    let roots = authority.bundle().roots();
    let pems: String = roots
        .iter()
        .map(|root| pem::encode("CERTIFICATE", root).to_string())
        .collect();
    let sums: Vec<String> = roots.iter().map(|root| hex(&sha256(root))).collect();
    BTreeMap::from([
        ("roots.pem".to_owned(), pems),
        ("roots.sha256".to_owned(), sums.join(",")),
        ("trust-domain".to_owned(), authority.trust_domain().to_string()),
    ])
}

/// Does what one replica does, whenever and for as long as it is this one.
pub(crate) async fn lead(ca: Arc<Ca>, mut leadership: watch::Receiver<Option<Leadership>>, roots: Option<RootsMap>) {
    let mut changes = ca.watch();
    let mut told: Option<String> = None;
    loop {
        ca.metrics.leading(false);
        if leadership.wait_for(Option::is_some).await.is_err() {
            return;
        }
        ca.metrics.leading(true);
        while leadership.borrow().is_some() {
            changes.mark_unchanged();
            let mut wait = rotate_if_due(&ca).await;
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
    if now >= due && authority.can_outlive_itself() {
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

/// For spreading waits; nothing secret hangs on it.
fn rand_share() -> f64 {
    let mut byte = [0_u8; 1];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

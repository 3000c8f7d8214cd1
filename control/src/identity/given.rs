//! Control's identity from a Workload API (SPIRE, say): SVID and trust as it gives them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use postern_api::ca_client::Backoff;
use postern_api::workload_client::{Given, WorkloadSource};
use postern_identity::{SharedTrust, Trust, TrustBundle};

use super::{LONGEST_WAIT, NAP, Own, OwnError, not_control};
use crate::error_chain;
use crate::hub::Hub;

/// The first that is given; waits as long as it takes.
pub(crate) async fn first(address: &str, hub: &Hub) -> Result<(WorkloadSource, Given), OwnError> {
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    loop {
        let opened = WorkloadSource::open(address, &hub.mesh.trust_domain).await;
        match opened.and_then(|source| source.now(address).map(|given| (source, given))) {
            Ok((source, given)) => {
                return match not_control(&given.svid, &hub.mesh.trust_domain) {
                    None => Ok((source, given)),
                    Some((got, expected)) => Err(OwnError::WrongGiven { got, expected }),
                };
            }
            Err(error) => tracing::warn!(reason = "workload_api", "no identity yet: {}", error_chain(&error)),
        }
        tokio::time::sleep(backoff.after_failure(fastrand::f64())).await;
    }
}

/// Follows it for ever.
pub(crate) async fn follow(hub: Arc<Hub>, own: Arc<Own>, mut source: WorkloadSource, address: String) -> Infallible {
    loop {
        if source.changed().await.is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Ok(again) = WorkloadSource::open(&address, &hub.mesh.trust_domain).await {
                source = again;
            }
        }
        let taken = source
            .now(&address)
            .map_err(|error| error_chain(&error))
            .and_then(|given| take(&hub, &own, given));
        if let Err(error) = taken {
            hub.metrics.renewal(false);
            tracing::warn!(
                reason = "workload_api",
                "what is held is kept until it expires: {error}"
            );
            tokio::time::sleep(NAP.min(LONGEST_WAIT)).await;
        }
    }
}

fn take(hub: &Hub, own: &Own, given: Given) -> Result<(), String> {
    if let Some((got, expected)) = not_control(&given.svid, &hub.mesh.trust_domain) {
        return Err(error_chain(&OwnError::WrongGiven { got, expected }));
    }
    given_trust(&hub.trust, &given.bundle);
    if own.svid().chain() != given.svid.chain() {
        hub.metrics.certificate(given.svid.not_after().as_secs());
        hub.metrics.renewal(true);
        own.replace(given.svid).map_err(|error| error_chain(&error))?;
    }
    Ok(())
}

/// Whatever it gives is newer than what it gave.
pub(crate) fn given_trust(trust: &SharedTrust, bundle: &TrustBundle) {
    trust.rcu(|current| {
        Arc::new(Trust {
            revision: current.revision + 1,
            bundles: current.bundles.clone().with(bundle.clone()),
            ..Trust::clone(current)
        })
    });
}

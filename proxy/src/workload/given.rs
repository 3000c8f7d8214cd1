//! An identity that a Workload API gives (SPIRE, say), in place of our CA's: SVID and trust come from there alone, and control's
//! bundle changes nothing.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use postern_api::ca_client::Backoff;
use postern_api::workload_client::{Given, WorkloadError, WorkloadSource};
use postern_identity::Trust;
use tokio::time::sleep;

use super::{Keeper, LONGEST_WITHOUT, NAP, same_identity, until};
use crate::status::{Level, Topic, error_chain};

/// For metrics, as `CaError::reason` is.
const REASON: &str = "workload_api";

impl Keeper {
    /// Runs for the life of the process.
    pub(super) async fn follow(&self, address: &str) -> Infallible {
        self.shared.trust_is_given.store(true, Ordering::Relaxed);
        let mut backoff = Backoff::up_to(LONGEST_WITHOUT);
        loop {
            match WorkloadSource::open(address, &self.trust_domain).await {
                Ok(source) => {
                    backoff.reset();
                    self.followed(source, address).await;
                }
                Err(error) => self.failed(REASON, error_chain(&error)),
            }
            sleep(backoff.after_failure(fastrand::f64())).await;
        }
    }

    /// Until the source ends.
    async fn followed(&self, mut source: WorkloadSource, address: &str) {
        loop {
            match source.now(address).map(|given| self.take(given)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.failed(REASON, error),
                Err(error @ WorkloadError::Source { .. }) => self.withdrawn(&error),
                // What is held stays in force until it expires.
                Err(error) => self.failed(REASON, error_chain(&error)),
            }
            tokio::select! {
                changed = source.changed() => if changed.is_err() { return },
                () = sleep(NAP) => {}
            }
        }
    }

    fn take(&self, given: Given) -> Result<(), String> {
        let own = self.shared.identity.load_full();
        let trust = self.shared.trust.load_full();
        let held = trust.bundles.get(self.trust_domain.as_str());
        let same_svid = own.as_ref().is_some_and(|own| own.svid.chain() == given.svid.chain());
        if same_svid && held.is_some_and(|held| held.roots() == given.bundle.roots()) {
            self.status.solved(Topic::Identity);
            return Ok(());
        }
        if let Some(own) = &own {
            same_identity(&own.svid, &given.svid)?;
        }
        // Bundle first, as with our CA: whoever sees the new identity also sees roots that hold it.
        self.shared.change_trust(|trust| {
            Some(Trust {
                bundles: trust.bundles.clone().with(given.bundle.clone()),
                ..trust.clone()
            })
        });
        let process = &self.metrics.process;
        process
            .bundle_sequence
            .store(given.bundle.sequence(), Ordering::Relaxed);
        if !same_svid {
            let what = format!(
                "an SVID for {} from the Workload API, good until {}",
                given.svid.id(),
                until(&given.svid)
            );
            self.take_svid(given.svid).map_err(|error| error_chain(&error))?;
            process.renewals.fetch_add(u64::from(own.is_some()), Ordering::Relaxed);
            self.status.event(Level::Info, what);
        }
        Ok(())
    }

    /// It says that this workload is entitled to nothing any more: what it gave is not used on.
    fn withdrawn(&self, error: &WorkloadError) {
        if self.shared.identity.swap(None).is_some() {
            self.shared.changed();
        }
        self.metrics.renewal_failed(REASON);
        self.status.problem(Topic::Identity, Level::Error, error_chain(error));
    }
}

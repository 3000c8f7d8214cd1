//! One provider's keys, kept fresh.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postern_api::ca_client::Backoff;
use postern_token::KeySet;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Fetched, Fetcher, Missed};
use crate::error_chain;
use crate::hub::Hub;
use crate::state::unix_ms;

/// So that replicas and providers do not ask in step: a share of the refresh.
const JITTER: f64 = 0.1;
/// Between tries while the provider does not answer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

pub(super) struct Keeper {
    pub(super) hub: Arc<Hub>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) provider: String,
    pub(super) timeout_ms: Arc<AtomicU64>,
    /// A token named a key that is not among the provider's.
    pub(super) missed: Arc<Missed>,
}

impl Keeper {
    pub(super) async fn run(self) -> Infallible {
        let mut backoff = Backoff::up_to(LONGEST_BACKOFF.min(self.fetcher.refresh));
        let mut complained = String::new();
        loop {
            let began = Instant::now();
            let next = match self.fetch().await {
                Ok(fetched) => {
                    if !complained.is_empty() {
                        tracing::info!(provider = self.provider, "its keys are fetched again");
                        complained.clear();
                    }
                    self.hub.keys.put(&self.provider, fetched);
                    self.hub.metrics.keys_fetched("done");
                    backoff.reset();
                    self.fetcher.refresh.mul_f64(1.0 - JITTER * fastrand::f64())
                }
                Err(why) => {
                    self.hub.metrics.keys_fetched("failed");
                    if why != complained {
                        tracing::warn!(
                            reason = "keys",
                            provider = self.provider,
                            "cannot fetch its keys: {why}"
                        );
                        self.hub.event(
                            "warning",
                            format!("the keys of {} cannot be fetched: {why}", self.provider),
                        );
                        complained = why;
                    }
                    backoff.after_failure(fastrand::f64())
                }
            };
            self.hub.keys.count(&self.hub.metrics);
            tokio::select! {
                () = sleep_until(began + next) => {}
                // Notified while it fetched: that fetch may have been too early.
                () = self.missed.notify.notified() => sleep_until(began + self.fetcher.at_most_every).await,
            }
        }
    }

    /// A set that no token can be verified with is taken for a mistake, not for a withdrawal of all keys.
    async fn fetch(&self) -> Result<Fetched, String> {
        let number = self.missed.begun.fetch_add(1, Ordering::Relaxed) + 1;
        // As of the beginning: what the provider adds while it answers may be missing.
        let at = unix_ms(std::time::SystemTime::now()) / 1_000;
        let limit = Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed));
        let jwks = match timeout(limit, self.fetcher.keys(&self.provider)).await {
            Ok(Ok(jwks)) => jwks,
            Ok(Err(error)) => return Err(error_chain(&error)),
            Err(_) => return Err(format!("no answer within {limit:?}")),
        };
        let set = KeySet::parse(&jwks).map_err(|error| error.to_string())?;
        for left_out in set.left_out() {
            tracing::debug!(
                provider = self.provider,
                key = left_out.key,
                "left out: {}",
                left_out.why
            );
        }
        if set.is_empty() {
            return Err("no key of its set can be used".to_owned());
        }
        Ok(Fetched { jwks, at, number })
    }
}

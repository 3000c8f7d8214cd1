//! The keys with which end users' tokens are verified: control fetches them, and streams them to the proxies that need them.
//!
//! ```text
//! state: which providers do RequestAuthentications name? -> one keeper each -> fetch (address, TLS, size, time) -> Ring
//! Ring -> sessions -> proxies;   proxy: a token names a key that I do not have -> keeper: fetch now, if the last is 10 s ago
//! ```
//!
//! Invariants: one fetch of a provider at a time; what cannot be fetched leaves what was fetched before, whose age proxies
//! judge; what was never fetched is not there, and nothing is made up for it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::model::Model;

mod address;
mod fetch;
mod keeper;

pub use address::Cidr;
pub(crate) use fetch::Fetcher;
pub use fetch::{FetchConfig, FetchConfigError};

/// A mesh has one issuer, or a few; past it somebody makes control call around the world.
const MAX_PROVIDERS: usize = 256;

/// What was fetched last, by provider ([`postern_policy::authentication::JwtRule::provider`]).
pub(crate) type Ring = BTreeMap<String, Arc<Fetched>>;

/// A key set, as its provider gave it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) jwks: Vec<u8>,
    /// Seconds since 1970.
    pub(crate) at: u64,
    /// Counts the fetches of this process from this provider, from when they begin.
    pub(crate) number: u64,
}

/// See the module; part of the hub.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    ring: watch::Sender<Arc<Ring>>,
    /// Who is told that a key is missing.
    keepers: Mutex<HashMap<String, Arc<Missed>>>,
}

/// Tells a keeper that a key is missing.
#[derive(Debug, Default)]
struct Missed {
    notify: Notify,
    /// How many fetches have begun.
    begun: AtomicU64,
}

impl Keys {
    pub(crate) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.borrow())
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Ring>> {
        self.ring.subscribe()
    }

    /// A proxy has met a token whose key it does not have. Returns the number of the first fetch that begins after this;
    /// `None` of a provider that no document names.
    pub(crate) fn want(&self, provider: &str) -> Option<u64> {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        let keeper = keepers.get(provider)?;
        keeper.notify.notify_one();
        Some(keeper.begun.load(Ordering::Relaxed) + 1)
    }

    /// How many providers there are, and how old their keys.
    fn count(&self, metrics: &Metrics) {
        let providers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner).len();
        metrics.keys(&self.ring(), providers);
    }

    fn put(&self, provider: &str, fetched: Fetched) {
        self.ring.send_modify(|ring| {
            Arc::make_mut(ring).insert(provider.to_owned(), Arc::new(fetched));
        });
    }

    fn forget(&self, provider: &str) {
        self.keepers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(provider);
        self.ring.send_modify(|ring| {
            Arc::make_mut(ring).remove(provider);
        });
    }
}

/// Keeps the keys of all providers fresh, for ever.
pub(crate) async fn follow(hub: Arc<Hub>, fetcher: Fetcher) -> Infallible {
    let fetcher = Arc::new(fetcher);
    let mut state = hub.watch_state();
    // Ends with this function.
    let mut tasks = JoinSet::new();
    let mut kept: HashMap<String, Kept> = HashMap::new();
    loop {
        let wanted = providers(&state.borrow_and_update().model);
        if wanted.len() > MAX_PROVIDERS {
            tracing::error!(
                reason = "too_many_providers",
                "keys of only {MAX_PROVIDERS} providers are fetched"
            );
        }
        let wanted: BTreeMap<String, Duration> = wanted.into_iter().take(MAX_PROVIDERS).collect();
        kept.retain(|provider, kept| {
            let stays = wanted.contains_key(provider);
            if !stays {
                kept.task.abort();
                hub.keys.forget(provider);
            }
            stays
        });
        for (provider, timeout) in wanted {
            let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            match kept.get(&provider) {
                Some(kept) => kept.timeout_ms.store(timeout, Ordering::Relaxed),
                None => {
                    let timeout_ms = Arc::new(AtomicU64::new(timeout));
                    let missed = Arc::new(Missed::default());
                    let mut keepers = hub.keys.keepers.lock().unwrap_or_else(PoisonError::into_inner);
                    keepers.insert(provider.clone(), Arc::clone(&missed));
                    drop(keepers);
                    let keeper = keeper::Keeper {
                        hub: Arc::clone(&hub),
                        fetcher: Arc::clone(&fetcher),
                        provider: provider.clone(),
                        timeout_ms: Arc::clone(&timeout_ms),
                        missed,
                    };
                    let task = tasks.spawn(keeper.run());
                    kept.insert(provider, Kept { timeout_ms, task });
                }
            }
        }
        hub.keys.count(&hub.metrics);
        if state.changed().await.is_err() {
            // The hub keeps the sender.
            return std::future::pending().await;
        }
    }
}

struct Kept {
    timeout_ms: Arc<AtomicU64>,
    task: AbortHandle,
}

/// Whose keys are needed, and how long a fetch may take: the longest that any rule allows.
fn providers(model: &Model) -> BTreeMap<String, Duration> {
    let mut providers: BTreeMap<String, Duration> = BTreeMap::new();
    let documents = model.authentications.iter().filter(|document| !document.foreign_target);
    for rule in documents.flat_map(|document| document.rules()) {
        if let Some(provider) = rule.provider() {
            let timeout = providers.entry(provider).or_default();
            *timeout = rule.timeout.max(*timeout);
        }
    }
    providers
}

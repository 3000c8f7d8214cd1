//! What stands before there is a CA: the metrics port, whose readiness says what is waited for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use postern_api::ca_client::Backoff;
use postern_telemetry::Endpoint;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{ServeConfig, ServeError, bind, until_down};
use crate::issuance::Ca;
use crate::metrics::Metrics;
use crate::seal::{KekConfig, Sealer};
use crate::store::{Seals, StoreError};

/// While the KEK is away.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Front {
    pub(super) metrics: Metrics,
    pub(super) address: SocketAddr,
    pub(super) down: watch::Sender<bool>,
    pub(super) tasks: JoinSet<()>,
    /// Not held: who asks for readiness while the CA ends must not keep its store.
    ca: Arc<OnceLock<Weak<Ca>>>,
    awaited: Arc<Mutex<String>>,
}

impl Front {
    pub(super) async fn open(config: &ServeConfig) -> Result<Self, ServeError> {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (listener, address) = bind(config.metrics_listen).await?;
        let (down, going_down) = watch::channel(false);
        let ca: Arc<OnceLock<Weak<Ca>>> = Arc::default();
        let awaited = Arc::new(Mutex::new("the CA's state is not read yet".to_owned()));
        let served = endpoint(registry, Arc::clone(&ca), Arc::clone(&awaited), going_down.clone()).serve(listener);
        let mut tasks = JoinSet::new();
        tasks.spawn(until_down(going_down, served));
        Ok(Self {
            metrics,
            address,
            down,
            tasks,
            ca,
            awaited,
        })
    }

    /// There is a CA: from now on its readiness is told.
    pub(super) fn stands_before(&self, ca: &Arc<Ca>) {
        // There is one per process.
        let _ = self.ca.set(Arc::downgrade(ca));
    }

    /// How records are sealed; waits while the KEK is away, for as long as it takes.
    pub(super) async fn seals(&self, kek: &KekConfig, migrate: bool) -> Result<Seals, ServeError> {
        let sealer = self
            .patiently(async || Sealer::unseal(kek).await.map_err(ServeError::Kek))
            .await?;
        Ok(Seals::by(sealer, migrate))
    }

    /// Tries until the KEK is there.
    pub(super) async fn patiently<T>(&self, attempt: impl AsyncFn() -> Result<T, ServeError>) -> Result<T, ServeError> {
        let mut backoff = Backoff::up_to(LONGEST_WAIT);
        loop {
            let error = match attempt().await {
                Err(error) if error.is_outage() => error,
                done => return done,
            };
            let why = format!("sealed: {}", crate::error_chain(&error));
            tracing::warn!(reason = "sealed", "{why}");
            self.metrics.sealed(true);
            *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = why;
            sleep(backoff.after_failure(0.5)).await;
        }
    }
}

impl ServeError {
    /// The key is away, and may come back.
    fn is_outage(&self) -> bool {
        match self {
            Self::Kek(error) | Self::Store(StoreError::Kek { source: error, .. }) => error.is_outage(),
            _ => false,
        }
    }
}

fn endpoint(
    registry: Registry,
    ca: Arc<OnceLock<Weak<Ca>>>,
    awaited: Arc<Mutex<String>>,
    down: watch::Receiver<bool>,
) -> Endpoint {
    let scraped = Arc::clone(&ca);
    let readiness = move || {
        if *down.borrow() {
            return Err("going down".to_owned());
        }
        let Some(ca) = ca.get() else {
            return Err(awaited.lock().unwrap_or_else(PoisonError::into_inner).clone());
        };
        let ca = ca.upgrade().ok_or("going down")?;
        ca.authority().ready(ca.now()).map_err(|refusal| refusal.to_string())
    };
    Endpoint::new(registry, Arc::new(readiness), move || {
        let Some(ca) = scraped.get().and_then(Weak::upgrade) else {
            return;
        };
        let outstanding = ca.tokens().map_or(0, |book| book.outstanding(ca.now()));
        ca.metrics
            .tokens_outstanding
            .set(i64::try_from(outstanding).unwrap_or(i64::MAX));
    })
}

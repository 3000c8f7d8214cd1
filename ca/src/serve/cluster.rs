//! `serve --kubernetes-attestation`: pods are callers, and the state can be a Secret that replicas share.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use kube::Client;
use postern_cluster::lease::{self, Leadership};
use postern_identity::SharedTrust;
use tokio::sync::watch;

use super::front::Front;
use super::{Running, ServeConfig, ServeError, check_life, renew_overdue_issuer, root_pace, run};
use crate::attest::pod::{ByApi, ByPod};
use crate::authority::Authority;
use crate::brought_files::IssuerDir;
use crate::clock::Clock;
use crate::issuance::{Attesting, Ca, Keeping, load_authority};
use crate::ledger::{Ledger, LedgerConfig};
use crate::metrics::Metrics;
use crate::replicas::{self, Founding, POLL, RootsMap, Shared};
use crate::rewrap;
use crate::store::Seals;
use crate::store::secret::SecretStore;

/// The Lease of the CA's leader, in the namespace of its state.
const LEASE: &str = "postern-ca";

/// What serving in a cluster needs beside [`ServeConfig`].
#[derive(Clone)]
pub struct InCluster {
    /// Reviews tokens, and keeps what is named below.
    pub client: Client,
    /// `None`: in [`ServeConfig::store`], by this one process.
    pub state: Option<SecretState>,
    /// Namespace and name of the ConfigMap that gets the roots.
    pub roots: Option<(String, String)>,
    /// Who we are, for people who read the Lease.
    pub holder: String,
    /// How quickly replicas follow each other.
    pub pace: Pace,
}

/// A Secret, empty or filled by a CA.
#[derive(Debug, Clone)]
pub struct SecretState {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Used if it is empty.
    pub founding: Founding,
}

/// How quickly replicas follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two readings of the Secret.
    pub poll: Duration,
    /// Of the leader's Lease.
    pub lease: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: POLL,
            lease: lease::DURATION,
        }
    }
}

/// Starts serving pods. With a Secret it waits for the API server as long as it takes.
pub async fn start_in_cluster(config: ServeConfig, cluster: InCluster, clock: Clock) -> Result<Running, ServeError> {
    check_life(&config)?;
    let front = Front::open(&config).await?;
    let metrics = front.metrics.clone();
    let roots = cluster
        .roots
        .as_ref()
        .map(|(namespace, name)| RootsMap::new(cluster.client.clone(), namespace, name));
    let (authority, keeping) = opened(&config, &cluster, &front, roots.as_ref(), &clock).await?;
    let trust: SharedTrust = Arc::new(ArcSwap::from_pointee(authority.trust()));
    let reviewer = Box::new(ByApi {
        client: cluster.client.clone(),
    });
    let by_pod = ByPod::new(reviewer, authority.trust_domain().clone(), authority.own_id().clone());
    let attesting = (Attesting::Pods(by_pod), trust);
    let shared = match &keeping {
        Keeping::Secret(shared) => Some(shared.clone()),
        Keeping::Directory(_) => None,
    };
    let ledger = ledger(&authority, &keeping, &cluster, &config.ledger, &clock, &metrics).await?;
    let keeping = (keeping, ledger);
    // A pod renews by its token: an SVID that has expired is of no use to it.
    let lives = (config.svid_life, root_pace(&config, Duration::ZERO));
    let ca = Ca::new(authority, keeping, attesting, lives, clock, metrics);
    let ca = Arc::new(ca.with_mounted(config.issuer_dir.clone().map(IssuerDir::at)));
    ca.makes_or_mounts()?;
    match &shared {
        Some(shared) => shared
            .load_quarantine(&ca)
            .await
            .map_err(|error| ServeError::State(crate::error_chain(&error)))?,
        None => ca.load_own_quarantine()?,
    }
    rewrap::at_start(&ca).await;
    if shared.is_none() {
        // Of a Secret the leader sees to it.
        ca.keep_numbers_growing().await;
    }
    if shared.is_none() || ca.authority().ready(ca.now()).is_err() {
        // Else the leader looks.
        ca.look_at_mounted().await;
    }
    renew_overdue_issuer(&ca).await?;
    let keepers = keepers(&ca, &cluster, roots, shared);
    run(config, ca, front, keepers).await
}

async fn opened(
    config: &ServeConfig,
    cluster: &InCluster,
    front: &Front,
    roots: Option<&RootsMap>,
    clock: &Clock,
) -> Result<(Authority, Keeping), ServeError> {
    let Some(state) = &cluster.state else {
        let store = super::opened(config, front).await?;
        let authority = load_authority(&store, clock())?;
        return Ok((authority, Keeping::Directory(Arc::new(store))));
    };
    crate::csr::prepare();
    let seals = match &config.kek {
        Some(kek) => front.seals(kek, config.migrate).await?,
        None => Seals::Clear,
    };
    let mounted = config.issuer_dir.clone().map(IssuerDir::at);
    let store = SecretStore::new(cluster.client.clone(), &state.namespace, &state.name, seals);
    let authority = replicas::found_or_load(&store, roots, (&state.founding, mounted.as_ref()), clock)
        .await
        .map_err(|error| ServeError::State(crate::error_chain(&error)))?;
    let founding = state.founding.clone();
    Ok((authority, Keeping::Secret(Shared { store, founding })))
}

/// In the directory, or in lines under a key that replicas share by their Secret.
async fn ledger(
    authority: &Authority,
    keeping: &Keeping,
    cluster: &InCluster,
    config: &LedgerConfig,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<Ledger, ServeError> {
    let (root, clock, metrics) = (authority.founding_root_sha256(), Arc::clone(clock), metrics.clone());
    match keeping {
        Keeping::Directory(store) => Ok(Ledger::open(store, root, config, clock, metrics)?),
        Keeping::Secret(shared) => {
            let key = replicas::ledger_key(&shared.store).await;
            let key = key.map_err(|error| ServeError::State(crate::error_chain(&error)))?;
            let ledger = Ledger::as_lines(&key, root, &cluster.holder, config, clock, metrics);
            ledger.map_err(ServeError::State)
        }
    }
}

fn keepers(
    ca: &Arc<Ca>,
    cluster: &InCluster,
    roots: Option<RootsMap>,
    shared: Option<Shared>,
) -> Vec<BoxFuture<'static, ()>> {
    let (Some(shared), Some(state)) = (shared, &cluster.state) else {
        // One process owns the directory: it leads.
        let (sender, leadership) = watch::channel(Some(Leadership { epoch: 1 }));
        let leading = replicas::lead(Arc::clone(ca), leadership, roots);
        return vec![Box::pin(async move {
            let _sender = sender;
            leading.await;
        })];
    };
    let client = cluster.client.clone();
    let (leadership, election) = lease::run(client, &state.namespace, LEASE, &cluster.holder, cluster.pace.lease);
    vec![
        Box::pin(election),
        Box::pin(replicas::lead(Arc::clone(ca), leadership, roots)),
        Box::pin(shared.follow(Arc::clone(ca), cluster.pace.poll)),
    ]
}

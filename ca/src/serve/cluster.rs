//! `serve --kubernetes-attestation`: pods are callers, and the state can be a Secret that replicas share.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use kube::Client;
use postern_cluster::lease::{self, Leadership};
use postern_identity::SharedTrust;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::{Running, ServeConfig, ServeError, check_life, renew_overdue_issuer, run};
use crate::attest::pod::{ByApi, ByPod};
use crate::authority::Authority;
use crate::clock::Clock;
use crate::issuance::{Attesting, Ca, Keeping, load_authority};
use crate::metrics::Metrics;
use crate::replicas::{self, Founding, POLL, RootsMap, Shared};
use crate::store::Store;
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
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let roots = cluster
        .roots
        .as_ref()
        .map(|(namespace, name)| RootsMap::new(cluster.client.clone(), namespace, name));
    let (authority, keeping) = opened(&config, &cluster, roots.as_ref(), &clock).await?;
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
    let ca = Arc::new(Ca::new(authority, keeping, attesting, config.svid_life, clock, metrics));
    renew_overdue_issuer(&ca).await?;
    let keepers = keepers(&ca, &cluster, roots, shared);
    run(config, ca, registry, keepers).await
}

async fn opened(
    config: &ServeConfig,
    cluster: &InCluster,
    roots: Option<&RootsMap>,
    clock: &Clock,
) -> Result<(Authority, Keeping), ServeError> {
    let Some(state) = &cluster.state else {
        let store = Store::open(&config.store)?;
        let authority = load_authority(&store, clock())?;
        return Ok((authority, Keeping::Directory(Arc::new(store))));
    };
    crate::csr::prepare();
    let store = SecretStore::new(cluster.client.clone(), &state.namespace, &state.name);
    let authority = replicas::found_or_load(&store, roots, &state.founding, clock)
        .await
        .map_err(|error| ServeError::State(crate::error_chain(&error)))?;
    let founding = state.founding.clone();
    Ok((authority, Keeping::Secret(Shared { store, founding })))
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

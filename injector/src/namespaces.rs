//! Labels and annotations of namespaces, which decide whether and how strictly pods are in the mesh.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::time::timeout;

use crate::error_chain;

/// A single read; the API server waits for us in the meantime.
const READ_DEADLINE: Duration = Duration::from_secs(3);

/// What counts of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, without what `kubectl apply` notes for itself.
    pub annotations: BTreeMap<String, String>,
}

/// All namespaces, as they were last seen.
#[derive(Clone)]
pub struct Namespaces {
    client: Client,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    all: RwLock<HashMap<String, Arc<Facts>>>,
    known: AtomicBool,
}

impl Namespaces {
    /// None is known yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            shared: Arc::default(),
        }
    }

    /// Has the API server told of all of them?
    #[must_use]
    pub fn known(&self) -> bool {
        self.shared.known.load(Ordering::Relaxed)
    }

    /// As it was last seen, perhaps moments ago.
    #[must_use]
    pub fn seen(&self, name: &str) -> Option<Arc<Facts>> {
        let all = self.shared.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(name).cloned()
    }

    /// As it is now. `Err` says why that is not known.
    pub async fn read(&self, name: &str) -> Result<Arc<Facts>, String> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let read = timeout(READ_DEADLINE, namespaces.get_metadata(name)).await;
        let found = read.map_err(|_| format!("the API server did not answer within {} s", READ_DEADLINE.as_secs()))?;
        let found = found.map_err(|error| error_chain(&error))?;
        // Not kept: an answer that is late could take the place of something newer that the watch has brought.
        Ok(Arc::new(facts(found.metadata)))
    }

    /// Follows all of them until dropped.
    pub async fn follow(self) -> Infallible {
        loop {
            // Of their metadata alone: nothing else is sent.
            let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
            let mut events = std::pin::pin!(watcher(namespaces, watcher::Config::default()).default_backoff());
            let mut listed = HashMap::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => listed = HashMap::new(),
                    Ok(watcher::Event::InitApply(one)) => {
                        let name = one.metadata.name.clone().unwrap_or_default();
                        listed.insert(name, Arc::new(facts(one.metadata)));
                    }
                    Ok(watcher::Event::InitDone) => {
                        self.change(|all| *all = std::mem::take(&mut listed));
                        self.shared.known.store(true, Ordering::Relaxed);
                    }
                    Ok(watcher::Event::Apply(one)) => {
                        let name = one.metadata.name.clone().unwrap_or_default();
                        self.change(|all| all.insert(name, Arc::new(facts(one.metadata))));
                    }
                    Ok(watcher::Event::Delete(one)) => {
                        self.change(|all| all.remove(&one.metadata.name.unwrap_or_default()));
                    }
                    Err(error) => tracing::warn!(reason = "namespaces", "{}", error_chain(&error)),
                }
            }
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<String, Arc<Facts>>) -> T) {
        change(&mut self.shared.all.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespaces").finish_non_exhaustive()
    }
}

fn facts(metadata: ObjectMeta) -> Facts {
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    Facts {
        labels: metadata.labels.unwrap_or_default(),
        annotations,
    }
}

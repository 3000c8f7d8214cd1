//! A cluster as the source: its pods are the workloads.
//!
//! ```text
//! follow (list, watch; per kind) -> world (what was heard) -> Load, at most every 20 ms -> hub
//! istio (are its kinds there?) -> follow
//! hub: a proxy has something newer than we -> follow: list again
//! ```
//!
//! Invariants: nothing is served before every kind was heard; a kind is replaced whole, never shown in part; what was heard
//! stays while the API server is away; what is in force follows from the objects alone, so that replicas agree.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use postern_cluster::lease::{self, Leadership};
use postern_policy::document::Place;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::hub::Hub;
use crate::state::unix_ms;

mod authentications;
mod complaint;
mod follow;
mod istio;
mod namespaces;
mod peer_authentications;
mod pods;
mod policies;
mod services;
mod status;
mod world;

use complaint::Complaint;
use follow::{Follower, NoSuchKind};
use status::Told;
use world::{Change, Effect, Item, Kind, World};

/// Changes that come within this are put in force together: a Deployment's pods, or a policy set.
const TOGETHER: Duration = Duration::from_millis(20);
/// While much changes, at most this share of the time goes into putting it in force: a divisor.
const SHARE: u32 = 3;
/// Until a kind that is always there is looked for again, should the API server say that it is not.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who leads writes statuses.
const LEASE: &str = "postern-control";
/// Changes that wait to be applied.
const QUEUE: usize = 1024;

/// Something while this replica leads.
type Leads = watch::Receiver<Option<Leadership>>;

/// The cluster that control serves.
#[derive(Clone)]
pub struct Cluster {
    /// Under control's own service account.
    pub client: Client,
    /// Our own namespace and pod: they own the Lease that carries this replica's counts.
    pub own_pod: Option<(String, String)>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("own_pod", &self.own_pod)
            .finish_non_exhaustive()
    }
}

/// Follows the cluster and puts what it hears in force, for ever. The first time once everything was heard.
pub(crate) async fn follow(hub: Arc<Hub>, cluster: Cluster) -> Infallible {
    let namespace = cluster.client.default_namespace().to_owned();
    let holder = cluster.own_pod.as_ref().map_or("control", |(_, pod)| pod);
    let (leads, election) = lease::run(cluster.client.clone(), &namespace, LEASE, holder, lease::DURATION);
    // Ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(election);
    following(hub, cluster, leads).await
}

async fn following(hub: Arc<Hub>, cluster: Cluster, leads: Leads) -> Infallible {
    let (out, mut changes) = mpsc::channel(QUEUE);
    // Ends with this function.
    let _followers = followers(&hub, &cluster.client, out);
    let (told, about_policies) = watch::channel(Arc::new(Told::default()));
    let mut status = JoinSet::new();
    status.spawn(status::keep(Arc::clone(&hub), cluster.clone(), about_policies, leads));
    let mut world = World::default();
    let mut ears = Ears {
        hub: Arc::clone(&hub),
        heard: BTreeMap::new(),
    };
    let mut first = true;
    loop {
        let Some(change) = changes.recv().await else {
            // The followers outlive the loop.
            return std::future::pending().await;
        };
        let began = Instant::now();
        let mut effect = ears.hear(&mut world, change);
        let together = Instant::now() + TOGETHER;
        while let Ok(Some(change)) = tokio::time::timeout_at(together, changes.recv()).await {
            effect = effect.max(ears.hear(&mut world, change));
        }
        ears.tell();
        if let Some(awaited) = world.awaited() {
            hub.set_awaited(awaited);
            continue;
        }
        if effect == Effect::Newer && !first {
            hub.confirm(world.revisions());
            tell(&told, &mut world, &hub);
            continue;
        }
        let working = std::time::Instant::now();
        hub.publish(world.load());
        tell(&told, &mut world, &hub);
        first = false;
        let took = working.elapsed();
        tracing::debug!(
            took_us = took.as_micros(),
            since_first_change_us = began.elapsed().as_micros(),
            "put in force"
        );
        tokio::time::sleep(took * SHARE).await;
    }
}

/// Counts what is heard, and when.
struct Ears {
    hub: Arc<Hub>,
    /// Milliseconds since 1970.
    heard: BTreeMap<Kind, u64>,
}

impl Ears {
    fn hear(&mut self, world: &mut World, change: Change) -> Effect {
        match change.heard() {
            Some(kind) => {
                self.heard.insert(kind, unix_ms(SystemTime::now()));
            }
            None => self.hub.metrics.source_failed(),
        }
        world.apply(change)
    }

    fn tell(&self) {
        if let Some(oldest) = self.heard.values().min() {
            self.hub.metrics.source_heard(*oldest);
        }
    }
}

/// Once it is in force.
fn tell(told: &watch::Sender<Arc<Told>>, world: &mut World, hub: &Hub) {
    if let Some(policies) = world.touched_policies() {
        let next = Told::after(&told.borrow(), policies, &hub.state());
        told.send_replace(Arc::new(next));
    }
}

fn followers(hub: &Arc<Hub>, client: &Client, out: mpsc::Sender<Change>) -> JoinSet<NoSuchKind> {
    let mut tasks = JoinSet::new();
    let domain = hub.mesh.trust_domain.clone();
    tasks.spawn(keep_on(Follower {
        api: Api::<Pod>::all(client.clone()),
        kind: Kind::Pods,
        fields: "",
        keep: move |pod| pods::PodItem::keep(pod, &domain).map(Item::Pod),
        hub: Arc::clone(hub),
        wanted: hub.watch_wanted(),
        out: out.clone(),
        complaint: Complaint::default(),
        deaf_until: Instant::now(),
    }));
    tasks.spawn(keep_on(Follower {
        api: Api::<Namespace>::all(client.clone()),
        kind: Kind::Namespaces,
        fields: "",
        keep: |namespace| Some(Item::Namespace(namespaces::NamespaceItem::keep(namespace))),
        hub: Arc::clone(hub),
        wanted: hub.watch_wanted(),
        out: out.clone(),
        complaint: Complaint::default(),
        deaf_until: Instant::now(),
    }));
    tasks.spawn(keep_on(Follower {
        api: Api::<Service>::all(client.clone()),
        kind: Kind::Services,
        fields: "",
        keep: |service| services::ServiceItem::keep(service).map(Item::Service),
        hub: Arc::clone(hub),
        wanted: hub.watch_wanted(),
        out: out.clone(),
        complaint: Complaint::default(),
        deaf_until: Instant::now(),
    }));
    tasks.spawn(keep_on(Follower {
        api: Api::<EndpointSlice>::all(client.clone()),
        kind: Kind::Slices,
        fields: "",
        keep: |slice| services::SliceItem::keep(slice).map(Item::Slice),
        hub: Arc::clone(hub),
        wanted: hub.watch_wanted(),
        out: out.clone(),
        complaint: Complaint::default(),
        deaf_until: Instant::now(),
    }));
    for kind in [
        Kind::Policies,
        Kind::Authorizers,
        Kind::Authentications,
        Kind::PeerAuthentications,
    ] {
        tasks.spawn(keep_on(rules(
            "postern.dev",
            "v1alpha1",
            kind,
            hub,
            client,
            out.clone(),
        )));
    }
    for kind in [
        Kind::IstioPolicies,
        Kind::IstioAuthentications,
        Kind::IstioPeerAuthentications,
    ] {
        let (hub, client, out) = (Arc::clone(hub), client.clone(), out.clone());
        tasks.spawn(async move { istio::follow(kind, hub, client, out).await });
    }
    tasks
}

type Keep = Box<dyn Fn(DynamicObject) -> Option<Item> + Send + Sync>;

/// AuthorizationPolicies, Authorizers, RequestAuthentications or PeerAuthentications.
fn rules(
    group: &str,
    version: &str,
    kind: Kind,
    hub: &Arc<Hub>,
    client: &Client,
    out: mpsc::Sender<Change>,
) -> Follower<DynamicObject, Keep> {
    let resource = match kind {
        Kind::Authentications | Kind::IstioAuthentications => {
            let kind = GroupVersionKind::gvk(group, version, "RequestAuthentication");
            ApiResource::from_gvk_with_plural(&kind, "requestauthentications")
        }
        Kind::PeerAuthentications | Kind::IstioPeerAuthentications => {
            let kind = GroupVersionKind::gvk(group, version, "PeerAuthentication");
            ApiResource::from_gvk_with_plural(&kind, "peerauthentications")
        }
        Kind::Authorizers => {
            let kind = GroupVersionKind::gvk(group, version, "Authorizer");
            ApiResource::from_gvk_with_plural(&kind, "authorizers")
        }
        Kind::Policies | Kind::IstioPolicies | Kind::Namespaces | Kind::Pods | Kind::Services | Kind::Slices => {
            resource(group, version)
        }
    };
    let api_version = format!("{group}/{version}");
    let keep: Keep = match kind {
        Kind::Authentications | Kind::IstioAuthentications => Box::new(move |object| {
            authentications::AuthenticationItem::keep(&object, &api_version).map(Item::Authentication)
        }),
        Kind::PeerAuthentications | Kind::IstioPeerAuthentications => Box::new(move |object| {
            peer_authentications::PeerAuthenticationItem::keep(&object, &api_version).map(Item::PeerAuthentication)
        }),
        Kind::Authorizers => Box::new(|object| policies::AuthorizerItem::keep(&object).map(Item::Authorizer)),
        Kind::Policies | Kind::IstioPolicies | Kind::Namespaces | Kind::Pods | Kind::Services | Kind::Slices => {
            Box::new(move |object| {
                policies::PolicyItem::keep(object, &api_version).map(|policy| Item::Policy(Box::new(policy)))
            })
        }
    };
    Follower {
        api: Api::all_with(client.clone(), &resource),
        kind,
        fields: "",
        keep,
        hub: Arc::clone(hub),
        wanted: hub.watch_wanted(),
        out,
        complaint: Complaint::default(),
        deaf_until: Instant::now(),
    }
}

fn resource(group: &str, version: &str) -> ApiResource {
    let kind = GroupVersionKind::gvk(group, version, "AuthorizationPolicy");
    ApiResource::from_gvk_with_plural(&kind, "authorizationpolicies")
}

/// A kind that is always there: without it nothing can be served, and what was heard of it stays.
async fn keep_on<K, F>(mut follower: Follower<K, F>) -> NoSuchKind
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    F: Fn(K) -> Option<Item>,
{
    loop {
        let NoSuchKind = follower.run().await;
        let why = format!("{}: the API server has no such kind", follower.kind.word());
        let kind = follower.kind;
        if follower.out.send(Change::Failed { kind, why }).await.is_err() {
            return NoSuchKind;
        }
        tokio::time::sleep(PATIENCE).await;
    }
}

fn place(kind: &str, namespace: &str, name: &str) -> Place {
    let file = if namespace.is_empty() {
        format!("{kind}/{name}")
    } else {
        format!("{kind}/{namespace}/{name}")
    };
    Place {
        file: file.into(),
        ..Place::default()
    }
}

#[cfg(test)]
mod tests;

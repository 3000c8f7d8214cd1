#![allow(clippy::unwrap_used)]

use postern_api::control::v1::destination::State as Answer;
use postern_identity::{SharedTrust, TrustDomain};
use postern_policy::{Action, Mode};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::*;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::model::{Standing, Workload};
use crate::state::State;

#[path = "../../tests/streams/cluster/played.rs"]
// Other tests use other parts of it.
#[allow(dead_code)]
pub(super) mod played;

mod following;
mod replicas;
mod statuses;
mod what_it_means;

use played::{ApiServer, Etcd, NAMESPACES, PODS, POLICIES, SERVICES, SLICES, namespace, pod, policy, service, slice};

/// Any wait for a state ends; only a fault takes this long (of paused time: it is over at once).
const PATIENCE_OF_TESTS: Duration = Duration::from_secs(300);

/// A replica of control, without its proxies.
struct Replica {
    hub: Arc<Hub>,
    leads: watch::Sender<Option<Leadership>>,
    _following: tokio::task::JoinHandle<Infallible>,
}

impl Replica {
    fn at(server: &Arc<ApiServer>) -> Self {
        Self::leading(server, None, true)
    }

    /// In this pod of `postern-system`.
    fn leading(server: &Arc<ApiServer>, pod: Option<&str>, leads: bool) -> Self {
        let hub = Arc::new(Hub::new(
            Mesh::named(TrustDomain::parse("cluster.local").unwrap()),
            SharedTrust::default(),
            Metrics::register(&mut Registry::default()),
        ));
        let cluster = Cluster {
            client: server.client(),
            own_pod: pod.map(|pod| ("postern-system".to_owned(), pod.to_owned())),
        };
        let (leads, told) = watch::channel(leads.then_some(Leadership { epoch: 1 }));
        let following = tokio::spawn(following(Arc::clone(&hub), cluster, told));
        Self {
            hub,
            leads,
            _following: following,
        }
    }

    async fn until(&self, wanted: impl Fn(&State) -> bool) -> Arc<State> {
        let waited = tokio::time::timeout(PATIENCE_OF_TESTS, async {
            // Not all is told to streams: a state that is only known to be newer is not.
            while !wanted(&self.hub.state()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let state = || self.hub.state();
        assert!(waited.await.is_ok(), "it never came; there is {:#?}", state());
        state()
    }

    async fn ready(&self) -> Arc<State> {
        self.until(|state| state.is_there()).await
    }
}

/// Its replica is dropped with it.
impl Drop for Replica {
    fn drop(&mut self) {
        self._following.abort();
    }
}

/// The namespace `shop`, injected, with the pods `cart-1`, `cart-2` and `web-1` in the mesh and `old-1` outside, and the
/// Service `cart`.
fn shop() -> Arc<Etcd> {
    let etcd = Arc::new(Etcd::default());
    etcd.put(
        NAMESPACES,
        namespace("shop", json!({ "postern.dev/inject": "enabled" })),
    );
    etcd.put(NAMESPACES, namespace("outside", json!({})));
    let carts = [
        pod("shop", "cart-1", "10.1.0.1", true),
        pod("shop", "cart-2", "10.1.0.2", true),
    ];
    for pod in &carts {
        etcd.put(PODS, pod.clone());
    }
    etcd.put(PODS, pod("shop", "web-1", "10.1.0.3", true));
    etcd.put(PODS, pod("outside", "old-1", "10.1.0.4", false));
    etcd.put(SERVICES, service("shop", "cart", "10.96.0.1"));
    etcd.put(SLICES, slice("shop", "cart", &[&carts[0], &carts[1]]));
    etcd
}

fn find<'s>(state: &'s State, namespace: &str, name: &str) -> &'s Workload {
    &state.model.workloads[&(namespace.to_owned(), name.to_owned())]
}

/// Who answers at an address: names of endpoints, or a word.
fn at(state: &State, ip: &str, port: u16) -> Vec<String> {
    match state.model.resolve_address(ip.parse().unwrap(), port) {
        Answer::Meshed(meshed) => meshed.endpoints.iter().map(|e| e.workload.clone()).collect(),
        Answer::Unmeshed(unmeshed) => {
            let address = |a: &postern_api::control::v1::SocketAddress| format!("clear {:?}:{}", a.ip, a.port);
            unmeshed.addresses.iter().map(address).collect()
        }
        Answer::Outside(_) => vec!["outside".to_owned()],
        Answer::Unreachable(unreachable) => vec![unreachable.reason],
    }
}

fn policy_names(state: &State) -> Vec<&str> {
    state.model.policies.iter().map(|policy| policy.name.as_str()).collect()
}

fn deny_all() -> Value {
    json!({ "action": "DENY", "rules": [{}] })
}

//! The aggregated API: what operators see of the mesh and ask of it, with `kubectl` and through `postern edges` and others.
//!
//! ```text
//! the API server's front proxy --TLS, client certificate--> connections (possession proven)
//!   -> routes (what is asked for) -> front_proxy (whose certificate is that; whom do its headers name)
//!   -> access (SubjectAccessReview) -> pictures (ours and the other replicas') -> views -> table or JSON
//!                                   -> explanations (the question in the body) -> the same, answered
//! ```
//!
//! Invariants: a header that names a user counts only under the front proxy's certificate, verified anew for each request;
//! without it everything but health is 401. Nothing is shown without a yes of the API server to exactly this user, verb,
//! resource, namespace and name. Nothing can be changed here, and nothing that is sent is kept or logged.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use postern_cluster::serving;
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;

use crate::error_chain;
use crate::hub::Hub;
use crate::identity::Own;

mod access;
mod connections;
mod discovery;
mod explanations;
mod front_proxy;
mod http;
pub mod objects;
mod pictures;
mod routes;
mod selectors;
mod table;
mod views;

use access::Access;
use explanations::Explaining;
use front_proxy::{CONFIG_MAP, FrontProxy, NAMESPACE};
use pictures::Pictures;

/// The mesh's own namespace, which is fixed.
const SYSTEM: &str = "postern-system";
/// What the API server calls.
const SERVICE: &str = "postern-control";
/// The Secret with the serving certificate that replicas share.
const SECRET: &str = "postern-control-tls";
/// The APIService that leads here.
const API_SERVICE: &str = "v1alpha1.view.postern.dev";

/// How to serve the API.
#[derive(Clone)]
pub struct ApiConfig {
    /// Where the API server calls.
    pub listen: SocketAddr,
    /// `host:port` under which all replicas are found, this one included; `None`: there is one.
    pub replicas: Option<String>,
    /// Our own address, which is not asked.
    pub own_address: Option<IpAddr>,
    /// Who answers SubjectAccessReviews, and has the ConfigMap of the front proxy.
    pub client: kube::Client,
    /// What the API server is shown.
    pub certificate: Certificate,
}

/// Where the serving certificate comes from.
#[derive(Clone)]
pub enum Certificate {
    /// Somebody else's affair.
    Given(Arc<dyn ResolvesServerCert>),
    /// Issued by ourselves, shared by replicas, told to the API server.
    Kept(serving::Keeping),
}

/// The certificate of control's replicas in their own cluster.
pub(crate) fn kept_certificate() -> Certificate {
    Certificate::Kept(serving::Keeping {
        namespace: SYSTEM.to_owned(),
        secret: SECRET.to_owned(),
        dns_names: vec![format!("{SERVICE}.{SYSTEM}.svc")],
        targets: vec![serving::Target::ApiService(API_SERVICE.to_owned())],
        timing: serving::Timing::default(),
    })
}

impl std::fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiConfig")
            .field("listen", &self.listen)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

/// Serves until dropped.
pub(crate) async fn serve(hub: Arc<Hub>, own: Arc<Own>, config: ApiConfig, listener: TcpListener) {
    let front_proxy = Arc::new(ArcSwapOption::empty());
    let answering = Arc::new(http::Answering {
        front_proxy: Arc::clone(&front_proxy),
        access: Access::new(config.client.clone()),
        explaining: Explaining::new(Arc::clone(&hub)),
        pictures: Pictures::new(hub, own, config.replicas, config.own_address),
    });
    let followed = follow(config.client.clone(), &front_proxy);
    match config.certificate {
        Certificate::Given(certificate) => {
            tokio::join!(followed, connections::serve(listener, certificate, answering));
        }
        Certificate::Kept(wanted) => {
            let certificate = serving::ServingCertificate::default();
            let served = connections::serve(listener, certificate.resolver(), answering);
            let kept = serving::keep(config.client, wanted, certificate);
            tokio::join!(followed, served, kept);
        }
    }
}

/// Takes each new state of the front proxy's ConfigMap. One that cannot be read leaves the last good one; one that is gone
/// leaves nobody to be believed.
async fn follow(client: kube::Client, front_proxy: &ArcSwapOption<FrontProxy>) {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let only = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let mut events = std::pin::pin!(watcher(maps, only).default_backoff());
    let mut seen = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) => {
                seen = true;
                match FrontProxy::from_config_map(&map) {
                    Ok(new) => {
                        tracing::info!(proxy = ?new, "the front proxy is known");
                        front_proxy.store(Some(Arc::new(new)));
                    }
                    Err(error) => tracing::error!(reason = "front_proxy", "{}", error_chain(&error)),
                }
            }
            Ok(watcher::Event::Init) => seen = false,
            Ok(watcher::Event::InitDone) if seen => {}
            Ok(watcher::Event::Delete(_) | watcher::Event::InitDone) => {
                tracing::error!(reason = "front_proxy", "there is no ConfigMap {NAMESPACE}/{CONFIG_MAP}");
                front_proxy.store(None);
            }
            Err(error) => tracing::warn!(reason = "front_proxy", "{}", error_chain(&error)),
        }
    }
}

//! The parts of a running control, started together and stopped together.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use postern_api::ca_client;
use postern_api::control::v1::control_server::ControlServer;
use postern_api::control::v1::view_server::ViewServer;
use postern_api::transport::{self, Caller};
use postern_identity::{SharedTrust, Svid, VerifiedPeer};
use postern_telemetry::Endpoint;
use prometheus_client::registry::Registry;
use rustls::pki_types::UnixTime;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

use crate::bundle_endpoint::{EndpointProof, Handshakes, WebCertificateError};
use crate::connect::Connecting;
use crate::directory::{Directory, watch as files};
use crate::federation::{FederationConfig, RefusedAtStart, RootsError};
use crate::hub::{Hub, told};
use crate::identity::{self, IdentitySource, Own, OwnError};
use crate::keys::{self, FetchConfig, FetchConfigError, Fetcher};
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::source::Source;
use crate::view::Viewing;
use crate::{bundle_endpoint, bundles, error_chain, federation, quarantine};

/// A flow report of 256 edges with full-length IDs.
const MAX_MESSAGE: usize = 2 * 1024 * 1024;
/// Header lists of gRPC calls take a few hundred bytes.
const MAX_HEADER_LIST: u32 = 8 * 1024;
/// Streams on one connection; a proxy needs one.
const MAX_STREAMS: u32 = 8;
/// A silent connection is probed after this and closed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Streams are told at SIGTERM and end within this.
const DRAIN: Duration = Duration::from_secs(2);
/// How often those long gone are looked for.
const PRUNE: Duration = Duration::from_secs(30);

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Where namespaces, services, workloads and policies come from.
    pub source: Source,
    /// Whose identities are served, and whose policies count for all.
    pub mesh: Mesh,
    /// Where proxies call; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where metrics and readiness are.
    pub metrics_listen: SocketAddr,
    /// Where viewers call; made with mode 0600.
    pub view_socket: Option<PathBuf>,
    /// Streams of proxies at once; more are refused.
    pub max_proxies: usize,
    /// How the keys of end users' issuers are fetched.
    pub keys: FetchConfig,
    /// Other trust domains.
    pub federation: FederationConfig,
    /// Where our own bundle is served to them.
    pub bundle_endpoints: Vec<BundleEndpoint>,
    /// Gets `{"listen":..., "metrics":...}` once proxies are served.
    pub ready_file: Option<PathBuf>,
    /// The aggregated API for operators.
    #[cfg(feature = "kubernetes")]
    pub api: Option<crate::api::ApiConfig>,
}

/// Where our own bundle is served (SPIFFE Federation).
#[derive(Debug, Clone)]
pub struct BundleEndpoint {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// By what it proves itself.
    pub proof: EndpointProof,
}

/// Why control does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A socket, file or directory.
    #[error("cannot {what}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The roots for fetching keys.
    #[error(transparent)]
    Keys(#[from] FetchConfigError),
    /// The roots for fetching bundles.
    #[error(transparent)]
    Federation(#[from] RootsError),
    /// The file of other trust domains.
    #[error(transparent)]
    FederationFile(#[from] RefusedAtStart),
    /// The certificate of a bundle endpoint.
    #[error(transparent)]
    BundleEndpoint(#[from] WebCertificateError),
    /// No SVID.
    #[error("{0}")]
    Identity(String),
}

/// A control that serves until stopped or dropped.
#[derive(Debug)]
pub struct Running {
    /// The bound address for proxies.
    pub listen: SocketAddr,
    /// The bound address for metrics.
    pub metrics: SocketAddr,
    /// The bound addresses of bundle endpoints, in the order of their configuration.
    pub bundle_endpoints: Vec<SocketAddr>,
    /// The bound address of the aggregated API, if it is served.
    #[cfg(feature = "kubernetes")]
    pub api: Option<SocketAddr>,
    down: watch::Sender<bool>,
    tasks: JoinSet<()>,
    view_socket: Option<PathBuf>,
}

impl Running {
    /// Ends streams and stops.
    pub async fn stop(mut self) {
        self.down.send_replace(true);
        let drained = tokio::time::timeout(DRAIN, async { while self.tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("streams were cut short at shutdown");
            self.tasks.shutdown().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.down.send_replace(true);
        if let Some(path) = &self.view_socket {
            // Gone already, or of use to nobody.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Reads the source, gets an identity, and serves; returns when proxies can call.
pub async fn start(config: ServeConfig, identity: IdentitySource) -> Result<Running, ServeError> {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let trust = SharedTrust::default();
    let hub = Hub::new(config.mesh.clone(), trust, metrics);
    let hub = Arc::new(hub.in_pod(config.source.own_pod()));
    hub.subscribers().max_streams = config.max_proxies;
    hub.metrics.connected(&hub.subscribers());
    let down = hub.down.clone();
    let mut tasks = JoinSet::new();
    let ready = Arc::new(OnceLock::new());
    // First of all, so that probes hear why it is not ready yet.
    let (listener, metrics) = bind(config.metrics_listen).await?;
    tasks.spawn(until_down(
        down.subscribe(),
        endpoint(&hub, registry, &ready).serve(listener),
    ));

    let fetcher = Fetcher::new(&config.keys)?;
    let bundles_of_others = federation::Fetcher::new(config.federation.roots.as_ref())?;
    read(&hub, config.source, &mut tasks).await?;
    tasks.spawn(until_down(down.subscribe(), keys::follow(Arc::clone(&hub), fetcher)));

    let own = own_identity(&hub, identity, &mut tasks).await?;
    if let Some(follower) = federation::begin(&hub, config.federation, bundles_of_others).await? {
        tasks.spawn(until_down(down.subscribe(), follower.run()));
    }
    let mut bundle_endpoints = Vec::new();
    for endpoint in config.bundle_endpoints {
        let handshakes = Handshakes::new(Arc::clone(&own), endpoint.proof)?;
        let (listener, bound) = bind(endpoint.listen).await?;
        let served = bundle_endpoint::serve(Arc::clone(&hub), listener, handshakes);
        tasks.spawn(until_down(down.subscribe(), served));
        bundle_endpoints.push(bound);
    }
    let (listener, listen) = bind(config.listen).await?;
    tasks.spawn(serve_proxies(Arc::clone(&hub), Arc::clone(&own), listener));
    if let Some(path) = &config.view_socket {
        tasks.spawn(serve_viewers(Arc::clone(&hub), bind_view(path).await?));
    }
    tasks.spawn(until_down(down.subscribe(), prune(Arc::clone(&hub))));
    #[cfg(feature = "kubernetes")]
    let api = match config.api {
        None => None,
        Some(api) => {
            let (listener, bound) = bind(api.listen).await?;
            let served = crate::api::serve(Arc::clone(&hub), Arc::clone(&own), api, listener);
            tasks.spawn(until_down(down.subscribe(), served));
            Some(bound)
        }
    };
    // Nobody else sets it.
    let _ = ready.set(own);
    if let Some(path) = &config.ready_file {
        let mut document = serde_json::json!({ "listen": listen, "metrics": metrics });
        if !bundle_endpoints.is_empty() {
            document["bundle_endpoints"] = serde_json::json!(bundle_endpoints);
        }
        let failed = |source| ServeError::Io {
            what: format!("write {}", path.display()),
            source,
        };
        write_ready_file(path, &document.to_string()).map_err(failed)?;
    }
    tracing::info!(listen = %listen, metrics = %metrics, trust_domain = %config.mesh.trust_domain, "serving");
    Ok(Running {
        listen,
        metrics,
        bundle_endpoints,
        #[cfg(feature = "kubernetes")]
        api,
        down,
        tasks,
        view_socket: config.view_socket,
    })
}

/// Puts the source's first state in force, and then every other.
async fn read(hub: &Arc<Hub>, source: Source, tasks: &mut JoinSet<()>) -> Result<(), ServeError> {
    let down = hub.down.subscribe();
    match source {
        Source::Directory(root) => {
            let mut directory = Directory::new(hub.mesh.trust_domain.clone());
            let failed = |source| ServeError::Io {
                what: format!("read the directory {}", root.display()),
                source,
            };
            hub.publish(files::first(&mut directory, &root).await.map_err(failed)?);
            let published = Arc::clone(hub);
            let follow = files::follow(directory, root, move |load| published.publish(load));
            tasks.spawn(until_down(down, follow));
        }
        #[cfg(feature = "kubernetes")]
        Source::Kubernetes(cluster) => {
            let mut state = hub.watch_state();
            tasks.spawn(until_down(down, crate::kubernetes::follow(Arc::clone(hub), cluster)));
            // The hub keeps the sender.
            let _ = state.wait_for(|state| state.is_there()).await;
        }
    }
    Ok(())
}

async fn own_identity(
    hub: &Arc<Hub>,
    identity: IdentitySource,
    tasks: &mut JoinSet<()>,
) -> Result<Arc<Own>, ServeError> {
    let failed = |error: OwnError| ServeError::Identity(error_chain(&error));
    let (svid, bundle, source) = match identity {
        IdentitySource::Given { svid, bundle } => (svid, bundle, None),
        #[cfg(feature = "workload-client")]
        IdentitySource::WorkloadApi { address } => {
            let (source, given) = identity::given::first(&address, hub).await.map_err(failed)?;
            identity::given::given_trust(&hub.trust, &given.bundle);
            hub.metrics.certificate(given.svid.not_after().as_secs());
            let own = Arc::new(Own::new(given.svid, Arc::clone(&hub.trust)).map_err(failed)?);
            hub.show_own(own.watch());
            let follow = identity::given::follow(Arc::clone(hub), Arc::clone(&own), source, address);
            tasks.spawn(until_down(hub.down.subscribe(), follow));
            return Ok(own);
        }
        IdentitySource::Ca { address, evidence } => {
            let issued = identity::first(&address, &evidence, &hub.trust, &hub.mesh.trust_domain)
                .await
                .map_err(failed)?;
            quarantine::from_answer(hub, issued.quarantine.as_ref());
            (
                issued.svid,
                issued.bundle,
                Some(((address, evidence), issued.issuer_epoch)),
            )
        }
    };
    identity::trust_bundle(&hub.trust, &bundle);
    hub.metrics.certificate(svid.not_after().as_secs());
    let own = Arc::new(Own::new(svid, Arc::clone(&hub.trust)).map_err(failed)?);
    hub.show_own(own.watch());
    if let Some((source, epoch)) = source {
        let (down, bundles_of) = (&hub.down, source.0.clone());
        tasks.spawn(until_down(
            down.subscribe(),
            identity::keep_fresh(Arc::clone(hub), Arc::clone(&own), source, epoch),
        ));
        tasks.spawn(until_down(
            down.subscribe(),
            bundles::follow(Arc::clone(hub), Arc::clone(&own), bundles_of),
        ));
    }
    Ok(own)
}

async fn serve_proxies(hub: Arc<Hub>, own: Arc<Own>, listener: TcpListener) {
    let metrics = hub.metrics.clone();
    let refused = move |failure: transport::RefusedHandshake| {
        metrics.handshake_failed(failure.reason);
        tracing::info!(reason = failure.reason, caller = %failure.address, "handshake failed: {}", failure.source);
    };
    let incoming = transport::incoming(listener, move || own.server(), Arc::clone(&hub.trust), refused);
    let mut down = hub.down.subscribe();
    let pictures = ViewServer::with_interceptor(Viewing { hub: Arc::clone(&hub) }, only_control(&hub));
    let service = ControlServer::new(Connecting { hub }).max_decoding_message_size(MAX_MESSAGE);
    let served = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(service)
        .add_service(pictures)
        .serve_with_incoming_shutdown(incoming, async move { told(&mut down).await })
        .await;
    if let Err(error) = served {
        tracing::error!(error = %error_chain(&error), "the proxies' port ended");
    }
}

async fn serve_viewers(hub: Arc<Hub>, listener: UnixListener) {
    let mut down = hub.down.subscribe();
    let served = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(ViewServer::with_interceptor(Viewing { hub }, only_own_user))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move { told(&mut down).await })
        .await;
    if let Err(error) = served {
        tracing::error!(error = %error_chain(&error), "the view socket ended");
    }
}

/// Replicas show each other their pictures, and nobody else: who talks to whom is nothing for a workload to read.
fn only_control(hub: &Arc<Hub>) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
    let hub = Arc::clone(hub);
    move |request| {
        let caller = request.extensions().get::<Caller>();
        let peer = caller.and_then(|caller| caller.peer.as_ref());
        let holds = |peer: &VerifiedPeer| peer.still_holds(&hub.trust.load(), transport::now()).is_ok();
        let control = ca_client::control_id(&hub.mesh.trust_domain).ok();
        match (peer, control) {
            (Some(peer), Some(control)) if *peer.id() == control && holds(peer) => Ok(request),
            _ => Err(Status::permission_denied("only control may look here")),
        }
    }
}

/// The socket's mode says the same; between its making and that mode there is a moment.
fn only_own_user(request: Request<()>) -> Result<Request<()>, Status> {
    let caller = request
        .extensions()
        .get::<UdsConnectInfo>()
        .and_then(|info| info.peer_cred)
        .map(|cred| cred.uid());
    let own = rustix::process::geteuid().as_raw();
    match caller {
        Some(uid) if uid == own || uid == 0 => Ok(request),
        Some(_) | None => Err(Status::permission_denied("only control's own user may watch")),
    }
}

/// `ready` is what is served under, once proxies can call.
fn endpoint(hub: &Arc<Hub>, registry: Registry, ready: &Arc<OnceLock<Arc<Own>>>) -> Endpoint {
    let (asked, ready) = (Arc::clone(hub), Arc::clone(ready));
    let readiness = move || {
        if *asked.down.borrow() {
            Err("going down".to_owned())
        } else if !asked.state().is_there() {
            Err(asked.awaited())
        } else if let Some(own) = ready.get() {
            still_good(&own.svid(), transport::now())
        } else {
            Err("no identity yet".to_owned())
        }
    };
    Endpoint::new(registry, Arc::new(readiness), || {})
}

/// No proxy believes an expired SVID: who shows one serves nobody.
fn still_good(own: &Svid, now: UnixTime) -> Result<(), String> {
    // An SVID holds through its last second.
    match now.as_secs().checked_sub(own.not_after().as_secs()) {
        None | Some(0) => Ok(()),
        Some(ago) => Err(format!("our own SVID expired {ago} s ago and is not renewed")),
    }
}

/// Forgets workloads that have long been gone.
async fn prune(hub: Arc<Hub>) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(PRUNE).await;
        let gone = hub.subscribers().prune(Instant::now());
        let mut observed = hub.observed();
        for name in &gone {
            observed.flows.forget(name);
        }
    }
}

async fn until_down<T>(mut down: watch::Receiver<bool>, work: impl Future<Output = T>) {
    tokio::select! {
        () = told(&mut down) => {}
        _ = work => {}
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Io {
        what: format!("listen on {address}"),
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// A socket that somebody answers on is left alone; one that a killed process left behind is replaced.
async fn bind_view(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Io {
        what: format!("listen on {}", path.display()),
        source,
    };
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(failed(io::ErrorKind::AddrInUse.into()));
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

fn write_ready_file(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

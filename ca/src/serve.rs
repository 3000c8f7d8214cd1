//! `serve`: the parts of a running CA, started together and stopped together.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use postern_api::ca::v1::admin_server::AdminServer;
use postern_api::ca::v1::certificate_authority_server::CertificateAuthorityServer;
use postern_api::transport;
use postern_telemetry::Endpoint;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::clock::{Clock, until};
use crate::connections;
use crate::csr::MAX_CSR;
use crate::issuance::{Ca, Why};
use crate::metrics::Metrics;
use crate::rpc::Issuing;
use crate::rpc::admin::{Operating, only_own_user};
use crate::serving::Serving;
use crate::store::{Store, StoreError};

#[cfg(feature = "kubernetes")]
mod cluster;

#[cfg(feature = "kubernetes")]
pub use cluster::{InCluster, Pace, SecretState, start_in_cluster};

/// SVIDs live at least this long, unless the insecure switch is set.
pub(crate) const MIN_SVID_LIFE: Duration = Duration::from_secs(5 * 60);
/// SVIDs live at most this long.
pub(crate) const MAX_SVID_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The least under the insecure switch.
const MIN_INSECURE_SVID_LIFE: Duration = Duration::from_secs(1);
/// A request is a CSR and a chain of at most six certificates.
const MAX_REQUEST: usize = 4 * MAX_CSR;
/// Header lists of gRPC calls take a few hundred bytes.
const MAX_HEADER_LIST: u32 = 8 * 1024;
/// Streams on one connection; a caller needs one or two.
const MAX_STREAMS: u32 = 32;
/// From a call's headers to its answer, its body included.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A silent connection is probed after this and closed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A connection is told to finish after this: calls are rare, and an idle one is only a cost. A bundle stream that is
/// open goes on.
const CONNECTION_AGE: Duration = Duration::from_secs(10 * 60);
/// Calls in flight at SIGTERM get this long.
const DRAIN: Duration = Duration::from_secs(2);
/// The issuer's age is looked at at least this often, should the clock be moved.
pub(crate) const ISSUER_LOOK: Duration = Duration::from_secs(30);
/// After a failed rotation.
pub(crate) const ROTATION_RETRY: Duration = Duration::from_secs(10);

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// A store that `init` made. (Not looked at where a cluster's Secret has the state.)
    pub store: PathBuf,
    /// Where workloads and control call; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the operator calls; made with mode 0600.
    pub admin_socket: PathBuf,
    /// Where metrics and readiness are.
    pub metrics_listen: SocketAddr,
    /// Gets `{"listen":..., "metrics":...}` once both are bound and the CA is ready.
    pub ready_file: Option<PathBuf>,
    /// Life of an SVID: 5 min to 24 h.
    pub svid_life: Duration,
    /// Allows lives of seconds.
    pub insecure_short_life: bool,
}

/// Why the CA does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A value out of its bounds.
    #[error("{0}")]
    Config(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state in the cluster.
    #[error("{0}")]
    State(String),
    /// A socket or file.
    #[error("cannot {what}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It could serve, but not issue.
    #[error("the CA cannot issue: {0}")]
    CannotIssue(String),
}

/// A CA that serves until stopped or dropped.
#[derive(Debug)]
pub struct Running {
    /// The bound address for workloads and control.
    pub listen: SocketAddr,
    /// The bound address for metrics.
    pub metrics: SocketAddr,
    down: watch::Sender<bool>,
    tasks: JoinSet<()>,
    admin_socket: PathBuf,
}

impl Running {
    /// Ends streams, lets calls finish within two seconds, and gives the store up.
    pub async fn stop(mut self) {
        self.down.send_replace(true);
        let drained = tokio::time::timeout(DRAIN, async { while self.tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("calls were cut short at shutdown");
            self.tasks.shutdown().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already, or of use to nobody.
        let _ = std::fs::remove_file(&self.admin_socket);
    }
}

/// Opens the store and starts serving.
pub async fn start(config: ServeConfig, clock: Clock) -> Result<Running, ServeError> {
    check_life(&config)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let store = Store::open(&config.store)?;
    let ca = Arc::new(Ca::load(store, config.svid_life, clock, metrics)?);
    renew_overdue_issuer(&ca).await?;
    let keepers: Vec<BoxFuture<'static, ()>> = vec![Box::pin(keep_issuer_fresh(Arc::clone(&ca)))];
    run(config, ca, registry, keepers).await
}

/// Serves, and does the keepers' work beside it.
async fn run(
    config: ServeConfig,
    ca: Arc<Ca>,
    registry: Registry,
    keepers: Vec<BoxFuture<'static, ()>>,
) -> Result<Running, ServeError> {
    let serving = Arc::new(Serving::start(Arc::clone(&ca)).map_err(ServeError::CannotIssue)?);

    let (listener, listen) = bind(config.listen).await?;
    let (metrics_listener, metrics) = bind(config.metrics_listen).await?;
    let admin = bind_admin(&config.admin_socket).await?;
    let (down, going_down) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_callers(Arc::clone(&ca), serving, listener, going_down.clone()));
    tasks.spawn(serve_operator(Arc::clone(&ca), admin, going_down.clone()));
    tasks.spawn(until_down(
        going_down.clone(),
        endpoint(&ca, registry, going_down.clone()).serve(metrics_listener),
    ));
    for keeper in keepers {
        tasks.spawn(until_down(going_down.clone(), keeper));
    }
    if let Some(path) = &config.ready_file {
        let document = serde_json::json!({ "listen": listen, "metrics": metrics });
        write_ready_file(path, &document.to_string()).map_err(|source| ServeError::Io {
            what: format!("write {}", path.display()),
            source,
        })?;
    }
    let authority = ca.authority();
    tracing::info!(
        listen = %listen,
        metrics = %metrics,
        trust_domain = %authority.trust_domain(),
        issuer_epoch = authority.issuer_epoch(),
        "serving"
    );
    Ok(Running {
        listen,
        metrics,
        down,
        tasks,
        admin_socket: config.admin_socket,
    })
}

/// Puts a new issuer into the store of a CA that does not run; its number.
pub async fn rotate_store(store: &Path, clock: Clock) -> Result<u64, ServeError> {
    let metrics = Metrics::register(&mut Registry::default());
    let ca = Arc::new(Ca::load(Store::open(store)?, MAX_SVID_LIFE, clock, metrics)?);
    let next = ca
        .rotate(Why::Asked)
        .await
        .map_err(|error| ServeError::CannotIssue(crate::error_chain(&error)))?;
    Ok(next.issuer_epoch())
}

fn check_life(config: &ServeConfig) -> Result<(), ServeError> {
    let least = if config.insecure_short_life {
        MIN_INSECURE_SVID_LIFE
    } else {
        MIN_SVID_LIFE
    };
    if !(least..=MAX_SVID_LIFE).contains(&config.svid_life) {
        return Err(ServeError::Config(format!(
            "--svid-life {} is out of bounds: {} to {} (seconds only with --insecure-short-life, for demonstrations)",
            humantime::format_duration(config.svid_life),
            humantime::format_duration(least),
            humantime::format_duration(MAX_SVID_LIFE),
        )));
    }
    Ok(())
}

/// An issuer that ran out (or nearly) while nobody served is replaced before the first caller.
async fn renew_overdue_issuer(ca: &Arc<Ca>) -> Result<(), ServeError> {
    let (authority, now) = (ca.authority(), ca.now());
    if now < authority.rotation_due(ca.svid_life) || !authority.can_outlive_itself() {
        return Ok(());
    }
    match ca.rotate(Why::Due).await {
        Ok(_) => Ok(()),
        Err(error) if authority.ready(now).is_err() => Err(ServeError::CannotIssue(crate::error_chain(&error))),
        // Logged; the one at hand still signs, and the attempt is repeated.
        Err(_) => Ok(()),
    }
}

async fn serve_callers(ca: Arc<Ca>, serving: Arc<Serving>, listener: TcpListener, down: watch::Receiver<bool>) {
    let (metrics, full) = (ca.metrics.clone(), ca.metrics.clone());
    let refused = move |failure: transport::RefusedHandshake| {
        metrics.handshake_failed(failure.reason);
        tracing::info!(reason = failure.reason, caller = %failure.address, "handshake failed: {}", failure.source);
    };
    let incoming = transport::incoming(listener, move || serving.config(), Arc::clone(&ca.trust), refused);
    let incoming = connections::bounded(incoming, move |caller, _full| {
        full.handshake_failed("too_many_connections");
        tracing::warn!(reason = "too_many_connections", caller = %caller.address, "connection closed");
    });
    let service =
        CertificateAuthorityServer::new(Issuing { ca, down: down.clone() }).max_decoding_message_size(MAX_REQUEST);
    let served = Server::builder()
        .timeout(CALL_DEADLINE)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_connection_age(CONNECTION_AGE)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, told(down))
        .await;
    if let Err(error) = served {
        tracing::error!(error = %crate::error_chain(&error), "the callers' port ended");
    }
}

async fn serve_operator(ca: Arc<Ca>, listener: UnixListener, down: watch::Receiver<bool>) {
    let served = Server::builder()
        .timeout(CALL_DEADLINE)
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(AdminServer::with_interceptor(Operating { ca }, only_own_user))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), told(down))
        .await;
    if let Err(error) = served {
        tracing::error!(error = %crate::error_chain(&error), "the admin socket ended");
    }
}

fn endpoint(ca: &Arc<Ca>, registry: Registry, down: watch::Receiver<bool>) -> Endpoint {
    let (asked, scraped) = (Arc::clone(ca), Arc::clone(ca));
    let readiness = move || {
        if *down.borrow() {
            return Err("going down".to_owned());
        }
        asked
            .authority()
            .ready(asked.now())
            .map_err(|refusal| refusal.to_string())
    };
    Endpoint::new(registry, Arc::new(readiness), move || {
        let outstanding = scraped.tokens().map_or(0, |book| book.outstanding(scraped.now()));
        scraped
            .metrics
            .tokens_outstanding
            .set(i64::try_from(outstanding).unwrap_or(i64::MAX));
    })
}

/// Replaces the issuer in good time, for ever.
async fn keep_issuer_fresh(ca: Arc<Ca>) {
    let mut changes = ca.watch();
    loop {
        let authority = ca.authority();
        let due = authority.rotation_due(ca.svid_life);
        let now = ca.now();
        let wait = if now < due {
            until(due, now).min(ISSUER_LOOK)
        } else if !authority.can_outlive_itself() {
            // The root ends with it; only a new root helps, and the metric and readiness say so.
            ISSUER_LOOK
        } else if ca.rotate(Why::Due).await.is_err() {
            ROTATION_RETRY
        } else {
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // By hand: the reckoning starts anew. (A receiver remembers what it has seen: nothing is lost.)
            _ = changes.changed() => {}
        }
    }
}

async fn told(mut down: watch::Receiver<bool>) {
    // An error means that the sender is gone, and so is whoever could stop us in another way.
    let _ = down.wait_for(|down| *down).await;
}

async fn until_down<T>(down: watch::Receiver<bool>, work: impl Future<Output = T>) {
    tokio::select! {
        () = told(down) => {}
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
async fn bind_admin(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Io {
        what: format!("listen on {}", path.display()),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(failed(io::ErrorKind::AddrInUse.into()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Whoever slips in before this line is turned away by `only_own_user`.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

fn write_ready_file(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

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
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::attest::renewal::GRACE;
use crate::authority::{RootPace, Stage};
use crate::brought_files::IssuerDir;
use crate::clock::{Clock, until};
use crate::connections;
use crate::csr::MAX_CSR;
use crate::issuance::{Ca, RotationError, Why, bringing};
use crate::ledger::{LedgerConfig, MIN_RETENTION};
use crate::metrics::Metrics;
use crate::rewrap;
use crate::rpc::Issuing;
use crate::rpc::admin::{Operating, only_own_user};
use crate::seal::{KekConfig, KekError, Sealer, make_kek_file};
use crate::serving::Serving;
use crate::store::{Kind, Seals, Store, StoreError};

#[cfg(feature = "kubernetes")]
mod cluster;
mod front;

use front::Front;

#[cfg(feature = "kubernetes")]
pub use cluster::{InCluster, Pace, SecretState, start_in_cluster};

/// SVIDs live at least this long, unless the insecure switch is set.
pub(crate) const MIN_SVID_LIFE: Duration = Duration::from_secs(5 * 60);
/// SVIDs live at most this long.
pub(crate) const MAX_SVID_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The least under the insecure switch.
const MIN_INSECURE_SVID_LIFE: Duration = Duration::from_secs(1);
/// A request is a CSR and a chain of at most six certificates, or the quarantine that control holds.
const MAX_REQUEST: usize = postern_identity::quarantine::MAX_DOCUMENT + 4 * MAX_CSR;
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
/// A stage of the root's replacement is in whole seconds.
const STAGE_LOOK: Duration = Duration::from_secs(1);
/// The next issuer has to come from a person.
const OFFLINE_REMINDER: Duration = Duration::from_secs(10 * 60);
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
    /// What seals the state; `None`: of a directory the file beside it, of a Secret nothing.
    pub kek: Option<KekConfig>,
    /// Reads records that are in clear, too, and seals them.
    pub migrate: bool,
    /// How what is issued and refused is recorded.
    pub ledger: LedgerConfig,
    /// A new root signs after this long even if not all have acknowledged it.
    pub root_acknowledge: Duration,
    /// The old root leaves the bundle this long after the new one signs; `None`: after the longest life that a leaf can have,
    /// and, where an SVID renews itself, how long it may do so past its end.
    pub root_retire: Option<Duration>,
    /// Where issuers are mounted that are made elsewhere; it is watched.
    pub issuer_dir: Option<PathBuf>,
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
    /// The key that seals the state.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// What was to become of a new store.
    #[error(transparent)]
    Init(#[from] crate::init::InitError),
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
    let front = Front::open(&config).await?;
    let store = opened(&config, &front).await?;
    let lives = (config.svid_life, root_pace(&config, GRACE));
    let ca = Ca::load(store, lives, &config.ledger, clock, front.metrics.clone())?;
    let ca = Arc::new(ca.with_mounted(config.issuer_dir.clone().map(IssuerDir::at)));
    ca.makes_or_mounts()?;
    rewrap::at_start(&ca).await;
    // First: what follows builds on a bundle that everybody takes.
    ca.keep_numbers_growing().await;
    ca.look_at_mounted().await;
    renew_overdue_issuer(&ca).await?;
    let keepers: Vec<BoxFuture<'static, ()>> = vec![Box::pin(keep_issuer_fresh(Arc::clone(&ca)))];
    run(config, ca, front, keepers).await
}

/// The directory's store, with the keys of its records.
async fn opened(config: &ServeConfig, front: &Front) -> Result<Store, ServeError> {
    let kek = key_of(&config.store, config.kek.as_ref(), config.migrate)?;
    let store = Store::open(&config.store, front.seals(&kek, config.migrate).await?)?;
    front.patiently(async || Ok(store.learn().await?)).await?;
    Ok(store)
}

/// Serves, and does the keepers' work beside it.
async fn run(
    config: ServeConfig,
    ca: Arc<Ca>,
    mut front: Front,
    keepers: Vec<BoxFuture<'static, ()>>,
) -> Result<Running, ServeError> {
    let serving = Arc::new(Serving::start(Arc::clone(&ca)).map_err(ServeError::CannotIssue)?);

    let (listener, listen) = bind(config.listen).await?;
    let metrics = front.address;
    let admin = bind_admin(&config.admin_socket).await?;
    front.stands_before(&ca);
    front.metrics.sealed(false);
    let going_down = front.down.subscribe();
    let tasks = &mut front.tasks;
    tasks.spawn(serve_callers(Arc::clone(&ca), serving, listener, going_down.clone()));
    tasks.spawn(serve_operator(Arc::clone(&ca), admin, going_down.clone()));
    if let Some(sealer) = ca.sealer() {
        let following = rewrap::follow(Arc::clone(&ca), sealer, rewrap::LOOK);
        tasks.spawn(until_down(going_down.clone(), following));
    }
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
        down: front.down,
        tasks: front.tasks,
        admin_socket: config.admin_socket,
    })
}

/// Puts a new issuer into the store of a CA that does not run; its number.
pub async fn rotate_store(store: &Path, kek: Option<&KekConfig>, clock: Clock) -> Result<u64, ServeError> {
    let next = loaded(stopped(store, kek, false).await?, clock)?
        .rotate(Why::Asked)
        .await
        .map_err(|error| ServeError::CannotIssue(crate::error_chain(&error)))?;
    Ok(next.issuer_epoch())
}

/// A request for the next issuer of a CA that does not run, or for its first; PEM.
pub async fn request_issuer_from(store: &Path, kek: Option<&KekConfig>, clock: Clock) -> Result<String, ServeError> {
    let store = stopped(store, kek, false).await?;
    if let Some(csr) = crate::init::requested(&store)? {
        return Ok(csr);
    }
    let csr = loaded(store, clock)?.request_issuer().await;
    csr.map_err(|error| ServeError::CannotIssue(crate::error_chain(&error)))
}

/// Hands the certificate of a request in, to a CA that does not run; what became of it.
pub async fn import_issuer_into(
    store: &Path,
    kek: Option<&KekConfig>,
    (pem, place): (String, String),
    clock: Clock,
) -> Result<String, ServeError> {
    let store = stopped(store, kek, false).await?;
    if let Some(epoch) = crate::init::completed(&store, &pem, &place, clock())? {
        return Ok(format!("issuer {epoch} signs"));
    }
    let next = loaded(store, clock)?.import_issuer(pem, place).await;
    let next = next.map_err(|error| ServeError::CannotIssue(crate::error_chain(&error)))?;
    Ok(match next.root_stage().filter(|(_, stage)| *stage == Stage::Prepared) {
        Some(_) => "its root follows the one that signs, once the CA runs".to_owned(),
        None => format!("issuer {} signs", next.issuer_epoch()),
    })
}

fn loaded(store: Store, clock: Clock) -> Result<Arc<Ca>, ServeError> {
    let metrics = Metrics::register(&mut Registry::default());
    let lives = (MAX_SVID_LIFE, RootPace::PATIENT);
    Ok(Arc::new(Ca::load(
        store,
        lives,
        &LedgerConfig::default(),
        clock,
        metrics,
    )?))
}

/// Seals the records of a CA that does not run under the key that wraps now; which ones were not. `migrate`: also those that
/// an older version left in clear.
pub async fn rewrap_store(store: &Path, kek: Option<&KekConfig>, migrate: bool) -> Result<Vec<Kind>, ServeError> {
    let store = stopped(store, kek, migrate).await?;
    let behind = store.behind()?;
    for kind in &behind {
        store.rewrap(*kind)?;
    }
    Ok(behind)
}

/// The key of a store, before it is asked for. A store that an older version left in clear has none, and gets one when it is
/// migrated.
fn key_of(store: &Path, kek: Option<&KekConfig>, migrate: bool) -> Result<KekConfig, ServeError> {
    let kek = kek.cloned().unwrap_or_else(|| KekConfig::beside(store));
    Store::exists(store)?;
    let (clear, sealed) = Store::found(store)?;
    match (clear, &kek) {
        (Some(kind), _) if !migrate => return Err(Store::in_clear(store, kind).into()),
        (Some(_), KekConfig::File(file)) if !sealed => {
            make_kek_file(file)?;
        }
        (_, _) => {}
    }
    Ok(kek)
}

pub(crate) async fn stopped(store: &Path, kek: Option<&KekConfig>, migrate: bool) -> Result<Store, ServeError> {
    let kek = key_of(store, kek, migrate)?;
    let sealer = Sealer::unseal(&kek).await?;
    let store = Store::open(store, Seals::by(sealer, migrate))?;
    store.learn().await?;
    Ok(store)
}

/// `grace`: how long past its end an SVID of the old root may still be of use.
fn root_pace(config: &ServeConfig, grace: Duration) -> RootPace {
    RootPace {
        acknowledge: config.root_acknowledge,
        // Not `svid_life`: leaves of an earlier start may live longer.
        retire: config.root_retire.unwrap_or(MAX_SVID_LIFE + grace),
        settle: RootPace::settling(config.root_acknowledge, config.svid_life),
    }
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
    if let Some(retire) = config.root_retire.filter(|retire| *retire < config.svid_life) {
        return Err(ServeError::Config(format!(
            "--root-retire-after {} is out of bounds: leaves of the old root are good for {} (--svid-life)",
            humantime::format_duration(retire),
            humantime::format_duration(config.svid_life),
        )));
    }
    if config.ledger.retention < MIN_RETENTION {
        return Err(ServeError::Config(format!(
            "--ledger-retention {} is out of bounds: {} at least",
            humantime::format_duration(config.ledger.retention),
            humantime::format_duration(MIN_RETENTION),
        )));
    }
    Ok(())
}

/// An issuer that ran out (or nearly) while nobody served is replaced before the first caller.
async fn renew_overdue_issuer(ca: &Arc<Ca>) -> Result<(), ServeError> {
    if ca.authority().is_followed(ca.now()) {
        // A failure is logged, and what is left says why nothing is issued.
        ca.advance_root().await;
        ca.look_at_mounted().await;
    }
    let (authority, now) = (ca.authority(), ca.now());
    if now < authority.rotation_due(ca.svid_life) || !authority.can_outlive_itself() {
        return Ok(());
    }
    if ca.mounted.is_some() {
        let why = ca.authority().ready(now).err();
        return why.map_or(Ok(()), |why| {
            Err(ServeError::CannotIssue(format!("{why}; {}", ca.root_is_elsewhere())))
        });
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

/// Replaces the issuer in good time, for ever.
async fn keep_issuer_fresh(ca: Arc<Ca>) {
    let (mut changes, mut reports) = (ca.watch(), ca.acknowledged.watch());
    loop {
        changes.mark_unchanged();
        reports.mark_unchanged();
        ca.keep_numbers_growing().await;
        ca.look_at_mounted().await;
        let root = ca.advance_root().await.unwrap_or(ISSUER_LOOK);
        let authority = ca.authority();
        let due = authority.rotation_due(ca.svid_life);
        let now = ca.now();
        let wait = if now < due {
            until(due, now).min(ISSUER_LOOK)
        } else if ca.mounted.is_some() || !authority.can_outlive_itself() {
            // The root ends with it; only a new root helps, and the metric and readiness say so.
            ISSUER_LOOK
        } else {
            match ca.rotate(Why::Due).await {
                Ok(_) => continue,
                Err(RotationError::RootOffline(_)) => OFFLINE_REMINDER,
                Err(_) => ROTATION_RETRY,
            }
        };
        let wait = if ca.mounted.is_some() {
            wait.min(bringing::LOOK)
        } else {
            wait
        };
        tokio::select! {
            () = tokio::time::sleep(wait.min(root.max(STAGE_LOOK))) => {}
            // What a stage of the root's replacement may wait for.
            _ = reports.changed() => {}
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

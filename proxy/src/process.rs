//! One proxy process, from start to exit. The main thread is the control side: identity, control, listeners, endpoints,
//! signals. Bytes are moved by the workers' threads.

use std::cell::Cell;
use std::collections::HashSet;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postern_telemetry::{Endpoint, Readiness};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::config::{Capture, RunArgs};
use crate::control_client;
use crate::descriptors;
use crate::drain::{Drain, LOOK_EVERY, Phase, grace};
use crate::flows::Reporter;
use crate::listen::{Acceptor, Listener, Listeners, bind_all};
use crate::metrics::Metrics;
use crate::pod::Pod;
use crate::snapshot::Shared;
use crate::status::{Level, Status, Topic};
use crate::worker;
use crate::workload::Keeper;
use crate::workload_api::{self, Offer, Tokens};

/// Questions for destinations that wait for the control client; past it workers wait within their deadline.
const ASKS: usize = 1_024;
/// A name server that does not answer holds a lookup for most of a minute (each search domain, twice), each try to reach
/// CA or control brings another, and reading metrics and the end of the process need a thread as well.
const BLOCKING_THREADS: usize = 32;
/// A port that is taken may become free.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// Workers that were told to cut end at once; one that does not is stuck, and the process ends without it.
const CUT_DEADLINE: Duration = Duration::from_secs(5);
/// Where metrics are with `--metrics-mutual-tls`: captured like any port of the workload, so that only our own inbound
/// dials it from outside of the pod, for callers whom policy lets in.
const MUTUAL_TLS_METRICS_PORT: u16 = 15_021;

/// Runs the proxy until a signal ends it.
pub(crate) fn run(args: RunArgs) -> ExitCode {
    postern_telemetry::log::init();
    // Where the node gives them to everybody, each proxy would be some 15 MiB larger.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let outcome = args.check().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_stack_size(256 * 1024)
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        let outcome = runtime.block_on(async { Process::start(args)?.serve().await });
        // A name lookup may hang in a blocking thread; it must not hold up the exit.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that is bound and started before the first await on anybody else.
struct Process {
    args: RunArgs,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    access_log: AccessLog,
    phase: watch::Sender<Phase>,
    acceptor: Arc<Acceptor>,
    listeners: Listeners,
    /// Where our app, or the kernel's redirection, comes in.
    addresses: Addresses,
    asks: mpsc::Receiver<crate::snapshot::Ask>,
    /// A kubelet ends us after the app.
    sidecar: bool,
}

/// What the ready file tells.
#[derive(Debug, Clone, Default, serde::Serialize)]
struct Addresses {
    metrics: Option<SocketAddr>,
    explicit: Option<SocketAddr>,
    inbound: Vec<SocketAddr>,
    outbound: Vec<SocketAddr>,
}

impl Process {
    /// Binds, starts workers and endpoints. What fails here is a mistake in the arguments, and ends the process.
    fn start(args: RunArgs) -> Result<Self, String> {
        let (phase, drain) = Drain::new();
        let (ask, asks) = mpsc::channel(ASKS);
        let shared = Arc::new(Shared::new(ask));
        let metrics = Arc::new(Metrics::default());
        let status = Arc::new(Status::new(
            Arc::clone(&shared),
            args.trust_domain.clone(),
            drain.clone(),
        ));
        // Before any worker's thread: the admin socket is made under another umask.
        if let Some(path) = &args.admin_socket {
            let listener =
                admin::bind(path).map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
            let admin = Admin {
                args: args.clone(),
                shared: Arc::clone(&shared),
                status: Arc::clone(&status),
            };
            tokio::spawn(Arc::new(admin).serve(listener));
        }
        if let Some(path) = &args.workload_api_socket {
            let callers = args.workload_api_callers();
            let listener = workload_api::bind(path, &callers)?;
            let (offers, offered) = watch::channel(Arc::new(Offer::Unavailable("this proxy is starting".to_owned())));
            let tokens = Tokens::new(args.ca(), Arc::clone(&shared));
            tokio::spawn(workload_api::serve(listener, callers, offered, tokens));
            let keeper = workload_api::Keeper {
                ca: args.ca(),
                source: args.identity.source(),
                trust_domain: args.trust_domain.clone(),
                shared: Arc::clone(&shared),
                metrics: Arc::clone(&metrics),
                status: Arc::clone(&status),
            };
            tokio::spawn(keeper.run(offers));
        }
        let access_log = AccessLog::open(args.access_log, &args.access_log_file, Arc::clone(&metrics))
            .map_err(|error| format!("cannot open the access log {:?}: {error}", args.access_log_file))?;
        let pod = Pod::from_environment(&metrics)?;
        let sidecar = pod.sidecar;
        let mut addresses = Addresses {
            metrics: Some(endpoint(&args, pod, &metrics, &status)?),
            ..Addresses::default()
        };

        let (mut explicit, mut inbound, mut outbound) = (Vec::new(), Vec::new(), Vec::new());
        match args.capture {
            Capture::Explicit => explicit = bind_all(&[args.explicit_listen])?,
            Capture::Redirect => {
                inbound = bind_all(&args.inbound_listen)?;
                outbound = bind_all(&args.outbound_listen)?;
            }
        }
        let bound = |listeners: &[Listener]| listeners.iter().flat_map(Listener::local_addr).collect::<Vec<_>>();
        addresses.explicit = bound(&explicit).first().copied();
        addresses.inbound = bound(&inbound);
        addresses.outbound = bound(&outbound);
        let all = addresses.inbound.iter().chain(&addresses.outbound);
        let own_ports: HashSet<u16> = all.chain(&addresses.metrics).map(SocketAddr::port).collect();

        let workers = args.worker_count();
        let most = descriptors::connections_per_worker(workers);
        let workers: Vec<worker::Handle> = (0..workers)
            .map(|id| {
                let (shared, metrics) = (Arc::clone(&shared), Arc::clone(&metrics));
                worker::start(id, shared, access_log.clone(), metrics, drain.clone(), most)
            })
            .collect::<Result<_, _>>()
            .map_err(|error| format!("cannot start a worker: {error}"))?;
        let acceptor = Arc::new(Acceptor::new(
            workers,
            Arc::clone(&shared),
            Arc::clone(&metrics),
            own_ports,
        ));
        let mut listeners = Listeners::new(Arc::clone(&acceptor));
        explicit.into_iter().for_each(|listener| listeners.explicit(listener));
        inbound.into_iter().for_each(|listener| listeners.inbound(listener));
        outbound.into_iter().for_each(|listener| listeners.outbound(listener));
        Ok(Self {
            args,
            shared,
            metrics,
            status,
            access_log,
            phase,
            acceptor,
            listeners,
            addresses,
            asks,
            sidecar,
        })
    }

    /// Serves until a signal, then drains.
    async fn serve(self) -> Result<(), String> {
        let Self {
            args,
            shared,
            metrics,
            status,
            phase,
            acceptor,
            mut listeners,
            sidecar,
            ..
        } = self;
        let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
        let (epoch, announced) = watch::channel(0);
        let (last, last_asked) = mpsc::channel(1);
        tokio::spawn(
            Keeper {
                ca: args.ca(),
                source: args.identity.source(),
                trust_domain: args.trust_domain.clone(),
                shared: Arc::clone(&shared),
                metrics: Arc::clone(&metrics),
                status: Arc::clone(&status),
                epoch: announced,
            }
            .run(),
        );
        let client = control_client::start(control_client::Parts {
            address: args.control.clone(),
            trust_domain: args.trust_domain.clone(),
            capture: args.capture,
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&metrics),
            status: Arc::clone(&status),
            reporter: Reporter::new(
                Arc::clone(&shared),
                Arc::clone(&metrics),
                Arc::clone(self.access_log.denials()),
                Arc::clone(&status),
            ),
            asks: self.asks,
            epoch,
            last: last_asked,
        });
        client.map_err(|error| format!("cannot start the client of control: {error}"))?;
        tracing::info!(addresses = ?self.addresses, capture = ?args.capture, "started; not ready yet");

        let mut changes = shared.changes.subscribe();
        let mut told_ready = false;
        loop {
            let missing = follow(&args, &shared, &status, &mut listeners);
            if !told_ready && status.readiness().is_ok() {
                told_ready = true;
                let inbound = [self.addresses.inbound.clone(), listeners.addresses()].concat();
                ready(
                    &args,
                    &Addresses {
                        inbound,
                        ..self.addresses.clone()
                    },
                )?;
                status.event(Level::Info, "ready");
            }
            // All branches are cancel-safe: they take nothing but the fact that something happened.
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(LISTEN_RETRY), if missing => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }

        let again = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let cut = drain(&args, &phase, &status, listeners, acceptor, again, sidecar).await;
        let (done, reported) = oneshot::channel();
        if last.send(done).await.is_ok() {
            let _ = timeout(CUT_DEADLINE, reported).await;
        }
        for path in [&args.admin_socket, &args.workload_api_socket, &args.ready_file]
            .into_iter()
            .flatten()
        {
            // Gone already, or of use to nobody.
            let _ = std::fs::remove_file(path);
        }
        tracing::info!(cut, "ended: {cut} connections were cut at the deadline");
        Ok(())
    }
}

/// Starts the endpoint for scrapers and probes; with metrics over mutual TLS only, a second one that our inbound leads to.
fn endpoint(args: &RunArgs, pod: Pod, metrics: &Arc<Metrics>, status: &Arc<Status>) -> Result<SocketAddr, String> {
    let status = Arc::clone(status);
    let readiness: Readiness = Arc::new(move || status.readiness());
    let mut endpoint = Endpoint::new(metrics.registry(), readiness, || {});
    if pod.sidecar {
        endpoint = endpoint.without_liveness();
    }
    if let Some(probes) = pod.probes {
        tracing::info!(
            probes = probes.len(),
            "probes of the app are answered on the metrics port"
        );
        endpoint = endpoint.and(Arc::new(probes));
    }
    if let Some(app) = pod.app_metrics {
        endpoint = endpoint.with_foreign(Arc::new(app));
    }
    let at = args.metrics_listen;
    if args.metrics_mutual_tls {
        let guarded = SocketAddr::new(at.ip(), MUTUAL_TLS_METRICS_PORT);
        serve_endpoint(endpoint.clone().only_metrics(), guarded)?;
        endpoint = endpoint.without_metrics();
    }
    serve_endpoint(endpoint, at)
}

fn serve_endpoint(endpoint: Endpoint, at: SocketAddr) -> Result<SocketAddr, String> {
    let failed = |error| format!("cannot listen on {at}: {error}");
    let listener = postern_telemetry::bind(at).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(endpoint.serve(listener));
    Ok(address)
}

/// Makes listeners what the workload's ports say; true if some are missing and must be tried again.
fn follow(args: &RunArgs, shared: &Shared, status: &Status, listeners: &mut Listeners) -> bool {
    let policy = shared.policy.load();
    let followed = match (args.capture, &*policy) {
        // Captured ports are always listened on: there is one for all.
        (Capture::Redirect, _) => Ok(()),
        (Capture::Explicit, None) => return false,
        (Capture::Explicit, Some(policy)) => listeners.follow(&policy.workload.ports),
    };
    status.listening.store(followed.is_ok(), Ordering::Relaxed);
    match followed {
        Ok(()) => {
            status.solved(Topic::Listen);
            false
        }
        Err(error) => {
            status.problem(Topic::Listen, Level::Error, error);
            true
        }
    }
}

/// Ends what is in flight: not ready, grace, no more peers, no more of our app, deadline. A second signal skips the rest.
async fn drain(
    args: &RunArgs,
    phase: &watch::Sender<Phase>,
    status: &Status,
    mut listeners: Listeners,
    acceptor: Arc<Acceptor>,
    again: impl Future<Output = ()>,
    sidecar: bool,
) -> usize {
    phase.send_replace(Phase::Draining);
    let past_deadline = Cell::new(false);
    let open = acceptor.open();
    status.event(
        Level::Info,
        format!("shutting down: {open} connections have {:?} to end", args.drain()),
    );
    let deadline = sleep(args.drain());
    tokio::pin!(deadline, again);
    let mut cutting = false;
    let stop = async {
        // Whoever learns last that we are not ready still gets an answer. A kubelet ends a sidecar after the app: once
        // nothing is open, there is nobody left to answer for, and a Job is not held up.
        let all_ended = async {
            while !past_deadline.get() && (!sidecar || acceptor.open() > 0) {
                sleep(LOOK_EVERY).await;
            }
        };
        let _ = timeout(grace(args.drain()), all_ended).await;
        listeners.close_inbound();
        // To answer what is in flight, our app may have to ask others.
        while acceptor.open_inbound() > 0 && !past_deadline.get() {
            sleep(LOOK_EVERY).await;
        }
        listeners.close().await;
        let ended = tokio::task::spawn_blocking(move || Arc::try_unwrap(acceptor).map(Acceptor::join));
        match ended.await {
            Ok(Ok(ended)) => ended.cut,
            // Listeners held the only other handles, and they are closed.
            Ok(Err(_)) | Err(_) => 0,
        }
    };
    tokio::pin!(stop);
    loop {
        tokio::select! {
            cut = &mut stop => return cut,
            () = &mut deadline, if !cutting => cutting = true,
            () = &mut again, if !cutting => cutting = true,
            () = async { if cutting { sleep(CUT_DEADLINE).await } else { pending().await } } => return open,
        }
        if cutting {
            past_deadline.set(true);
            phase.send_replace(Phase::Cut);
        }
    }
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, String> {
    signal(kind).map_err(|error| format!("cannot listen for signals: {error}"))
}

fn ready(args: &RunArgs, addresses: &Addresses) -> Result<(), String> {
    let Some(path) = &args.ready_file else { return Ok(()) };
    let document = serde_json::to_vec(addresses).map_err(|error| error.to_string())?;
    write_whole(path, &document).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// A reader sees the file whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

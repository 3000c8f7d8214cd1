//! The parts of a running injector, started together and stopped together.
//!
//! ```text
//! the API server --TLS--> connections (bounds, HTTP/1.1 or 2) -> answering (path, method, body) -> webhook -> verdict
//! ```

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_cluster::serving::{self, Keeping, ServingCertificate, Target, Timing};
use postern_telemetry::{Endpoint, Readiness};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::inject::Settings;
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::roots::Roots;

mod answering;
mod connections;
mod room;
mod webhook;

pub use webhook::Webhook;

use answering::Answering;

/// What all objects of the injector are called.
const NAME: &str = "postern-injector";
/// The Secret of its certificate.
const SECRET: &str = "postern-injector-tls";
/// New connections still come until every node knows that we go.
const LINGER: Duration = Duration::from_secs(5);
/// What is in flight then has the API server's own deadline of ten seconds.
const DRAIN: Duration = Duration::from_secs(10);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the API server calls; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where metrics and readiness are.
    pub metrics_listen: SocketAddr,
    /// Where our objects are.
    pub namespace: String,
    /// What all sidecars have in common.
    pub settings: Settings,
    /// How long certificates last.
    pub timing: Timing,
    /// How long new connections are still taken after we were told to stop.
    pub linger: Duration,
}

impl Config {
    /// As in a cluster.
    #[must_use]
    pub fn new(listen: SocketAddr, metrics_listen: SocketAddr, settings: Settings) -> Self {
        Self {
            listen,
            metrics_listen,
            namespace: "postern-system".to_owned(),
            settings,
            timing: Timing::default(),
            linger: LINGER,
        }
    }
}

/// What is known of the cluster, and who keeps it up to date is another matter.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Labels and annotations.
    pub namespaces: Namespaces,
    /// Roots that sidecars pin.
    pub roots: Roots,
    /// What the API server is shown.
    pub certificate: ServingCertificate,
}

/// An injector that serves until stopped or dropped.
#[derive(Debug)]
pub struct Running {
    /// The bound address of the webhooks.
    pub listen: SocketAddr,
    /// The bound address of metrics.
    pub metrics: SocketAddr,
    phase: watch::Sender<Phase>,
    linger: Duration,
    serving: JoinSet<()>,
    following: JoinSet<Infallible>,
}

/// How far on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// Not ready any more, but still answers whoever has not heard.
    Lingering,
    Draining,
}

/// Starts everything, and follows the cluster behind `client`.
pub async fn start(client: kube::Client, config: Config) -> io::Result<Running> {
    let cluster = Cluster {
        namespaces: Namespaces::new(client.clone()),
        roots: Roots::default(),
        certificate: ServingCertificate::default(),
    };
    let keeping = Keeping {
        namespace: config.namespace.clone(),
        secret: SECRET.to_owned(),
        dns_names: vec![format!("{NAME}.{}.svc", config.namespace)],
        targets: vec![
            Target::MutatingWebhook(NAME.to_owned()),
            Target::ValidatingWebhook(NAME.to_owned()),
        ],
        timing: config.timing,
    };
    let namespace = config.namespace.clone();
    let mut running = serve(config, cluster.clone()).await?;
    let following = &mut running.following;
    following.spawn(cluster.namespaces.follow());
    following.spawn(cluster.roots.follow(client.clone(), namespace));
    following.spawn(serving::keep(client, keeping, cluster.certificate));
    Ok(running)
}

/// Serves by what is known of `cluster`.
pub async fn serve(config: Config, cluster: Cluster) -> io::Result<Running> {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (phase, phases) = watch::channel(Phase::Serving);
    // First of all, so that probes hear why it is not ready yet.
    let probed = postern_telemetry::bind(config.metrics_listen)?;
    let metrics_address = probed.local_addr()?;
    let listener = TcpListener::bind(config.listen).await?;
    let listen = listener.local_addr()?;

    let readiness = readiness(&cluster, phases.clone());
    let (seen, handles) = (cluster.clone(), metrics.clone());
    let endpoint = Endpoint::new(registry, readiness, move || {
        handles.refresh(seen.certificate.status(), seen.roots.now().len());
    });
    let mut following = JoinSet::new();
    following.spawn(endpoint.serve(probed));
    let mut serving = JoinSet::new();
    let certificate = cluster.certificate.resolver();
    let answering = Arc::new(Answering::new(cluster, config.settings, metrics));
    serving.spawn(connections::serve(listener, certificate, answering, phases));
    tracing::info!(listen = %listen, metrics = %metrics_address, "serving");
    Ok(Running {
        listen,
        metrics: metrics_address,
        phase,
        linger: config.linger,
        serving,
        following,
    })
}

fn readiness(cluster: &Cluster, phases: watch::Receiver<Phase>) -> Readiness {
    let cluster = cluster.clone();
    Arc::new(move || {
        let status = cluster.certificate.status();
        let missing = [
            (*phases.borrow() != Phase::Serving, "it goes down"),
            (status.not_after.is_none(), "there is no serving certificate yet"),
            (
                status.not_after.is_some_and(|end| end <= now()),
                "the serving certificate has expired",
            ),
            (!status.published, "its CA is not in the webhooks' caBundle yet"),
            (!cluster.namespaces.known(), "the namespaces are not known yet"),
            (cluster.roots.now().is_empty(), "the CA has not published its roots yet"),
        ];
        match missing.into_iter().find(|(missing, _)| *missing) {
            Some((_, why)) => Err(why.to_owned()),
            None => Ok(()),
        }
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Running {
    /// Says that it is not ready, serves on until that is known, and ends what is in flight.
    pub async fn stop(mut self) {
        self.phase.send_replace(Phase::Lingering);
        sleep(self.linger).await;
        self.phase.send_replace(Phase::Draining);
        let drained = timeout(DRAIN, async { while self.serving.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("connections were cut short at shutdown");
        }
        self.serving.shutdown().await;
        self.following.shutdown().await;
    }
}

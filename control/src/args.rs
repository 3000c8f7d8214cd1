//! The command line of `postern-control`, and of `postern control`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use postern_api::ca_client::JoinToken;

use crate::bundle_endpoint::EndpointProof;
use crate::federation::FederationConfig;
use crate::identity::{Evidence, IdentitySource};
use crate::keys::{Cidr, FetchConfig};
use crate::mesh::Mesh;
use crate::serve::{BundleEndpoint, ServeConfig, start};
use crate::source::Source;
use crate::subscribers::MAX_STREAMS;

/// `postern-control` as a program.
#[derive(Debug, Parser)]
#[command(
    name = "postern-control",
    version,
    about = "Streams policy and destinations to the proxies of a Postern mesh"
)]
pub struct Cli {
    /// What to do.
    #[command(flatten)]
    pub args: Args,
}

/// How to serve; the same for `postern-control ...` and `postern control ...`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where namespaces, services, workloads and policies are, as YAML; watched
    #[arg(long, value_name = "DIR", env = "POSTERN_CONTROL_DIRECTORY")]
    #[cfg_attr(feature = "kubernetes", arg(required_unless_present = "kubernetes"))]
    #[cfg_attr(not(feature = "kubernetes"), arg(required = true))]
    directory: Option<PathBuf>,
    /// Take pods, Services, namespaces and policies from the cluster that this runs in, or that KUBECONFIG names
    #[cfg(feature = "kubernetes")]
    #[arg(long, conflicts_with = "directory")]
    kubernetes: bool,
    /// The CA
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15012")]
    ca: String,
    /// A file with the one-time join token of this start
    #[arg(
        long,
        value_name = "PATH",
        env = "POSTERN_JOIN_TOKEN_FILE",
        conflicts_with = "kubernetes_token_file"
    )]
    #[cfg_attr(
        feature = "workload-client",
        arg(required_unless_present_any = ["kubernetes_token_file", "workload_api"])
    )]
    #[cfg_attr(
        not(feature = "workload-client"),
        arg(required_unless_present = "kubernetes_token_file")
    )]
    join_token_file: Option<PathBuf>,
    /// In a pod: its projected service-account token for the audience `postern-ca`; read anew for each certificate
    #[arg(long, value_name = "PATH", requires = "roots_sha256_file")]
    kubernetes_token_file: Option<PathBuf>,
    /// In a pod: a file with the SHA-256 of each root that the CA may show at first (key `roots.sha256` of the ConfigMap
    /// postern-ca-roots)
    #[arg(
        long,
        value_name = "PATH",
        requires = "kubernetes_token_file",
        conflicts_with = "join_token_file"
    )]
    roots_sha256_file: Option<PathBuf>,
    /// In place of the CA: a SPIFFE Workload API (SPIRE), `unix:///path` or `tcp://1.2.3.4:port`, as the proxies have it. Its SVIDs
    /// name no instance: each Workload needs a service account of its own
    #[cfg(feature = "workload-client")]
    #[arg(
        long,
        value_name = "ADDRESS",
        conflicts_with_all = ["join_token_file", "kubernetes_token_file", "roots_sha256_file"],
        value_parser = postern_api::workload_client::check_address
    )]
    workload_api: Option<String>,
    /// Where proxies call (port 0: any free one)
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15010")]
    listen: SocketAddr,
    /// Where /metrics and /readyz are
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
    metrics_listen: SocketAddr,
    /// The Unix socket that the screen and the CLI watch (mode 0600)
    #[arg(long, value_name = "PATH", env = "POSTERN_VIEW_SOCKET")]
    view_socket: Option<PathBuf>,
    /// Where the API server calls for the aggregated API view.postern.dev
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "ADDRESS", requires = "kubernetes")]
    api_listen: Option<SocketAddr>,
    /// The name of all replicas of control, this one included: they put their pictures together
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "HOST:PORT", requires = "api_listen")]
    api_replicas: Option<String>,
    #[command(flatten)]
    mesh: Mesh,
    /// How many streams of proxies to serve at once (one per proxy, two while it renews); give the process memory for them
    #[arg(long, value_name = "N", default_value_t = MAX_STREAMS)]
    max_proxies: usize,
    /// Private, loopback or link-local addresses that may be called for the keys of end users' issuers, also without TLS; may
    /// be repeated
    #[arg(long, value_name = "CIDR")]
    jwks_allow_cidr: Vec<Cidr>,
    /// Roots (PEM) of those issuers' certificates, instead of Mozilla's
    #[arg(long, value_name = "PATH")]
    jwks_ca_file: Option<PathBuf>,
    /// The other trust domains whose identities are believed: ClusterFederatedTrustDomain documents (YAML); looked at all the time
    #[arg(long, value_name = "FILE", env = "POSTERN_FEDERATION_FILE")]
    federation_file: Option<PathBuf>,
    /// Where the last bundles of those are kept over a restart (made with mode 0700)
    #[arg(long, value_name = "DIR", requires = "federation_file")]
    federation_cache: Option<PathBuf>,
    /// Roots (PEM) of bundle endpoints of profile https_web, instead of Mozilla's
    #[arg(long, value_name = "PATH", requires = "federation_file")]
    federation_ca_file: Option<PathBuf>,
    /// Ask bundle endpoints at least this often, whatever they hint: a root that they withdraw is believed for so long
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    federation_longest_poll: u32,
    /// Serve our own bundle there to other trust domains, proven by control's SVID (profile https_spiffe)
    #[arg(long, value_name = "ADDRESS")]
    bundle_endpoint_listen: Option<SocketAddr>,
    /// The same proven by a certificate of the web (profile https_web)
    #[arg(long, value_name = "ADDRESS", requires_all = ["bundle_endpoint_certificate", "bundle_endpoint_key"])]
    bundle_endpoint_web_listen: Option<SocketAddr>,
    /// The certificate of it (PEM, leaf first); read again when it is replaced
    #[arg(long, value_name = "PATH", requires = "bundle_endpoint_web_listen")]
    bundle_endpoint_certificate: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "PATH", requires = "bundle_endpoint_web_listen")]
    bundle_endpoint_key: Option<PathBuf>,
    /// Write the bound addresses there, as JSON, when ready
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

/// Niceness: on a machine that it shares with apps and proxies, reading ten thousand rules must not make requests wait; beside
/// a busy thread it still has a tenth of a core.
const GIVES_WAY: i32 = 10;

/// Where our own bundle is served, and by what that proves itself.
fn bundle_endpoints(args: &Args) -> Vec<BundleEndpoint> {
    let by_svid = args.bundle_endpoint_listen.map(|listen| BundleEndpoint {
        listen,
        proof: EndpointProof::Svid,
    });
    let by_web = args
        .bundle_endpoint_web_listen
        .zip(
            args.bundle_endpoint_certificate
                .clone()
                .zip(args.bundle_endpoint_key.clone()),
        )
        .map(|(listen, (certificate, key))| BundleEndpoint {
            listen,
            proof: EndpointProof::Web { certificate, key },
        });
    by_svid.into_iter().chain(by_web).collect()
}

/// Serves until told to stop.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    postern_telemetry::log::init();
    // Before any thread, which inherits it. Where it is not possible requests wait longer while policy changes, and nothing else.
    let _ = rustix::process::setpriority_process(None, GIVES_WAY);
    postern_policy::turns::call(postern_telemetry::give_way);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(postern_telemetry::rested)
        .build();
    let outcome = runtime
        .map_err(|error| format!("cannot start: {error}"))
        .and_then(|rt| rt.block_on(serve(args)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("postern-control: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn source(args: &Args) -> Result<Source, String> {
    #[cfg(feature = "kubernetes")]
    if args.kubernetes {
        let client = postern_cluster::client()
            .await
            .map_err(|error| crate::error_chain(&error))?;
        let namespace = client.default_namespace().to_owned();
        // The kubelet says it, if the Deployment asks for it.
        let own_pod = std::env::var("POD_NAME").ok().map(|name| (namespace, name));
        return Ok(Source::Kubernetes(crate::kubernetes::Cluster { client, own_pod }));
    }
    let directory = args.directory.clone().ok_or("--directory is missing")?;
    Ok(Source::Directory(directory))
}

/// The aggregated API, if it is asked for.
#[cfg(feature = "kubernetes")]
fn api(args: &Args, source: &Source) -> Option<crate::api::ApiConfig> {
    let (Some(listen), Source::Kubernetes(cluster)) = (args.api_listen, source) else {
        return None;
    };
    Some(crate::api::ApiConfig {
        listen,
        replicas: args.api_replicas.clone(),
        // The kubelet says it, if the Deployment asks for it.
        own_address: std::env::var("POD_IP").ok().and_then(|address| address.parse().ok()),
        client: cluster.client.clone(),
        certificate: crate::api::kept_certificate(),
    })
}

fn evidence(args: &Args) -> Result<Evidence, String> {
    if let (Some(token_file), Some(pins_file)) = (&args.kubernetes_token_file, &args.roots_sha256_file) {
        return Ok(Evidence::Pod {
            token_file: token_file.clone(),
            pins_file: pins_file.clone(),
        });
    }
    let file = args.join_token_file.as_ref().ok_or("--join-token-file is missing")?;
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read the join token {}: {error}", file.display()))?;
    let token = JoinToken::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(Evidence::JoinToken(token))
}

fn identity(args: &Args) -> Result<IdentitySource, String> {
    #[cfg(feature = "workload-client")]
    if let Some(address) = &args.workload_api {
        return Ok(IdentitySource::WorkloadApi {
            address: address.clone(),
        });
    }
    Ok(IdentitySource::Ca {
        address: args.ca.clone(),
        evidence: evidence(args)?,
    })
}

async fn serve(args: Args) -> Result<(), String> {
    let identity = identity(&args)?;
    let source = source(&args).await?;
    #[cfg(feature = "kubernetes")]
    let api = api(&args, &source);
    let bundle_endpoints = bundle_endpoints(&args);
    let mut mesh = args.mesh;
    // SVIDs of ours name one; of others, none can be told apart by it.
    mesh.without_instances = !matches!(identity, IdentitySource::Ca { .. });
    let config = ServeConfig {
        source,
        mesh,
        listen: args.listen,
        metrics_listen: args.metrics_listen,
        view_socket: args.view_socket,
        max_proxies: args.max_proxies,
        keys: FetchConfig {
            allowed: args.jwks_allow_cidr,
            roots: args.jwks_ca_file,
            ..FetchConfig::default()
        },
        federation: FederationConfig {
            file: args.federation_file,
            cache: args.federation_cache,
            roots: args.federation_ca_file,
            longest_poll: Duration::from_secs(args.federation_longest_poll.into()),
        },
        bundle_endpoints,
        ready_file: args.ready_file,
        #[cfg(feature = "kubernetes")]
        api,
    };
    let signal = |kind| tokio::signal::unix::signal(kind).map_err(|error| error.to_string());
    // Before anything is served: a signal that comes early is not lost.
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut stopped = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let running = tokio::select! {
        started = start(config, identity) => {
            started.map_err(|error| crate::error_chain(&error))?
        }
        // While it still waits for the CA.
        () = &mut stopped => return Ok(()),
    };
    stopped.await;
    tracing::info!("going down");
    running.stop().await;
    Ok(())
}

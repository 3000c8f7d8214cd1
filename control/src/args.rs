//! The command line of `postern-control`, and of `postern control`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use postern_api::ca_client::JoinToken;
use postern_identity::TrustDomain;

use crate::identity::{Evidence, IdentitySource};
use crate::keys::{Cidr, FetchConfig};
use crate::serve::{ServeConfig, start};
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
        required_unless_present = "kubernetes_token_file",
        conflicts_with = "kubernetes_token_file"
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
    /// The name of the trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: TrustDomain,
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
    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "postern-system")]
    root_namespace: String,
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
    /// Write the bound addresses there, as JSON, when ready
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

/// Serves until told to stop.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    postern_telemetry::log::init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
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

async fn serve(args: Args) -> Result<(), String> {
    let evidence = evidence(&args)?;
    let source = source(&args).await?;
    #[cfg(feature = "kubernetes")]
    let api = api(&args, &source);
    let config = ServeConfig {
        source,
        trust_domain: args.trust_domain,
        listen: args.listen,
        metrics_listen: args.metrics_listen,
        view_socket: args.view_socket,
        max_proxies: args.max_proxies,
        root_namespace: args.root_namespace,
        keys: FetchConfig {
            allowed: args.jwks_allow_cidr,
            roots: args.jwks_ca_file,
            ..FetchConfig::default()
        },
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
        started = start(config, IdentitySource::Ca { address: args.ca, evidence }) => {
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

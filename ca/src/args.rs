//! The command line of `postern-ca`, and of `postern ca`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::init::{InitConfig, RootSource, init_by_file, init_sealed_from};
use crate::ledger::LedgerConfig;
use crate::seal::{KekConfig, Sealer};
#[cfg(not(feature = "kubernetes"))]
use crate::serve::start;
use crate::serve::{ServeConfig, rewrap_store, rotate_store};
use crate::{operator, svid_files};

use ledger::LedgerCommand;

#[cfg(feature = "kubernetes")]
mod cluster;
pub(crate) mod ledger;

/// `postern-ca` as a program.
#[derive(Debug, Parser)]
#[command(name = "postern-ca", version, about = "The workload CA of a Postern mesh")]
pub struct Cli {
    /// What to do.
    #[command(flatten)]
    pub args: Args,
}

/// What to do; the same for `postern-ca ...` and `postern ca ...`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a root and an issuing certificate in a new store
    Init(InitArgs),
    /// Issue certificates
    Serve(Box<ServeArgs>),
    /// Make, list and revoke join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Get an X.509-SVID as PEM files, for a program that has no proxy
    Svid(SvidArgs),
    /// Put a new issuing certificate in place, in a running CA or in the store of a stopped one
    Rotate(RotateArgs),
    /// Issuing certificates that are made elsewhere: ask for one, hand it in, check a directory of one
    #[command(subcommand)]
    Issuer(IssuerCommand),
    /// Seal the store of a stopped CA under the key that wraps now (a running one does that by itself)
    Rewrap(RewrapArgs),
    /// Show what the CA is doing
    Status(StatusArgs),
    /// Show or check the record of what was issued and refused
    #[command(subcommand)]
    Ledger(LedgerCommand),
}

/// The key that seals the CA's state.
#[derive(Debug, Clone, clap::Args)]
#[group(multiple = false)]
struct KekArgs {
    /// A file of key-encryption keys (32 bytes in base64, one per line: the first wraps, all unwrap); `init` makes one that is not
    /// there. Unless said: beside the store, DIR.kek
    #[arg(long, value_name = "PATH", env = "POSTERN_CA_KEK_FILE")]
    kek_file: Option<PathBuf>,
    /// The Unix socket of a KMS plugin of Kubernetes (KMS v2)
    #[arg(long, value_name = "PATH", env = "POSTERN_CA_KMS_SOCKET")]
    kms_socket: Option<PathBuf>,
}

impl KekArgs {
    fn config(self) -> Option<KekConfig> {
        self.kek_file
            .map(KekConfig::File)
            .or(self.kms_socket.map(KekConfig::Kms))
    }
}

#[derive(Debug, clap::Args)]
struct RewrapArgs {
    /// The store of a CA that does not run
    #[arg(long, value_name = "DIR", env = "POSTERN_CA_STORE")]
    store: PathBuf,
    #[command(flatten)]
    kek: KekArgs,
    /// Also seal records that an older version left in clear
    #[arg(long)]
    migrate: bool,
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// A directory that does not exist yet
    #[arg(long, value_name = "DIR", env = "POSTERN_CA_STORE")]
    store: PathBuf,
    /// The name of the trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// How long the root is good
    #[arg(long, value_name = "DURATION", default_value = "10y", value_parser = humantime::parse_duration)]
    root_life: Duration,
    /// How long each issuing certificate is good; it is replaced at two thirds
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    issuer_life: Duration,
    /// Begin with this root (PEM). Without --root-key its key stays offline: `issuer request` and `issuer import` follow
    #[arg(long, value_name = "PATH", conflicts_with = "root_life")]
    root_cert: Option<PathBuf>,
    /// The root's key (PEM), from which the CA then makes its issuing certificates itself
    #[arg(long, value_name = "PATH", requires = "root_cert", conflicts_with = "root_life")]
    root_key: Option<PathBuf>,
    /// Begin with the issuing certificate in this directory (tls.crt, tls.key, ca.crt, or those of Istio's cacerts), as
    /// `serve --issuer-dir` goes on
    #[arg(long, value_name = "DIR", conflicts_with_all = ["root_cert", "root_life"])]
    issuer_dir: Option<PathBuf>,
    #[command(flatten)]
    kek: KekArgs,
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// The directory that `init` made
    #[arg(long, value_name = "DIR", env = "POSTERN_CA_STORE")]
    #[cfg_attr(
        feature = "kubernetes",
        arg(required_unless_present = "state_secret", conflicts_with = "state_secret")
    )]
    #[cfg_attr(not(feature = "kubernetes"), arg(required = true))]
    store: Option<PathBuf>,
    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
    /// Where workloads and control call (port 0: any free one)
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15012")]
    listen: SocketAddr,
    /// The operator's Unix socket (mode 0600)
    #[arg(long, value_name = "PATH", env = "POSTERN_CA_ADMIN_SOCKET")]
    admin_socket: PathBuf,
    /// Where /metrics and /readyz are
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
    metrics_listen: SocketAddr,
    /// Write the bound addresses there, as JSON, when ready
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// How long a workload's certificate is good: 5m to 24h
    #[arg(long, value_name = "DURATION", default_value = "4h", value_parser = humantime::parse_duration)]
    svid_life: Duration,
    /// Allow certificates of seconds, for demonstrations and tests
    #[arg(long)]
    insecure_short_life: bool,
    #[command(flatten)]
    kek: KekArgs,
    /// Also read records that an older version left in clear, and seal them
    #[arg(long)]
    migrate: bool,
    /// How long the ledger's records are kept in the store (at least 1h; at most 4,000,000 records, and 1,000,000 of
    /// JWT-SVIDs, then the oldest go)
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    ledger_retention: Duration,
    /// While the root is being replaced: the new one signs after this long, even if a proxy has not acknowledged it
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    root_acknowledge_timeout: Duration,
    /// While the root is being replaced: the old one leaves the bundle this long after the new one signs (unless said: 24h, the
    /// longest life of a leaf, and with join tokens 24h more, in which an expired SVID may renew itself)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    root_retire_after: Option<Duration>,
    /// Issuing certificates come from this directory, a mounted Secret (tls.crt, tls.key, ca.crt, or those of Istio's cacerts),
    /// which is watched; not with the root's key in the store
    #[arg(long, value_name = "DIR", env = "POSTERN_CA_ISSUER_DIR")]
    issuer_dir: Option<PathBuf>,
}

/// A running CA, or the store of a stopped one.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["admin_socket", "store"])))]
pub(crate) struct CaOrStore {
    /// The operator's Unix socket of a running CA
    #[arg(long, value_name = "PATH", env = "POSTERN_CA_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
    /// The store of a CA that does not run
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    kek: KekArgs,
}

impl CaOrStore {
    /// The socket, or the store and its key.
    pub(crate) fn which(self) -> Result<PathBuf, (PathBuf, Option<KekConfig>)> {
        match self.store {
            Some(store) => Err((store, self.kek.config())),
            // clap sees to it that it is there.
            None => Ok(self.admin_socket.unwrap_or_default()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum IssuerCommand {
    /// Write a request (PKCS#10) for the next issuing certificate, to be signed where the root's key is; its own key never
    /// leaves the store
    Request {
        #[command(flatten)]
        ca: CaOrStore,
        /// Gets the request, PEM
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
    },
    /// Hand in the certificate that was asked for: PEM, then what stands between it and the root and, if it is another one, the root
    Import {
        #[command(flatten)]
        ca: CaOrStore,
        /// The file
        #[arg(value_name = "PATH")]
        file: PathBuf,
    },
    /// Would the CA take what is in this directory?
    Check {
        /// tls.crt, tls.key and ca.crt, or those of Istio's cacerts
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The name of the trust domain
        #[arg(long, value_name = "NAME", default_value = "cluster.local")]
        trust_domain: String,
    },
}

/// How to reach a running CA.
#[derive(Debug, clap::Args)]
pub(crate) struct AdminArgs {
    /// The operator's Unix socket of a running CA
    #[arg(long, value_name = "PATH", env = "POSTERN_CA_ADMIN_SOCKET")]
    pub(crate) admin_socket: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SvidArgs {
    /// The CA's address
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) ca: String,
    /// The name of the trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// A file that holds a join token
    #[arg(long, value_name = "PATH", required_unless_present = "kubernetes_token_file")]
    #[arg(conflicts_with = "kubernetes_token_file")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// In a pod: its projected service-account token for the audience `postern-ca`
    #[arg(long, value_name = "PATH", requires = "roots_sha256_file")]
    pub(crate) kubernetes_token_file: Option<PathBuf>,
    /// In a pod: a file with the SHA-256 of each root that the CA may show (key `roots.sha256` of the ConfigMap
    /// postern-ca-roots)
    #[arg(
        long,
        value_name = "PATH",
        requires = "kubernetes_token_file",
        conflicts_with = "join_token_file"
    )]
    pub(crate) roots_sha256_file: Option<PathBuf>,
    /// Gets svid.pem, key.pem (0600) and bundle.pem; made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("ca").required(true).args(["admin_socket", "store"])))]
struct RotateArgs {
    /// The operator's Unix socket of a running CA
    #[arg(long, value_name = "PATH", env = "POSTERN_CA_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
    /// The store of a CA that does not run (one that cannot start, because its issuer was made under a wrong clock)
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Replace the root: a new one is made, published, signs once the proxies know it, and the old one leaves
    #[arg(long, requires = "admin_socket", conflicts_with = "taint")]
    root: bool,
    /// The root is in wrong hands: a new one signs at once, everybody renews, and the old one leaves as soon as they know
    #[arg(long, requires = "admin_socket")]
    taint: bool,
    /// Change nothing: show the stages of the root's replacement and where they stand
    #[arg(long, requires = "admin_socket")]
    dry_run: bool,
    #[command(flatten)]
    kek: KekArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for one start of one process; prints the token alone
    Create {
        #[command(flatten)]
        admin: AdminArgs,
        /// Whom it makes: spiffe://<trust domain>/ns/<namespace>/sa/<account>
        #[arg(long, value_name = "SPIFFE-ID")]
        id: String,
        /// Which instance of it, such as a pod's or workload's name
        #[arg(long, value_name = "NAME")]
        instance: String,
        /// How long it waits to be used
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
        life: Duration,
    },
    /// Show tokens (never their secrets)
    List {
        #[command(flatten)]
        admin: AdminArgs,
        /// How to show them
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Void a token
    Revoke {
        #[command(flatten)]
        admin: AdminArgs,
        /// Its id, as `list` shows it
        #[arg(allow_hyphen_values = true)]
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

/// Runs one command to its end.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let outcome = match args.command {
        Command::Init(args) => in_runtime(make(args)),
        Command::Serve(args) => {
            postern_telemetry::log::init();
            in_runtime(serve(*args))
        }
        Command::Token(command) => in_runtime(operator::token(command)),
        Command::Svid(args) => in_runtime(svid_files::write(args)),
        Command::Rotate(RotateArgs {
            store: Some(store),
            kek,
            ..
        }) => in_runtime(rotate_stopped(store, kek.config())),
        Command::Issuer(command) => in_runtime(operator::issuer::run(command)),
        Command::Rewrap(args) => in_runtime(rewrap_stopped(args)),
        Command::Rotate(RotateArgs {
            store: None,
            admin_socket,
            root,
            taint,
            dry_run,
            ..
        }) => {
            let socket = admin_socket.unwrap_or_default();
            match (dry_run, root || taint) {
                (true, _) => in_runtime(operator::root::stages(socket)),
                (false, true) => in_runtime(operator::root::rotate(socket, taint)),
                (false, false) => in_runtime(operator::rotate(socket)),
            }
        }
        Command::Status(args) => in_runtime(operator::status(args)),
        Command::Ledger(command) => {
            let mut ended = Ok(());
            let done = in_runtime(async {
                ended = crate::ledger::command::run(command).await;
                Ok(())
            });
            return match (done, ended) {
                (Ok(()), Ok(())) => ExitCode::SUCCESS,
                (Err(message), _) => {
                    eprintln!("postern-ca: {message}");
                    ExitCode::from(2)
                }
                (_, Err(error)) => {
                    eprintln!("postern-ca: {error}");
                    crate::ledger::command::code(&error)
                }
            };
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("postern-ca: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn make(args: InitArgs) -> Result<(), String> {
    let InitArgs {
        store,
        trust_domain,
        root_life,
        issuer_life,
        root_cert,
        root_key,
        issuer_dir,
        kek,
    } = args;
    let source = match (root_cert, issuer_dir) {
        (Some(cert), _) => RootSource::Files { cert, key: root_key },
        (None, Some(dir)) => RootSource::Issuer(dir),
        (None, None) => RootSource::Own,
    };
    let config = InitConfig {
        store,
        trust_domain,
        root_life,
        issuer_life,
    };
    let now = crate::clock::system()();
    let kek = kek.config().unwrap_or_else(|| KekConfig::beside(&config.store));
    let made = match &kek {
        KekConfig::File(file) => init_by_file(&config, &source, file, now),
        KekConfig::Kms(_) => {
            let sealer = Sealer::unseal(&kek).await.map_err(|error| crate::error_chain(&error))?;
            init_sealed_from(&config, &source, sealer, now)
        }
    };
    let made = made.map_err(|error| crate::error_chain(&error))?;
    println!("{}", made.root_sha256);
    if made.asks {
        let store = config.store.display();
        eprintln!(
            "postern-ca: next: `postern-ca issuer request --store {store} --out issuer.csr`; sign that with the root \
             (docs/brought-root.md); `postern-ca issuer import --store {store} issuer.pem`"
        );
    }
    Ok(())
}

async fn rewrap_stopped(args: RewrapArgs) -> Result<(), String> {
    let kek = args.kek.config();
    let sealed = rewrap_store(&args.store, kek.as_ref(), args.migrate).await;
    for kind in sealed.map_err(|error| crate::error_chain(&error))? {
        println!("{} is sealed anew", kind.file());
    }
    Ok(())
}

async fn serve(args: ServeArgs) -> Result<(), String> {
    // No core file holds the issuing key, and no other process of this user reads it from memory.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .inspect_err(|error| tracing::warn!(%error, "core files are not switched off"));
    let config = ServeConfig {
        // clap sees to it that it is there, unless a Secret has the state.
        store: args.store.unwrap_or_default(),
        listen: args.listen,
        admin_socket: args.admin_socket,
        metrics_listen: args.metrics_listen,
        ready_file: args.ready_file,
        svid_life: args.svid_life,
        insecure_short_life: args.insecure_short_life,
        kek: args.kek.config(),
        migrate: args.migrate,
        ledger: LedgerConfig {
            retention: args.ledger_retention,
            ..LedgerConfig::default()
        },
        root_acknowledge: args.root_acknowledge_timeout,
        root_retire: args.root_retire_after,
        issuer_dir: args.issuer_dir,
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
    #[cfg(feature = "kubernetes")]
    let starting = args.cluster.start(config);
    #[cfg(not(feature = "kubernetes"))]
    let starting = async {
        let started = start(config, crate::clock::system()).await;
        started.map_err(|error| crate::error_chain(&error))
    };
    let running = tokio::select! {
        started = starting => started?,
        // While it still waits for the API server.
        () = &mut stopped => return Ok(()),
    };
    stopped.await;
    tracing::info!("going down");
    running.stop().await;
    Ok(())
}

async fn rotate_stopped(store: PathBuf, kek: Option<KekConfig>) -> Result<(), String> {
    let epoch = rotate_store(&store, kek.as_ref(), crate::clock::system())
        .await
        .map_err(|error| crate::error_chain(&error))?;
    println!("issuer {epoch} signs");
    Ok(())
}

fn in_runtime(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?
        .block_on(work)
}

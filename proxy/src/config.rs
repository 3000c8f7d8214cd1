//! The command line of `postern-proxy`, and of `postern proxy`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use postern_api::ca_client::RootPins;
use postern_api::control::v1 as wire;
use postern_identity::TrustDomain;

use crate::access_log::{Sink, Wanted};
use crate::limits::DRAIN_DEADLINE;
use crate::redirect;
use crate::workload::Source;
use crate::workload_api::Callers;

/// More workers than this need a measurement that says so.
pub const MAX_WORKERS: usize = 64;
/// What the default never goes past: a sidecar shares its host with the app.
const DEFAULT_MAX_WORKERS: usize = 2;

/// `postern-proxy` as a program.
#[derive(Debug, Parser)]
#[command(name = "postern-proxy", version, about = "The guarded door of one workload")]
pub struct Cli {
    /// What to do.
    #[command(flatten)]
    pub args: Args,
}

/// What to do; the same for `postern-proxy ...` and `postern proxy ...`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Guard a workload: terminate and originate mutual TLS, authorize every request
    Run(Box<RunArgs>),
    /// Capture this network namespace's TCP traffic (needs NET_ADMIN)
    Redirect(redirect::Args),
}

/// How connections come to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Capture {
    /// The app uses the proxy by name (`HTTP_PROXY`), peers dial the ports that control assigns; no privileges needed
    Explicit,
    /// `postern-proxy redirect` sends everything here; the app knows nothing
    Redirect,
}

impl Capture {
    /// On the wire.
    #[must_use]
    pub fn to_wire(self) -> wire::Capture {
        match self {
            Self::Explicit => wire::Capture::Explicit,
            Self::Redirect => wire::Capture::Redirect,
        }
    }
}

/// What attests us: a join token, or in a pod its service-account token.
#[derive(Debug, Clone, clap::Args)]
pub struct IdentityArgs {
    /// A file that holds a join token of this workload; read again whenever one is needed
    #[arg(long, value_name = "PATH", conflicts_with = "kubernetes_token_file")]
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
    #[arg(long, value_name = "PATH", requires = "roots_sha256")]
    kubernetes_token_file: Option<PathBuf>,
    /// In a pod: SHA-256 of each root that the CA may show at first, in hexadecimal, parted by commas
    #[arg(
        long,
        value_name = "HEX,...",
        requires = "kubernetes_token_file",
        conflicts_with = "join_token_file"
    )]
    roots_sha256: Option<RootPins>,
    /// In place of the CA: a SPIFFE Workload API (SPIRE), `unix:///path` or `tcp://1.2.3.4:port`; identity and trust are what it
    /// gives, and nothing else
    #[cfg(feature = "workload-client")]
    #[arg(
        long,
        value_name = "ADDRESS",
        conflicts_with_all = ["ca", "join_token_file", "kubernetes_token_file", "roots_sha256", "workload_api_socket"],
        value_parser = postern_api::workload_client::check_address
    )]
    workload_api: Option<String>,
}

impl IdentityArgs {
    /// clap sees to it that one of them is whole.
    pub(crate) fn source(&self) -> Source {
        #[cfg(feature = "workload-client")]
        if let Some(address) = &self.workload_api {
            return Source::WorkloadApi(address.clone());
        }
        match (&self.kubernetes_token_file, &self.roots_sha256) {
            (Some(token_file), Some(pins)) => Source::Pod {
                token_file: token_file.clone(),
                pins: pins.clone(),
            },
            (Some(_) | None, _) => Source::JoinToken(self.join_token_file.clone().unwrap_or_default()),
        }
    }
}

/// Arguments of `postern-proxy run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// The CA's address
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    #[cfg_attr(feature = "workload-client", arg(required_unless_present = "workload_api"))]
    #[cfg_attr(not(feature = "workload-client"), arg(required = true))]
    pub ca: Option<String>,
    /// Control's address
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub control: String,
    /// Where our identity comes from.
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// The name of the trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,
    /// How connections come here
    #[arg(long, value_enum, default_value_t = Capture::Explicit)]
    pub capture: Capture,
    /// Explicit capture: where our app finds the proxy (HTTP proxy and CONNECT); loopback
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15002")]
    pub explicit_listen: SocketAddr,
    /// Redirect capture: where inbound connections are sent
    #[arg(
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "0.0.0.0:15006,[::]:15006"
    )]
    pub inbound_listen: Vec<SocketAddr>,
    /// Redirect capture: where our app's connections are sent
    #[arg(
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "0.0.0.0:15001,[::]:15001"
    )]
    pub outbound_listen: Vec<SocketAddr>,
    /// Where /metrics, /readyz and /livez are (port 0: any free one)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
    pub metrics_listen: SocketAddr,
    /// Serve /metrics on port 15021 only, which callers reach through this proxy: by mutual TLS, and if policy lets them
    #[arg(long)]
    pub metrics_mutual_tls: bool,
    /// Threads that move bytes [default: the CPU limit, at most 2]
    #[arg(long, value_name = "N", value_parser = workers)]
    pub workers: Option<usize>,
    /// Which requests get a line in the access log
    #[arg(long, value_enum, default_value_t = Wanted::Denied)]
    pub access_log: Wanted,
    /// Where the access log goes; `-` is standard output
    #[arg(long, value_name = "PATH", default_value = "-", value_parser = sink)]
    pub access_log_file: Sink,
    /// Write the bound addresses there, as JSON, when ready
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
    /// How long requests in flight have to end after SIGTERM: 0 to 3600
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_DEADLINE.as_secs(),
          value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub drain_seconds: u64,
    /// A Unix socket (mode 0600) that shows configuration, certificates and policies
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// A Unix socket where the app beside us is given an SVID of its own (SPIFFE Workload API); needs an absolute path
    #[arg(long, value_name = "PATH")]
    pub workload_api_socket: Option<PathBuf>,
    /// Users that the Workload API answers beside our own, or `any` who can open the socket (a pod's volume)
    #[arg(long, value_name = "UID,...|any", requires = "workload_api_socket")]
    pub workload_api_uid: Option<Callers>,
}

impl RunArgs {
    /// How many workers to start.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        // The standard library reads the affinity mask and the cgroup's CPU quota.
        self.workers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(DEFAULT_MAX_WORKERS, |n| n.get().min(DEFAULT_MAX_WORKERS))
        })
    }

    /// How long requests in flight have after SIGTERM.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// The CA's address; empty where none is asked.
    pub(crate) fn ca(&self) -> String {
        self.ca.clone().unwrap_or_default()
    }

    /// Whom the Workload API answers.
    pub(crate) fn workload_api_callers(&self) -> Callers {
        self.workload_api_uid
            .clone()
            .unwrap_or_else(|| Callers::Uids(Vec::new()))
    }

    /// What can only be seen with all arguments at hand.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.capture == Capture::Explicit && !self.explicit_listen.ip().is_loopback() {
            return Err(format!(
                "--explicit-listen {} is not a loopback address: whoever can dial it would speak with this workload's \
                 identity",
                self.explicit_listen
            ));
        }
        if self.metrics_mutual_tls && self.capture != Capture::Redirect {
            return Err(
                "--metrics-mutual-tls needs --capture redirect: nothing else leads callers of port 15021 through \
                        the proxy"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn host_port(text: &str) -> Result<String, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| "expected host:port, such as 127.0.0.1:15012".to_owned())?;
    if host.is_empty() {
        return Err("the host is missing; expected host:port".to_owned());
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(text.to_owned()),
        Ok(0) | Err(_) => Err(format!("`{port}` is no port number (1 to 65535)")),
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

fn workers(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=MAX_WORKERS).contains(n))
        .ok_or_else(|| format!("a number from 1 to {MAX_WORKERS}"))
}

fn sink(text: &str) -> Result<Sink, String> {
    match text {
        "" => Err("a path, or - for standard output".to_owned()),
        "-" => Ok(Sink::Stdout),
        path => Ok(Sink::File(path.into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(more: &[&str]) -> Result<RunArgs, String> {
        let needed = [
            "postern-proxy",
            "run",
            "--ca",
            "127.0.0.1:15012",
            "--control",
            "127.0.0.1:15010",
            "--join-token-file",
            "/t",
        ];
        match Cli::try_parse_from(needed.iter().chain(more))
            .map_err(|e| e.to_string())?
            .args
            .command
        {
            Command::Run(args) => args.check().map(|()| *args),
            Command::Redirect(_) => unreachable!(),
        }
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.capture, Capture::Explicit);
        assert_eq!(args.explicit_listen.port(), 15_002);
        assert!(args.inbound_listen.iter().all(|a| a.port() == 15_006));
        assert_eq!(args.inbound_listen.iter().filter(|a| a.is_ipv6()).count(), 1);
        assert!(args.outbound_listen.iter().all(|a| a.port() == 15_001));
        assert_eq!(args.access_log, Wanted::Denied);
        assert_eq!(args.access_log_file, Sink::Stdout);
        assert!((1..=2).contains(&args.worker_count()));
    }

    #[test]
    fn an_identity_comes_from_a_join_token_or_from_a_pods_token_with_its_pins() {
        let parse = |more: &[&str]| {
            let needed = ["postern-proxy", "run", "--ca", "c:1", "--control", "c:2"];
            let parsed = Cli::try_parse_from(needed.iter().chain(more)).map_err(|error| error.to_string())?;
            match parsed.args.command {
                Command::Run(args) => Ok::<_, String>(args.identity.source()),
                Command::Redirect(_) => unreachable!(),
            }
        };
        let pin = "ab".repeat(32);
        assert!(matches!(parse(&["--join-token-file", "/t"]), Ok(Source::JoinToken(_))));
        let pod = ["--kubernetes-token-file", "/t", "--roots-sha256", &pin];
        assert!(matches!(parse(&pod), Ok(Source::Pod { .. })));
        for (bad, says) in [
            (&[][..], "--join-token-file"),
            (&["--kubernetes-token-file", "/t"], "--roots-sha256"),
            (
                &["--join-token-file", "/t", "--roots-sha256", &pin],
                "cannot be used with",
            ),
            (
                &["--kubernetes-token-file", "/t", "--roots-sha256", "ab"],
                "64 hexadecimal digits",
            ),
            (
                &[
                    "--join-token-file",
                    "/j",
                    "--kubernetes-token-file",
                    "/t",
                    "--roots-sha256",
                    &pin,
                ],
                "cannot be used with",
            ),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
    }

    #[test]
    fn bad_and_unknown_values_are_refused_with_what_was_expected() {
        for (bad, says) in [
            (&["--workers", "0"][..], "a number from 1 to 64"),
            (&["--workers", "65"], "a number from 1 to 64"),
            (&["--access-log", "some"], "off, denied, all"),
            (&["--capture", "tproxy"], "explicit, redirect"),
            (&["--trust-domain", "Cluster.Local"], "trust"),
            (&["--drain-seconds", "3601"], "3600"),
            (&["--explicit-listen", "0.0.0.0:15002"], "not a loopback address"),
            (&["--metrics-mutual-tls"], "needs --capture redirect"),
            (&["--workload-api-uid", "any"], "--workload-api-socket"),
            (
                &["--workload-api-socket", "/s", "--workload-api-uid", "app"],
                "or `any`",
            ),
            (&["--no-such-switch"], "unexpected argument"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
        for (bad, says) in [
            ("127.0.0.1", "expected host:port"),
            (":15010", "host is missing"),
            ("control:99999", "no port number"),
            ("control:0", "no port number"),
        ] {
            let error = host_port(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}

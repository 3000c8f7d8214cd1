//! The commands for a mesh in Kubernetes.
//!
//! ```text
//! connect (kubeconfig, context) -> check: gathers facts, judges them
//!                               -> edges, identity: what control shows through view.postern.dev
//!                               -> explain: what it answers there (`postern explain --cluster`, of `crate::explain`)
//!                               -> quarantine: each replica of the CA, by a port forward (`postern quarantine`)
//!          inject: a manifest in, the same manifest with proxies out; needs no cluster
//! ```
//!
//! Also `kubectl postern`: the same program under the name `kubectl-postern`.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use postern_telemetry::error_chain;
use serde::Serialize;

mod check;
mod columns;
mod connect;
mod edges;
mod explain;
mod identity;
mod inject;
mod quarantine;
mod view;

use columns::wrap;
pub(crate) use connect::ContextArgs;
use connect::{Cluster, ConnectError};
pub(crate) use explain::ask;
pub(crate) use quarantine::Operator;

/// A command that could not do its work.
const FAILED: u8 = 2;

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For people, with all there is
    Wide,
    /// For programs
    Json,
}

/// One namespace, or all.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Scope {
    /// The namespace [default: the context's]
    #[arg(long, short, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// All namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the cluster does not answer as it should; postern check says why")]
    Cluster(#[from] kube::Error),
    #[error(transparent)]
    Inject(#[from] inject::InjectError),
    #[error("one pod is in one namespace: -n NAMESPACE, not -A")]
    OneNamespace,
    #[error("cannot write the answer")]
    Print(#[from] std::io::Error),
    #[error("the answer cannot be shown")]
    Json(#[from] serde_json::Error),
}

/// What there is for a cluster.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Is the cluster fit for the mesh, is the mesh well, are the proxies?
    Check(check::Args),
    /// Who talks to whom: both identities, secured or not, allowed, denied, rate
    Edges(edges::Args),
    /// Which certificate each proxy has
    Identity(identity::Args),
    /// Put proxies into the pods of a manifest, as the webhook would
    Inject(inject::Args),
}

/// Those, and what works without a cluster as well.
#[derive(Debug, clap::Subcommand)]
enum PluginCommand {
    #[command(flatten)]
    Cluster(Command),
    /// Cut an identity, a pod or a certificate off everywhere, at once; see who is, and let them back in
    Quarantine(crate::quarantine::Args),
}

/// The same program as a plug-in of `kubectl`.
#[derive(Debug, clap::Parser)]
#[command(
    name = "kubectl postern",
    bin_name = "kubectl postern",
    version,
    about = "A guarded door for every workload: the Postern mesh in your cluster"
)]
pub(crate) struct Plugin {
    #[command(subcommand)]
    command: PluginCommand,
}

/// What `kubectl` looks for in the PATH when it is asked for `postern`.
const PLUGIN: &str = "kubectl-postern";

/// Was this program started by `kubectl`, as its plug-in?
pub(crate) fn is_plugin(program: Option<&OsStr>) -> bool {
    program.and_then(|path| Path::new(path).file_stem()) == Some(OsStr::new(PLUGIN))
}

/// Runs as a plug-in.
pub(crate) fn run_plugin() -> ExitCode {
    match <Plugin as clap::Parser>::parse().command {
        PluginCommand::Cluster(command) => run(command),
        PluginCommand::Quarantine(args) => crate::quarantine::run(args),
    }
}

/// Runs one of them.
pub(crate) fn run(command: Command) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(CommandError::from).and_then(|runtime| {
        runtime.block_on(async {
            match command {
                Command::Check(args) => check::run(args).await,
                Command::Edges(args) => edges::run(args).await,
                Command::Identity(args) => identity::run(args).await,
                Command::Inject(args) => inject::run(args).await,
            }
        })
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("postern: {}", said(&error));
        ExitCode::from(FAILED)
    })
}

/// The API server's own words are better than ours about them.
fn said(error: &CommandError) -> String {
    match error {
        CommandError::Cluster(kube::Error::Api(status)) if is_absent(status) => {
            "this cluster has no view.postern.dev API: the mesh is not installed, or control is away (postern check)"
                .to_owned()
        }
        CommandError::Cluster(kube::Error::Api(status)) if !status.message.is_empty() => status.message.clone(),
        error => error_chain(error),
    }
}

/// What the API server says of an API, not of an object, that it does not have.
fn is_absent(status: &kube::core::Status) -> bool {
    let unavailable = status.code == 503;
    unavailable || (status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty()))
}

impl Scope {
    /// `None`: all.
    fn namespace(&self, cluster: &Cluster) -> Option<String> {
        if self.all_namespaces {
            return None;
        }
        Some(self.namespace.clone().unwrap_or_else(|| cluster.namespace.clone()))
    }

    fn one_namespace(&self, cluster: &Cluster) -> Result<String, CommandError> {
        self.namespace(cluster).ok_or(CommandError::OneNamespace)
    }
}

fn print(text: &str) -> Result<(), std::io::Error> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn json(document: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(format!("{}\n", serde_json::to_string_pretty(document)?))
}

fn now() -> i64 {
    check::now()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[test]
    fn under_its_plugins_name_it_is_kubectls() {
        for (program, plugin) in [
            ("/usr/local/bin/kubectl-postern", true),
            ("kubectl-postern", true),
            ("kubectl-postern.exe", true),
            ("/usr/local/bin/postern", false),
            ("kubectl-postern-other", false),
        ] {
            assert_eq!(is_plugin(Some(OsStr::new(program))), plugin, "{program}");
        }
        assert!(!is_plugin(None));
    }

    #[test]
    fn flags_are_those_that_users_of_kubectl_know() {
        Plugin::command().debug_assert();
        for line in [
            "edges -n shop -o json --context lab",
            "edges -A -o wide --kubeconfig /tmp/k",
            "edges --watch --namespace shop",
            "identity -n shop cart-1",
            "identity --all-namespaces",
            "check --pre",
            "check --proxy -n shop --output json",
            "quarantine add --pod shop/cart-1 --reason CVE-2026-1 --context lab",
            "quarantine list --output json",
            "quarantine lift --instance 1234 --admin-socket /run/ca.sock",
        ] {
            let args = std::iter::once("kubectl postern").chain(line.split(' '));
            assert!(Plugin::try_parse_from(args).is_ok(), "{line}");
        }
        for line in [
            "edges -A -n shop",
            "check --pre --proxy",
            "demo",
            "quarantine add",
            "quarantine add --pod cart-1",
            "quarantine add --id spiffe://cluster.local/ns/shop/sa/web --serial 0a",
            "quarantine lift",
        ] {
            let args = std::iter::once("kubectl postern").chain(line.split(' '));
            assert!(Plugin::try_parse_from(args).is_err(), "{line}");
        }
    }
}

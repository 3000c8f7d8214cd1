//! `postern check`: is the cluster fit for the mesh, is the mesh well, are the proxies?
//!
//! ```text
//! gather (asks the cluster, once, for everything) -> facts -> catalog (each check a pure function) -> report
//! ```

use std::process::ExitCode;

use super::Output;
use super::connect::{Cluster, ClusterArgs};

mod before;
mod catalog;
mod certificates;
mod components;
mod facts;
mod gather;
mod network;
mod platform;
mod policies;
mod proxies;
mod registration;
mod report;
mod workloads;

use catalog::{CHECKS, Check, Group, Severity, Verdict};
pub(super) use certificates::span;
use facts::{Facts, SYSTEM, Unknown, name};
pub(super) use gather::now;

/// Something is wrong.
const WRONG: u8 = 1;
/// The cluster, or something that matters of it, could not be asked.
const UNKNOWN: u8 = 2;

/// Arguments of `postern check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Before an installation: is the cluster fit for it, may you install?
    #[arg(long, conflicts_with_all = ["proxy", "namespace"])]
    pre: bool,
    /// Namespaces, workloads and their proxies, instead of the mesh's own components
    #[arg(long)]
    proxy: bool,
    /// Only those of one namespace (implies --proxy)
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How the result is shown
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The check whose failure means that there is no mesh.
const INSTALLED: &str = "PC-020";

/// A check and what came of it.
struct Checked {
    check: &'static Check,
    verdict: Verdict,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, super::CommandError> {
    let groups = groups(&args);
    let cluster = match args.cluster.connect().await {
        Ok(cluster) => cluster,
        Err(error) => return unasked(&super::error_chain(&error), args.output),
    };
    let Cluster { client, .. } = cluster;
    // Nothing else is worth asking if this fails.
    if let Err(error) = client.apiserver_version().await {
        return unasked(
            &format!("the API server does not answer: {}", super::error_chain(&error)),
            args.output,
        );
    }
    let facts = gather::facts(&client, args.namespace.as_deref(), groups).await;
    let checks = CHECKS.iter().filter(|check| groups.contains(&check.group));
    let checked: Vec<Checked> = checks.map(|check| checked(check, &facts)).collect();
    let text = match args.output {
        Output::Text | Output::Wide => report::text(&checked),
        Output::Json => report::json(&checked),
    };
    super::print(&text)?;
    Ok(ExitCode::from(code(&checked)))
}

/// Of a mesh that is not there, one failure says enough.
fn checked(check: &'static Check, facts: &Facts) -> Checked {
    let absent = facts
        .namespaces
        .as_ref()
        .is_ok_and(|spaces| !spaces.iter().any(|space| name(&space.metadata) == SYSTEM));
    let verdict = if absent && check.group == Group::Mesh && check.id != INSTALLED {
        Err(Unknown("the mesh is not installed".to_owned()))
    } else {
        (check.run)(facts)
    };
    Checked { check, verdict }
}

/// 0: all is well, warnings aside. 1: something is wrong. 2: nobody can tell.
fn code(checked: &[Checked]) -> u8 {
    let unknown = |one: &Checked| one.check.severity == Severity::Error && one.verdict.is_err();
    if is_wrong(checked) {
        WRONG
    } else if checked.iter().any(unknown) {
        UNKNOWN
    } else {
        0
    }
}

fn groups(args: &Args) -> &'static [Group] {
    if args.pre {
        &[Group::Platform, Group::Before]
    } else if args.proxy || args.namespace.is_some() {
        &[Group::Proxies]
    } else {
        &[Group::Platform, Group::Mesh]
    }
}

fn unasked(why: &str, output: Output) -> Result<ExitCode, super::CommandError> {
    match output {
        Output::Text | Output::Wide => eprintln!("postern: {why}"),
        Output::Json => super::print(&format!("{}\n", serde_json::json!({ "ok": false, "error": why })))?,
    }
    Ok(ExitCode::from(UNKNOWN))
}

fn is_wrong(checked: &[Checked]) -> bool {
    checked.iter().any(|checked| {
        checked.check.severity == Severity::Error && checked.verdict.as_ref().is_ok_and(|found| !found.is_empty())
    })
}

#[cfg(test)]
mod tests;

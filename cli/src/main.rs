//! `postern`: the operator's command. It links every component, so that one `cargo run` builds all that the demo needs
//! and starts itself as each of them.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[cfg(feature = "kubernetes")]
mod cluster;
mod demo;
mod explain;
mod lint;
mod offline;
mod quarantine;
mod tether;

/// The C library's allocator puts together what was freed long before, at some moment and all at once: 10 ms after ten thousand
/// rules, in which nobody else ran.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    name = "postern",
    version,
    about = "A guarded door for every workload: the Postern mesh"
)]
struct Cli {
    /// End when this process, our parent, ends: how the demo's processes never outlive it
    #[arg(long, hide = true, value_name = "PID")]
    tether: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A whole mesh on this machine, live: five services, their proxies, attacks at a key
    Demo(demo::Args),
    /// Would this request be allowed, and by which rule? Exit status 0: allowed, 1: denied, 2: it cannot be told
    Explain(explain::Args),
    /// Looks policies over: what is wrong, and what is hardly meant. Exit status 0: nothing, 1: warnings, 2: errors
    Lint(lint::Args),
    /// Cut an identity, a pod or a certificate off everywhere, at once; see who is, and let them back in
    Quarantine(quarantine::Args),
    /// The workload CA (the same as postern-ca)
    Ca(postern_ca::Args),
    /// Streams policy and destinations to proxies (the same as postern-control)
    Control(postern_control::Args),
    /// The data path of one workload (the same as postern-proxy)
    Proxy(postern_proxy::Args),
    /// One of the demo's services
    #[command(hide = true)]
    Shop(postern_shop::Args),
    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    Cluster(cluster::Command),
}

fn main() -> ExitCode {
    #[cfg(feature = "kubernetes")]
    if cluster::is_plugin(std::env::args_os().next().as_deref()) {
        return cluster::run_plugin();
    }
    let cli = Cli::parse();
    // Before anything else: a parent that dies from here on takes us with it.
    if let Some(parent) = cli.tether
        && let Err(error) = tether::hold(parent)
    {
        eprintln!("postern: {error}");
        return ExitCode::FAILURE;
    }
    match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Lint(args) => lint::run(&args),
        Command::Quarantine(args) => quarantine::run(args),
        Command::Ca(args) => postern_ca::run(args),
        Command::Control(args) => postern_control::run(args),
        Command::Proxy(args) => postern_proxy::run(args),
        Command::Shop(args) => postern_shop::run(args),
        #[cfg(feature = "kubernetes")]
        Command::Cluster(command) => cluster::run(command),
    }
}

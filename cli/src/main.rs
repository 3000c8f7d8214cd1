//! `postern`: the operator's command. It links every component, so that one `cargo run` builds all that the demo needs
//! and starts itself as each of them.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "postern", version, about = "A guarded door for every workload: the Postern mesh")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The workload CA (the same as postern-ca)
    Ca(postern_ca::Args),
    /// Streams policy and destinations to proxies (the same as postern-control)
    Control(postern_control::Args),
    /// The data path of one workload (the same as postern-proxy)
    Proxy(postern_proxy::Args),
    /// One of the demo's services
    #[command(hide = true)]
    Shop(postern_shop::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Ca(args) => postern_ca::run(args),
        Command::Control(args) => postern_control::run(args),
        Command::Proxy(args) => postern_proxy::run(args),
        Command::Shop(args) => postern_shop::run(args),
    }
}

//! `postern-proxy`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    postern_proxy::run(postern_proxy::Cli::parse().args)
}

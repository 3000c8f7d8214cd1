//! `postern-injector`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    postern_injector::run(postern_injector::Cli::parse().args)
}

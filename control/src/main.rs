//! `postern-control`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    postern_control::run(postern_control::Cli::parse().args)
}

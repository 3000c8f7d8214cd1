//! `postern-ca`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    postern_ca::run(postern_ca::Cli::parse().args)
}

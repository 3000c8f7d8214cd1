//! `postern-shop`: see the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    postern_shop::command::run(postern_shop::command::Command::parse())
}

//! `postern-control`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

/// The C library's allocator puts together what was freed long before, at some moment and all at once: 10 ms after ten thousand
/// rules, in which nobody else ran.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    postern_control::run(postern_control::Cli::parse().args)
}

//! `postern-kms-pkcs11`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    postern_kms_pkcs11::run(postern_kms_pkcs11::Cli::parse())
}

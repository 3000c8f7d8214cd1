//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::token::{KeyName, Place, Token};
use crate::{pin, plugin, session};

/// `postern-kms-pkcs11` as a program.
#[derive(Debug, Parser)]
#[command(
    name = "postern-kms-pkcs11",
    version,
    about = "A KMS plugin (Kubernetes KMS v2) whose keys are in a PKCS#11 token"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer on a Unix socket, for `postern-ca --kms-socket`
    Serve(ServeArgs),
    /// Make a key on the token, AES-256, that cannot leave it; prints its ID
    MakeKey(KeyArgs),
    /// One session with the module; `serve` starts it
    #[command(hide = true)]
    Session,
}

#[derive(Debug, Clone, clap::Args)]
struct TokenArgs {
    /// The PKCS#11 module of the token's vendor, such as /usr/lib/softhsm/libsofthsm2.so
    #[arg(long, value_name = "PATH")]
    module: PathBuf,
    /// The token's label
    #[arg(long, value_name = "LABEL")]
    token_label: String,
    /// A file that holds the user PIN, alone; open to its owner only
    #[arg(long, value_name = "PATH")]
    pin_file: PathBuf,
}

#[derive(Debug, clap::Args)]
struct KeyArgs {
    #[command(flatten)]
    token: TokenArgs,
    /// The key's label
    #[arg(long, value_name = "LABEL")]
    key_label: String,
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// The key's CKA_ID, where several keys have its label
    #[arg(long, value_name = "HEX", value_parser = hex_id)]
    key_id: Option<HexId>,
    /// Where to listen; mode 0600: for this user and root
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

/// A CKA_ID. (A type of its own: clap takes a bare `Vec` for many values.)
#[derive(Debug, Clone)]
struct HexId(Vec<u8>);

fn hex_id(text: &str) -> Result<HexId, String> {
    crate::token::of_hex(text)
        .filter(|id| !id.is_empty())
        .map(HexId)
        .ok_or_else(|| "expected pairs of hexadecimal digits, as `make-key` prints them after the #".to_owned())
}

impl TokenArgs {
    fn place(self) -> Place {
        Place {
            module: self.module,
            token_label: self.token_label,
            pin_file: self.pin_file,
        }
    }
}

/// Runs one command to its end.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    // No core file holds a seed or the PIN, and no other process of this user reads them from memory.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let outcome = match cli.command {
        Command::Serve(ServeArgs { key, key_id, socket }) => {
            postern_telemetry::log::init();
            let wraps = KeyName {
                label: key.key_label,
                id: key_id.map(|HexId(id)| id),
            };
            plugin::serve(&socket, key.token.place(), wraps)
        }
        Command::MakeKey(KeyArgs { token, key_label }) => make_key(&token.place(), &key_label),
        Command::Session => session::run().map_err(|error| error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("postern-kms-pkcs11: {message}");
            ExitCode::FAILURE
        }
    }
}

fn make_key(place: &Place, label: &str) -> Result<(), String> {
    let pin = pin::read(&place.pin_file)?;
    let token = Token::open_to_write(place, &pin).map_err(|fault| fault.to_string())?;
    println!("{}", token.make_key(label).map_err(|fault| fault.to_string())?);
    Ok(())
}

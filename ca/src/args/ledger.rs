//! Flags of `ledger`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::{KekArgs, Output};
use crate::seal::KekConfig;

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Show what was issued and refused
    List(ListArgs),
    /// Check that no record was changed, dropped, swapped or put in. Exits with 0 (whole), 1 (broken, and says where), 2 (it
    /// could not be looked at)
    Verify(VerifyArgs),
}

/// Which ledgers.
#[derive(Debug, clap::Args)]
pub(crate) struct Sources {
    /// The store of a stopped CA, a copy of its ledger.redb or ledger-jwt.redb, or a file of the lines that replicas wrote to standard output,
    /// among others or not (`-`: standard input)
    #[arg(value_name = "LEDGER", required_unless_present = "admin_socket")]
    pub(crate) ledgers: Vec<PathBuf>,
    /// The operator's Unix socket of a running CA
    #[arg(long, value_name = "PATH")]
    pub(crate) admin_socket: Option<PathBuf>,
    /// The record of the ledger's key: a store's ledger.json (of JWT-SVIDs: ledger-jwt.json), or that key of the CA's Secret (may be
    /// repeated)
    #[arg(long, value_name = "PATH")]
    pub(crate) key_record: Vec<PathBuf>,
    #[command(flatten)]
    kek: KekArgs,
}

impl Sources {
    pub(crate) fn kek(&self) -> Option<KekConfig> {
        self.kek.clone().config()
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// Only what concerns this identity
    #[arg(long, value_name = "SPIFFE-ID")]
    pub(crate) identity: Option<String>,
    /// Only what is newer: a duration (`2h`) or a time (`2026-11-29T12:00:00Z`)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(crate) since: Option<Since>,
    /// How to show it; `json` is one object per line
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// Check the order alone, which needs no key
    #[arg(long)]
    pub(crate) order_only: bool,
    /// Lines may begin within a chain: their collector has dropped old ones
    #[arg(long)]
    pub(crate) partial: bool,
    /// A head that was noted before, by a log or an earlier `verify`: a record must have it (may be repeated)
    #[arg(long = "head", value_name = "HASH")]
    pub(crate) heads: Vec<String>,
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    Ago(Duration),
    /// Seconds since 1970.
    At(u64),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Since::Ago(ago));
    }
    let at =
        humantime::parse_rfc3339_weak(text).map_err(|_| "neither a duration (2h) nor a time (2026-11-29T12:00:00Z)")?;
    let at = at
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(|error| error.to_string())?;
    Ok(Since::At(at.as_secs()))
}

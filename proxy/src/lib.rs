//! The data path: every connection of one workload, both ways.
//!
//! ```text
//! inbound   listen -> original_dst -> detect -> inbound/terminate (mTLS, VerifiedPeer) -> http or opaque
//!           -> inbound/authenticate -> canonical request -> inbound/authorize (-> Permit)
//!           -> inbound/sanitize -> inbound/forward (needs the Permit) -> app
//! outbound  listen -> original_dst or outbound/explicit -> outbound/resolve -> detect
//!           -> outbound/balance -> outbound/pool -> outbound/originate (mTLS, expected ID) -> outbound/forward
//! readmit   outbound/readmit (asks) -> inbound/readmit (decides anew), for a long stream whose SVIDs run out; readmission
//! pod       probes and app_metrics: what kubelets and scrapers ask of the app, answered on 15020 (app_client asks it)
//! app       workload_api: the SPIFFE Workload API on a Unix socket, an SVID for the app itself
//! beside    workload (key, CSR, renewal), control_client (subscriptions, last good), metrics, access_log, drain
//! ```
//!
//! Invariants: only `inbound::authorize` makes a `Permit` and nothing is forwarded to the app without one; a request
//! never rides a connection admitted for someone else; every queue, buffer and wait has a named bound in `limits`.
//! Shared nothing: N workers, each one thread with its own pools; what they share is read through [`snapshot`].

#[cfg(test)]
#[allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]
#[path = "../tests/world/authority.rs"]
mod authority;

pub mod access_log;
mod admin;
mod app_client;
mod app_metrics;
pub mod config;
mod control_client;
mod descriptors;
pub mod detect;
pub mod drain;
pub mod exchange;
mod federation;
mod flows;
pub mod http;
pub mod inbound;
pub mod limits;
mod listen;
pub mod metrics;
pub mod opaque;
mod original_dst;
pub mod outbound;
pub mod outcome;
mod pod;
mod probes;
mod process;
pub mod providers;
mod quarantine;
pub mod readmission;
pub mod redirect;
mod scratch;
pub mod snapshot;
pub mod status;
pub mod stream;
pub mod supervise;
mod tls;
pub mod worker;
mod workload;
mod workload_api;

use std::process::ExitCode;

pub use config::{Args, Cli};

/// Does what the command line says; returns when it is done.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    match args.command {
        config::Command::Run(args) => process::run(*args),
        config::Command::Redirect(args) => redirect::run(&args),
    }
}

//! Whole pairs, side by side: load -> proxy -> mutual TLS -> proxy -> nginx, in network namespaces.
//!
//! ```text
//! args        what to measure
//! world       pods, nginx, and each subject's processes ---- haproxy, postern: how a pair is set up
//! subject     where its load goes, which processes are its own, how its hops count requests
//! rounds      interleaved: every subject in turn, in alternating order; wrk, accounting, scrape
//! program     which binaries are measured
//! swap        instead: the same load, quiet and while policy changes
//! report      medians and spreads, as a table or JSON ------ statistics
//! ```
//!
//! A figure is published only if every request was answered with 200 and went through every hop; else the run fails.

mod accounting;
mod args;
mod haproxy;
mod postern;
mod program;
mod report;
mod rounds;
mod scrape;
mod statistics;
mod subject;
mod swap;
mod world;
mod wrk;

use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use args::{Args, Kind, Output};
use clap::Parser;
use world::World;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Flaw {
    /// The machine lacks something; the message says what.
    #[error("this machine lacks {0}")]
    Missing(String),
    /// The operating system's word.
    #[error("the system refused: {0}")]
    Io(#[from] std::io::Error),
    /// No certificates.
    #[error("certificates could not be made")]
    Certificates(#[from] rcgen::Error),
    /// wrk did not run to its end.
    #[error("wrk gave no result: {0}")]
    Wrk(String),
    /// wrk met errors.
    #[error("the load on {0} met errors, its figures are void:\n{1}")]
    Load(String, String),
    /// A subject does not show its metrics.
    #[error("metrics cannot be read: {0}")]
    Scrape(String),
    /// What wrk got did not come through the proxies.
    #[error("{hop}: wrk had {requests} answers, this hop counted {counted}: the load bypassed it")]
    Bypassed {
        /// Which hop.
        hop: String,
        /// What wrk counted.
        requests: u64,
        /// What the hop counted in that time.
        counted: u64,
    },
    /// A change of policy was felt.
    #[error("a request took more than 5 ms beyond the quiet 99th percentile")]
    Slow,
    /// The policy that should have been on is not.
    #[error("{0}: a request that its policy refuses got {1}, not 403")]
    Open(&'static str, String),
}

fn main() -> ExitCode {
    let args = Args::parse();
    match program::again_with_thin_proxy() {
        None => {}
        Some(Ok(status)) => {
            return if status.success() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Some(Err(error)) => {
            eprintln!("pair: what is measured could not be built: {error}");
            return ExitCode::FAILURE;
        }
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(flaw) => {
            eprintln!("pair: {flaw}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Flaw> {
    let missing = missing(args)?;
    if !missing.is_empty() {
        return Err(Flaw::Missing(missing.join(", ")));
    }
    let world = World::new(args)?;
    if args.swap {
        return match swap::run(&world, args)? {
            true => Ok(()),
            false => Err(Flaw::Slow),
        };
    }
    let results = if args.idle {
        rounds::idle(&world)?
    } else {
        rounds::run(&world, args)?
    };
    match args.output {
        Output::Text => print!("{}", report::text(args, &results)),
        Output::Json => println!("{}", report::json(args, &results)),
    }
    Ok(())
}

/// What this machine lacks; empty if it can measure.
fn missing(args: &Args) -> Result<Vec<&'static str>, Flaw> {
    const PROGRAMS: [&str; 6] = ["ip", "setpriv", "timeout", "curl", "nginx", "wrk"];
    let haproxy = args.subjects.contains(&Kind::Haproxy).then_some("haproxy");
    let mut missing: Vec<_> = PROGRAMS
        .into_iter()
        .chain(haproxy)
        .filter(|program| postern_e2e::which(program).is_none())
        .collect();
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        missing.push("root (network namespaces)");
    }
    Ok(missing)
}

//! What the image `postern-shop` runs: a service, one call, steady calls, or a look at a service's counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::canary::{self, Reached};
use crate::load::{Calls, End, Load, every};
use crate::target::Target;

/// Between two tries of `call --retry-for`.
const RETRY: Duration = Duration::from_millis(200);
/// A refused `call`; other failures are 1.
const DENIED: u8 = 3;

/// `postern-shop`.
#[derive(Debug, Parser)]
#[command(name = "postern-shop", version, about = "The shop's services, and calls to them")]
pub struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One of the services.
    Serve(crate::Args),
    /// Calls once (or `--times`) and says how it ended: exit status 0 allowed, 3 denied, 1 failed.
    Call(Call),
    /// Calls steadily, and prints counts as JSON at the end (SIGTERM, or `--for`).
    Load(Steady),
    /// Prints the counts of a service or a load in this pod, as JSON.
    Status {
        /// Its socket.
        #[arg(default_value = "@shop")]
        path: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Call {
    /// `http://host[:port]/path`, `grpc://host:port` (payments), `tcp://host:port` (ledger).
    target: Target,
    /// Sent along, for the service to count: `nonce-...`.
    #[arg(long)]
    nonce: Option<String>,
    /// How often; the first call that is not allowed is the last.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// Try again that long after a call that was not allowed.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    retry_for: Duration,
    /// Of one call.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
struct Steady {
    /// As for `call`; each is called at the same rate.
    #[arg(required = true)]
    targets: Vec<Target>,
    /// Calls a second, of each target.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Over so many connections, of each target.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    connections: u32,
    /// How long. Default: until SIGTERM.
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Unix socket for its counts meanwhile.
    #[arg(long, default_value = "@shop")]
    status: PathBuf,
}

/// Counts for people and scripts.
#[derive(Debug, Serialize)]
struct Counts {
    reached: Reached,
    calls: BTreeMap<String, Summary>,
}

/// [`Calls`] with quantiles in place of all latencies.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Summary {
    allowed: u64,
    denied: u64,
    failed: u64,
    last_failure: String,
    p50_us: u32,
    p99_us: u32,
    max_us: u32,
}

impl From<Calls> for Summary {
    fn from(mut calls: Calls) -> Self {
        calls.latencies_us.sort_unstable();
        let at = |hundredths: usize| {
            let last = calls.latencies_us.len().saturating_sub(1);
            calls.latencies_us.get(last * hundredths / 100).copied().unwrap_or(0)
        };
        Self {
            allowed: calls.allowed,
            denied: calls.denied,
            failed: calls.failed,
            p50_us: at(50),
            p99_us: at(99),
            max_us: at(100),
            last_failure: calls.last_failure,
        }
    }
}

/// Runs it.
#[must_use]
pub fn run(command: Command) -> ExitCode {
    match command.what {
        What::Serve(args) => crate::run(args),
        What::Call(call) => crate::on_a_runtime(call_once(call)),
        What::Load(steady) => crate::on_a_runtime(load(steady)),
        What::Status { path } => match canary::read_status(&path) {
            Ok(status) => {
                print(status.reached, status.calls);
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("shop: no status at {}: {error}", path.display());
                ExitCode::FAILURE
            }
        },
    }
}

fn print(reached: Reached, calls: BTreeMap<String, Calls>) {
    let calls = calls.into_iter().map(|(kind, calls)| (kind, calls.into())).collect();
    println!(
        "{}",
        serde_json::to_string(&Counts { reached, calls }).unwrap_or_default()
    );
}

async fn call_once(call: Call) -> ExitCode {
    let mut client = call.target.client();
    let started = Instant::now();
    let mut allowed = 0;
    while allowed < call.times {
        let end = tokio::time::timeout(call.timeout, client.call(call.nonce.as_deref()))
            .await
            .unwrap_or_else(|_| End::Failed(format!("no answer in {:?}", call.timeout)));
        let (word, status) = match end {
            End::Allowed => {
                allowed += 1;
                continue;
            }
            End::Denied => ("denied".to_owned(), DENIED),
            End::Failed(why) => (format!("failed: {why}"), 1),
        };
        if started.elapsed() >= call.retry_for {
            println!("{word}");
            return ExitCode::from(status);
        }
        client = call.target.client();
        tokio::time::sleep(RETRY).await;
    }
    println!("allowed");
    ExitCode::SUCCESS
}

async fn load(steady: Steady) -> ExitCode {
    let load = Load::default();
    tokio::spawn(canary::serve_status(
        steady.status,
        canary::Canary::default(),
        load.clone(),
    ));
    // One call at a time on each connection.
    let rate = steady.rate.div_ceil(steady.connections);
    for target in &steady.targets {
        for _ in 0..steady.connections {
            let client = std::sync::Arc::new(tokio::sync::Mutex::new(target.client()));
            let text: std::sync::Arc<str> = target.text().into();
            every(&load, target.text(), rate, false, move || {
                let (client, text) = (client.clone(), text.clone());
                async move {
                    let end = client.lock().await.call(None).await;
                    if let End::Failed(why) = &end {
                        let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
                        eprintln!("{now} {text} failed: {why}");
                    }
                    end
                }
            });
        }
    }
    let ended = crate::terminated();
    match steady.duration {
        Some(duration) => drop(tokio::time::timeout(duration, ended).await),
        None => drop(ended.await),
    }
    let calls = load.snapshot();
    let failed = calls.values().any(|calls| calls.failed > 0);
    print(Reached::default(), calls);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_quantiles_of_what_there_is() {
        let calls = Calls {
            allowed: 101,
            latencies_us: (0..=100).rev().collect(),
            ..Calls::default()
        };
        let summary = Summary::from(calls);
        assert_eq!((summary.p50_us, summary.p99_us, summary.max_us), (50, 99, 100));
        assert_eq!(Summary::from(Calls::default()).max_us, 0);
    }
}

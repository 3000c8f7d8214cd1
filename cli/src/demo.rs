//! `postern demo`: a whole mesh on this machine, of real processes, without root.
//!
//! ```text
//! world      private directory, CA, control, five proxies, five services: processes tied to this one
//! attack     what mallory tries; canary says what arrived
//! observe    control's pictures of the mesh
//! live       keys, model, screen       headless   runs it for a while and judges (verdict)
//! ```
//!
//! Everything runs on the main thread: the kernel ends a tethered process with the thread that started it.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use postern_telemetry::error_chain;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

mod attack;
mod authority;
mod canary;
mod child;
mod denials;
mod directory;
mod documents;
mod edges;
mod headless;
mod keys;
mod live;
mod model;
mod observe;
mod ports;
mod reasons;
mod screen;
mod terminal;
mod verdict;
mod world;

use world::Plan;

/// Certificates of the demo that somebody watches: long enough to see them refill, short enough to wait for.
const WATCHED_LIFE: Duration = Duration::from_secs(60);
/// How long a headless run lasts if nothing is said.
const HEADLESS: Duration = Duration::from_secs(30);
/// A headless run shows at least one renewal of each certificate: its life is this part of the run.
const LIVES_IN_A_RUN: u32 = 3;
/// A certificate loses up to a second to whole seconds, is renewed at 55 % of its life at the latest, and is not used by
/// a proxy for anything new in its last second: with less life than this there would be a gap.
const SHORTEST_LIFE: Duration = Duration::from_secs(6);
/// What a headless run needs past the expiry of a certificate to attack with it.
const AFTER_EXPIRY: Duration = Duration::from_secs(4);

/// Arguments of `postern demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// No terminal: run for a while, attack, judge, exit 0 only if all was well
    #[arg(long)]
    headless: bool,
    /// How long [default: until `q`; headless: 30s]
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// How the verdict of a headless run is shown
    #[arg(long, value_enum, default_value_t = Output::Text, requires = "headless")]
    output: Output,
    /// How long certificates live, 6s or more [default: 1m; headless: a third of the run]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    certificate_life: Option<Duration>,
    /// Leave the private directory (logs, documents, the CA's store) in place
    #[arg(long)]
    keep: bool,
    /// Write every request into the access logs, not only what is denied
    #[arg(long)]
    record: bool,
    /// Put cart in `discover`: its door records and lets everybody in. The verdict must notice
    #[arg(long, hide = true)]
    insecure_discover_cart: bool,
    /// Let web call cart past both proxies. The verdict must notice
    #[arg(long, hide = true)]
    insecure_bypass_cart: bool,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

/// Runs the demo to its end.
pub(crate) fn run(args: Args) -> ExitCode {
    let outcome = args.plan().and_then(|plan| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
        runtime.block_on(live(args, plan))
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("postern demo: {error}");
        ExitCode::FAILURE
    })
}

async fn live(args: Args, plan: Plan) -> Result<ExitCode, String> {
    let interrupted = interrupts().map_err(|error| format!("cannot listen for signals: {error}"))?;
    if args.headless {
        let run = headless::Run {
            plan,
            duration: args.duration.unwrap_or(HEADLESS),
            output: args.output,
        };
        return Ok(headless::run(run, interrupted).await);
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err("this is no terminal; `postern demo --headless` needs none".to_owned());
    }
    live::run(plan, args.duration, interrupted).await
}

impl Args {
    fn plan(&self) -> Result<Plan, String> {
        let life = match (self.certificate_life, self.headless) {
            (Some(life), _) => life,
            (None, true) => (self.duration.unwrap_or(HEADLESS) / LIVES_IN_A_RUN).max(SHORTEST_LIFE),
            (None, false) => WATCHED_LIFE,
        };
        // Certificates count in whole seconds.
        let life = Duration::from_secs(life.as_secs());
        if life < SHORTEST_LIFE {
            return Err(format!(
                "--certificate-life {}: at least {} s are needed, or proxies run out of one before they have the next",
                humantime::format_duration(life),
                SHORTEST_LIFE.as_secs()
            ));
        }
        let duration = self.duration.unwrap_or(HEADLESS);
        if self.headless && life + AFTER_EXPIRY > duration {
            return Err(format!(
                "certificates that live {} do not fit into --for {}: one must expire within the run; --for {}s would do",
                humantime::format_duration(life),
                humantime::format_duration(duration),
                (life + AFTER_EXPIRY).as_secs()
            ));
        }
        Ok(Plan {
            life,
            access_log: match (self.record, self.headless) {
                (true, _) => "all",
                (false, true) => "denied",
                (false, false) => "off",
            },
            keep: self.keep,
            discover_cart: self.insecure_discover_cart,
            bypass_cart: self.insecure_bypass_cart,
        })
    }
}

/// True once somebody wants the demo to end.
fn interrupts() -> std::io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut stream = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            stream.recv().await;
            sender.send_replace(true);
        });
    }
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn plan(arguments: &[&str]) -> Result<Plan, String> {
        let cli = Cli::try_parse_from(["demo"].iter().chain(arguments)).map_err(|error| error.to_string())?;
        cli.args.plan()
    }

    #[test]
    fn certificates_live_a_minute_on_the_screen_and_a_third_of_a_headless_run() {
        assert_eq!(plan(&[]).unwrap().life, Duration::from_secs(60));
        assert_eq!(plan(&["--headless"]).unwrap().life, Duration::from_secs(10));
        assert_eq!(plan(&["--headless", "--for", "12s"]).unwrap().life, SHORTEST_LIFE);
        let given = plan(&["--headless", "--for", "12s", "--certificate-life", "7s"]);
        assert_eq!(given.unwrap().life, Duration::from_secs(7));
    }

    #[test]
    fn a_run_in_which_nothing_could_be_shown_is_refused_with_what_would_do() {
        let error = plan(&["--headless", "--for", "3s"]).unwrap_err();
        assert!(error.contains("--for 10s would do"), "{error}");
        let error = plan(&["--headless", "--for", "12s", "--certificate-life", "1m"]).unwrap_err();
        assert!(error.contains("--for 64s would do"), "{error}");
        let error = plan(&["--certificate-life", "5s"]).unwrap_err();
        assert!(error.contains("at least 6 s"), "{error}");
        let error = plan(&["--output", "json"]).unwrap_err();
        assert!(error.contains("--headless"), "{error}");
    }
}

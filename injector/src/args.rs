//! The command line of `postern-injector`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use postern_cluster::serving::Timing;

use crate::error_chain;
use crate::inject::Settings;
use crate::server::{Config, start};

/// `postern-injector` as a program.
#[derive(Debug, Parser)]
#[command(
    name = "postern-injector",
    version,
    about = "Admission webhooks of a Postern mesh: puts sidecars into pods, checks policies"
)]
pub struct Cli {
    /// How to serve.
    #[command(flatten)]
    pub args: Args,
}

/// How to serve.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the API server calls (port 0: any free one)
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15017")]
    listen: SocketAddr,
    /// Where /metrics and /readyz are
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
    metrics_listen: SocketAddr,
    /// What all sidecars have in common: settings.json of ConfigMap postern-injector
    #[arg(long, value_name = "PATH")]
    settings: PathBuf,
    /// How long a serving certificate is good, instead of 30 days: too short for anything but tests
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    insecure_certificate_life: Option<Duration>,
}

/// Serves until told to stop.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    postern_telemetry::log::init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .map_err(|error| format!("cannot start: {error}"))
        .and_then(|rt| rt.block_on(serve(args)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("postern-injector: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Args) -> Result<(), String> {
    let path = args.settings.display().to_string();
    let text = std::fs::read_to_string(&args.settings).map_err(|error| format!("cannot read {path}: {error}"))?;
    let settings = Settings::parse(&text).map_err(|error| format!("{path}: {}", error_chain(&error)))?;
    let mut config = Config::new(args.listen, args.metrics_listen, settings);
    if let Some(life) = args.insecure_certificate_life {
        config.timing = Timing::of(life);
    }
    let signal = |kind| tokio::signal::unix::signal(kind).map_err(|error| error.to_string());
    // Before anything is served: a signal that comes early is not lost.
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut stopped = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let client = postern_cluster::client().await.map_err(|error| error_chain(&error))?;
    let running = start(client, config).await;
    let running = running.map_err(|error| format!("cannot listen: {error}"))?;
    stopped.as_mut().await;
    tracing::info!("going down");
    running.stop().await;
    Ok(())
}

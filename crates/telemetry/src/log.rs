//! Component logs: JSON lines on standard error, filtered by `POSTERN_LOG`: a level, or `target=level` pairs between commas,
//! such as `warn,postern_proxy::listen=debug`; default `info`.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// It logs each failed call as an error, dozens a second while an API server restarts; whoever called says so, once.
const KUBE_CALLS: &str = "kube_client::client::builder";

/// Sets the process's subscriber; a second call changes nothing. A malformed filter is reported and `info` used.
pub fn init() {
    let info = || Targets::new().with_default(LevelFilter::INFO);
    // `Targets` and not `EnvFilter`: that brings regular expressions, a megabyte in every sidecar.
    let filter = match std::env::var("POSTERN_LOG") {
        Err(_) => info(),
        Ok(text) => text.parse::<Targets>().unwrap_or_else(|error| {
            eprintln!("POSTERN_LOG={text:?} is no log filter ({error}); using info");
            info()
        }),
    };
    let filter = if filter.iter().any(|(target, _)| target.starts_with(KUBE_CALLS)) {
        filter
    } else {
        filter.with_target(KUBE_CALLS, LevelFilter::OFF)
    };
    let lines = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
    // Fails only if a subscriber is already set: the first one stays.
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}

//! Component logs: JSON lines on standard error, filtered by `POSTERN_LOG` (the syntax of `RUST_LOG`), default `info`.

use tracing_subscriber::EnvFilter;

/// Sets the process's subscriber; a second call changes nothing. A malformed filter is reported and `info` used.
pub fn init() {
    let filter = match std::env::var("POSTERN_LOG") {
        Err(_) => EnvFilter::new("info"),
        Ok(text) => EnvFilter::try_new(&text).unwrap_or_else(|error| {
            eprintln!("POSTERN_LOG={text:?} is no log filter ({error}); using info");
            EnvFilter::new("info")
        }),
    };
    // Fails only if a subscriber is already set: the first one stays.
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

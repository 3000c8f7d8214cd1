//! Component logs: JSON lines on standard error, filtered by `POSTERN_LOG`: a level, or `target=level` pairs between commas,
//! such as `warn,postern_proxy::listen=debug`; default `info`.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// It logs each failed call as an error, dozens a second while an API server restarts; whoever called says so, once.
const KUBE_CALLS: &str = "kube_client::client::builder";

/// An error and its causes, in one line. A cause whose words are in what stands before is left out: some libraries repeat it.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Wrapped {
        what: &'static str,
        source: io::Error,
    }

    #[test]
    fn an_error_is_told_with_its_causes_each_once() {
        let wrapped = |what, cause: &str| Wrapped {
            what,
            source: io::Error::other(cause.to_owned()),
        };
        assert_eq!(
            error_chain(&wrapped("cannot read", "no such file")),
            "cannot read: no such file"
        );
        assert_eq!(
            error_chain(&wrapped("it said: no such file", "no such file")),
            "it said: no such file"
        );
    }
}

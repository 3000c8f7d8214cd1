//! The command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// CPU per request of whole proxy pairs, in interleaved rounds
#[derive(Debug, Parser)]
#[command(name = "pair")]
pub(crate) struct Args {
    /// How often every subject is measured at every number of connections
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// How long one measurement takes
    #[arg(long, value_name = "SECONDS", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Keep-alive connections of the load
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "16,64",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) connections: Vec<u32>,
    /// Worker threads of each proxy, of every pair
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) workers: u8,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,haproxy,postern")]
    pub(crate) subjects: Vec<Kind>,
    /// No load: only the memory of proxies that have nothing to do
    #[arg(long)]
    pub(crate) idle: bool,
    /// Not CPU per request: what requests of ours suffer while 10,000 rules are replaced again and again
    #[arg(long, conflicts_with = "idle")]
    pub(crate) swap: bool,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// wrk speaks with nginx
    Direct,
    /// A pair of HAProxy with mutual TLS and an identity check
    Haproxy,
    /// A pair of ours, transparently captured
    Postern,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table
    Text,
    /// One object
    Json,
}

impl Args {
    /// How long one measurement takes.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Is it to be measured?
    pub(crate) fn wants(&self, kind: Kind) -> bool {
        self.subjects.contains(&kind)
    }
}

impl Kind {
    /// In tables, file names and JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::Postern => "postern",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_defaults_are_the_published_method() {
        let args = Args::try_parse_from(["pair"]).unwrap();
        assert_eq!((args.rounds, args.time(), args.workers), (5, Duration::from_secs(6), 2));
        assert_eq!(args.connections, [16, 64]);
        assert_eq!(args.subjects, [Kind::Direct, Kind::Haproxy, Kind::Postern]);
        assert!(Args::try_parse_from(["pair", "--rounds", "0"]).is_err());
        assert!(Args::try_parse_from(["pair", "--connections", "16,0"]).is_err());
    }
}

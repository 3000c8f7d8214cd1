//! One thing that is measured.

use std::io;

use postern_e2e::lab::Pod;

use crate::accounting::{Cpu, Memory};
use crate::args::Kind;
use crate::{Flaw, scrape};

/// Where its load goes, whose CPU counts, and who bears witness that the load went through.
pub(crate) struct Subject {
    /// Which.
    pub(crate) kind: Kind,
    /// Where the load comes from.
    pub(crate) pod: Pod,
    /// What it asks for.
    pub(crate) url: String,
    /// The processes of the pair; none for a direct run.
    pub(crate) proxies: Vec<u32>,
    /// Every place that a request passes, in order.
    pub(crate) hops: Vec<Hop>,
}

/// A counter of requests.
pub(crate) struct Hop {
    /// Where it can be read.
    pub(crate) pod: Pod,
    /// And how.
    pub(crate) metrics: String,
    /// Its name.
    pub(crate) family: &'static str,
    /// What the series must say to count: for ours, that it was mutual TLS and allowed by a rule.
    pub(crate) labels: &'static [&'static str],
}

impl Subject {
    /// CPU time of each proxy so far.
    pub(crate) fn cpu(&self) -> io::Result<Vec<Cpu>> {
        self.proxies.iter().map(|pid| Cpu::of(*pid)).collect()
    }

    /// Memory of each proxy now.
    pub(crate) fn memory(&self) -> io::Result<Vec<Memory>> {
        self.proxies.iter().map(|pid| Memory::of(*pid)).collect()
    }

    /// What every hop has counted so far.
    pub(crate) fn counted(&self) -> Result<Vec<u64>, Flaw> {
        self.hops
            .iter()
            .map(|hop| scrape::sum(&hop.pod, &hop.metrics, hop.family, hop.labels))
            .collect()
    }

    /// The status that a request of `method` gets.
    pub(crate) fn status(&self, method: &str) -> String {
        let curl = format!("curl -s -o /dev/null -m 5 -w '%{{http_code}}' -X {method} {}", self.url);
        self.pod.prints(&curl)
    }
}

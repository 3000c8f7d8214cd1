//! Medians over rounds with their spread, per subject and number of connections.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::accounting::Memory;
use crate::args::{Args, Kind};
use crate::rounds::{Results, Sample};
use crate::statistics::Spread;

/// One row: a subject at a number of connections.
struct Row<'a> {
    kind: Kind,
    connections: u32,
    samples: Vec<&'a Sample>,
    /// CPU per request divided by HAProxy's of the same round.
    of_haproxy: Option<Spread>,
}

/// A figure of one sample.
type Figure = fn(&Sample) -> f64;

/// For people.
pub(crate) fn text(args: &Args, results: &Results) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} rounds of {} s, {} workers per proxy, {} CPUs, load average {}",
        args.rounds,
        args.time().as_secs(),
        args.workers,
        cpus(),
        results
            .load_averages
            .iter()
            .map(|load| format!("{load:.1}"))
            .collect::<Vec<_>>()
            .join(" ")
    );
    for row in rows(args, results) {
        if Some(&row.kind) == args.subjects.first() {
            let _ = writeln!(
                out,
                "\n{:<12}{:>24}{:>14}{:>8}{:>20}{:>10}{:>9}{:>9}{:>12}",
                format!("{} conns", row.connections),
                "CPU us/request",
                "each",
                "user",
                "of HAProxy",
                "req/s",
                "p50 us",
                "p99 us",
                "RSS MiB"
            );
        }
        let cpu = row.spread(Sample::cpu_us_per_request);
        let has_proxies = row.kind != Kind::Direct;
        let _ = writeln!(
            out,
            "{:<12}{:>24}{:>14}{:>8}{:>20}{:>10}{:>9}{:>9}{:>12}",
            row.kind.as_str(),
            cpu.filter(|_| has_proxies).map_or("-".into(), |s| spread(s, 1)),
            row.spread(Sample::cpu_us_at_client)
                .zip(row.spread(Sample::cpu_us_at_server))
                .filter(|_| has_proxies)
                .map_or("-".into(), |(client, server)| format!(
                    "{:.1} + {:.1}",
                    client.median, server.median
                )),
            row.spread(Sample::user_share)
                .filter(|_| has_proxies)
                .map_or("-".into(), |s| format!("{:.0} %", s.median * 100.0)),
            row.of_haproxy.map_or("-".into(), |s| spread(s, 2)),
            median(row.spread(Sample::requests_per_second)),
            median(row.spread(|s| s.counted.p50 as f64)),
            median(row.spread(|s| s.counted.p99 as f64)),
            row.samples.last().map_or("-".into(), |s| each(&s.memory)),
        );
    }
    for idle in results.idle.iter().filter(|idle| !idle.fresh.is_empty()) {
        let after = idle
            .after_load
            .as_deref()
            .map_or(String::new(), |memory| format!(", after load {} MiB", each(memory)));
        let _ = writeln!(
            out,
            "\n{} idle (client's + server's): {} MiB{after}; anonymous: {}",
            idle.kind.as_str(),
            each(&idle.fresh),
            idle.fresh
                .iter()
                .map(|m| mib(m.anonymous))
                .collect::<Vec<_>>()
                .join(" + ")
        );
    }
    out
}

/// For programs: everything, round by round.
pub(crate) fn json(args: &Args, results: &Results) -> Value {
    let rows: Vec<Value> = rows(args, results).iter().map(Row::json).collect();
    let idle: Vec<Value> = results
        .idle
        .iter()
        .filter(|idle| !idle.fresh.is_empty())
        .map(|idle| {
            json!({
                "subject": idle.kind.as_str(),
                "fresh": kib(&idle.fresh),
                "after_load": idle.after_load.as_deref().map(kib),
            })
        })
        .collect();
    json!({
        "rounds": args.rounds,
        "seconds": args.time().as_secs(),
        "workers": args.workers,
        "cpus": cpus(),
        "load_averages": results.load_averages,
        "results": rows,
        "idle_rss": idle,
    })
}

fn rows<'a>(args: &Args, results: &'a Results) -> Vec<Row<'a>> {
    let of = |kind: Kind, connections: u32| -> Vec<&'a Sample> {
        let samples = results.samples.iter();
        samples
            .filter(|s| s.kind == kind && s.connections == connections)
            .collect()
    };
    let mut rows = Vec::new();
    for &connections in &args.connections {
        let haproxy = of(Kind::Haproxy, connections);
        for &kind in &args.subjects {
            let samples = of(kind, connections);
            let ratios = samples
                .iter()
                .filter_map(|s| haproxy.iter().find(|h| h.round == s.round).map(|h| (s, h)))
                .map(|(s, h)| s.cpu_us_per_request() / h.cpu_us_per_request());
            let of_haproxy = Spread::of(ratios).filter(|_| kind == Kind::Postern);
            if !samples.is_empty() {
                rows.push(Row {
                    kind,
                    connections,
                    of_haproxy,
                    samples,
                });
            }
        }
    }
    rows
}

impl Row<'_> {
    fn spread(&self, figure: Figure) -> Option<Spread> {
        Spread::of(self.samples.iter().map(|sample| figure(sample)))
    }

    fn json(&self) -> Value {
        let figure = |of: Figure| {
            let each: Vec<f64> = self.samples.iter().map(|sample| of(sample)).collect();
            json!({ "spread": self.spread(of).map(as_json), "rounds": each })
        };
        let of_proxies = |of: Figure| (self.kind != Kind::Direct).then(|| figure(of));
        json!({
            "subject": self.kind.as_str(),
            "connections": self.connections,
            "cpu_us_per_request": of_proxies(Sample::cpu_us_per_request),
            "cpu_us_at_client": of_proxies(Sample::cpu_us_at_client),
            "cpu_us_at_server": of_proxies(Sample::cpu_us_at_server),
            "cpu_user_share": of_proxies(Sample::user_share),
            "cpu_of_haproxy": self.of_haproxy.map(as_json),
            "requests_per_second": figure(Sample::requests_per_second),
            "p50_us": figure(|s| s.counted.p50 as f64),
            "p99_us": figure(|s| s.counted.p99 as f64),
            "rss_under_load": self.samples.last().map(|s| kib(&s.memory)),
        })
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

fn as_json(spread: Spread) -> Value {
    json!({ "median": spread.median, "lowest": spread.lowest, "highest": spread.highest })
}

fn kib(memory: &[Memory]) -> Vec<Value> {
    memory
        .iter()
        .map(|m| json!({ "resident_kib": m.resident, "anonymous_kib": m.anonymous }))
        .collect()
}

fn spread(of: Spread, digits: usize) -> String {
    format!(
        "{:.digits$} ({:.digits$}..{:.digits$})",
        of.median, of.lowest, of.highest
    )
}

fn median(of: Option<Spread>) -> String {
    of.map_or("-".into(), |spread| format!("{:.0}", spread.median))
}

fn each(memory: &[Memory]) -> String {
    if memory.is_empty() {
        return "-".into();
    }
    memory.iter().map(|m| mib(m.resident)).collect::<Vec<_>>().join(" + ")
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1_024.0)
}

//! How long from `postern quarantine add` to the last answer on live connections: HTTP/1.1, HTTP/2, gRPC streams and bytes,
//! from the suspect to each other workload and back.
//!
//! `cargo run --profile dist -p postern-e2e --bin quarantine-latency -- --proxies 20 --rounds 20`
//!
//! One process per proxy, on this machine. The clock starts before the command's process does; each connection gives one
//! figure per round: when its last answer came. Each of them is answered every 20 ms, so a figure is exact to that. After each
//! round the suspect is let back in, and the next one suspects another.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use postern_e2e::live::{Kind, Line};
use postern_e2e::loopback::Loopback;
use postern_e2e::process::eventually;

#[derive(Debug, Parser)]
struct Args {
    /// Workloads, each with its proxy
    #[arg(long, default_value_t = 20)]
    proxies: usize,
    /// How often somebody is cut off
    #[arg(long, default_value_t = 20)]
    rounds: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mesh = Loopback::start(args.proxies, "1h");
    let mut by_kind: Vec<(Kind, Vec<Duration>)> = Kind::ALL.map(|kind| (kind, Vec::new())).to_vec();
    let (mut commands, mut lasts) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let suspect = round % args.proxies;
        let lines = lines(&mesh, suspect, args.proxies);
        for line in &lines {
            eventually("answers", || (line.answers() >= 3).then_some(()));
        }
        let pod = format!("shop/w{suspect}");
        let began = Instant::now();
        let output = mesh.quarantine(&["add", "--pod", &pod]);
        commands.push(began.elapsed());
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            return ExitCode::FAILURE;
        }
        for line in &lines {
            eventually("the end of each", || line.ended());
        }
        let figures = lines.iter().map(|line| (line.kind, after(line, began)));
        let mut last = Duration::ZERO;
        for (kind, figure) in figures {
            last = last.max(figure);
            if let Some((_, of_kind)) = by_kind.iter_mut().find(|(known, _)| *known == kind) {
                of_kind.push(figure);
            }
        }
        lasts.push(last);
        let lifted = mesh.quarantine(&["lift", "--pod", &pod]);
        assert!(lifted.status.success(), "{}", String::from_utf8_lossy(&lifted.stderr));
    }
    println!(
        "{} proxies, {} rounds, {} connections with the suspect in each",
        args.proxies,
        args.rounds,
        8 * (args.proxies - 1)
    );
    let mut all: Vec<Duration> = Vec::new();
    for (kind, figures) in &mut by_kind {
        all.extend(figures.iter());
        shown(&format!("last answer, {}", kind.name()), figures);
    }
    shown("last answer, all", &mut all);
    shown("last answer of a round", &mut lasts);
    shown("command returns, all enforce", &mut commands);
    ExitCode::SUCCESS
}

fn lines(mesh: &Loopback, suspect: usize, proxies: usize) -> Vec<Line> {
    let others = (0..proxies).filter(|other| *other != suspect);
    let both = |other| Kind::ALL.map(|kind| [mesh.line(suspect, other, kind), mesh.line(other, suspect, kind)]);
    others.flat_map(both).flatten().collect()
}

/// Nothing after the command began is no time at all.
fn after(line: &Line, began: Instant) -> Duration {
    line.last()
        .map_or(Duration::ZERO, |last| last.saturating_duration_since(began))
}

fn shown(what: &str, figures: &mut [Duration]) {
    figures.sort_unstable();
    let share = |percent: usize| {
        let at = (figures.len() * percent).div_ceil(100).max(1) - 1;
        figures.get(at).map_or(0.0, |figure| figure.as_secs_f64() * 1000.0)
    };
    println!(
        "{what:30} p50 {:6.1} ms   p99 {:6.1} ms   max {:6.1} ms   n {}",
        share(50),
        share(99),
        share(100),
        figures.len()
    );
}

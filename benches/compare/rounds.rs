//! Interleaved rounds: whatever disturbs the machine disturbs all subjects alike.

use std::ops::Add as _;
use std::time::Duration;

use crate::Flaw;
use crate::accounting::{Cpu, Memory, load_average};
use crate::args::{Args, Kind};
use crate::subject::Subject;
use crate::world::World;
use crate::wrk::Counted;

/// Connections are made and pools filled in it; not measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a proxy has nothing to do before its idle memory is read.
const SETTLE: Duration = Duration::from_secs(5);

/// One measurement of one subject.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) kind: Kind,
    pub(crate) connections: u32,
    pub(crate) round: u32,
    pub(crate) counted: Counted,
    /// Of each process of the pair, during the load.
    pub(crate) cpu: Vec<Cpu>,
    /// Of each process, in the middle of the load.
    pub(crate) memory: Vec<Memory>,
}

/// Memory of each of a pair's proxies without load.
#[derive(Debug, Clone)]
pub(crate) struct Idle {
    pub(crate) kind: Kind,
    /// Started, and asked twice.
    pub(crate) fresh: Vec<Memory>,
    /// The same once all load has ended.
    pub(crate) after_load: Option<Vec<Memory>>,
}

/// All that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Results {
    pub(crate) samples: Vec<Sample>,
    pub(crate) idle: Vec<Idle>,
    /// Of the machine: before the first round, and after each.
    pub(crate) load_averages: Vec<f64>,
}

/// No load.
pub(crate) fn idle(world: &World) -> Result<Results, Flaw> {
    std::thread::sleep(SETTLE);
    Ok(Results {
        samples: Vec::new(),
        idle: read_idle(world)?,
        load_averages: vec![load_average()],
    })
}

/// Every subject at every number of connections, in turn; every other round the other way round.
pub(crate) fn run(world: &World, args: &Args) -> Result<Results, Flaw> {
    let mut results = idle(world)?;
    for round in 0..args.rounds {
        for &connections in &args.connections {
            let mut turn: Vec<&Subject> = world.subjects.iter().collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for subject in turn {
                let sample = measure(world, args, subject, connections, round)?;
                eprintln!(
                    "pair: round {}, {connections} connections, {}: {:.0} requests/s, {:.1} us of the proxies' CPU each",
                    round + 1,
                    subject.kind.as_str(),
                    sample.requests_per_second(),
                    sample.cpu_us_per_request()
                );
                results.samples.push(sample);
            }
        }
        results.load_averages.push(load_average());
    }
    std::thread::sleep(SETTLE);
    for (idle, after) in results.idle.iter_mut().zip(read_idle(world)?) {
        idle.after_load = Some(after.fresh);
    }
    Ok(results)
}

fn measure(world: &World, args: &Args, subject: &Subject, connections: u32, round: u32) -> Result<Sample, Flaw> {
    let load = |time, halfway: &mut dyn FnMut()| world.wrk.run(&subject.pod, &subject.url, connections, time, halfway);
    load(WARM_UP, &mut || {})?;
    let counted_before = settled(subject)?;
    let mut memory = Ok(Vec::new());
    let before = subject.cpu()?;
    let counted = load(args.time(), &mut || memory = subject.memory())?;
    let after = subject.cpu()?;
    let cpu = after
        .into_iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    went_through(subject, &counted_before, counted.requests, connections)?;
    Ok(Sample {
        kind: subject.kind,
        connections,
        round,
        counted,
        cpu,
        memory: memory?,
    })
}

/// The counts, once they stand still: what the warm-up left in flight belongs to the warm-up.
fn settled(subject: &Subject) -> Result<Vec<u64>, Flaw> {
    let mut last = subject.counted()?;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = subject.counted()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

/// Every answer that wrk counted must have passed every hop.
fn went_through(subject: &Subject, before: &[u64], requests: u64, connections: u32) -> Result<(), Flaw> {
    let after = settled(subject)?;
    for ((hop, after), before) in subject.hops.iter().zip(after).zip(before) {
        let counted = after.saturating_sub(*before);
        if !plausible(requests, counted, connections) {
            let hop = format!("{} at {}", subject.kind.as_str(), hop.pod.name);
            return Err(Flaw::Bypassed { hop, requests, counted });
        }
    }
    Ok(())
}

/// A hop may have counted more than wrk: the request that each connection had in flight at the end, and, for HAProxy, the
/// connection that wrk makes before all others to see whether anyone listens.
fn plausible(requests: u64, counted: u64, connections: u32) -> bool {
    (requests..=requests + u64::from(connections) + 1).contains(&counted)
}

/// The first moment at which all can be read: a proxy that has ended would be a flaw.
fn read_idle(world: &World) -> Result<Vec<Idle>, Flaw> {
    world
        .subjects
        .iter()
        .map(|subject| {
            Ok(Idle {
                kind: subject.kind,
                fresh: subject.memory()?,
                after_load: None,
            })
        })
        .collect()
}

impl Sample {
    /// Of the whole pair; 0 for a direct run.
    pub(crate) fn cpu_us_per_request(&self) -> f64 {
        self.cpu_us_at_client() + self.cpu_us_at_server()
    }

    /// Of the client's proxy.
    pub(crate) fn cpu_us_at_client(&self) -> f64 {
        self.us_per_request(self.cpu.first())
    }

    /// Of the server's proxy.
    pub(crate) fn cpu_us_at_server(&self) -> f64 {
        self.us_per_request(self.cpu.get(1))
    }

    fn us_per_request(&self, cpu: Option<&Cpu>) -> f64 {
        cpu.map_or(0.0, |cpu| cpu.nanoseconds as f64 / 1e3 / self.counted.requests as f64)
    }

    /// Of the CPU time by the clock tick, what was spent in user mode.
    pub(crate) fn user_share(&self) -> f64 {
        let all = self.cpu.iter().copied().fold(Cpu::default(), Cpu::add);
        all.user as f64 / (all.user + all.system) as f64
    }

    /// As wrk saw them.
    pub(crate) fn requests_per_second(&self) -> f64 {
        self.counted.requests as f64 * 1e6 / self.counted.microseconds as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_may_count_what_was_in_flight_and_nothing_else() {
        assert!(plausible(1_000, 1_000, 16));
        assert!(plausible(1_000, 1_017, 16));
        assert!(!plausible(1_000, 1_018, 16));
        assert!(!plausible(1_000, 999, 16));
        assert!(!plausible(1_000, 0, 16));
    }

    #[test]
    fn figures_per_request_and_per_second_come_from_exact_counts() {
        let sample = Sample {
            kind: Kind::Haproxy,
            connections: 16,
            round: 0,
            counted: Counted {
                requests: 50_000,
                microseconds: 2_000_000,
                ..Counted::default()
            },
            cpu: [(900_000_000, 10), (600_000_000, 20)]
                .map(|(nanoseconds, user)| Cpu {
                    nanoseconds,
                    user,
                    system: 45,
                })
                .to_vec(),
            memory: Vec::new(),
        };
        assert!((sample.cpu_us_per_request() - 30.0).abs() < 1e-9);
        assert!((sample.cpu_us_at_client() - 18.0).abs() < 1e-9);
        assert!((sample.cpu_us_at_server() - 12.0).abs() < 1e-9);
        assert!((sample.user_share() - 0.25).abs() < 1e-9);
        assert!((sample.requests_per_second() - 25_000.0).abs() < 1e-9);
    }
}

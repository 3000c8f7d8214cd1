//! What a change of 10,000 rules does to requests: the same load, quiet and while the rules are replaced again and again.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Flaw;
use crate::args::{Args, Output};
use crate::scrape;
use crate::world::World;
use crate::wrk::Counted;

/// Rules in force while requests are decided.
const RULES: u32 = 10_000;
/// Of one policy.
const RULES_OF_EACH: u32 = 100;
/// Over which they are spread: control takes files of 1 MiB at most.
const FILES: u32 = 2;
/// Between two changes: control reads, proxies compile, and the old ones are freed.
const EVERY: Duration = Duration::from_secs(2);
/// No request may take this much longer than the quiet 99th percentile (microseconds).
const BEYOND: u64 = 5_000;
const WARM_UP: Duration = Duration::from_secs(1);

/// One round.
struct Round {
    quiet: Counted,
    swapped: Counted,
    swaps: u64,
}

/// Measures and prints; false if a request took too long.
pub(crate) fn run(world: &World, args: &Args) -> Result<bool, Flaw> {
    let Some((mesh, subject)) = world.postern() else {
        return Err(Flaw::Missing("the subject postern".to_owned()));
    };
    let connections = args.connections.first().copied().unwrap_or(16);
    let load = |time| world.wrk.run(&subject.pod, &subject.url, connections, time, || {});
    let write = |version| {
        for file in 0..FILES {
            mesh.write(&format!("rules-{file}.yaml"), &rules(version, file));
        }
    };
    write(0);
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        std::thread::sleep(EVERY);
        load(WARM_UP)?;
        let quiet = load(args.time())?;
        let before = generation(subject)?;
        let done = AtomicBool::new(false);
        let swapped = std::thread::scope(|scope| {
            scope.spawn(|| {
                for version in 1.. {
                    write(round * 1_000 + version);
                    std::thread::sleep(EVERY);
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let swapped = load(args.time());
            done.store(true, Ordering::Relaxed);
            swapped
        })?;
        let swaps = generation(subject)?.saturating_sub(before);
        if swaps == 0 {
            return Err(Flaw::Scrape(
                "no change of policy was in force during the load".to_owned(),
            ));
        }
        rounds.push(Round { quiet, swapped, swaps });
    }
    match args.output {
        Output::Text => print!("{}", text(&rounds, connections)),
        Output::Json => println!("{}", Value::Array(rounds.iter().map(json).collect())),
    }
    Ok(rounds.iter().all(|round| round.swapped.max <= round.quiet.p99 + BEYOND))
}

/// Of the server's proxy, which decides.
fn generation(subject: &crate::subject::Subject) -> Result<u64, Flaw> {
    let server = subject.hops.last().ok_or_else(|| Flaw::Scrape("no hop".to_owned()))?;
    scrape::value(&server.pod, &server.metrics, "postern_proxy_policy_generation")
}

/// Identity, path and method rules mixed; none is the load's own, whose policy stays.
fn rules(version: u32, file: u32) -> String {
    let mut yaml = String::new();
    let policies = RULES / RULES_OF_EACH / FILES;
    for policy in file * policies..(file + 1) * policies {
        let action = if policy % 10 == 0 { "DENY" } else { "ALLOW" };
        // Writing to a String does not fail.
        let _ = write!(
            yaml,
            "---\napiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p{policy}, namespace: bench}}\nspec:\n  action: {action}\n  rules:\n"
        );
        for rule in 0..RULES_OF_EACH {
            let of = policy * RULES_OF_EACH + rule;
            let _ = writeln!(
                yaml,
                "  - from: [{{source: {{principals: [cluster.local/ns/bench/sa/c{of}]}}}}]\n    \
                 to: [{{operation: {{methods: [GET], paths: [/api/{version}/{of}/*]}}}}]"
            );
        }
    }
    yaml
}

fn text(rounds: &[Round], connections: u32) -> String {
    let mut out = format!(
        "{RULES} rules replaced every {} s, {connections} connections\n{:>10}{:>10}{:>14}{:>14}{:>8}{:>12}{:>8}{:>14}\n",
        EVERY.as_secs(),
        "p99 us",
        "max us",
        "swapped p99",
        "swapped max",
        "swaps",
        "beyond us",
        "slow",
        "swapped slow"
    );
    for Round { quiet, swapped, swaps } in rounds {
        let _ = writeln!(
            out,
            "{:>10}{:>10}{:>14}{:>14}{swaps:>8}{:>12}{:>8}{:>14}",
            quiet.p99,
            quiet.max,
            swapped.p99,
            swapped.max,
            swapped.max.saturating_sub(quiet.p99),
            quiet.slower_than(quiet.p99 + BEYOND),
            swapped.slower_than(quiet.p99 + BEYOND)
        );
    }
    out
}

fn json(round: &Round) -> Value {
    let of = |counted: &Counted| json!({ "requests": counted.requests, "p50": counted.p50, "p99": counted.p99, "max": counted.max });
    json!({ "quiet": of(&round.quiet), "swapped": of(&round.swapped), "swaps": round.swaps })
}

//! The demo without a terminal: the same world for a while, every attack once, and a verdict.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use postern_api::control::v1 as wire;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::attack::{Arsenal, Attack, AttackError};
use super::canary::{self, Statuses};
use super::observe::{self, Pictures};
use super::verdict::{Facts, Verdict};
use super::world::{Plan, World, WorldError};
use super::{Output, error_chain, reasons};

/// Before the attacks, so that a viewer of the log sees ordinary traffic first.
const FIRST_ATTACK: Duration = Duration::from_secs(1);
/// How often processes are looked after.
const LOOK: Duration = Duration::from_millis(200);
/// Proxies report each second; control shows it at most half a second later.
const REPORTS: Duration = Duration::from_secs(4);

/// How to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) plan: Plan,
    pub(super) duration: Duration,
    pub(super) output: Output,
}

/// Runs it; the last line on standard output is the verdict.
pub(super) async fn run(run: Run, interrupted: watch::Receiver<bool>) -> ExitCode {
    let facts = match live(run, interrupted).await {
        Ok(facts) => facts,
        Err(error) => Facts {
            troubles: vec![error_chain(&error)],
            ..Facts::default()
        },
    };
    let verdict = Verdict::of(&facts);
    match run.output {
        Output::Text => println!("{verdict}"),
        Output::Json => {
            for why in &verdict.why {
                eprintln!("not ok: {why}");
            }
            println!(
                "{}",
                serde_json::to_string(&verdict).unwrap_or_else(|error| error.to_string())
            );
        }
    }
    if verdict.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn live(run: Run, mut interrupted: watch::Receiver<bool>) -> Result<Facts, WorldError> {
    let mut facts = Facts::default();
    let (progress, _) = watch::channel(Vec::new());
    say(&format!(
        "starting a mesh whose certificates live {}",
        humantime::format_duration(run.plan.life)
    ));
    let mut world = tokio::select! {
        world = World::start(run.plan, &progress) => world?,
        _ = interrupted.wait_for(|yes| *yes) => {
            facts.troubles.push("interrupted".to_owned());
            return Ok(facts);
        }
    };
    say("five services talk through their proxies");
    if run.plan.keep {
        say(&format!("kept: {}", world.directory().display()));
    }
    let pictures = observe::watch(world.view_socket());
    let end = Instant::now() + run.duration;
    tokio::select! {
        () = attack(&world, &mut facts, end) => {}
        _ = interrupted.wait_for(|yes| *yes) => {}
    }
    while Instant::now() < end && !*interrupted.borrow() {
        if let Err(error) = world.check() {
            facts.troubles.push(error_chain(&error));
            break;
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            _ = interrupted.wait_for(|yes| *yes) => {}
        }
    }
    if *interrupted.borrow() {
        facts.troubles.push("interrupted".to_owned());
    }
    collect(&world, pictures, &mut facts).await;
    Ok(facts)
}

/// One after the other, that of the expired certificate as soon as it is one.
async fn attack(world: &World, facts: &mut Facts, end: Instant) {
    sleep_until((Instant::now() + FIRST_ATTACK).min(end)).await;
    let mut arsenal = match Arsenal::gather(&world.authority).await {
        Ok(arsenal) => arsenal,
        Err(error) => {
            facts.troubles.push(error_chain(&error));
            return;
        }
    };
    match arsenal.prepare_allowed(world).await {
        Ok(probe) => facts.allowed_probe = Some(probe.send().await),
        Err(error) => facts.troubles.push(error_chain(&error)),
    }
    for attack in Attack::ALL {
        let mut prepared = arsenal.prepare(attack, world).await;
        if let Err(AttackError::NotExpiredYet(left)) = &prepared {
            sleep(*left).await;
            prepared = arsenal.prepare(attack, world).await;
        }
        match prepared {
            Ok(probes) => {
                let attempts = futures_util::future::join_all(probes.into_iter().map(super::attack::Probe::send)).await;
                for attempt in &attempts {
                    say(&format!("{}: {}: {}", attack.title(), attempt.what, attempt.heard));
                }
                facts.attacks.insert(attack, attempts);
            }
            Err(error) => facts
                .troubles
                .push(format!("{}: {}", attack.name(), error_chain(&error))),
        }
    }
}

/// What everybody counted. The services are asked first; the proxies' reports of the same requests follow.
async fn collect(world: &World, mut pictures: Pictures, facts: &mut Facts) {
    match canary::ask(&world.status_sockets()).await {
        Ok(statuses) => facts.statuses = statuses,
        Err(error) => facts.troubles.push(error_chain(&error)),
    }
    let complete =
        pictures.wait_for(|picture| picture.as_ref().is_some_and(|picture| covers(picture, &facts.statuses)));
    // If it never is, the numbers will say by how much.
    let _ = timeout(REPORTS, complete).await;
    let last: Option<Arc<wire::Picture>> = pictures.borrow().clone();
    if let Some(picture) = last {
        for event in picture.events.iter().filter(|event| event.level != "info") {
            say(&format!("{}: {}", event.level, event.text));
        }
        for workload in facts.statuses.keys() {
            facts
                .under_mutual_tls
                .insert(workload, observe::under_mutual_tls(&picture, workload));
        }
        let renewals = observe::renewals(&picture);
        facts.renewals = renewals.map(|(workload, count)| (workload.to_owned(), count)).collect();
    } else {
        facts.troubles.push("control showed nothing".to_owned());
    }
    match reasons::count(world).await {
        Ok(reasons) => facts.denied_by_reason = reasons,
        Err(error) => facts.troubles.push(format!("cannot count the denials: {error}")),
    }
}

/// Have the proxies reported all that these services had counted?
fn covers(picture: &wire::Picture, statuses: &Statuses) -> bool {
    statuses.iter().all(|(workload, status)| {
        let reached = &status.reached;
        let named = reached.by_caller.iter().filter(|(caller, _)| !caller.is_empty());
        let counted = named.map(|(_, count)| count).sum::<u64>().max(reached.sessions);
        observe::under_mutual_tls(picture, workload) >= counted
    })
}

/// Progress is for people: it goes where the verdict does not.
fn say(what: &str) {
    let mark = if std::io::stderr().is_terminal() { "· " } else { "" };
    eprintln!("{mark}{what}");
}

//! From what was counted to one verdict. Pure: everything comes in as numbers.

use std::collections::BTreeMap;
use std::fmt;

use postern_shop::load::Calls;
use serde::Serialize;

use super::attack::{Attack, Attempt};
use super::canary::{self, Statuses};
use super::reasons::Reasons;

/// The kind of call that is measured against [`DIRECT`].
const MEASURED: &str = "web>cart";
/// Calls past the mesh, for comparison; they are no requests of the mesh.
const DIRECT: &str = "direct";
/// Every kind of call that the services make through the mesh.
const KINDS: [&str; 9] = [
    "cart>payments",
    "mallory>cart",
    "mallory>ledger",
    "mallory>payments",
    "payments>ledger",
    "web>cart",
    "web>cart admin",
    "web>payments",
    "web>payments stream",
];

/// What was counted, and by whom.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// By the services.
    pub(super) statuses: Statuses,
    /// By the proxies of those that serve: what they let in under mutual TLS.
    pub(super) under_mutual_tls: BTreeMap<&'static str, u64>,
    /// By the proxies.
    pub(super) renewals: BTreeMap<String, u64>,
    /// By the proxies.
    pub(super) denied_by_reason: Reasons,
    /// What was tried; an attack that could not be tried is missing.
    pub(super) attacks: BTreeMap<Attack, Vec<Attempt>>,
    /// The same probe by somebody who may.
    pub(super) allowed_probe: Option<Attempt>,
    /// What went wrong with the world itself.
    pub(super) troubles: Vec<String>,
}

/// What became of the services' calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Requests {
    allowed: u64,
    denied: u64,
    failed: u64,
}

/// Microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Latency {
    p50: u32,
    p99: u32,
    direct_p50: u32,
    direct_p99: u32,
}

/// What became of an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Fate {
    /// No attempt reached the service.
    #[serde(rename = "refused")]
    Refused,
    /// The service has seen a nonce.
    #[serde(rename = "PASSED")]
    Passed,
}

/// The result; its JSON is the last line of a headless run.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) ok: bool,
    requests: Requests,
    denied_by_reason: Reasons,
    mutual_tls_percent: f64,
    renewals: u64,
    attacks: BTreeMap<&'static str, Fate>,
    latency_us: Latency,
    /// Why it is not ok; empty if it is.
    pub(super) why: Vec<String>,
}

impl Verdict {
    /// Judges.
    pub(super) fn of(facts: &Facts) -> Self {
        let mut why = facts.troubles.clone();
        let calls = calls(&facts.statuses);
        let requests = judge_calls(&calls, &mut why);
        let attacks = judge_attacks(facts, &mut why);
        let mutual_tls_percent = mutual_tls_percent(facts);
        if mutual_tls_percent < 100.0 {
            why.push(format!(
                "of the requests that reached a service only {mutual_tls_percent} % came by mutual TLS"
            ));
        }
        for workload in super::documents::WORKLOADS {
            if facts.renewals.get(workload).copied().unwrap_or_default() == 0 {
                why.push(format!("{workload}'s certificate was not renewed"));
            }
        }
        let of = |kind: &str, q| calls.get(kind).map_or(0, |calls| quantile(&calls.latencies_us, q));
        Self {
            ok: why.is_empty(),
            requests,
            denied_by_reason: facts.denied_by_reason.clone(),
            mutual_tls_percent,
            renewals: facts.renewals.values().sum(),
            attacks,
            latency_us: Latency {
                p50: of(MEASURED, 0.5),
                p99: of(MEASURED, 0.99),
                direct_p50: of(DIRECT, 0.5),
                direct_p99: of(DIRECT, 0.99),
            },
            why,
        }
    }
}

fn calls(statuses: &Statuses) -> BTreeMap<&str, &Calls> {
    let all = statuses.values().flat_map(|status| &status.calls);
    all.map(|(kind, calls)| (kind.as_str(), calls)).collect()
}

fn judge_calls(calls: &BTreeMap<&str, &Calls>, why: &mut Vec<String>) -> Requests {
    let mut sum = Requests::default();
    for kind in KINDS {
        let Some(calls) = calls.get(kind) else {
            why.push(format!("{kind}: not one call was made"));
            continue;
        };
        sum.allowed += calls.allowed;
        sum.denied += calls.denied;
        sum.failed += calls.failed;
        let all = calls.allowed + calls.denied + calls.failed;
        if calls.failed > 0 {
            let last = &calls.last_failure;
            why.push(format!(
                "{kind}: {} of {all} calls failed, the last: {last}",
                calls.failed
            ));
        }
        if calls.expect_denied && calls.allowed > 0 {
            why.push(format!(
                "{kind}: {} of {all} calls were answered that nobody allows",
                calls.allowed
            ));
        }
        if !calls.expect_denied && calls.denied > 0 {
            why.push(format!(
                "{kind}: {} of {all} calls were denied that are allowed",
                calls.denied
            ));
        }
    }
    sum
}

/// What became of one attack, by the services' own notes.
pub(super) fn fate(attempts: &[Attempt], statuses: &Statuses) -> Fate {
    if attempts.iter().any(|attempt| attempt.passed(canary::reached(statuses))) {
        Fate::Passed
    } else {
        Fate::Refused
    }
}

fn judge_attacks(facts: &Facts, why: &mut Vec<String>) -> BTreeMap<&'static str, Fate> {
    let mut fates = BTreeMap::new();
    for attack in Attack::ALL {
        let name = attack.name();
        let Some(attempts) = facts.attacks.get(&attack) else {
            why.push(format!("the attack {name} was not tried"));
            continue;
        };
        fates.insert(name, fate(attempts, &facts.statuses));
        let passed = attempts
            .iter()
            .filter(|attempt| attempt.passed(canary::reached(&facts.statuses)));
        why.extend(passed.map(|attempt| format!("the attack {name} PASSED: {} {}", attempt.what, attempt.heard)));
    }
    match &facts.allowed_probe {
        Some(probe) if probe.passed(canary::reached(&facts.statuses)) => {}
        Some(probe) => why.push(format!(
            "the attacks' own probe, made by web, did not arrive ({}): their refusals prove nothing",
            probe.heard
        )),
        None => why.push("the attacks' own probe was not made by web: their refusals prove nothing".to_owned()),
    }
    fates
}

/// Of all requests that a service counted, those that it was told the caller of, and that its proxy let in under mutual
/// TLS as well; both must say so. A session of a protocol without identities has the proxy's word alone, but what comes
/// past the proxy is counted by the service and by no proxy.
fn mutual_tls_percent(facts: &Facts) -> f64 {
    let (mut all, mut mutual) = (0_u64, 0_u64);
    for (workload, status) in &facts.statuses {
        let reached = &status.reached;
        let requests: u64 = reached.by_caller.values().sum();
        let anonymous = reached.by_caller.get("").copied().unwrap_or_default();
        // A session's entries are no requests of their own: they are counted only under "" and only by ledger.
        let (here, named) = if reached.sessions > 0 {
            (reached.sessions, reached.sessions)
        } else {
            (requests, requests - anonymous)
        };
        let by_proxy = facts.under_mutual_tls.get(workload).copied().unwrap_or_default();
        all += here;
        mutual += named.min(by_proxy);
    }
    // Rounded down: a single request in the clear must not round up to 100.
    (mutual * 10_000).checked_div(all).unwrap_or_default() as f64 / 100.0
}

fn quantile(samples: &[u32], q: f64) -> u32 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = ((sorted.len() as f64 * q).ceil() as usize).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Requests {
            allowed,
            denied,
            failed,
        } = self.requests;
        writeln!(f, "requests    {allowed} allowed, {denied} denied, {failed} failed")?;
        writeln!(f, "mutual TLS  {} % of what reached a service", self.mutual_tls_percent)?;
        writeln!(f, "renewals    {}", self.renewals)?;
        for (reason, count) in &self.denied_by_reason {
            writeln!(f, "denied      {count:6}  {reason}")?;
        }
        for (attack, fate) in &self.attacks {
            let fate = match fate {
                Fate::Refused => "refused",
                Fate::Passed => "PASSED",
            };
            writeln!(f, "attack      {fate}  {attack}")?;
        }
        let Latency {
            p50,
            p99,
            direct_p50,
            direct_p99,
        } = self.latency_us;
        writeln!(f, "latency     p50 {p50} us, p99 {p99} us through both proxies")?;
        writeln!(f, "            p50 {direct_p50} us, p99 {direct_p99} us without")?;
        for why in &self.why {
            writeln!(f, "NOT OK      {why}")?;
        }
        f.write_str(if self.ok { "ok" } else { "not ok" })
    }
}

#[cfg(test)]
mod tests;

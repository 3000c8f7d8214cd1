//! The mesh's own components.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;

use super::catalog::{Finding, Verdict, finding};
use super::facts::{self, COMPONENTS, Facts, INJECT, SYSTEM, known, label, name, tag};

/// The command that puts right what Helm made.
pub(super) const INSTALL: &str = "helm upgrade --install postern charts/postern -n postern-system --create-namespace";
/// A holder renews several times within its lease's duration; this many durations late, it is gone.
const LEASE_LATE: i64 = 3;

pub(super) fn namespace(facts: &Facts) -> Verdict {
    let namespaces = known(&facts.namespaces)?;
    let Some(system) = namespaces.iter().find(|namespace| name(&namespace.metadata) == SYSTEM) else {
        return Ok(vec![finding(
            format!("Namespace {SYSTEM}"),
            "it is not there: the mesh is not installed",
            INSTALL,
        )]);
    };
    let mut found = Vec::new();
    if label(&system.metadata, INJECT) == Some("enabled") {
        found.push(finding(
            format!("Namespace {SYSTEM}"),
            format!("it is labelled {INJECT}=enabled: the mesh's own components are never in the mesh"),
            format!("kubectl label namespace {SYSTEM} {INJECT}-"),
        ));
    }
    Ok(found)
}

pub(super) fn ca_ready(facts: &Facts) -> Verdict {
    ready(
        facts,
        "postern-ca",
        "no certificate is issued or renewed while none is ready",
    )
}

pub(super) fn control_ready(facts: &Facts) -> Verdict {
    ready(
        facts,
        "postern-control",
        "proxies keep what they have, and new ones do not start, while none is ready",
    )
}

pub(super) fn injector_ready(facts: &Facts) -> Verdict {
    ready(
        facts,
        "postern-injector",
        "no pod of a meshed namespace is created while none is ready",
    )
}

fn ready(facts: &Facts, component: &str, consequence: &str) -> Verdict {
    let subject = format!("Deployment {SYSTEM}/{component}");
    let Some(deployment) = facts.deployment(component)? else {
        return Ok(vec![finding(subject, "it is not there", INSTALL)]);
    };
    let wanted = replicas(deployment);
    let ready = deployment
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0);
    if ready >= wanted && wanted > 0 {
        return Ok(Vec::new());
    }
    let why = facts.pods.as_ref().ok().and_then(|pods| waiting(pods, component));
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    Ok(vec![finding(
        subject,
        format!("{ready} of {wanted} replicas are ready{why}; {consequence}"),
        format!(
            "kubectl -n {SYSTEM} describe pods -l app.kubernetes.io/name={component}; kubectl -n {SYSTEM} logs deployment/{component}"
        ),
    )])
}

/// Why a pod of the component waits.
fn waiting(pods: &[Pod], component: &str) -> Option<String> {
    let of_component = pods
        .iter()
        .filter(|pod| label(&pod.metadata, "app.kubernetes.io/name") == Some(component));
    of_component
        .filter_map(|pod| {
            let mut statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
            statuses.find_map(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone())
        })
        .next()
}

pub(super) fn one_version(facts: &Facts) -> Verdict {
    let mut versions = BTreeSet::new();
    for component in COMPONENTS {
        versions.extend(facts.deployment(component)?.and_then(version_of));
    }
    if versions.len() <= 1 {
        return Ok(Vec::new());
    }
    let versions: Vec<String> = versions.into_iter().collect();
    let cause = format!(
        "their images are of versions {}; a release upgrades them together",
        versions.join(", ")
    );
    Ok(vec![finding(
        "CA, control and injector",
        cause,
        format!("{INSTALL}; kubectl -n {SYSTEM} rollout status deployment"),
    )])
}

pub(super) fn own_version(facts: &Facts) -> Verdict {
    let Some(theirs) = facts.deployment("postern-control")?.and_then(version_of) else {
        return Ok(Vec::new());
    };
    let own = &facts.version;
    if theirs == *own {
        return Ok(Vec::new());
    }
    let cause = format!("it is {own} and the mesh is {theirs}: what it shows and checks may be another version's");
    Ok(vec![finding("postern", cause, format!("install postern {theirs}"))])
}

/// The tag of a component's image; `None` if it goes by digest alone.
pub(super) fn version_of(deployment: &Deployment) -> Option<String> {
    let image = image_of(deployment)?;
    let tag = tag(image);
    (!tag.is_empty()).then(|| tag.to_owned())
}

pub(super) fn image_of(deployment: &Deployment) -> Option<&str> {
    let spec = deployment.spec.as_ref()?.template.spec.as_ref()?;
    spec.containers.first()?.image.as_deref()
}

/// Over a Secret the ledger's records are lines on standard output, which a node drops sooner or later.
pub(super) fn ledger(facts: &Facts) -> Verdict {
    let Some(deployment) = facts.deployment("postern-ca")? else {
        // PC-020 and on say so.
        return Ok(Vec::new());
    };
    let spec = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let args = spec
        .and_then(|spec| spec.containers.first()?.args.as_deref())
        .unwrap_or_default();
    let has = |flag: &str| args.iter().any(|arg| arg.split('=').next() == Some(flag));
    if !has("--state-secret") || has("--ledger-collected") {
        return Ok(Vec::new());
    }
    Ok(vec![finding(
        format!("Deployment {SYSTEM}/postern-ca"),
        "its ledger goes to standard output: what was issued and refused is lost with the nodes' logs, unless somebody collects them",
        "collect the standard output of its pods (docs/ledger.md), then say so: `helm upgrade ... --set ca.ledgerCollected=true`",
    )])
}

pub(super) fn leases(facts: &Facts) -> Verdict {
    let leases = known(&facts.leases)?;
    let pods = known(&facts.pods)?;
    let alive = |holder: &str| {
        let mut here = pods.iter().filter(|pod| facts::namespace(&pod.metadata) == SYSTEM);
        here.any(|pod| holder.starts_with(name(&pod.metadata)))
    };
    let mut found = Vec::new();
    // The injector's replicas keep their certificate together, by the version of its Secret: none must lead.
    for component in ["postern-ca", "postern-control"] {
        let Some(lease) = leases.iter().find(|lease| name(&lease.metadata) == component) else {
            found.push(lease_finding(component, "it is not there: no replica leads", INSTALL));
            continue;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let renewed = spec.renew_time.map_or(0, |time| time.0.as_second());
        let duration = i64::from(spec.lease_duration_seconds.unwrap_or(15));
        let logs = format!("kubectl -n {SYSTEM} logs deployment/{component}");
        if holder.is_empty() {
            found.push(lease_finding(
                component,
                "nobody holds it: what only a leader does is not done",
                &logs,
            ));
        } else if !alive(&holder) {
            let cause = format!("`{holder}` holds it, and there is no such pod: another takes it when it has run out");
            found.push(lease_finding(component, &cause, &logs));
        } else if facts.now - renewed > LEASE_LATE * duration {
            let cause = format!("`{holder}` has not renewed it for {} s", facts.now - renewed);
            found.push(lease_finding(component, &cause, &logs));
        }
    }
    Ok(found)
}

fn lease_finding(component: &str, cause: &str, fix: &str) -> Finding {
    finding(format!("Lease {SYSTEM}/{component}"), cause, fix)
}

pub(super) fn disruption(facts: &Facts) -> Verdict {
    let budgets: Vec<&str> = known(&facts.budgets)?
        .iter()
        .map(|budget| name(&budget.metadata))
        .collect();
    let mut found = Vec::new();
    for component in COMPONENTS {
        let Some(deployment) = facts.deployment(component)? else {
            continue;
        };
        let value = component.trim_start_matches("postern-");
        let cause = if replicas(deployment) < 2 {
            "there is one replica: it is away while its node is drained"
        } else if !budgets.contains(&component) {
            "no PodDisruptionBudget keeps a drain from taking all replicas at once"
        } else {
            continue;
        };
        found.push(finding(
            format!("Deployment {SYSTEM}/{component}"),
            cause,
            format!("{INSTALL} --reuse-values --set {value}.replicas=2,podDisruptionBudgets.enabled=true"),
        ));
    }
    Ok(found)
}

fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn ca_connected(facts: &Facts) -> Verdict {
    let replicas = known(&facts.replicas)?
        .iter()
        .filter(|replica| !replica.body.ca_connected);
    let found = replicas.map(|replica| {
        finding(
            format!("control's replica {}", name(&replica.metadata)),
            "its stream from the CA is not open: a new issuer or root would not reach its proxies",
            format!("kubectl -n {SYSTEM} logs deployment/postern-control | grep ca_stream; kubectl -n {SYSTEM} get endpoints postern-ca"),
        )
    });
    Ok(found.collect())
}

/// Versions count for themselves in each replica; the bundle's sequence is the CA's.
pub(super) fn replicas_agree(facts: &Facts) -> Verdict {
    let seen = known(&facts.replicas)?;
    let deployment = facts.deployment("postern-control")?;
    let ready = deployment
        .and_then(|deployment| deployment.status.as_ref()?.ready_replicas)
        .unwrap_or(0);
    let logs = format!("kubectl -n {SYSTEM} logs deployment/postern-control | grep replica");
    let mut found = Vec::new();
    if seen.len() < usize::try_from(ready).unwrap_or(0) {
        found.push(finding(
            "control's replicas",
            format!(
                "{} of {ready} show what they know: edges, identities and proxies are seen in part",
                seen.len()
            ),
            logs.clone(),
        ));
    }
    let sequences: BTreeSet<u64> = seen.iter().map(|replica| replica.body.bundle_sequence).collect();
    if sequences.len() > 1 {
        let sequences: Vec<String> = sequences.iter().map(u64::to_string).collect();
        let cause = format!(
            "they hold the trust bundles {}; one lags behind the CA",
            sequences.join(" and ")
        );
        found.push(finding("control's replicas", cause, logs));
    }
    Ok(found)
}

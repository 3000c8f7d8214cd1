//! Proxies as they run: what they say to control, and what became of them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use postern_control::api::objects::{Direction, Identity, Proxy};

use super::catalog::{Verdict, finding};
use super::certificates::{self, seconds, span};
use super::components::version_of;
use super::facts::{Facts, SYSTEM, annotation, known, name, namespace, sidecar};
use super::platform::major_minor;
use super::workloads::{renew, subject};

/// A pod younger than this may still be on its way.
const YOUNG: i64 = 60;
/// Minor versions apart that still understand each other.
const MAX_SKEW: u32 = 2;
/// Renewal is due at half of life and tried again for the other half: with less left than this part, it has failed for long.
const QUARTER: i64 = 4;
/// Restarts of a proxy that are no accident.
const RESTARTS: i32 = 5;

type Key = (String, String);

fn views(facts: &Facts) -> Result<BTreeMap<Key, &Proxy>, super::facts::Unknown> {
    let proxies = known(&facts.proxies)?.iter();
    Ok(proxies
        .map(|proxy| {
            (
                (namespace(&proxy.metadata).to_owned(), name(&proxy.metadata).to_owned()),
                &proxy.body,
            )
        })
        .collect())
}

fn key(pod: &Pod) -> Key {
    (namespace(&pod.metadata).to_owned(), name(&pod.metadata).to_owned())
}

pub(super) fn connected(facts: &Facts) -> Verdict {
    let views = views(facts)?;
    let mut found = Vec::new();
    for pod in facts.meshed_pods()? {
        let created = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second());
        let cause = match views.get(&key(pod)) {
            Some(view) if view.connected => continue,
            _ if facts.now - created < YOUNG => continue,
            Some(_) => "its proxy is not connected to control: it goes on with what it has, and hears of no change",
            None => "control does not know it: its proxy is served nothing",
        };
        let (space, name) = key(pod);
        let fix = format!(
            "kubectl -n {space} logs {name} -c postern-proxy --tail=20; kubectl -n {SYSTEM} logs deployment/postern-control --tail=20"
        );
        found.push(finding(subject(pod), cause, fix));
    }
    Ok(found)
}

pub(super) fn refusing(facts: &Facts) -> Verdict {
    of_views(facts, |space, name, proxy| {
        (!proxy.refused.is_empty()).then(|| {
            let cause = format!(
                "its proxy refused what control sent, and keeps the last good: {}",
                proxy.refused
            );
            (
                cause,
                format!("kubectl -n {space} logs {name} -c postern-proxy | grep refused"),
            )
        })
    })
}

pub(super) fn skew(facts: &Facts) -> Verdict {
    let replicas = known(&facts.replicas)?;
    let control: Vec<(u32, u32)> = replicas
        .iter()
        .filter_map(|replica| major_minor(&replica.body.version))
        .collect();
    of_views(facts, |space, name, proxy| {
        let own = major_minor(&proxy.version)?;
        let apart = control
            .iter()
            .find(|control| control.0 != own.0 || control.1.abs_diff(own.1) > MAX_SKEW)?;
        let cause = format!(
            "its proxy is {} and control is {}.{}: more than {MAX_SKEW} minor versions apart, it is not served",
            proxy.version, apart.0, apart.1
        );
        Some((
            cause,
            format!("kubectl -n {space} delete pod {name}  (its owner makes it anew, with a new proxy)"),
        ))
    })
}

pub(super) fn outdated(facts: &Facts) -> Verdict {
    let Some(current) = facts.deployment("postern-injector")?.and_then(version_of) else {
        return Ok(Vec::new());
    };
    let outdated = facts.meshed_pods()?.into_iter().filter_map(|pod| {
        let injected = annotation(&pod.metadata, "postern.dev/injected")?;
        (injected != current).then(|| {
            let cause = format!("its proxy is from version {injected}; pods made now get {current}");
            finding(subject(pod), cause, renew(pod))
        })
    });
    Ok(outdated.collect())
}

pub(super) fn expiry(facts: &Facts) -> Verdict {
    of_identities(facts, |space, name, identity| {
        let not_after = seconds(identity.not_after.as_deref()?)?;
        let issued = seconds(identity.issued.as_deref()?)?;
        let left = not_after - facts.now;
        // Who is not there does not renew.
        if !identity.connected || left * QUARTER > not_after - issued {
            return None;
        }
        let when = if left > 0 {
            format!("expires in {}", span(left))
        } else {
            format!("expired {} ago", span(-left))
        };
        let cause =
            format!("its certificate {when} and was not renewed: then nobody lets it in, and it lets nobody in");
        Some((
            cause,
            format!("kubectl -n {space} logs {name} -c postern-proxy | grep renew; kubectl postern check"),
        ))
    })
}

pub(super) fn renewal(facts: &Facts) -> Verdict {
    of_identities(facts, |space, name, identity| {
        (!identity.last_renewal_error.is_empty()).then(|| {
            let cause = format!(
                "its last renewal failed ({} failures since it started): {}",
                identity.renewal_failures, identity.last_renewal_error
            );
            (
                cause,
                format!("kubectl -n {space} logs {name} -c postern-proxy | grep renew; kubectl -n {SYSTEM} get pods"),
            )
        })
    })
}

pub(super) fn pinned(facts: &Facts) -> Verdict {
    let given = certificates::pinned(facts)?;
    let mut found = Vec::new();
    for pod in facts.meshed_pods()? {
        let args = sidecar(pod).and_then(|proxy| proxy.args.as_deref()).unwrap_or_default();
        let flag = args.iter().position(|arg| arg == "--roots-sha256");
        let Some(hashes) = flag.and_then(|at| args.get(at + 1)) else {
            continue;
        };
        if !hashes.split(',').any(|hash| given.contains(hash)) {
            found.push(finding(
                subject(pod),
                "it pins roots that the CA no longer has: when its proxy restarts, it believes no CA and gets no certificate",
                renew(pod),
            ));
        }
    }
    Ok(found)
}

pub(super) fn restarting(facts: &Facts) -> Verdict {
    let restarting = facts.meshed_pods()?.into_iter().filter_map(|pod| {
        let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
        let status = statuses.iter().find(|status| status.name == "postern-proxy")?;
        let looping = status
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref()?.reason.as_deref())
            == Some("CrashLoopBackOff");
        if status.restart_count < RESTARTS && !looping {
            return None;
        }
        let (space, name) = key(pod);
        let cause = format!(
            "its proxy has restarted {} times; all of its connections end with each",
            status.restart_count
        );
        let fix = format!(
            "kubectl -n {space} logs {name} -c postern-proxy --previous; kubectl -n {space} describe pod {name}"
        );
        Some(finding(subject(pod), cause, fix))
    });
    Ok(restarting.collect())
}

pub(super) fn plaintext(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for edge in known(&facts.edges)? {
        let space = namespace(&edge.metadata);
        let edge = &edge.body;
        let admitted = edge.direction == Direction::Inbound && !edge.secured && edge.allowed > 0;
        if !admitted || !facts.concerns(space) {
            continue;
        }
        let account = edge.destination.service_account.as_deref().unwrap_or_default();
        found.push(finding(
            format!("Workload {space}/{account}, port {}", edge.port),
            format!("{} requests came in without TLS and without an identity", edge.allowed),
            format!("kubectl get edges -n {space} -l view.postern.dev/secured=false -o wide; then mode protect"),
        ));
    }
    Ok(found)
}

fn of_views(facts: &Facts, check: impl Fn(&str, &str, &Proxy) -> Option<(String, String)>) -> Verdict {
    let views = views(facts)?
        .into_iter()
        .filter(|((space, _), _)| facts.concerns(space));
    let found = views.filter_map(|((space, name), proxy)| {
        let (cause, fix) = check(&space, &name, proxy)?;
        Some(finding(format!("Pod {space}/{name}"), cause, fix))
    });
    Ok(found.collect())
}

fn of_identities(facts: &Facts, check: impl Fn(&str, &str, &Identity) -> Option<(String, String)>) -> Verdict {
    let identities = known(&facts.identities)?
        .iter()
        .filter(|identity| facts.concerns(namespace(&identity.metadata)));
    let found = identities.filter_map(|identity| {
        let (space, name) = (namespace(&identity.metadata), name(&identity.metadata));
        let (cause, fix) = check(space, name, &identity.body)?;
        Some(finding(format!("Pod {space}/{name}"), cause, fix))
    });
    Ok(found.collect())
}

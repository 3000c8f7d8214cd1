//! The cluster itself.

use k8s_openapi::api::core::v1::Node;

use super::catalog::{Finding, Verdict, finding};
use super::facts::{Facts, INJECT, known, label, name};

/// Native sidecars are there since this minor version of Kubernetes 1.
pub(super) const NATIVE_SIDECARS: u32 = 29;
/// NAT in the `inet` family of nftables, by which both IP versions are redirected at once.
const KERNEL: (u32, u32) = (5, 2);
/// A certificate is valid from a minute before it was made; past half of that a clock that runs on will soon fail.
const CLOCK_AHEAD: i64 = 30;
/// A kubelet renews its lease each 10 s, and is taken for dead after 40 s.
const LEASE_OLD: i64 = 60;
/// Labels by which other meshes are told to inject.
const OTHERS: [(&str, &str); 4] = [
    ("istio-injection", "Istio"),
    ("istio.io/rev", "Istio"),
    ("linkerd.io/inject", "Linkerd"),
    ("kuma.io/sidecar-injection", "Kuma"),
];

pub(super) fn server_version(facts: &Facts) -> Verdict {
    let server = known(&facts.server)?;
    if (server.major, server.minor) >= (1, NATIVE_SIDECARS) {
        return Ok(Vec::new());
    }
    Ok(vec![finding(
        "API server",
        format!(
            "it is of version {}.{}; sidecars that start before and end after an app need 1.{NATIVE_SIDECARS}",
            server.major, server.minor
        ),
        format!("upgrade the control plane to Kubernetes 1.{NATIVE_SIDECARS} or later"),
    )])
}

pub(super) fn kubelet_version(facts: &Facts) -> Verdict {
    of_nodes(facts, |node| {
        let version = &node.status.as_ref()?.node_info.as_ref()?.kubelet_version;
        let known = major_minor(version.trim_start_matches('v'));
        (known < Some((1, NATIVE_SIDECARS))).then(|| {
            finding(
                subject(node),
                format!("its kubelet is {version}; it would wait for the sidecar to end before it starts the app"),
                format!(
                    "kubectl drain {} --ignore-daemonsets, then upgrade its kubelet",
                    name(&node.metadata)
                ),
            )
        })
    })
}

pub(super) fn kernel(facts: &Facts) -> Verdict {
    of_nodes(facts, |node| {
        let info = node.status.as_ref()?.node_info.as_ref()?;
        let subject = subject(node);
        let away = format!("kubectl cordon {}", name(&node.metadata));
        if info.operating_system != "linux" {
            let cause = format!(
                "it runs {}; the proxy redirects traffic on Linux alone",
                info.operating_system
            );
            return Some(finding(subject, cause, away));
        }
        (major_minor(&info.kernel_version) < Some(KERNEL)).then(|| {
            let (major, minor) = KERNEL;
            finding(
                subject,
                format!(
                    "its kernel is {}; nftables redirects both IP versions since {major}.{minor}",
                    info.kernel_version
                ),
                format!("{away}, then upgrade its kernel"),
            )
        })
    })
}

pub(super) fn front_proxy(facts: &Facts) -> Verdict {
    let map = known(&facts.front_proxy)?;
    let data = map.as_ref().and_then(|map| map.data.as_ref());
    if data.is_some_and(|data| {
        data.get("requestheader-client-ca-file")
            .is_some_and(|pem| pem.contains("BEGIN"))
    }) {
        return Ok(Vec::new());
    }
    Ok(vec![finding(
        "ConfigMap kube-system/extension-apiserver-authentication",
        "it names no CA of the front proxy: `postern edges` and `kubectl get edges` would not work",
        "start the API server with --requestheader-client-ca-file, --requestheader-allowed-names, \
         --proxy-client-cert-file and --proxy-client-key-file",
    )])
}

pub(super) fn clocks(facts: &Facts) -> Verdict {
    let ready: Vec<&str> = known(&facts.nodes)?
        .iter()
        .filter(|node| is_ready(node))
        .map(|n| name(&n.metadata))
        .collect();
    let leases = known(&facts.node_leases)?.iter();
    let skewed = leases.filter_map(|lease| {
        let node = name(&lease.metadata);
        let renewed = lease.spec.as_ref()?.renew_time.as_ref()?.0.as_second();
        let ahead = renewed - facts.now;
        let cause = if ahead > CLOCK_AHEAD {
            format!("its clock is {ahead} s ahead of this machine's")
        } else if -ahead > LEASE_OLD && ready.contains(&node) {
            format!(
                "its clock is {} s behind this machine's, or its kubelet no longer reports",
                -ahead
            )
        } else {
            return None;
        };
        let cause = format!("{cause}; certificates are valid from one minute before they are made");
        Some(finding(
            format!("Node {node}"),
            cause,
            "on the node: timedatectl set-ntp true; timedatectl timesync-status",
        ))
    });
    Ok(skewed.collect())
}

pub(super) fn other_meshes(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for namespace in facts.meshed_namespaces()? {
        let name = name(&namespace.metadata);
        for (key, mesh) in OTHERS {
            let Some(value) = label(&namespace.metadata, key) else {
                continue;
            };
            if value != "disabled" {
                found.push(finding(
                    format!("Namespace {name}"),
                    format!("{mesh} injects there too ({key}={value}): two proxies would redirect to each other"),
                    format!("kubectl label namespace {name} {key}-  (or {INJECT}-)"),
                ));
            }
        }
    }
    Ok(found)
}

fn of_nodes(facts: &Facts, check: impl Fn(&Node) -> Option<Finding>) -> Verdict {
    Ok(known(&facts.nodes)?.iter().filter_map(check).collect())
}

fn subject(node: &Node) -> String {
    format!("Node {}", name(&node.metadata))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The two first numbers of a version such as `5.10.0-28-amd64`.
pub(super) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

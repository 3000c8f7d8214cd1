//! Who reaches meshed pods, and whom they reach: ports past the proxy, NetworkPolicies, Services open to outsiders.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::catalog::{Verdict, finding};
use super::facts::{ALLOW_LOOSENING, Facts, SYSTEM, annotation, known, label, name, namespace};
use super::workloads::{apps, subject};

/// What proxies call: control and the CA.
const CALLED: [i32; 2] = [15010, 15012];
/// The pod annotation that opens ports past the proxy.
const SKIP_INBOUND: &str = "postern.dev/skip-inbound-ports";

pub(super) fn skipped_ports(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for pod in facts.meshed_pods()? {
        let Some(ports) = annotation(&pod.metadata, SKIP_INBOUND) else {
            continue;
        };
        let space = namespace(&pod.metadata);
        let spaces = known(&facts.namespaces)?;
        let loosening = spaces.iter().find(|candidate| name(&candidate.metadata) == space);
        let says = |space: &Namespace| {
            let by_label = label(&space.metadata, ALLOW_LOOSENING);
            by_label.or_else(|| annotation(&space.metadata, ALLOW_LOOSENING)) == Some("true")
        };
        if loosening.is_some_and(says) {
            continue;
        }
        found.push(finding(
            subject(pod),
            format!(
                "ports {ports} are reached past its proxy by anybody, and its namespace does not carry \
                 {ALLOW_LOOSENING}=true (any more): it cannot be created again"
            ),
            format!(
                "take {SKIP_INBOUND} from its template; or: kubectl label namespace {space} {ALLOW_LOOSENING}=true"
            ),
        ));
    }
    Ok(found)
}

pub(super) fn network_policies(facts: &Facts) -> Verdict {
    let pods = facts.meshed_pods()?;
    let system = known(&facts.namespaces)?
        .iter()
        .find(|space| name(&space.metadata) == SYSTEM);
    let mut blocked: BTreeSet<(String, String)> = BTreeSet::new();
    for pod in pods {
        let selecting: Vec<&NetworkPolicy> = known(&facts.network_policies)?
            .iter()
            .filter(|policy| restricts_egress_of(policy, pod))
            .collect();
        let Some(first) = selecting.first() else { continue };
        let mut rules = selecting
            .iter()
            .flat_map(|policy| policy.spec.iter().flat_map(|spec| spec.egress.iter().flatten()));
        let reaches =
            |port: i32, rule: &NetworkPolicyEgressRule| lets_out(rule, port, system.map(|system| &system.metadata));
        let all: Vec<&NetworkPolicyEgressRule> = rules.by_ref().collect();
        if CALLED.iter().any(|port| !all.iter().any(|rule| reaches(*port, rule))) {
            blocked.insert((namespace(&pod.metadata).to_owned(), name(&first.metadata).to_owned()));
        }
    }
    let found = blocked.into_iter().map(|(space, policy)| {
        finding(
            format!("NetworkPolicy {space}/{policy}"),
            "where NetworkPolicies are enforced, it keeps proxies from the CA (15012) and from control (15010): they get no \
             certificate and no policy",
            format!(
                "kubectl -n {space} edit networkpolicy {policy}: add to egress a rule to namespace {SYSTEM}, ports 15010 and 15012"
            ),
        )
    });
    Ok(found.collect())
}

fn restricts_egress_of(policy: &NetworkPolicy, pod: &Pod) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let egress = match &spec.policy_types {
        Some(types) => types.iter().any(|kind| kind == "Egress"),
        None => spec.egress.is_some(),
    };
    let everything = LabelSelector::default();
    egress
        && namespace(&policy.metadata) == namespace(&pod.metadata)
        && selects(spec.pod_selector.as_ref().unwrap_or(&everything), &pod.metadata)
}

/// To the mesh's own namespace. An address block may be its pods': given the benefit of the doubt.
fn lets_out(rule: &NetworkPolicyEgressRule, port: i32, system: Option<&ObjectMeta>) -> bool {
    let to_port = rule.ports.as_deref().unwrap_or_default();
    let port_fits = to_port.is_empty()
        || to_port.iter().any(|allowed| match (&allowed.port, allowed.end_port) {
            (None, _) | (Some(IntOrString::String(_)), _) => true,
            (Some(IntOrString::Int(from)), Some(to)) => (*from..=to).contains(&port),
            (Some(IntOrString::Int(only)), None) => *only == port,
        });
    let peer_fits = |peer: &NetworkPolicyPeer| {
        peer.ip_block.is_some()
            || peer
                .namespace_selector
                .as_ref()
                .is_some_and(|selector| system.is_some_and(|system| selects(selector, system)))
    };
    let peers = rule.to.as_deref().unwrap_or_default();
    port_fits && (peers.is_empty() || peers.iter().any(peer_fits))
}

/// Kubernetes' own meaning of a label selector; an operator that it does not know selects nothing.
fn selects(selector: &LabelSelector, metadata: &ObjectMeta) -> bool {
    let by_label = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| label(metadata, key) == Some(value));
    by_label
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = label(metadata, &expression.key);
            let among = || {
                expression
                    .values
                    .iter()
                    .flatten()
                    .any(|wanted| Some(&**wanted) == value)
            };
            match &*expression.operator {
                "In" => among(),
                "NotIn" => !among(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

pub(super) fn exposed(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    let pods = facts.meshed_pods()?;
    for service in known(&facts.services)? {
        let spec = service.spec.as_ref();
        let kind = spec.and_then(|spec| spec.type_.as_deref()).unwrap_or_default();
        if !matches!(kind, "NodePort" | "LoadBalancer") {
            continue;
        }
        let space = namespace(&service.metadata);
        let closed = pods
            .iter()
            .any(|pod| namespace(&pod.metadata) == space && leads_to_closed(service, pod));
        if closed {
            found.push(finding(
                format!("Service {space}/{}", name(&service.metadata)),
                format!("it is a {kind}, and callers from outside have no identity: its pods' proxies refuse them in protect"),
                format!(
                    "put an ingress in the mesh in front of it; or {SKIP_INBOUND} on its pods, with {ALLOW_LOOSENING}=true on {space}"
                ),
            ));
        }
    }
    Ok(found)
}

/// Does one of its ports lead to a port of this pod that the proxy guards?
fn leads_to_closed(service: &Service, pod: &Pod) -> bool {
    let Some(spec) = &service.spec else { return false };
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
        return false;
    };
    if !selector
        .iter()
        .all(|(key, value)| label(&pod.metadata, key) == Some(value))
    {
        return false;
    }
    let skipped: Vec<&str> = annotation(&pod.metadata, SKIP_INBOUND)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .collect();
    spec.ports.iter().flatten().any(|port| {
        let number = match &port.target_port {
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => named_port(pod, name).unwrap_or(port.port),
            None => port.port,
        };
        !skipped.contains(&&*number.to_string())
    })
}

fn named_port(pod: &Pod, wanted: &str) -> Option<i32> {
    let mut ports = apps(pod).flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_deref() == Some(wanted))
        .map(|port| port.container_port)
}

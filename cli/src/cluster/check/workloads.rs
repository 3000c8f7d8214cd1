//! Namespaces and pods, as they were written down and admitted.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, Service};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use postern_policy::document::nearest;

use super::catalog::{Verdict, finding};
use super::components::image_of;
use super::facts::{
    ALLOW_LOOSENING, Facts, INIT, INJECT, MODE, PROXY, PROXY_UID, SYSTEM, annotation, known, label, name, namespace,
    sidecar,
};

/// What proxies call: control and the CA.
const CALLED: [i32; 2] = [15010, 15012];
/// Pod Security levels that refuse NET_ADMIN.
const REFUSING: [&str; 2] = ["baseline", "restricted"];

pub(super) fn without_proxy(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for pod in facts.live_pods()? {
        let metadata = &pod.metadata;
        if !facts.is_meshed(namespace(metadata))?
            || sidecar(pod).is_some()
            || label(metadata, INJECT) == Some("disabled")
            || is_host_network(pod)
        {
            continue;
        }
        found.push(finding(
            subject(pod),
            "it has no proxy, most likely since it was created before its namespace was labelled: nobody in the mesh \
             lets it in, and nothing it sends is secured",
            renew(pod),
        ));
    }
    Ok(found)
}

/// The command that makes a pod anew.
pub(super) fn renew(pod: &Pod) -> String {
    let namespace = namespace(&pod.metadata);
    let owner = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    match owner.map(|owner| (&*owner.kind, &*owner.name)) {
        Some(("ReplicaSet", set)) => {
            let deployment = set.rsplit_once('-').map_or(set, |(deployment, _)| deployment);
            format!("kubectl -n {namespace} rollout restart deployment {deployment}")
        }
        Some((kind @ ("StatefulSet" | "DaemonSet"), owner)) => {
            format!(
                "kubectl -n {namespace} rollout restart {} {owner}",
                kind.to_ascii_lowercase()
            )
        }
        Some(_) | None => format!(
            "kubectl -n {namespace} delete pod {}  (and create it again)",
            name(&pod.metadata)
        ),
    }
}

pub(super) fn intact(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for pod in facts.meshed_pods()? {
        let init = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.init_containers.as_deref())
            .unwrap_or_default();
        let place = |wanted: &str| init.iter().position(|container| container.name == wanted);
        let proxy = sidecar(pod);
        let user = proxy.and_then(|proxy| proxy.security_context.as_ref()?.run_as_user);
        let cause = if proxy.and_then(|proxy| proxy.restart_policy.as_deref()) != Some("Always") {
            "its proxy is no sidecar (restartPolicy Always): the app never starts"
        } else if user != Some(PROXY_UID) {
            "its proxy does not run as user 15371: its own traffic is redirected to itself"
        } else if place(INIT).is_none() || place(INIT) > place(PROXY) {
            "nothing redirects its traffic before its proxy starts: it goes past the proxy"
        } else {
            continue;
        };
        let cause = format!("{cause}; a webhook after the injector's changed it, or it was made by hand");
        found.push(finding(subject(pod), cause, renew(pod)));
    }
    Ok(found)
}

pub(super) fn pod_security(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for meshed in facts.meshed_namespaces()? {
        let name = name(&meshed.metadata);
        let level = label(&meshed.metadata, "pod-security.kubernetes.io/enforce");
        if let Some(level) = level.filter(|level| REFUSING.contains(level)) {
            found.push(finding(
                format!("Namespace {name}"),
                format!(
                    "it enforces Pod Security `{level}`, which refuses NET_ADMIN: no pod with a proxy can be created"
                ),
                format!("kubectl label namespace {name} --overwrite pod-security.kubernetes.io/enforce=privileged"),
            ));
        }
    }
    Ok(found)
}

pub(super) fn default_account(facts: &Facts) -> Verdict {
    of_pods(facts, |pod| {
        let account = pod.spec.as_ref()?.service_account_name.as_deref().unwrap_or("default");
        matches!(account, "" | "default").then(|| {
            let cause = "it runs under the service account `default`: every such pod of its namespace has the same \
                         identity, and no policy can tell them apart";
            let namespace = namespace(&pod.metadata);
            let fix = format!(
                "kubectl -n {namespace} create serviceaccount NAME, and serviceAccountName: NAME in its template"
            );
            (cause.to_owned(), fix)
        })
    })
}

pub(super) fn host_network(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for pod in facts.live_pods()? {
        if is_host_network(pod) && facts.is_meshed(namespace(&pod.metadata))? {
            found.push(finding(
                subject(pod),
                "it is on its node's network, where no proxy can stand: it is not in the mesh, and no policy sees its callers",
                "hostNetwork: false in its template; or the pod label postern.dev/inject=disabled, to say that it is meant",
            ));
        }
    }
    Ok(found)
}

fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

pub(super) fn proxy_user(facts: &Facts) -> Verdict {
    of_pods(facts, |pod| {
        let spec = pod.spec.as_ref()?;
        let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
        let as_proxy = apps(pod).find(|container| {
            let own = container
                .security_context
                .as_ref()
                .and_then(|context| context.run_as_user);
            own.or(of_pod) == Some(PROXY_UID)
        })?;
        let cause = format!(
            "container `{}` runs as user 15371, the proxy's: what it sends is not redirected, and goes past the mesh",
            as_proxy.name
        );
        Some((cause, format!("another runAsUser in its template; then {}", renew(pod))))
    })
}

pub(super) fn net_admin(facts: &Facts) -> Verdict {
    of_pods(facts, |pod| {
        let able = apps(pod).find(|container| {
            let context = container.security_context.as_ref();
            let added = context.and_then(|context| context.capabilities.as_ref()?.add.as_ref());
            let net_admin = added
                .into_iter()
                .flatten()
                .any(|cap| matches!(&**cap, "NET_ADMIN" | "ALL" | "CAP_NET_ADMIN"));
            net_admin || context.and_then(|context| context.privileged) == Some(true)
        })?;
        let cause = format!(
            "container `{}` may change its pod's network: it can take the redirection away",
            able.name
        );
        Some((cause, "drop NET_ADMIN and privileged in its template".to_owned()))
    })
}

/// Containers that are not ours.
fn apps(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    let all = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    all.filter(|container| container.name != PROXY && container.name != INIT)
}

fn of_pods(facts: &Facts, check: impl Fn(&Pod) -> Option<(String, String)>) -> Verdict {
    let pods = facts.meshed_pods()?.into_iter();
    Ok(pods
        .filter_map(|pod| check(pod).map(|(cause, fix)| finding(subject(pod), cause, fix)))
        .collect())
}

pub(super) fn labels(facts: &Facts) -> Verdict {
    const KEYS: [(&str, &[&str]); 3] = [
        (INJECT, &["enabled", "disabled"]),
        (MODE, &["discover", "monitor", "protect"]),
        (ALLOW_LOOSENING, &["true", "false"]),
    ];
    let mut found = Vec::new();
    for space in known(&facts.namespaces)?
        .iter()
        .filter(|space| facts.concerns(name(&space.metadata)))
    {
        let space_name = name(&space.metadata);
        for (key, value) in space
            .metadata
            .labels
            .iter()
            .flatten()
            .filter(|(key, _)| key.starts_with("postern.dev/"))
        {
            let (cause, fix) = match KEYS.iter().find(|(known, _)| known == key) {
                Some((_, values)) if values.contains(&&**value) => continue,
                Some((_, values)) => {
                    let better = nearest(value, values.iter().copied()).unwrap_or(values[0]);
                    let cause = format!("{key}={value} says nothing: it may be {}", values.join(", "));
                    (
                        cause,
                        format!("kubectl label namespace {space_name} --overwrite {key}={better}"),
                    )
                }
                None => {
                    let better = nearest(key, KEYS.iter().map(|(key, _)| *key));
                    let hint = better.map_or_else(String::new, |better| format!("; did you mean {better}?"));
                    (
                        format!("nothing reads the label {key}{hint}"),
                        format!("kubectl label namespace {space_name} {key}-"),
                    )
                }
            };
            found.push(finding(format!("Namespace {space_name}"), cause, fix));
        }
    }
    Ok(found)
}

pub(super) fn modes(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for space in facts.meshed_namespaces()? {
        let mode = label(&space.metadata, MODE);
        if let Some(mode @ ("discover" | "monitor")) = mode {
            let space = name(&space.metadata);
            found.push(finding(
                format!("Namespace {space}"),
                format!("it is in {mode}: what no policy allows is let in, and callers need no identity"),
                format!(
                    "kubectl postern edges -n {space}; then kubectl label namespace {space} --overwrite {MODE}=protect"
                ),
            ));
        }
    }
    Ok(found)
}

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
        if loosening.is_some_and(|space| label(&space.metadata, ALLOW_LOOSENING) == Some("true")) {
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
pub(super) fn selects(selector: &LabelSelector, metadata: &ObjectMeta) -> bool {
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

pub(super) fn creation(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for set in known(&facts.replica_sets)? {
        let space = namespace(&set.metadata);
        let conditions = set.status.as_ref().and_then(|status| status.conditions.as_ref());
        let failure = conditions
            .into_iter()
            .flatten()
            .find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
        let Some(failure) = failure.filter(|_| facts.concerns(space)) else {
            continue;
        };
        if !facts.is_meshed(space)? {
            continue;
        }
        found.push(finding(
            format!("ReplicaSet {space}/{}", name(&set.metadata)),
            format!(
                "its pods cannot be created: {}",
                failure.message.as_deref().unwrap_or("no reason is given")
            ),
            format!("kubectl -n {space} describe replicaset {}", name(&set.metadata)),
        ));
    }
    Ok(found)
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

pub(super) fn image(facts: &Facts) -> Verdict {
    let injector = facts.deployment("postern-injector")?.and_then(image_of);
    let Some(registry) = injector.and_then(|image| image.split_once("/postern-injector").map(|(registry, _)| registry))
    else {
        return Ok(Vec::new());
    };
    of_pods(facts, |pod| {
        let image = sidecar(pod)?.image.as_deref()?;
        let (own, _) = image.split_once("/postern-proxy").unwrap_or((image, ""));
        (own != registry).then(|| {
            let cause = format!("its proxy's image is {image}, and the mesh's images come from {registry}");
            (cause, renew(pod))
        })
    })
}

pub(super) fn subject(pod: &Pod) -> String {
    format!("Pod {}/{}", namespace(&pod.metadata), name(&pod.metadata))
}

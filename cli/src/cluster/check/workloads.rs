//! Namespaces and pods, as they were written down and admitted.

use k8s_openapi::api::core::v1::{Container, Pod};
use postern_policy::document::nearest;

use super::catalog::{Verdict, finding};
use super::components::image_of;
use super::facts::{
    ALLOW_LOOSENING, Facts, INIT, INJECT, MODE, PROXY, PROXY_UID, known, label, name, namespace, sidecar,
};

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
pub(super) fn apps(pod: &Pod) -> impl Iterator<Item = &Container> {
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

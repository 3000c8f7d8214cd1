//! What would get an app past its proxy, or make it the proxy.

use k8s_openapi::api::core::v1::{Pod, SecurityContext, Volume};
use serde_json::Value;

use crate::annotations::PROXY_PORTS;
use crate::inject::PodContext;
use crate::inject::containers::{is_ours, of_the_app};
use crate::inject::sidecar::{AUDIENCE, PROXY_UID, RUN_VOLUME, TOKEN_VOLUME};

/// Capabilities that reach past the capture: its rules, raw packets, other namespaces, other processes, other UIDs' files.
const REACHING: [&str; 6] = ["ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "BPF"];

/// Why a pod may not be in the mesh as it is.
pub(crate) fn refusal(pod: &Pod, raw: &Value) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let own = spec.security_context.as_ref();
    let user = own.and_then(|own| own.run_as_user);
    let group = own.and_then(|own| own.run_as_group);
    if let Some(what) = identity("spec.securityContext", user, group) {
        return Some(what);
    }
    for placed in of_the_app(pod, raw) {
        let container = placed.container;
        let place = format!("container {}", container.name);
        if is_ours(&container.name) {
            return Some(format!("{place}: the name is the mesh's own; choose another"));
        }
        if let Some(what) = container
            .security_context
            .as_ref()
            .and_then(|own| of_context(&place, own))
        {
            return Some(what);
        }
        for mount in container.volume_mounts.iter().flatten() {
            if let Some(what) = of_mount(&place, &mount.name) {
                return Some(what);
            }
        }
        for port in container.ports.iter().flatten() {
            let ours = |number: i32| u16::try_from(number).is_ok_and(|port| PROXY_PORTS.contains(&port));
            if ours(port.container_port) {
                let number = port.container_port;
                return Some(format!(
                    "{place}: port {number} is the proxy's own in every pod of the mesh; choose another"
                ));
            }
        }
    }
    let volumes = spec.volumes.iter().flatten();
    volumes
        .filter(|volume| volume.name != TOKEN_VOLUME)
        .find_map(foreign_token)
}

pub(crate) fn of_context(place: &str, own: &SecurityContext) -> Option<String> {
    identity(place, own.run_as_user, own.run_as_group)
}

pub(crate) fn of_mount(place: &str, volume: &str) -> Option<String> {
    [TOKEN_VOLUME, RUN_VOLUME]
        .contains(&volume)
        .then(|| format!("{place}: it mounts {volume}, which is the proxy's alone"))
}

fn identity(place: &str, user: Option<i64>, group: Option<i64>) -> Option<String> {
    let field = match (user, group) {
        (Some(PROXY_UID), _) => "runAsUser",
        (_, Some(PROXY_UID)) => "runAsGroup",
        _ => return None,
    };
    Some(format!(
        "{place}: {field} {PROXY_UID} is the proxy's own, whose connections are not captured; choose another"
    ))
}

/// With a token for the CA, an app could have a certificate that its proxy does not watch over.
pub(crate) fn foreign_token(volume: &Volume) -> Option<String> {
    let sources = volume.projected.as_ref()?.sources.as_deref()?;
    let tokens = sources
        .iter()
        .filter_map(|source| source.service_account_token.as_ref());
    let ours = |audience: &str| audience == AUDIENCE;
    tokens.filter_map(|token| token.audience.as_deref()).any(ours).then(|| {
        format!(
            "volume {}: a token for the audience {AUDIENCE} is for the proxy alone",
            volume.name
        )
    })
}

/// What is let in, and should be known.
pub(crate) fn warnings(pod: &Pod, raw: &Value, context: &PodContext<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(spec) = pod.spec.as_ref() else {
        return warnings;
    };
    if matches!(spec.service_account_name.as_deref(), None | Some("" | "default")) {
        warnings.push(format!(
            "the pod runs as service account default, which it shares with every pod of namespace {} that names none: \
             policies cannot tell them apart. Give it an account of its own",
            context.namespace
        ));
    }
    if spec.host_pid == Some(true) {
        warnings.push("hostPID: a process of this pod that is root can reach into any proxy of its node".to_owned());
    }
    if spec.share_process_namespace == Some(true) {
        warnings.push("shareProcessNamespace: the pod's containers see the proxy's process".to_owned());
    }
    for placed in of_the_app(pod, raw) {
        let Some(own) = placed.container.security_context.as_ref() else {
            continue;
        };
        warnings.extend(reach(&placed.container.name, own));
    }
    for level in ["baseline", "restricted"] {
        if context
            .labels
            .get("pod-security.kubernetes.io/enforce")
            .map(String::as_str)
            == Some(level)
        {
            warnings.push(format!(
                "namespace {} enforces Pod Security {level}, which refuses NET_ADMIN of postern-init: enforce privileged \
                 there (and audit or warn {level}), or set the rules from a CNI plug-in (postern-proxy redirect --netns)",
                context.namespace
            ));
        }
    }
    warnings
}

pub(crate) fn reach(name: &str, own: &SecurityContext) -> Option<String> {
    if own.privileged == Some(true) {
        return Some(format!(
            "container {name} is privileged: it can take down the capture, and read the node"
        ));
    }
    let added = own
        .capabilities
        .as_ref()
        .and_then(|c| c.add.as_deref())
        .unwrap_or_default();
    let becoming = added
        .iter()
        .any(|c| ["SETUID", "SETGID"].contains(&c.strip_prefix("CAP_").unwrap_or(c)));
    let plain = |capability: &str| capability.strip_prefix("CAP_").unwrap_or(capability).to_owned();
    let reaching: Vec<String> = added
        .iter()
        .map(|c| plain(c))
        .filter(|c| REACHING.contains(&&**c))
        .collect();
    if !reaching.is_empty() {
        let all = reaching.join(", ");
        return Some(format!("container {name} has {all}: it can get past the capture"));
    }
    becoming.then(|| {
        format!(
            "container {name} adds SETUID or SETGID: it can become UID {PROXY_UID}, whose connections are not captured"
        )
    })
}

//! After all other webhooks: is what was injected still whole?
//!
//! The injector runs before others, and the API server calls it at most once more. What came after that is found here, and
//! the pod is refused with what was changed: nobody's pod is quietly half in the mesh.
//!
//! Another replica may have injected it, a version, an image or a setting earlier (an upgrade in progress): what only tunes
//! the proxy and which image of its repository it is may differ, whom it trusts and what is captured may not. The version
//! that a pod says it was injected by decides nothing: whoever could change the image could change that as well.

use k8s_openapi::api::core::v1::{Pod, SecurityContext};
use serde_json::Value;

use crate::escape;
use crate::inject::containers::{INIT, PROXY, is_ours, ours};
use crate::inject::existing::difference;
use crate::inject::sidecar::PROXY_UID;
use crate::inject::standing::{self, Standing};
use crate::inject::{Plan, PodContext, Settings, read};

/// Flags of the proxy that tune it.
const TUNING: [&str; 3] = ["--access-log", "--drain-seconds", "--metrics-mutual-tls"];
const ROOTS: &str = "--roots-sha256";

/// Checks a pod that is about to be stored. `Ok` has the warnings, `Err` says what was changed.
pub fn verify(pod: &Value, context: &PodContext<'_>, settings: &Settings) -> Result<Vec<String>, String> {
    let raw = pod;
    let pod = read(raw)?;
    if !matches!(standing::of(&pod, context)?, Standing::Meshed) {
        // In the host's network, or for Windows: there is no proxy that could be meant.
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let token = volumes.into_iter().find_map(escape::foreign_token);
        return token.map_or_else(|| Ok(Vec::new()), Err);
    }
    let (Some(init), Some(proxy)) = (ours(&pod, raw, INIT), ours(&pod, raw, PROXY)) else {
        return Err(format!(
            "the sidecar is not there ({INIT} and {PROXY} among the init containers): a webhook after the injector took it \
             away, or the injector was not asked"
        ));
    };
    if proxy.index < init.index {
        return Err(format!(
            "{PROXY} stands before {INIT}: a webhook after the injector reordered them"
        ));
    }
    let plan = Plan::make(&pod, raw, context, settings)?;
    let late = |list: &str, index: usize| list == "containers" || index > proxy.index;
    if let Some(rewrite) = plan.rewrites.iter().find(|rewrite| late(rewrite.list, rewrite.index)) {
        return Err(format!(
            "container {}: {} does not go through the proxy: a webhook after the injector set it",
            rewrite.container,
            rewrite.path.join(".")
        ));
    }
    for (placed, made) in [(init, &plan.init), (proxy, &plan.proxy)] {
        if let Some(what) = changed(placed.raw, made, context) {
            return Err(format!(
                "init container {}: {what} is not what the injector made: a webhook after it changed that",
                placed.container.name
            ));
        }
    }
    let volumes = raw["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(made) = plan.volumes.iter().find(|made| !volumes.contains(made)) {
        let name = made["name"].as_str().unwrap_or_default();
        return Err(format!(
            "volume {name} is not what the injector made: a webhook after it changed or removed that"
        ));
    }
    Ok(early(&pod, init.index, proxy.index))
}

/// Checks the ephemeral (debugging) containers of a pod.
pub fn verify_ephemeral(pod: &Value, _context: &PodContext<'_>, _settings: &Settings) -> Result<Vec<String>, String> {
    let pod = read(pod)?;
    let mut warnings = Vec::new();
    let spec = pod.spec.as_ref();
    let meshed = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default();
    if !meshed.iter().any(|container| container.name == PROXY) {
        return Ok(warnings);
    }
    let shared = spec.is_some_and(|spec| spec.share_process_namespace == Some(true));
    let pods_user = spec.and_then(|spec| spec.security_context.as_ref()?.run_as_user);
    for container in spec
        .and_then(|spec| spec.ephemeral_containers.as_deref())
        .unwrap_or_default()
    {
        let place = format!("ephemeral container {}", container.name);
        let context = container.security_context.as_ref();
        let taken = is_ours(&container.name).then(|| format!("{place}: the name is the mesh's own; choose another"));
        let mounts = container.volume_mounts.iter().flatten();
        let mounted = || {
            mounts
                .map(|mount| &mount.name)
                .find_map(|name| escape::of_mount(&place, name))
        };
        let refused = taken
            .or_else(|| context.and_then(|context| escape::of_context(&place, context)))
            .or_else(|| {
                let sees = shared || container.target_container_name.as_deref() == Some(PROXY);
                let user = context.and_then(|context| context.run_as_user).or(pods_user);
                (sees && user.is_none()).then(|| of_any_user(&place))
            })
            .or_else(mounted);
        if let Some(message) = refused {
            return Err(message);
        }
        warnings.extend(reaches(
            container.target_container_name.as_deref(),
            &container.name,
            context,
        ));
    }
    Ok(warnings)
}

/// Who shares the proxy's processes must not be its user, and an image's own user is not to be seen here.
fn of_any_user(place: &str) -> String {
    format!(
        "{place}: it would see the process of {PROXY}, and its image may run as the same user: set its \
         securityContext.runAsUser to another one than {PROXY_UID}"
    )
}

fn reaches(target: Option<&str>, name: &str, context: Option<&SecurityContext>) -> Option<String> {
    let reach = context.and_then(|context| escape::reach(name, context));
    let seen = || format!("container {name} sees the process of {PROXY}, which holds the pod's private key");
    reach.or_else(|| (target == Some(PROXY)).then(seen))
}

/// What of a container of ours was changed, past what an earlier version or other settings explain.
fn changed(found: &Value, made: &Value, context: &PodContext<'_>) -> Option<&'static str> {
    let mut made = made.clone();
    if repository(&found["image"]) == repository(&made["image"]) {
        made["image"] = found["image"].clone();
    }
    if made["name"] == PROXY {
        if same_trust(&found["args"], &made["args"], context.roots_sha256) {
            made["args"] = found["args"].clone();
        }
        // The log's filter, and what the probes ask: each probe has been looked up in it.
        let (Some(env), Some(there)) = (made["env"].as_array_mut(), found["env"].as_array()) else {
            return Some("env");
        };
        let tunes = |name: &Value| {
            ["POSTERN_LOG", "POSTERN_PROBES", "POSTERN_APP_METRICS"]
                .iter()
                .any(|own| name == own)
        };
        env.retain(|variable| !tunes(&variable["name"]));
        env.extend(there.iter().filter(|variable| tunes(&variable["name"])).cloned());
    }
    difference(found, &made)
}

/// An image's name without tag and digest.
fn repository(image: &Value) -> Option<&str> {
    let image = image.as_str()?.split('@').next()?;
    let name = image.rfind('/').map_or(0, |slash| slash + 1);
    let end = image[name..].find(':').map_or(image.len(), |colon| name + colon);
    Some(&image[..end])
}

/// The same arguments but for what tunes the proxy; and no root that the CA has not published.
fn same_trust(found: &Value, made: &Value, roots: &[String]) -> bool {
    let (Some(found), Some(made)) = (flags(found), flags(made)) else {
        return false;
    };
    let essential = |flags: &[(&str, &str)]| -> Vec<(String, String)> {
        let kept = flags
            .iter()
            .filter(|(flag, _)| !TUNING.contains(flag) && *flag != ROOTS);
        kept.map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned()))
            .collect()
    };
    let mut pins = found.iter().filter(|(flag, _)| *flag == ROOTS);
    let known = |(_, value): &(&str, &str)| value.split(',').all(|pin| roots.iter().any(|root| root == pin));
    essential(&found) == essential(&made) && pins.next().is_some_and(known) && pins.next().is_none()
}

/// `--flag value` pairs, in order; the first argument is the command.
fn flags(args: &Value) -> Option<Vec<(&str, &str)>> {
    let mut args = args
        .as_array()?
        .iter()
        .map(|arg| arg.as_str().unwrap_or_default())
        .peekable();
    let mut flags = vec![("", args.next()?)];
    while let Some(flag) = args.next() {
        let value = args.next_if(|next| !next.starts_with("--")).unwrap_or_default();
        flags.push((flag, value));
    }
    Some(flags)
}

/// Init containers that others put before ours.
fn early(pod: &Pod, init: usize, proxy: usize) -> Vec<String> {
    let all = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default();
    let before = all
        .iter()
        .enumerate()
        .take(proxy)
        .filter(|(_, container)| !is_ours(&container.name));
    before
        .map(|(index, container)| {
            let name = &container.name;
            if index < init {
                format!(
                    "init container {name} runs before the mesh's: its traffic is not secured, and the mesh refuses it"
                )
            } else {
                format!("init container {name} runs after {INIT} and before {PROXY}: it has no network")
            }
        })
        .collect()
}

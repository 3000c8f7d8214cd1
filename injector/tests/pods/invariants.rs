//! What holds of every pod that is let in.

use std::collections::BTreeMap;

use postern_injector::inject::Outcome;
use serde_json::Value;

use super::world::{Case, apply};

pub(crate) fn hold(name: &str, case: &Case) {
    let outcome = case.inject(&case.pod);
    let once = apply(&case.pod, &outcome);
    if let Outcome::Injected { warnings, .. } | Outcome::Skipped { warnings, .. } = &outcome {
        // API servers may cut longer ones.
        assert!(
            warnings.iter().all(|warning| warning.chars().count() <= 256),
            "{name}: {warnings:?}"
        );
    }
    match &outcome {
        Outcome::Refused { message } => assert!(message.len() > 20, "{name}: a refusal without a reason"),
        Outcome::Skipped { patch, .. } => {
            assert!(case.verify(&once).is_ok(), "{name}");
            assert_eq!(apply(&once, &case.inject_again(&once)), once, "{name}");
            let annotates =
                |op: &json_patch::PatchOperation| op.path().to_string().starts_with("/metadata/annotations");
            assert!(patch.iter().all(annotates), "{name}: {patch:?}");
        }
        Outcome::Injected { .. } => injected(name, case, &once),
    }
}

fn injected(name: &str, case: &Case, once: &Value) {
    // Applying twice is applying once, whatever the token of the second call.
    match case.inject_again(once) {
        Outcome::Injected { patch, .. } => assert!(patch.is_empty(), "{name}: {patch:?}"),
        other => panic!("{name}: {other:?}"),
    }
    assert_eq!(case.verify(once), Ok(Vec::new()), "{name}");

    let spec = &once["spec"];
    let init = spec["initContainers"].as_array().unwrap();
    assert_eq!(init[0]["name"], "postern-init", "{name}");
    assert_eq!(init[1]["name"], "postern-proxy", "{name}");
    restricted(name, &init[1]);
    assert_eq!(
        init[0]["securityContext"]["capabilities"],
        serde_json::json!({"add": ["NET_ADMIN"], "drop": ["ALL"]})
    );

    // Nothing of the app's is lost: what is left without ours is what came, but for probes.
    let mut left: Vec<&Value> = init[2..].iter().collect();
    left.extend(spec["containers"].as_array().unwrap());
    let mut came: Vec<&Value> = list(&case.pod["spec"]["initContainers"]).iter().collect();
    came.retain(|c| c["name"] != "postern-init" && c["name"] != "postern-proxy");
    came.extend(list(&case.pod["spec"]["containers"]));
    assert_eq!(left.len(), came.len(), "{name}");
    for (left, came) in left.iter().zip(came) {
        for (field, value) in came.as_object().unwrap() {
            let probe = field.ends_with("Probe") || field == "lifecycle";
            // The Workload API's socket comes behind what is there.
            let grown =
                ["env", "volumeMounts"].contains(&field.as_str()) && list(&left[field]).starts_with(list(value));
            assert!(probe || grown || left[field] == *value, "{name}: {field}");
        }
        only_the_proxy_is_asked(name, left, once);
        for mount in list(&left["volumeMounts"]) {
            let asked = once["metadata"]["annotations"]["postern.dev/workload-api"] == "enabled";
            let socket = mount["name"] == "postern-workload-api" && mount["readOnly"] == true && asked;
            assert!(
                socket || !mount["name"].as_str().unwrap().starts_with("postern-"),
                "{name}"
            );
        }
    }
}

/// No probe or hook but `exec` and `sleep` goes anywhere but to a target that the proxy knows.
fn only_the_proxy_is_asked(name: &str, container: &Value, pod: &Value) {
    let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| &container[probe]);
    let hooks = ["postStart", "preStop"].map(|hook| &container["lifecycle"][hook]);
    for asked in probes.into_iter().chain(hooks) {
        assert!(
            asked["tcpSocket"].is_null() && asked["grpc"].is_null(),
            "{name}: {asked}"
        );
        if asked["httpGet"].is_null() {
            continue;
        }
        assert_eq!(asked["httpGet"]["port"], 15_020, "{name}");
        let path = asked["httpGet"]["path"].as_str().unwrap();
        let (token, target) = path.strip_prefix("/probe/").unwrap().split_once('/').unwrap();
        let probes: Value = serde_json::from_str(&variable(pod, "POSTERN_PROBES").unwrap()).unwrap();
        assert_eq!(probes["token"], token, "{name}");
        assert!(probes["targets"][target].is_object(), "{name}: {target}");
    }
}

/// Pod Security `restricted`, of a container.
fn restricted(name: &str, container: &Value) {
    let context = &container["securityContext"];
    assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
    assert_eq!(context["capabilities"], serde_json::json!({"drop": ["ALL"]}), "{name}");
    assert_eq!(context["runAsNonRoot"], true, "{name}");
    assert_eq!(context["privileged"], false, "{name}");
    assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
    assert_eq!(context["runAsUser"], 15_371, "{name}");
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
    let ports = list(&container["ports"]);
    assert!(ports.iter().all(|port| port["hostPort"].is_null()), "{name}");
}

/// Of the proxy, as the kubelet hands it over.
pub(crate) fn variable(pod: &Value, name: &str) -> Option<String> {
    let env: BTreeMap<_, _> = list(&pod["spec"]["initContainers"][1]["env"])
        .iter()
        .filter_map(|variable| Some((variable["name"].as_str()?, variable["value"].as_str()?)))
        .collect();
    env.get(name).map(|value| value.replace("$$", "$"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

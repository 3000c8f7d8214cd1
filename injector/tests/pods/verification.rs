//! After all webhooks: whatever was taken apart is named.

use postern_injector::inject::Outcome;
use postern_injector::verify_pod::verify_ephemeral;
use serde_json::{Value, json};

use crate::world::{Case, ROOT};

fn case() -> Case {
    Case::of(json!({
        "metadata": {"name": "web"},
        "spec": {
            "serviceAccountName": "web",
            "containers": [{"name": "web", "image": "web:1", "livenessProbe": {"httpGet": {"port": 8080}}}],
        },
    }))
}

fn verified(change: impl FnOnce(&mut Value)) -> Result<Vec<String>, String> {
    let case = case();
    let mut pod = case.patched(&case.pod);
    change(&mut pod);
    case.verify(&pod)
}

#[test]
fn each_change_of_a_later_webhook_is_refused_by_name() {
    let proxy = "/spec/initContainers/1";
    for (pointer, value, says) in [
        (format!("{proxy}/image"), json!("evil:1"), "postern-proxy: image"),
        (format!("{proxy}/command"), json!(["/bin/sh"]), "postern-proxy: command"),
        (format!("{proxy}/args/4"), json!("evil:15012"), "postern-proxy: args"),
        (format!("{proxy}/args/10"), json!("f".repeat(64)), "postern-proxy: args"),
        (
            format!("{proxy}/args/10"),
            json!(format!("{ROOT},{}", "f".repeat(64))),
            "postern-proxy: args",
        ),
        (format!("{proxy}/args/2"), json!("explicit"), "postern-proxy: args"),
        (
            format!("{proxy}/securityContext/runAsUser"),
            json!(0),
            "postern-proxy: securityContext",
        ),
        (
            format!("{proxy}/securityContext/privileged"),
            json!(true),
            "postern-proxy: securityContext",
        ),
        (
            format!("{proxy}/restartPolicy"),
            Value::Null,
            "postern-proxy: restartPolicy",
        ),
        (
            format!("{proxy}/startupProbe"),
            Value::Null,
            "postern-proxy: startupProbe",
        ),
        (
            format!("{proxy}/lifecycle"),
            json!({"preStop": {"sleep": {"seconds": 1}}}),
            "postern-proxy: lifecycle",
        ),
        (
            format!("{proxy}/envFrom"),
            json!([{"configMapRef": {"name": "x"}}]),
            "postern-proxy: envFrom",
        ),
        (
            format!("{proxy}/env/0"),
            json!({"name": "POD_IP", "value": "127.0.0.1"}),
            "postern-proxy: env",
        ),
        (
            format!("{proxy}/volumeMounts/0/name"),
            json!("mine"),
            "postern-proxy: volumeMounts",
        ),
        (
            "/spec/initContainers/0/args/2".to_owned(),
            json!("15020,8080"),
            "postern-init: args",
        ),
        (
            "/spec/initContainers/0/image".to_owned(),
            json!("true:1"),
            "postern-init: image",
        ),
        (
            "/spec/initContainers/0".to_owned(),
            json!({"name": "x", "image": "x"}),
            "the sidecar is not there",
        ),
        (
            "/spec/initContainers".to_owned(),
            Value::Null,
            "the sidecar is not there",
        ),
        (
            "/metadata/annotations".to_owned(),
            json!({}),
            "not made by this injector",
        ),
        (
            "/spec/volumes/0/projected/sources".to_owned(),
            json!([]),
            "volume postern-token",
        ),
        ("/spec/volumes".to_owned(), json!([]), "volume postern-token"),
        (
            "/spec/containers/0/livenessProbe".to_owned(),
            json!({"tcpSocket": {"port": 80}}),
            "web: livenessProbe",
        ),
        (
            "/spec/containers/0/volumeMounts".to_owned(),
            json!([{"name": "postern-run", "mountPath": "/x"}]),
            "web: it mounts",
        ),
        (
            "/spec/containers/0/securityContext".to_owned(),
            json!({"runAsUser": 15371}),
            "web: runAsUser 15371",
        ),
    ] {
        let error = verified(|pod| {
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            let parent = pod.pointer_mut(parent).unwrap();
            match field.parse::<usize>() {
                Ok(index) => parent[index] = value.clone(),
                Err(_) => parent[field] = value.clone(),
            }
        });
        let error = error.expect_err(&pointer);
        assert!(error.contains(says), "{pointer}: {error}");
    }
}

/// A pod that brought both containers along could lay its own program over ours: with the pod's identity, or, in
/// postern-init, as root with NET_ADMIN.
#[test]
fn a_mount_over_the_program_of_our_containers_is_refused() {
    for (container, name) in [(0, "postern-init"), (1, "postern-proxy")] {
        for path in ["/postern-proxy", "/", "/etc/passwd", "/var/run/secrets", "/lib"] {
            let refused = verified(|pod| {
                let mount = json!({"name": "theirs", "mountPath": path, "subPath": "program"});
                match pod["spec"]["initContainers"][container]["volumeMounts"].as_array_mut() {
                    Some(mounts) => mounts.push(mount),
                    None => pod["spec"]["initContainers"][container]["volumeMounts"] = json!([mount]),
                }
            });
            let says = format!("{name}: volumeMounts");
            assert!(refused.is_err_and(|why| why.contains(&says)), "{name} {path}");
        }
    }
}

#[test]
fn a_mount_over_the_proxys_directories_is_refused() {
    for path in [
        "/run/postern/",
        "/run",
        "/var/run/secrets",
        "/var/run/secrets/postern/token",
        "/",
    ] {
        let error = verified(|pod| {
            let mounts = pod["spec"]["initContainers"][1]["volumeMounts"].as_array_mut().unwrap();
            mounts.push(json!({"name": "mine", "mountPath": path}));
        });
        assert!(error.is_err(), "{path}");
    }
}

#[test]
fn an_unknown_variable_of_the_proxys_is_refused_and_another_one_is_not() {
    let with = |name: &str| {
        verified(|pod| {
            let env = pod["spec"]["initContainers"][1]["env"].as_array_mut().unwrap();
            env.push(json!({"name": name, "value": "x"}));
        })
    };
    assert!(with("POSTERN_X").is_err());
    assert!(with("TZ").is_ok());
}

#[test]
fn an_init_container_before_the_mesh_is_warned_of() {
    let warnings = verified(|pod| {
        let init = pod["spec"]["initContainers"].as_array_mut().unwrap();
        init.insert(1, json!({"name": "between", "image": "x"}));
        init.insert(0, json!({"name": "first", "image": "x", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}}));
    });
    let warnings = warnings.unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("first runs before"), "{warnings:?}");
    assert!(warnings[1].contains("between runs after postern-init"), "{warnings:?}");
}

#[test]
fn the_proxy_before_the_rules_is_refused() {
    let error = verified(|pod| pod["spec"]["initContainers"].as_array_mut().unwrap().swap(0, 1));
    assert!(error.unwrap_err().contains("reordered"));
}

#[test]
fn a_pod_that_another_version_injected_passes_while_an_upgrade_is_in_progress() {
    let mut older = case();
    older.settings.image = "localhost/postern/postern-proxy:0.0.9@sha256:00".to_owned();
    older.settings.proxy.drain_seconds = 10;
    older.settings.proxy.log_level = "debug".to_owned();
    older.settings.metrics.mutual_tls = true;
    let mut pod = older.patched(&older.pod);
    assert_eq!(case().verify(&pod), Ok(Vec::new()), "under one version, too");
    pod["metadata"]["annotations"]["postern.dev/injected"] = json!("0.0.9");
    assert_eq!(case().verify(&pod), Ok(Vec::new()));
    pod["spec"]["initContainers"][1]["image"] = json!("localhost/other/postern-proxy:0.0.9");
    assert!(case().verify(&pod).unwrap_err().contains("postern-proxy: image"));
}

#[test]
fn a_pod_outside_of_the_mesh_is_not_looked_at() {
    let mut case = case();
    case.labels.clear();
    assert_eq!(case.verify(&case.pod), Ok(Vec::new()));
}

#[test]
fn a_pod_that_is_skipped_has_no_token_for_the_ca() {
    let case = case();
    let mut pod = case.patched(&case.pod);
    pod["spec"]["hostNetwork"] = json!(true);
    assert!(case.verify(&pod).unwrap_err().contains("for the proxy alone"));
    pod["spec"]["volumes"] = json!([]);
    assert_eq!(case.verify(&pod), Ok(Vec::new()));
}

#[test]
fn who_may_change_its_user_is_warned_of() {
    for capability in ["SETUID", "CAP_SETGID"] {
        let mut case = case();
        case.pod["spec"]["containers"][0]["securityContext"] = json!({"capabilities": {"add": [capability]}});
        let Outcome::Injected { warnings, .. } = case.inject(&case.pod) else {
            panic!("it is injected");
        };
        assert!(
            warnings.iter().any(|warning| warning.contains("can become UID 15371")),
            "{warnings:?}"
        );
    }
}

#[test]
fn a_debugging_container_is_not_the_proxy() {
    let case = case();
    let with = |container: Value| {
        let mut pod = case.patched(&case.pod);
        pod["spec"]["ephemeralContainers"] = json!([container]);
        verify_ephemeral(&pod, &case.context(), &case.settings)
    };
    assert_eq!(
        with(json!({"name": "debug", "image": "busybox", "targetContainerName": "web"})),
        Ok(Vec::new())
    );
    for (container, says) in [
        (json!({"name": "postern-proxy", "image": "x"}), "the mesh's own"),
        (
            json!({"name": "debug", "securityContext": {"runAsUser": 15371}}),
            "runAsUser 15371",
        ),
        (
            json!({"name": "debug", "volumeMounts": [{"name": "postern-token", "mountPath": "/x"}]}),
            "mounts postern-token",
        ),
        (
            json!({"name": "debug", "targetContainerName": "postern-proxy"}),
            "runAsUser to another one",
        ),
    ] {
        assert!(with(container).unwrap_err().contains(says), "{says}");
    }
    for (container, says) in [
        (
            json!({"name": "debug", "securityContext": {"privileged": true}}),
            "privileged",
        ),
        (
            json!({"name": "debug", "targetContainerName": "postern-proxy", "securityContext": {"runAsUser": 1000}}),
            "private key",
        ),
    ] {
        assert!(with(container).unwrap()[0].contains(says), "{says}");
    }
    // By the pod's own: everybody sees everybody's processes, and nobody who says nothing is the proxy's user.
    let in_pod = |shared: bool, user: Option<i64>| {
        let mut pod = case.patched(&case.pod);
        pod["spec"]["shareProcessNamespace"] = json!(shared);
        pod["spec"]["securityContext"] = json!({ "runAsUser": user });
        pod["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "busybox"}]);
        verify_ephemeral(&pod, &case.context(), &case.settings)
    };
    assert!(in_pod(true, None).unwrap_err().contains("runAsUser to another one"));
    assert!(in_pod(true, Some(1000)).is_ok());
    assert!(in_pod(false, None).is_ok());
}

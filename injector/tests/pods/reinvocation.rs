//! The injector is called again after a later webhook changed the pod: only what is missing is added.

use json_patch::PatchOperation;
use postern_injector::inject::Outcome;
use serde_json::{Value, json};

use crate::invariants::variable;
use crate::world::{Case, TOKEN, apply};

fn pod() -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "serviceAccountName": "web",
            "containers": [{"name": "web", "image": "web:1", "livenessProbe": {"httpGet": {"port": 8080}}}],
        },
    })
}

fn again(case: &Case, pod: &Value) -> (Vec<PatchOperation>, Vec<String>, Value) {
    let outcome = case.inject_again(pod);
    let Outcome::Injected { patch, warnings } = &outcome else {
        panic!("{outcome:?}");
    };
    (patch.0.clone(), warnings.clone(), apply(pod, &outcome))
}

#[test]
fn a_container_of_a_later_webhook_gets_its_probe_rewritten_and_the_token_stays() {
    let case = Case::of(pod());
    let mut once = case.patched(&case.pod);
    let added = json!({"name": "agent", "image": "agent:1", "readinessProbe": {"tcpSocket": {"port": 9000}}});
    once["spec"]["containers"].as_array_mut().unwrap().push(added);
    let (patch, warnings, twice) = again(&case, &once);
    assert_eq!(
        patch.len(),
        3,
        "status, the probe, and the proxy's environment: {patch:?}"
    );
    assert_eq!(warnings, Vec::<String>::new());
    let probes: Value = serde_json::from_str(&variable(&twice, "POSTERN_PROBES").unwrap()).unwrap();
    assert_eq!(probes["token"], TOKEN);
    assert_eq!(probes["targets"].as_object().unwrap().len(), 2);
    assert_eq!(case.verify(&twice), Ok(Vec::new()));
    assert!(again(&case, &twice).0.is_empty());
}

#[test]
fn what_the_api_servers_own_plugins_add_is_left_alone() {
    let case = Case::of(pod());
    let mut once = case.patched(&case.pod);
    for index in 0..2 {
        let container = &mut once["spec"]["initContainers"][index];
        container["imagePullPolicy"] = json!("Always");
        container["resources"]["limits"]["cpu"] = json!("1");
        container["terminationMessagePath"] = json!("/dev/termination-log");
        container["terminationMessagePolicy"] = json!("File");
        let mount = json!({"name": "kube-api-access-1", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
        match container["volumeMounts"].as_array_mut() {
            Some(mounts) => mounts.push(mount),
            None => container["volumeMounts"] = json!([mount]),
        }
    }
    once["spec"]["initContainers"][1]["env"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "TZ", "value": "UTC"}));
    assert_eq!(again(&case, &once).0, Vec::new());
    assert_eq!(case.verify(&once), Ok(Vec::new()));
}

#[test]
fn what_was_changed_is_put_back_with_a_warning() {
    let case = Case::of(pod());
    let once = case.patched(&case.pod);
    let mut changed = once.clone();
    changed["spec"]["initContainers"][1]["image"] = json!("evil:1");
    changed["spec"]["initContainers"][0]["args"] = json!(["redirect", "--skip-inbound-ports", "15020,80"]);
    changed["spec"]["volumes"][1]["emptyDir"] = json!({});
    let (_, warnings, twice) = again(&case, &changed);
    assert_eq!(twice, once);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("postern-init") && warnings[0].contains("(args)"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("postern-proxy") && warnings[1].contains("(image)"),
        "{warnings:?}"
    );
}

#[test]
fn an_init_container_that_was_put_in_front_moves_behind_the_proxy() {
    let case = Case::of(pod());
    let mut once = case.patched(&case.pod);
    let init = once["spec"]["initContainers"].as_array_mut().unwrap();
    init.insert(0, json!({"name": "first", "image": "first:1"}));
    let (_, _, twice) = again(&case, &once);
    let names: Vec<&Value> = twice["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["postern-init", "postern-proxy", "first"]);
    assert!(again(&case, &twice).0.is_empty());
}

#[test]
fn a_probe_that_was_taken_away_is_no_target_any_more() {
    let case = Case::of(pod());
    let mut once = case.patched(&case.pod);
    once["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("livenessProbe");
    let (_, _, twice) = again(&case, &once);
    assert_eq!(variable(&twice, "POSTERN_PROBES"), None);
}

#[test]
fn metrics_that_were_found_stay_found() {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9090"});
    let case = Case::of(pod);
    let once = case.patched(&case.pod);
    assert_eq!(again(&case, &once).0, Vec::new());
    let app = variable(&once, "POSTERN_APP_METRICS").unwrap();
    assert_eq!(app, r#"{"path":"/metrics","port":9090,"scheme":"http"}"#);
}

#[test]
fn roots_that_came_in_between_are_given_to_the_proxy() {
    let mut case = Case::of(pod());
    let once = case.patched(&case.pod);
    case.roots.push("f".repeat(64));
    assert!(
        case.verify(&once).is_ok(),
        "the replica that injected it did not know the new root yet"
    );
    let (_, _, twice) = again(&case, &once);
    let args = twice["spec"]["initContainers"][1]["args"].as_array().unwrap();
    assert!(args.contains(&json!(case.roots.join(","))));
}

//! The shop on Kubernetes (examples/kubernetes) and the parts of `e2e/run`, as far as they can be judged without a cluster.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use postern_e2e::chart::{name, of_kind, root, strings};
use postern_policy::AuthorizationPolicy;
use postern_policy::document;
use serde_json::Value;

/// The proxy's user; an app that had it would escape its proxy.
const PROXY: u64 = 15_371;

fn manifests() -> Vec<(PathBuf, String)> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join("examples/kubernetes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect()
}

fn objects() -> Vec<Value> {
    manifests()
        .iter()
        .flat_map(|(_, text)| serde_saphyr::from_multiple::<Value>(text).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

/// Namespace and pod template of whatever makes pods.
fn pods(objects: &[Value]) -> Vec<(&str, &Value)> {
    objects
        .iter()
        .filter(|object| object["spec"]["template"].is_object())
        .map(|object| {
            (
                object["metadata"]["namespace"].as_str().unwrap(),
                &object["spec"]["template"],
            )
        })
        .collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|key| pod["spec"][key].as_array().into_iter().flatten())
}

#[test]
fn the_example_makes_its_namespaces_first_and_stays_in_them() {
    let objects = objects();
    let made: BTreeSet<&str> = of_kind(&objects, "Namespace").map(name).collect();
    assert_eq!(objects[0]["kind"], "Namespace", "kubectl applies files in their order");
    for object in &objects {
        if let Some(namespace) = object["metadata"]["namespace"].as_str() {
            assert!(made.contains(namespace), "{object}");
        }
    }
}

#[test]
fn every_pod_has_an_account_that_is_there_and_every_container_is_restricted() {
    let objects = objects();
    let accounts: BTreeSet<(&str, &str)> = of_kind(&objects, "ServiceAccount")
        .map(|object| (object["metadata"]["namespace"].as_str().unwrap(), name(object)))
        .collect();
    for (namespace, pod) in pods(&objects) {
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
        assert!(accounts.contains(&(namespace, account)), "{namespace}/{account}");
        for container in containers(pod) {
            let context = &container["securityContext"];
            let what = name_of(container);
            let user = context["runAsUser"].as_u64().unwrap_or(PROXY);
            assert!(user != 0 && user != PROXY, "{what} runs as {user}");
            assert_eq!(context["runAsNonRoot"], true, "{what}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{what}");
            assert_eq!(strings(&context["capabilities"]["drop"]), ["ALL"], "{what}");
        }
    }
}

fn name_of(container: &Value) -> &str {
    container["name"].as_str().unwrap()
}

#[test]
fn its_policies_are_right_name_accounts_that_are_there_and_never_mallory() {
    let objects = objects();
    let pods = pods(&objects);
    let principals: BTreeSet<String> = of_kind(&objects, "ServiceAccount")
        .map(|object| {
            format!(
                "cluster.local/ns/{}/sa/{}",
                object["metadata"]["namespace"].as_str().unwrap(),
                name(object)
            )
        })
        .collect();
    let mut seen = 0;
    for (path, text) in manifests() {
        if !text.contains("kind: AuthorizationPolicy") {
            continue;
        }
        for object in document::parse(&path.to_string_lossy(), &text).unwrap() {
            AuthorizationPolicy::from_object(&object).unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, of_kind(&objects, "AuthorizationPolicy").count());
    for policy in of_kind(&objects, "AuthorizationPolicy") {
        let app = &policy["spec"]["selector"]["matchLabels"]["app"];
        assert!(
            pods.iter().any(|(_, pod)| pod["metadata"]["labels"]["app"] == *app),
            "{} selects nobody",
            name(policy)
        );
        for rule in policy["spec"]["rules"].as_array().unwrap() {
            for from in rule["from"].as_array().into_iter().flatten() {
                for principal in strings(&from["source"]["principals"]) {
                    assert!(principals.contains(principal), "{principal}");
                    assert!(!principal.ends_with("/mallory"), "{principal}");
                }
            }
        }
    }
}

#[test]
fn every_image_of_the_example_is_ours_or_made_for_clusters_without_a_registry() {
    let ours = format!("localhost/postern/postern-shop:{}", env!("CARGO_PKG_VERSION"));
    let made = fs::read_to_string(root().join("e2e/cluster/images")).unwrap();
    let objects = objects();
    for (_, pod) in pods(&objects) {
        for container in containers(pod) {
            let image = container["image"].as_str().unwrap();
            assert!(image == ours || made.contains(&format!("\nimage {image} ")), "{image}");
        }
    }
}

#[test]
fn the_example_has_probes_of_every_kind_for_the_sidecar_to_answer() {
    let text: String = manifests().into_iter().map(|(_, text)| text).collect();
    for kind in [
        "httpGet:",
        "tcpSocket:",
        "grpc:",
        "exec:",
        "startupProbe:",
        "preStop: {httpGet",
    ] {
        assert!(text.contains(kind), "{kind}");
    }
}

#[test]
fn the_parts_of_the_cluster_run_are_listed_and_read_by_bash() {
    let listed = Command::new("e2e/run")
        .arg("--list")
        .current_dir(root())
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut parts = 0;
    for entry in fs::read_dir(root().join("e2e/cluster")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "sh") {
            continue;
        }
        let read = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(
            read.status.success(),
            "{}: {}",
            path.display(),
            String::from_utf8_lossy(&read.stderr)
        );
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let Some((number, part)) = stem.split_once('-') else {
            continue;
        };
        assert!(number.parse::<u8>().is_ok(), "{stem}");
        let line = listed.lines().find(|line| line.split(' ').next() == Some(part));
        let described = line.and_then(|line| line.split_once(' ')).map(|(_, text)| text.trim());
        assert!(described.is_some_and(|text| !text.is_empty()), "{part} in {listed}");
        parts += 1;
    }
    assert_eq!(parts, listed.lines().count());
}

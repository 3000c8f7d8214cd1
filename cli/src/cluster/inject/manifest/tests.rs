#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      containers:
        - name: app
          image: web:1
          ports: [{containerPort: 8080}]
";

const SERVICE: &str = "\
# In front of web.
apiVersion: v1
kind: Service
metadata: {name: web,   namespace: shop}   # as it was
spec: {selector: {app: web}, ports: [{port: 80}]}
";

fn surroundings() -> Surroundings {
    let labels = BTreeMap::from([("postern.dev/inject".to_owned(), "enabled".to_owned())]);
    Surroundings {
        namespace: "shop".to_owned(),
        namespaces: BTreeMap::from([("shop".to_owned(), (labels, BTreeMap::new()))]),
        roots_sha256: vec!["ab".repeat(32)],
        settings: super::super::defaults(),
    }
}

fn injected(text: &str) -> Injected {
    let mut tokens = 0_u128;
    let token = || {
        tokens += 1;
        format!("{tokens:032x}")
    };
    inject(text, &surroundings(), token).unwrap()
}

fn documents(yaml: &str) -> Vec<Value> {
    parts(yaml)
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(i, part)| parsed(part, i).unwrap())
        .collect()
}

fn sidecars(pod: &Value) -> Vec<&str> {
    let containers = pod["spec"]["initContainers"].as_array();
    containers
        .into_iter()
        .flatten()
        .map(|container| container["name"].as_str().unwrap())
        .collect()
}

#[test]
fn every_kind_with_pods_gets_a_proxy_and_the_rest_stays_to_the_byte() {
    let cron = "\
apiVersion: batch/v1
kind: CronJob
metadata: {name: tidy}
spec:
  schedule: '0 * * * *'
  jobTemplate:
    spec:
      template:
        spec: {serviceAccountName: tidy, restartPolicy: Never, containers: [{name: app, image: a}]}
";
    let pod = "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"p\"}, \
               \"spec\": {\"serviceAccountName\": \"p\", \"containers\": [{\"name\": \"app\", \"image\": \"a\"}]}}\n";
    let out = injected(&format!("---\n{SERVICE}---\n{DEPLOYMENT}--- \n{cron}---\n{pod}"));
    assert_eq!(out.refused, Vec::<String>::new());
    assert!(out.yaml.starts_with(SERVICE), "{}", out.yaml);
    let documents = documents(&out.yaml);
    let pods = [
        &documents[1]["spec"]["template"],
        &documents[2]["spec"]["jobTemplate"]["spec"]["template"],
        &documents[3],
    ];
    for pod in pods {
        assert_eq!(sidecars(pod), ["postern-init", "postern-proxy"], "{}", out.yaml);
    }
    assert_eq!(
        documents[1]["spec"]["template"]["spec"]["containers"][0]["image"],
        "web:1"
    );
}

#[test]
fn items_of_a_list_are_objects_of_their_own() {
    let list = json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [documents(DEPLOYMENT)[0], documents(SERVICE)[0]],
    });
    let out = injected(&list.to_string());
    let list = &documents(&out.yaml)[0];
    assert_eq!(
        sidecars(&list["items"][0]["spec"]["template"]),
        ["postern-init", "postern-proxy"]
    );
    assert_eq!(list["items"][1], documents(SERVICE)[0]);
}

#[test]
fn injecting_twice_is_injecting_once() {
    let once = injected(DEPLOYMENT).yaml;
    let twice = injected(&once).yaml;
    assert_eq!(documents(&twice), documents(&once));
}

#[test]
fn what_the_webhook_would_refuse_is_refused_by_name_and_nothing_is_printed_for_it() {
    let wrong = DEPLOYMENT.replace(
        "metadata: {labels: {app: web}}",
        "metadata: {labels: {app: web}, annotations: {postern.dev/skip-inbound-portz: '80'}}",
    );
    let out = injected(&wrong);
    assert_eq!(out.refused.len(), 1);
    assert!(
        out.refused[0].starts_with("Deployment shop/web: "),
        "{}",
        out.refused[0]
    );
    assert!(out.refused[0].contains("skip-inbound-ports"), "{}", out.refused[0]);
}

#[test]
fn a_warning_names_its_object() {
    let out = injected(&DEPLOYMENT.replace("serviceAccountName: web", "serviceAccountName: default"));
    assert!(
        out.warnings
            .iter()
            .any(|warning| warning.starts_with("Deployment shop/web: ")),
        "{:?}",
        out.warnings
    );
}

#[test]
fn the_namespaces_of_objects_with_pods_are_found() {
    let elsewhere = DEPLOYMENT.replace("namespace: shop", "namespace: bank");
    let nameless = DEPLOYMENT.replace(", namespace: shop", "");
    let found = namespaces(&format!("{SERVICE}---\n{elsewhere}---\n{nameless}"), "here").unwrap();
    assert_eq!(found, BTreeSet::from(["bank".to_owned(), "here".to_owned()]));
}

#[test]
fn an_octal_mode_stays_what_kubectl_takes_it_for() {
    let with_mode = DEPLOYMENT.replace(
        "      containers:",
        "      volumes: [{name: v, configMap: {name: c, defaultMode: 0444}}]\n      containers:",
    );
    let yaml = injected(&with_mode).yaml;
    let spec = &documents(&yaml)[0]["spec"]["template"]["spec"];
    assert_eq!(spec["volumes"][0]["configMap"]["defaultMode"], 0o444);
}

#[test]
fn what_is_no_manifest_is_refused_with_its_place() {
    let error = inject("a: 1\n---\nb: [\n", &surroundings(), String::new).unwrap_err();
    assert!(error.starts_with("document 2: "), "{error}");
    assert_eq!(injected("# nothing\n---\n").yaml, "");
}

proptest! {
    #[test]
    fn a_text_that_looks_like_something_else_stays_a_text(text in "[0-9a-z:_.+~<=\\-]{0,12}") {
        let document = json!({ "args": [text], "more": { "n": 1, "f": 1.5, "b": true, "z": null } });
        let again: Value = serde_saphyr::from_str(&written(&document).unwrap()).unwrap();
        prop_assert_eq!(again, document);
    }
}

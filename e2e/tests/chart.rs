//! The chart, rendered with all its value sets: what it makes, what it refuses, and that nothing in it is more than a
//! component needs. That it installs, upgrades and goes away is shown on a cluster (`e2e/run`).
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;

use clap::Parser;
use postern_e2e::chart::{self, VALUE_SETS, name, of_kind, render, strings, try_render};
use postern_e2e::requires;
use postern_injector::inject::Settings;
use serde_json::{Value, json};

/// Namespaces that no webhook may ever see.
const NEVER: [&str; 4] = ["postern-system", "kube-system", "kube-public", "kube-node-lease"];

#[test]
fn helm_lint_finds_no_fault_with_any_value_set() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let values = format!("charts/postern/ci/values-{set}.yaml");
        let mut arguments = vec!["lint", "charts/postern", "--strict", "--kube-version", "1.36.2"];
        arguments.extend(["--namespace", chart::NAMESPACE]);
        if set != "defaults" {
            arguments.extend(["--values", &values]);
        }
        let out = chart::helm(&arguments);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{set}: {said}");
        assert!(!said.contains("[WARNING]"), "{set}: {said}");
    }
}

#[test]
fn an_unknown_key_is_refused_at_every_level_and_named() {
    if !requires(&["helm"], false) {
        return;
    }
    for (key, said) in [
        ("replicaCount=3", "'replicaCount' not allowed"),
        ("ca.replica=3", "'replica' not allowed"),
        ("ca.broughtIssuer.secret=x", "'secret' not allowed"),
        ("federation.bundleEndpoint.port=1", "'port' not allowed"),
        (
            "federation.relationships[0].trustDomain=b.example,federation.relationships[0].trustDomainBundleFile=x",
            "'trustDomainBundleFile' not allowed",
        ),
        ("injector.webhook.failurePolicy=Ignore", "'failurePolicy' not allowed"),
        ("proxy.resources.limits.gpu=1", "'gpu' not allowed"),
        ("networkPolicies.egress.ports=1", "'ports' not allowed"),
        ("metrics.podMonitor.on=true", "'on' not allowed"),
        ("crds.Keep=true", "'Keep' not allowed"),
    ] {
        let refused = try_render("defaults", &["--set", key]).unwrap_err();
        assert!(refused.contains(said), "{key}: {refused}");
    }
}

#[test]
fn a_value_past_its_bounds_is_refused() {
    if !requires(&["helm"], false) {
        return;
    }
    for (value, place) in [
        ("ca.replicas=0", "/ca/replicas"),
        ("injector.webhook.timeoutSeconds=31", "/injector/webhook/timeoutSeconds"),
        ("ca.svidLife=4", "/ca/svidLife"),
        ("trustDomain=Prod", "/trustDomain"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.digests.ca=sha256:1", "/image/digests/ca"),
        ("proxy.accessLog=some", "/proxy/accessLog"),
        ("bindAddress=10.0.0.1", "/bindAddress"),
        ("federation.longestPollSeconds=0", "/federation/longestPollSeconds"),
        ("federation.longestPollSeconds=86401", "/federation/longestPollSeconds"),
        (
            "federation.relationships[0].trustDomain=b.example,federation.relationships[0].bundleEndpointURL=http://b.example/",
            "/federation/relationships/0/bundleEndpointURL",
        ),
    ] {
        let refused = try_render("defaults", &["--set", value]).unwrap_err();
        assert!(refused.contains(place), "{value}: {refused}");
    }
}

/// Every object of the schema says which keys it has, and every default value is in it.
#[test]
fn the_schema_leaves_no_object_open_and_knows_every_default() {
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(chart::directory().join("values.schema.json")).unwrap()).unwrap();
    // `global` is Helm's own; what is in a pod's affinity is the API server's to check.
    let open = ["global", "nodeAffinity", "podAffinity", "podAntiAffinity"];
    let mut faults = Vec::new();
    closed("", &schema, &open, &mut faults);
    assert!(faults.is_empty(), "additionalProperties is not false: {faults:?}");

    let values = fs::read_to_string(chart::directory().join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    known("", &values, &schema, &schema, &mut faults);
    assert!(faults.is_empty(), "{faults:?}");
}

fn closed(path: &str, schema: &Value, open: &[&str], faults: &mut Vec<String>) {
    let last = path.rsplit('/').next().unwrap_or_default();
    if schema["type"] == "object" && !open.contains(&last) {
        let additional = &schema["additionalProperties"];
        // A map of strings, such as labels, has any key.
        if additional != &json!(false) && additional != &json!({"type": "string"}) {
            faults.push(path.to_owned());
        }
    }
    if let Value::Object(fields) = schema {
        for (key, value) in fields {
            closed(&format!("{path}/{key}"), value, open, faults);
        }
    }
}

fn known(path: &str, value: &Value, schema: &Value, root: &Value, faults: &mut Vec<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    let (Value::Object(fields), Some(properties)) = (value, schema["properties"].as_object()) else {
        return;
    };
    for key in properties
        .keys()
        .filter(|key| !fields.contains_key(*key) && *key != "global")
    {
        // Resources have what they have.
        if !path.contains("/resources") && schema["description"].is_null() {
            faults.push(format!("{path}/{key} has no default in values.yaml"));
        }
    }
    for (key, value) in fields {
        match properties.get(key) {
            Some(schema) => known(&format!("{path}/{key}"), value, schema, root, faults),
            None => faults.push(format!("{path}/{key} is not in the schema")),
        }
    }
}

#[test]
fn every_value_has_a_comment_or_a_neighbour_that_has_one() {
    let values = fs::read_to_string(chart::directory().join("values.yaml")).unwrap();
    for block in values.split("\n\n").skip(1) {
        assert!(
            block.contains('#') || block.starts_with("control:"),
            "nothing is said about:\n{block}"
        );
    }
}

#[test]
fn another_namespace_is_refused_with_the_command_that_is_right() {
    if !requires(&["helm"], false) {
        return;
    }
    let refused = try_render("defaults", &["--namespace", "mesh"]).unwrap_err();
    assert!(
        refused.contains("Postern lives in the namespace postern-system"),
        "{refused}"
    );
    assert!(
        refused.contains("--namespace postern-system --create-namespace"),
        "{refused}"
    );
}

#[test]
fn a_brought_issuer_is_one_secret_mounted_whole_and_the_ca_is_told_where() {
    if !requires(&["helm"], false) {
        return;
    }
    let external = "ca.broughtIssuer.externalSecret.enabled=true";
    let refused = try_render("defaults", &["--set", external]).unwrap_err();
    assert!(
        refused.contains("externalSecret.storeName: name the SecretStore"),
        "{refused}"
    );
    let two = format!("{external},ca.broughtIssuer.externalSecret.storeName=x,ca.broughtIssuer.secretName=y");
    let refused = try_render("defaults", &["--set", &two]).unwrap_err();
    assert!(
        refused.contains("set secretName, or externalSecret.enabled, not both"),
        "{refused}"
    );
    let issuer = |objects: &[Value]| -> Option<String> {
        let mut deployments = of_kind(objects, "Deployment");
        let ca = deployments.find(|it| it["metadata"]["name"] == "postern-ca").unwrap();
        let pod = &ca["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|it| it["name"] == "issuer").map(|it| &it["secret"]);
        let container = &pod["containers"][0];
        let mounts = container["volumeMounts"].as_array().unwrap();
        let told = strings(&container["args"]).contains(&"--issuer-dir=/etc/postern/issuer");
        let mount = json!({"name": "issuer", "mountPath": "/etc/postern/issuer", "readOnly": true});
        assert_eq!((told, mounts.contains(&mount)), (volume.is_some(), volume.is_some()));
        let volume = volume?;
        // Whole: with `items` or `subPath` a swap would not be one of all files.
        assert_eq!(
            volume,
            &json!({"secretName": volume["secretName"], "defaultMode": 0o440})
        );
        Some(volume["secretName"].as_str().unwrap().to_owned())
    };
    let named = try_render("defaults", &["--set", "ca.broughtIssuer.secretName=mesh-issuer"]).unwrap();
    assert_eq!(issuer(&named).as_deref(), Some("mesh-issuer"));
    assert_eq!(of_kind(&named, "ExternalSecret").count(), 0);
    let all = render("everything");
    assert_eq!(of_kind(&all, "ExternalSecret").count(), 1);
    assert_eq!(issuer(&all).as_deref(), Some("postern-ca-issuer"));
    for set in ["defaults", "minimal", "ha"] {
        let objects = render(set);
        assert_eq!(of_kind(&objects, "ExternalSecret").count(), 0, "{set}");
        assert_eq!(issuer(&objects), None, "{set}");
    }
}

#[test]
fn the_cas_key_is_a_mounted_secret_or_a_socket_of_the_node_and_not_both() {
    if !requires(&["helm"], false) {
        return;
    }
    let pod = |more: &str| -> Value {
        let objects = try_render("defaults", &["--set", more]).unwrap();
        let mut deployments = of_kind(&objects, "Deployment");
        let ca = deployments.find(|it| it["metadata"]["name"] == "postern-ca").unwrap();
        ca["spec"]["template"]["spec"].clone()
    };
    let has = |pod: &Value, argument: &str| {
        let arguments = pod["containers"][0]["args"].as_array().unwrap();
        arguments.iter().any(|it| it.as_str().unwrap().starts_with(argument))
    };
    let none = pod("ca.replicas=1");
    assert!(
        !["--kek-file", "--kms-socket", "--migrate"]
            .iter()
            .any(|it| has(&none, it))
    );
    let file = pod("ca.kek.secretName=keys,ca.kek.migrate=true");
    assert!(has(&file, "--kek-file=/etc/postern/kek/kek") && has(&file, "--migrate"));
    let volume = json!({"secretName": "keys", "defaultMode": 0o440, "items": [{"key": "kek", "path": "kek"}]});
    assert_eq!(file["volumes"][1]["secret"], volume);
    let kms = pod("ca.kek.kmsSocket=/run/kms/socket.sock");
    assert!(has(&kms, "--kms-socket=/run/kms/socket.sock"));
    assert_eq!(
        kms["volumes"][1]["hostPath"],
        json!({"path": "/run/kms", "type": "Directory"})
    );
    let both = "ca.kek.secretName=kek,ca.kek.kmsSocket=/run/kms/socket.sock";
    let refused = try_render("defaults", &["--set", both]).unwrap_err();
    assert!(refused.contains("not both"), "{refused}");
}

/// The pod's spec of control, and the arguments for other trust domains.
fn control_of(objects: &[Value]) -> (Value, Vec<String>) {
    let mut deployments = of_kind(objects, "Deployment");
    let control = deployments.find(|it| name(it) == "postern-control").unwrap();
    let pod = control["spec"]["template"]["spec"].clone();
    let arguments = strings(&pod["containers"][0]["args"]).into_iter();
    let federated = arguments.filter(|it| it.starts_with("--federation-") || it.starts_with("--bundle-endpoint-"));
    let federated = federated.map(str::to_owned).collect();
    (pod, federated)
}

#[test]
fn other_trust_domains_are_a_file_that_control_watches_and_what_it_keeps_of_them() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in ["defaults", "minimal", "ha"] {
        let (pod, arguments) = control_of(&render(set));
        assert!(arguments.is_empty(), "{set}: {arguments:?}");
        assert_eq!(pod["volumes"].as_array().unwrap().len(), 2, "{set}");
    }
    let objects = render("everything");
    let file = of_kind(&objects, "ConfigMap").find(|it| name(it) == "postern-federation");
    let file = file.unwrap()["data"]["federation.yaml"].as_str().unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(file).unwrap();
    let documents: Vec<&Value> = documents.iter().filter(|document| !document.is_null()).collect();
    let values = fs::read_to_string(chart::directory().join("ci/values-everything.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let given = values["federation"]["relationships"].as_array().unwrap();
    assert_eq!(documents.len(), given.len());
    for (document, given) in documents.into_iter().zip(given) {
        assert_eq!(document["apiVersion"], "postern.dev/v1alpha1");
        assert_eq!(document["kind"], "ClusterFederatedTrustDomain");
        assert_eq!(
            (&document["metadata"]["name"], &document["spec"]),
            (&given["trustDomain"], given)
        );
    }
    let volume = |pod: &Value, name: &str| {
        let volumes = pod["volumes"].as_array().unwrap();
        volumes
            .iter()
            .find(|volume| volume["name"] == name)
            .cloned()
            .unwrap_or_default()
    };
    let mounted = |pod: &Value, name: &str| {
        let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
        mounts
            .iter()
            .find(|mount| mount["name"] == name)
            .cloned()
            .unwrap_or_default()
    };
    let (pod, arguments) = control_of(&objects);
    assert_eq!(
        volume(&pod, "federation")["configMap"],
        json!({"name": "postern-federation"})
    );
    let whole = json!({"name": "federation", "mountPath": "/etc/federation", "readOnly": true});
    assert_eq!(
        mounted(&pod, "federation"),
        whole,
        "with a subPath a change would never arrive"
    );
    let claim = json!({"claimName": "federation-cache"});
    assert_eq!(volume(&pod, "federation-cache")["persistentVolumeClaim"], claim);
    assert_eq!(
        mounted(&pod, "federation-cache"),
        json!({"name": "federation-cache", "mountPath": "/var/cache/postern"})
    );
    assert_eq!(volume(&pod, "federation-ca")["secret"]["secretName"], "federation-ca");
    for argument in [
        "--federation-file=/etc/federation/federation.yaml",
        "--federation-cache=/var/cache/postern/federation",
        "--federation-longest-poll=600",
        "--federation-ca-file=/etc/federation-ca/ca.crt",
    ] {
        assert!(arguments.iter().any(|it| it == argument), "{argument}: {arguments:?}");
    }
    // By somebody else's ConfigMap, and a cache that goes with the pod.
    let objects = try_render("defaults", &["--set", "federation.configMapName=theirs"]).unwrap();
    let (pod, _) = control_of(&objects);
    assert_eq!(volume(&pod, "federation")["configMap"], json!({"name": "theirs"}));
    assert_eq!(
        volume(&pod, "federation-cache")["emptyDir"],
        json!({"sizeLimit": "16Mi"})
    );
    assert!(of_kind(&objects, "ConfigMap").all(|it| name(it) != "postern-federation"));
    for (more, why) in [
        (
            "federation.configMapName=x,federation.relationships[0].trustDomain=b.example,federation.relationships[0].trustDomainBundle=x",
            "not both",
        ),
        (
            "federation.relationships[0].trustDomain=cluster.local,federation.relationships[0].trustDomainBundle=x",
            "is our own trust domain",
        ),
        (
            "trustDomainAliases[0]=old.example,federation.relationships[0].trustDomain=old.example,federation.relationships[0].trustDomainBundle=x",
            "another name of it",
        ),
        (
            "federation.relationships[0].trustDomain=b.example,federation.relationships[0].trustDomainBundle=x,federation.relationships[1].trustDomain=b.example,federation.relationships[1].trustDomainBundle=y",
            "twice",
        ),
        ("federation.bundleEndpoint=null", "an older chart"),
    ] {
        let refused = try_render("defaults", &["--set", more]).unwrap_err();
        assert!(refused.contains(why), "{more}: {refused}");
    }
}

#[test]
fn our_bundle_is_served_on_a_port_for_each_proof_and_a_service_leads_there() {
    if !requires(&["helm"], false) {
        return;
    }
    let spiffe = "federation.bundleEndpoint.spiffe=true";
    let web = "federation.bundleEndpoint.webSecretName=tls";
    for (more, wanted) in [
        ("ca.replicas=2".to_owned(), vec![]),
        (spiffe.to_owned(), vec![(8_443, 15_013)]),
        (web.to_owned(), vec![(443, 15_014)]),
        (format!("{spiffe},{web}"), vec![(8_443, 15_013), (443, 15_014)]),
    ] {
        let objects = try_render("defaults", &["--set", &more]).unwrap();
        let service = of_kind(&objects, "Service").find(|it| name(it) == "postern-bundle");
        let ports = service
            .and_then(|it| it["spec"]["ports"].as_array())
            .into_iter()
            .flatten();
        let ports: Vec<_> = ports
            .map(|it| (it["port"].as_u64().unwrap(), it["targetPort"].as_u64().unwrap()))
            .collect();
        assert_eq!(ports, wanted, "{more}");
        let (pod, arguments) = control_of(&objects);
        let listening = |port: u64| {
            arguments
                .iter()
                .any(|it| it.ends_with(&format!("-listen=0.0.0.0:{port}")))
        };
        let policy = of_kind(&objects, "NetworkPolicy")
            .find(|it| name(it) == "postern-control")
            .unwrap();
        let reached = policy["spec"]["ingress"][0]["ports"].as_array().unwrap();
        let declared = pod["containers"][0]["ports"].as_array().unwrap();
        for port in [15_013, 15_014] {
            let is_served = wanted.iter().any(|(_, target)| *target == port);
            assert_eq!(listening(port), is_served, "{more}");
            assert_eq!(reached.iter().any(|it| it["port"] == port), is_served, "{more}");
            assert_eq!(
                declared.iter().any(|it| it["containerPort"] == port),
                is_served,
                "{more}"
            );
        }
        let Some(service) = service else { continue };
        let deployment = of_kind(&objects, "Deployment")
            .find(|it| name(it) == "postern-control")
            .unwrap();
        assert_eq!(
            service["spec"]["selector"],
            deployment["spec"]["selector"]["matchLabels"]
        );
    }
    // What control calls is let out, where that is restricted.
    let out = |more: &str| {
        let more = format!("networkPolicies.egress.enabled=true,{more}");
        let objects = try_render("defaults", &["--set", &more]).unwrap();
        let policies = of_kind(&objects, "NetworkPolicy");
        let of_whom: Vec<String> = policies
            .filter(|policy| policy["spec"]["egress"].to_string().contains("8443"))
            .map(|policy| name(policy).to_owned())
            .collect();
        of_whom
    };
    assert_eq!(out("federation.configMapName=x"), ["postern-control"]);
    assert!(out(spiffe).is_empty());
}

#[test]
fn chart_and_images_have_the_version_of_the_workspace() {
    let read = |path: &str| fs::read_to_string(chart::root().join(path)).unwrap();
    let chart: Value = serde_saphyr::from_str(&read("charts/postern/Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_pod_is_restricted_and_can_write_nowhere() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let objects = render(set);
        let deployments = of_kind(&objects, "Deployment").map(|d| (name(d), &d["spec"]["template"]));
        let pods: Vec<_> = deployments
            .chain(of_kind(&objects, "Pod").map(|p| (name(p), p)))
            .collect();
        assert!(pods.len() >= 3, "{set}");
        for (name, pod) in pods {
            let spec = &pod["spec"];
            for field in [
                "hostNetwork",
                "hostPID",
                "hostIPC",
                "hostUsers",
                "initContainers",
                "ephemeralContainers",
            ] {
                assert!(spec[field].is_null(), "{set} {name} has {field}");
            }
            let context = &spec["securityContext"];
            assert_eq!(context["runAsNonRoot"], true, "{set} {name}");
            assert_eq!(
                (&context["runAsUser"], &context["runAsGroup"]),
                (&json!(15_371), &json!(15_371)),
                "{set} {name}"
            );
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{set} {name}");
            for container in spec["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{set} {name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{set} {name}");
                assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{set} {name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{set} {name}");
                assert!(
                    context["privileged"].is_null() && context["runAsUser"].is_null(),
                    "{set} {name}"
                );
            }
            // A claim is for the bundles of other trust domains alone.
            let mut allowed = vec!["name", "emptyDir", "configMap", "projected", "secret"];
            if (set, name) == ("everything", "postern-control") {
                allowed.push("persistentVolumeClaim");
            }
            for volume in spec["volumes"].as_array().into_iter().flatten() {
                let kinds: BTreeSet<&str> = volume.as_object().unwrap().keys().map(String::as_str).collect();
                assert!(
                    kinds.iter().all(|kind| allowed.contains(kind)),
                    "{set} {name}: {kinds:?}"
                );
            }
        }
    }
}

#[test]
fn every_component_is_probed_spread_budgeted_and_told_apart_from_the_mesh() {
    if !requires(&["helm"], false) {
        return;
    }
    let objects = render("defaults");
    let deployments: Vec<&Value> = of_kind(&objects, "Deployment").collect();
    assert_eq!(deployments.len(), 3);
    for deployment in deployments {
        let name = name(deployment);
        let (spec, pod) = (&deployment["spec"], &deployment["spec"]["template"]);
        assert_eq!(spec["replicas"], 2, "{name}");
        assert_eq!(
            spec["strategy"]["rollingUpdate"],
            json!({"maxUnavailable": 0, "maxSurge": 1}),
            "{name}"
        );
        // Whatever becomes of the namespace's exclusion.
        assert_eq!(pod["metadata"]["labels"]["postern.dev/inject"], "disabled", "{name}");
        let container = &pod["spec"]["containers"][0];
        for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
            assert_eq!(
                container[probe]["httpGet"],
                json!({"path": path, "port": 15_020}),
                "{name}"
            );
        }
        let spread = pod["spec"]["topologySpreadConstraints"].as_array().unwrap();
        assert_eq!(spread.len(), 2, "{name}");
        let selector = &spec["selector"]["matchLabels"];
        assert!(
            spread.iter().all(|s| &s["labelSelector"]["matchLabels"] == selector),
            "{name}"
        );
        // Selectors select their own pods only.
        for kind in ["PodDisruptionBudget", "NetworkPolicy", "Service"] {
            let found = of_kind(&objects, kind).find(|o| chart::name(o) == name).unwrap();
            let spec = &found["spec"];
            let selects = [
                &spec["selector"]["matchLabels"],
                &spec["podSelector"]["matchLabels"],
                &spec["selector"],
            ];
            assert!(selects.contains(&selector), "{kind} {name}");
        }
        let budget = of_kind(&objects, "PodDisruptionBudget")
            .find(|o| chart::name(o) == name)
            .unwrap();
        assert_eq!(budget["spec"]["maxUnavailable"], 1, "{name}");
        assert!(
            budget["spec"]["minAvailable"].is_null(),
            "{name}: would block the drain of a single replica's node"
        );
    }
}

/// I-5: a dead injector stops pods of labelled namespaces, and nothing else.
#[test]
fn i_5_no_webhook_sees_the_meshs_own_namespace_or_the_clusters() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let objects = render(set);
        for (kind, expected) in [
            ("MutatingWebhookConfiguration", 2),
            ("ValidatingWebhookConfiguration", 4),
        ] {
            let [configuration] = of_kind(&objects, kind).collect::<Vec<_>>().try_into().unwrap();
            let webhooks = configuration["webhooks"].as_array().unwrap();
            assert_eq!(webhooks.len(), expected, "{set} {kind}");
            for webhook in webhooks {
                let name = webhook["name"].as_str().unwrap();
                assert_eq!(webhook["failurePolicy"], "Fail", "{name}");
                assert_eq!(webhook["sideEffects"], "None", "{name}");
                assert_eq!(webhook["matchPolicy"], "Equivalent", "{name}");
                assert!(
                    (1..=30).contains(&webhook["timeoutSeconds"].as_u64().unwrap()),
                    "{name}"
                );
                // The injector's to write: were it here, an upgrade would take it back.
                assert!(webhook["clientConfig"]["caBundle"].is_null(), "{name}");
                let resources: Vec<&str> = webhook["rules"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .flat_map(|r| strings(&r["resources"]))
                    .collect();
                if resources
                    == [
                        "authorizationpolicies",
                        "authorizers",
                        "requestauthentications",
                        "peerauthentications",
                    ]
                {
                    // Holds up policies, never pods.
                    continue;
                }
                assert!(
                    resources
                        .iter()
                        .all(|r| ["pods", "pods/ephemeralcontainers"].contains(r)),
                    "{name}"
                );
                let by_name = webhook["namespaceSelector"]["matchExpressions"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|e| e["key"] == "kubernetes.io/metadata.name")
                    .unwrap();
                assert_eq!(by_name["operator"], "NotIn", "{name}");
                let excluded = strings(&by_name["values"]);
                assert!(NEVER.iter().all(|n| excluded.contains(n)), "{name}: {excluded:?}");
            }
        }
        let [mutating] = of_kind(&objects, "MutatingWebhookConfiguration")
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        for webhook in mutating["webhooks"].as_array().unwrap() {
            assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
            assert_eq!(strings(&webhook["rules"][0]["operations"]), ["CREATE"]);
        }
    }
}

/// Each combination of labels is seen by exactly the entries that it should be, and by one at most.
#[test]
fn a_pods_label_overrides_its_namespaces_and_no_pod_is_seen_twice() {
    if !requires(&["helm"], false) {
        return;
    }
    let objects = render("defaults");
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let [configuration] = of_kind(&objects, kind).collect::<Vec<_>>().try_into().unwrap();
        for namespace in ["shop", "postern-system", "kube-system"] {
            for namespace_label in [None, Some("enabled"), Some("disabled")] {
                for pod_label in [None, Some("enabled"), Some("disabled")] {
                    let seen = configuration["webhooks"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .filter(|w| w["rules"][0]["resources"][0] == "pods")
                        .filter(|w| {
                            selects(&w["namespaceSelector"], namespace, namespace_label)
                                && selects(&w["objectSelector"], "", pod_label)
                        })
                        .count();
                    let wanted = namespace == "shop"
                        && match pod_label {
                            Some(label) => label == "enabled",
                            None => namespace_label == Some("enabled"),
                        };
                    assert_eq!(
                        seen,
                        usize::from(wanted),
                        "{kind} {namespace} {namespace_label:?} {pod_label:?}"
                    );
                }
            }
        }
    }
}

fn selects(selector: &Value, name: &str, inject: Option<&str>) -> bool {
    selector["matchExpressions"]
        .as_array()
        .unwrap()
        .iter()
        .all(|expression| {
            let value = match expression["key"].as_str().unwrap() {
                "kubernetes.io/metadata.name" => Some(name),
                "postern.dev/inject" => inject,
                other => panic!("{other}"),
            };
            let among = value.is_some_and(|value| strings(&expression["values"]).contains(&value));
            match expression["operator"].as_str().unwrap() {
                "In" => among,
                "NotIn" => !among,
                other => panic!("{other}"),
            }
        })
}

/// Helm takes back what a template says: what components write is not in one.
#[test]
fn what_components_fill_is_made_empty() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let objects = render(set);
        for (kind, expected) in [
            (
                "Secret",
                vec!["postern-ca", "postern-control-tls", "postern-injector-tls"],
            ),
            ("Lease", vec!["postern-ca", "postern-control"]),
        ] {
            let mut found: Vec<&str> = of_kind(&objects, kind).map(name).collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{set}");
        }
        let filled = of_kind(&objects, "Secret").chain(of_kind(&objects, "Lease"));
        for object in filled.chain(of_kind(&objects, "ConfigMap").filter(|c| name(c) == "postern-ca-roots")) {
            for field in ["data", "stringData", "spec", "immutable"] {
                assert!(object[field].is_null(), "{set}: {} has {field}", name(object));
            }
        }
        let [service] = of_kind(&objects, "APIService").collect::<Vec<_>>().try_into().unwrap();
        assert!(service["spec"]["caBundle"].is_null() && service["spec"]["insecureSkipTLSVerify"].is_null());
    }
}

#[test]
fn resource_definitions_are_upgraded_and_taken_away_and_kept_if_asked() {
    if !requires(&["helm"], false) {
        return;
    }
    let kept = |objects: &[Value]| {
        let all = of_kind(objects, "CustomResourceDefinition");
        all.map(|crd| crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep")
            .collect::<Vec<_>>()
    };
    assert_eq!(kept(&render("defaults")), [false; 4]);
    assert_eq!(kept(&render("everything")), [true; 4]);
    assert!(
        !chart::directory().join("crds").exists(),
        "Helm neither upgrades nor removes what is in crds/"
    );
    let without = try_render("defaults", &["--set", "crds.install=false"]).unwrap();
    assert_eq!(of_kind(&without, "CustomResourceDefinition").count(), 0);
}

/// Every argument of a Deployment is one that its component takes, with a value that it takes.
#[test]
fn components_understand_the_arguments_that_they_are_given() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let objects = render(set);
        let pods = of_kind(&objects, "Deployment").map(|deployment| &deployment["spec"]["template"]["spec"]);
        for pod in pods.chain(of_kind(&objects, "Pod").map(|pod| &pod["spec"])) {
            for container in pod["containers"].as_array().unwrap() {
                let name = container["name"].as_str().unwrap();
                let line = [vec![name], strings(&container["args"])].concat();
                let parsed = match name {
                    "postern-ca" => postern_ca::Cli::try_parse_from(&line).map(drop),
                    "postern-control" => postern_control::Cli::try_parse_from(&line).map(drop),
                    "postern-injector" => postern_injector::Cli::try_parse_from(&line).map(drop),
                    other => panic!("no such component: {other}"),
                };
                assert!(parsed.is_ok(), "{set} {line:?}: {}", parsed.unwrap_err());
            }
        }
    }
}

/// What the chart writes for the injector is what the injector reads, for every set of values and numbers for quantities.
#[test]
fn the_injector_takes_the_settings_that_it_is_given() {
    if !requires(&["helm"], false) {
        return;
    }
    let settings = |objects: &[Value]| {
        let found = of_kind(objects, "ConfigMap")
            .find(|c| name(c) == "postern-injector")
            .unwrap();
        let text = found["data"]["settings.json"].as_str().unwrap();
        Settings::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    for set in VALUE_SETS {
        settings(&render(set));
    }
    let all = settings(&render("everything"));
    assert_eq!(
        all.image,
        format!(
            "registry.example/postern/postern-proxy:0.1.0-rc.1@sha256:{}",
            "0".repeat(64)
        )
    );
    assert_eq!(
        (all.trust_domain.as_str(), all.proxy.drain_seconds),
        ("prod.example", 10)
    );
    assert!(all.metrics.mutual_tls && all.metrics.annotations);
    let numbers = ["--set", "proxy.resources.requests.cpu=1,proxy.resources.limits.cpu=1.5"];
    let numbers = settings(&try_render("defaults", &numbers).unwrap()).proxy.resources;
    assert_eq!((&*numbers.requests["cpu"], &*numbers.limits["cpu"]), ("1", "1.5"));
    assert_eq!(&*numbers.limits["memory"], "128Mi", "the rest stays");
}

#[test]
fn images_are_named_once_and_pinned_if_asked() {
    if !requires(&["helm"], false) {
        return;
    }
    let image = |objects: &[Value], component: &str| {
        let found = of_kind(objects, "Deployment").find(|d| name(d) == component).unwrap();
        found["spec"]["template"]["spec"]["containers"][0]["image"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let version = env!("CARGO_PKG_VERSION");
    let objects = render("defaults");
    for component in ["postern-ca", "postern-control", "postern-injector"] {
        assert_eq!(
            image(&objects, component),
            format!("localhost/postern/{component}:{version}")
        );
    }
    let digest = "sha256:".to_owned() + &"a".repeat(64);
    let pinned = try_render("defaults", &["--set", &format!("image.digests.ca={digest}")]).unwrap();
    assert_eq!(
        image(&pinned, "postern-ca"),
        format!("localhost/postern/postern-ca:{version}@{digest}")
    );
}

/// What the chart gives Grafana and the operator is what is in the tree for everybody else.
#[test]
fn dashboards_and_alerts_in_the_chart_are_the_files_of_the_tree() {
    if !requires(&["helm"], false) {
        return;
    }
    let objects = render("everything");
    let read = |path: &str| fs::read_to_string(chart::root().join(path)).unwrap();
    let dashboards = of_kind(&objects, "ConfigMap")
        .find(|c| name(c) == "postern-dashboards")
        .unwrap();
    let shown: Value = serde_json::from_str(dashboards["data"]["postern-mesh.json"].as_str().unwrap()).unwrap();
    let file: Value = serde_json::from_str(&read("examples/grafana/postern-mesh.json")).unwrap();
    assert_eq!(shown, file);
    let [rule] = of_kind(&objects, "PrometheusRule")
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let file: Value = serde_saphyr::from_str(&read("charts/postern/files/alerts.yaml")).unwrap();
    assert_eq!(rule["spec"], file);
}

/// Who may patch a pod, or make one outside of the mesh, gets no proxy's identity: the API server itself refuses.
#[test]
fn policies_of_admission_keep_proxies_images_and_the_cas_tokens_and_ask_nobody() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let objects = render(set);
        let policies: Vec<&Value> = of_kind(&objects, "ValidatingAdmissionPolicy").collect();
        let names: BTreeSet<&str> = policies.iter().map(|policy| name(policy)).collect();
        assert_eq!(
            names,
            BTreeSet::from(["postern-ca-tokens", "postern-proxy-images"]),
            "{set}"
        );
        for policy in policies {
            let spec = &policy["spec"];
            assert_eq!(spec["failurePolicy"], "Fail", "{set}");
            assert!(spec["matchConditions"][0]["expression"].is_string(), "{set}");
            let selector = &spec["matchConstraints"]["namespaceSelector"]["matchExpressions"][0];
            assert_eq!(
                (&selector["operator"], strings(&selector["values"])),
                (&json!("NotIn"), NEVER.to_vec()),
                "{set}: no more and no less"
            );
        }
        let bindings = of_kind(&objects, "ValidatingAdmissionPolicyBinding");
        let bound: BTreeSet<&str> = bindings
            .filter(|binding| binding["spec"]["validationActions"] == json!(["Deny"]))
            .map(|binding| binding["spec"]["policyName"].as_str().unwrap())
            .collect();
        assert_eq!(bound, names, "{set}");
    }
    // The audience and the image are those of the sidecar.
    let objects = try_render("defaults", &["--set", "image.registry=registry.example:5000/mesh"]).unwrap();
    let tokens = of_kind(&objects, "ValidatingAdmissionPolicy").find(|policy| name(policy) == "postern-ca-tokens");
    let text = tokens.unwrap().to_string();
    assert!(text.contains("'registry.example:5000/mesh/postern-proxy:'"), "{text}");
    let injector = fs::read_to_string(chart::root().join("injector/src/inject/sidecar.rs")).unwrap();
    for (constant, value) in [("TOKEN_VOLUME", "postern-token"), ("AUDIENCE", "postern-ca")] {
        assert!(
            injector.contains(&format!("{constant}: &str = \"{value}\"")),
            "{constant}"
        );
        assert!(text.contains(&format!("'{value}'")), "{constant}");
    }
    assert!(
        text.contains("variables.own == 'enabled'") && text.contains("[\\\"postern-system"),
        "{text}"
    );
    // The API server knows them since 1.30.
    let older = try_render("defaults", &["--kube-version", "1.29.0"]).unwrap();
    assert_eq!(of_kind(&older, "ValidatingAdmissionPolicy").count(), 0);
}

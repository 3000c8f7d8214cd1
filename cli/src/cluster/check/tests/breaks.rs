//! One thing broken per check, in the order of the catalogue.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::json;

use super::super::facts::Facts;
use super::healthy::{VERSION, edge, healthy, minted, webhook};
use super::only;

/// `id, name: what the finding says, |facts| what is broken;`
macro_rules! breaks {
    ($($id:literal, $name:ident: $says:literal, |$facts:ident| $break:expr;)*) => {
        /// The checks that have a test here.
        pub(super) const BREAKS: &[&str] = &[$($id),*];
        $(
            pub(super) fn $name($facts: &mut Facts) {
                $break;
            }
        )*
        mod fails_alone {
            use super::*;
            $(
                #[test]
                fn $name() {
                    let mut facts = healthy();
                    super::$name(&mut facts);
                    only($id, $says, &facts);
                }
            )*
        }
    };
}

breaks! {
    "PC-001", pc_001: "version 1.28", |facts| facts.server.as_mut().unwrap().minor = 28;
    "PC-002", pc_002: "Node node-1: its kubelet is v1.28.9", |facts| node(facts).kubelet_version = "v1.28.9".to_owned();
    "PC-003", pc_003: "its kernel is 4.19.0", |facts| node(facts).kernel_version = "4.19.0-1".to_owned();
    "PC-004", pc_004: "names no CA of the front proxy", |facts| facts.front_proxy = Ok(None);
    "PC-005", pc_005: "its clock is 9", |facts| {
        let ahead = k8s_openapi::jiff::Timestamp::from_second(facts.now + 90).unwrap();
        let renewed = &mut facts.node_leases.as_mut().unwrap()[0].spec.as_mut().unwrap().renew_time;
        renewed.as_mut().unwrap().0 = ahead;
    };
    "PC-006", pc_006: "Namespace shop: Istio injects there too", |facts| label(facts, "istio-injection", "enabled");
    "PC-010", pc_010: "you may not create clusterroles", |facts| {
        let permissions = facts.permissions.as_mut().unwrap();
        permissions.iter_mut().find(|p| p.resource == "clusterroles").unwrap().allowed = false;
    };
    "PC-011", pc_011: "APIService v1.old.postern.dev", |facts| {
        let mut old = facts.api_services.as_ref().unwrap()[0].clone();
        old.metadata.name = Some("v1.old.postern.dev".to_owned());
        old.spec.as_mut().unwrap().service.as_mut().unwrap().name = Some("postern-old".to_owned());
        facts.api_services.as_mut().unwrap().push(old);
    };
    "PC-020", pc_020: "the mesh's own components are never in the mesh", |facts| {
        let system = &mut facts.namespaces.as_mut().unwrap()[0].metadata;
        system.labels.get_or_insert_default().insert("postern.dev/inject".to_owned(), "enabled".to_owned());
    };
    "PC-021", pc_021: "1 of 2 replicas", |facts| unready(facts, 0);
    "PC-022", pc_022: "Deployment postern-system/postern-control", |facts| unready(facts, 1);
    "PC-023", pc_023: "no pod of a meshed namespace is created", |facts| unready(facts, 2);
    "PC-024", pc_024: "1.2.3, 1.2.4", |facts| image_of(facts, 0, "registry:5000/postern/postern-ca:1.2.4");
    "PC-025", pc_025: "it is 0.9.0 and the mesh is 1.2.3", |facts| facts.version = "0.9.0".to_owned();
    "PC-026", pc_026: "no such pod", |facts| {
        let lease = facts.leases.as_mut().unwrap()[0].spec.as_mut().unwrap();
        lease.holder_identity = Some("gone".to_owned());
    };
    "PC-027", pc_027: "no PodDisruptionBudget", |facts| drop(facts.budgets.as_mut().unwrap().pop());
    "PC-028", pc_028: "its stream from the CA is not open", |facts| {
        facts.replicas.as_mut().unwrap()[0].body.ca_connected = false;
    };
    "PC-029", pc_029: "1 of 2 show what they know", |facts| drop(facts.replicas.as_mut().unwrap().pop());
    "PC-030", pc_030: "policies cannot be applied", |facts| drop(facts.crds.as_mut().unwrap().pop());
    "PC-031", pc_031: "no pod gets a proxy", |facts| facts.mutating.as_mut().unwrap().clear();
    "PC-032", pc_032: "a wrong policy is not refused", |facts| facts.validating.as_mut().unwrap().clear();
    "PC-033", pc_033: "failurePolicy is Ignore", |facts| {
        let mut open = webhook("namespace.inject.postern.dev", "pods", true);
        open["failurePolicy"] = json!("Ignore");
        facts.mutating.as_mut().unwrap()[0].webhooks = serde_json::from_value(json!([open])).unwrap();
    };
    "PC-034", pc_034: "it sees pods of kube-system", |facts| {
        let mut wide = webhook("namespace.inject.postern.dev", "pods", true);
        wide["namespaceSelector"]["matchExpressions"][1]["values"] = json!(["postern-system"]);
        facts.mutating.as_mut().unwrap()[0].webhooks = serde_json::from_value(json!([wide])).unwrap();
    };
    "PC-035", pc_035: "MutatingWebhookConfiguration postern-injector-old", |facts| {
        let mut old = facts.mutating.as_ref().unwrap()[0].clone();
        old.metadata.name = Some("postern-injector-old".to_owned());
        facts.mutating.as_mut().unwrap().push(old);
    };
    "PC-036", pc_036: "its caBundle lacks the CA", |facts| {
        let webhook = &mut facts.mutating.as_mut().unwrap()[0].webhooks.as_mut().unwrap()[0];
        webhook.client_config.ca_bundle = Some(ByteString(minted().other.clone().into_bytes()));
    };
    "PC-037", pc_037: "is not available (no endpoints)", |facts| {
        let status = facts.api_services.as_mut().unwrap()[0].status.as_mut().unwrap();
        let condition = &mut status.conditions.as_mut().unwrap()[0];
        condition.status = "False".to_owned();
        condition.message = Some("no endpoints".to_owned());
    };
    "PC-038", pc_038: "the API server does not believe control", |facts| {
        facts.api_services.as_mut().unwrap()[0].spec.as_mut().unwrap().ca_bundle = None;
    };
    "PC-039", pc_039: "postern-ca-tokens: it is not there, or does not deny everywhere", |facts| {
        let spec = facts.policy_bindings.as_mut().unwrap()[1].spec.as_mut().unwrap();
        spec.validation_actions = Some(vec!["Audit".to_owned()]);
    };
    "PC-040", pc_040: "postern-control-tls: its certificate expires in", |facts| {
        let data = facts.serving.as_mut().unwrap()[1].data.as_mut().unwrap();
        data.insert("tls.crt".to_owned(), ByteString(minted().ending.clone().into_bytes()));
    };
    "PC-041", pc_041: "expires in 7 days: with it ends", |facts| {
        let both = format!("{}{}", minted().ca, minted().ending_root);
        let hashes: Vec<String> = super::super::certificates::ders(both.as_bytes())
            .iter()
            .map(super::super::certificates::hex)
            .collect();
        roots(facts, "roots.pem", &both);
        roots(facts, "roots.sha256", &hashes.join(","));
        for replica in facts.replicas.as_mut().unwrap() {
            replica.body.roots_sha256.clone_from(&hashes);
        }
    };
    "PC-042", pc_042: "roots.sha256 is not that of the certificates", |facts| roots(facts, "roots.pem", &minted().other);
    "PC-043", pc_043: "new pods and old ones trust different roots", |facts| {
        facts.replicas.as_mut().unwrap()[1].body.roots_sha256.push("00".to_owned());
    };
    "PC-044", pc_044: "its issuer expires in 5 h", |facts| {
        facts.ca_metrics.as_mut().unwrap()[0].issuer_not_after = facts.now + 5 * 60 * 60 + 10;
    };
    "PC-045", pc_045: "its own certificate ends in 30 s", |facts| {
        let end = k8s_openapi::jiff::Timestamp::from_second(facts.now + 30).unwrap();
        facts.replicas.as_mut().unwrap()[0].body.not_after = Some(end.to_string());
    };
    "PC-046", pc_046: "it refuses the issuer that is mounted for it", |facts| {
        facts.ca_metrics.as_mut().unwrap()[0].brought_refused = true;
    };
    "PC-050", pc_050: "it is not accepted (Invalid): spec.rules[0]: unknown field", |facts| {
        let condition = &mut facts.policies.as_mut().unwrap()[0].status.conditions[0];
        condition.status = "False".to_owned();
        condition.reason = "Invalid".to_owned();
        condition.message = "spec.rules[0]: unknown field".to_owned();
    };
    "PC-051", pc_051: "1 of 2", |facts| {
        let condition = &mut facts.policies.as_mut().unwrap()[0].status.conditions[1];
        condition.status = "False".to_owned();
        condition.message = "1 of 2".to_owned();
    };
    "PC-052", pc_052: "Service/shop/web: selects no workload", |facts| {
        facts.replicas.as_mut().unwrap()[0].body.conditions.push("Service/shop/web: selects no workload".to_owned());
    };
    "PC-053", pc_053: "instance 1234 of spiffe://cluster.local/ns/shop/sa/web: CVE-2026-1, by jane", |facts| {
        let entry = "instance 1234 of spiffe://cluster.local/ns/shop/sa/web: CVE-2026-1, by jane";
        facts.replicas.as_mut().unwrap()[0].body.quarantined.push(entry.to_owned());
    };
    "PC-054", pc_054: "its ledger goes to standard output", |facts| {
        let ca = facts.deployments.as_mut().unwrap().iter_mut().find(|d| d.metadata.name.as_deref() == Some("postern-ca"));
        let spec = ca.unwrap().spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        spec.containers[0].args = Some(vec!["serve".to_owned(), "--state-secret=postern-system/postern-ca".to_owned()]);
    };
    "PC-060", pc_060: "Pod shop/web-7d4b9c6f5d-x2x7k: it has no proxy", |facts| {
        pod(facts).spec.as_mut().unwrap().init_containers = None;
    };
    "PC-061", pc_061: "not connected to control", |facts| facts.proxies.as_mut().unwrap()[0].body.connected = false;
    "PC-062", pc_062: "policies: too many", |facts| {
        facts.proxies.as_mut().unwrap()[0].body.refused = "policies: too many".to_owned();
    };
    "PC-063", pc_063: "its proxy is 1.5.0 and control is 1.2", |facts| {
        facts.proxies.as_mut().unwrap()[0].body.version = "1.5.0".to_owned();
    };
    "PC-064", pc_064: "from version 1.2.0; pods made now get 1.2.3", |facts| {
        annotate(facts, "postern.dev/injected", "1.2.0");
    };
    "PC-065", pc_065: "its certificate expires in", |facts| {
        let end = k8s_openapi::jiff::Timestamp::from_second(facts.now + 600).unwrap();
        facts.identities.as_mut().unwrap()[0].body.not_after = Some(end.to_string());
    };
    "PC-066", pc_066: "its last renewal failed (4 failures", |facts| {
        let identity = &mut facts.identities.as_mut().unwrap()[0].body;
        identity.renewal_failures = 4;
        identity.last_renewal_error = "the CA is away".to_owned();
    };
    "PC-067", pc_067: "it pins roots that the CA no longer has", |facts| {
        proxy_container(facts).args = Some(vec!["run".to_owned(), "--roots-sha256".to_owned(), "00,11".to_owned()]);
    };
    "PC-068", pc_068: "its proxy has restarted 5 times", |facts| {
        let status = pod(facts).status.as_mut().unwrap();
        status.init_container_statuses.as_mut().unwrap()[0].restart_count = 5;
    };
    "PC-069", pc_069: "its proxy is no sidecar", |facts| proxy_container(facts).restart_policy = None;
    "PC-070", pc_070: "it enforces Pod Security `restricted`", |facts| {
        label(facts, "pod-security.kubernetes.io/enforce", "restricted");
    };
    "PC-071", pc_071: "service account `default`", |facts| {
        pod(facts).spec.as_mut().unwrap().service_account_name = Some("default".to_owned());
    };
    "PC-072", pc_072: "on its node's network", |facts| {
        let mut host = pod(facts).clone();
        host.metadata.name = Some("agent".to_owned());
        let spec = host.spec.as_mut().unwrap();
        spec.host_network = Some(true);
        spec.init_containers = None;
        facts.pods.as_mut().unwrap().push(host);
    };
    "PC-073", pc_073: "container `app` runs as user 15371", |facts| {
        app_container(facts).security_context = serde_json::from_value(json!({ "runAsUser": 15371 })).unwrap();
    };
    "PC-074", pc_074: "container `app` may change its pod's network", |facts| {
        let context = json!({ "capabilities": { "add": ["NET_ADMIN"] } });
        app_container(facts).security_context = serde_json::from_value(context).unwrap();
    };
    "PC-075", pc_075: "nothing reads the label postern.dev/injekt; did you mean postern.dev/inject?", |facts| {
        label(facts, "postern.dev/injekt", "enabled");
    };
    "PC-076", pc_076: "Namespace shop: it is in discover", |facts| label(facts, "postern.dev/mode", "discover");
    "PC-077", pc_077: "ports 9000 are reached past its proxy", |facts| {
        annotate(facts, "postern.dev/skip-inbound-ports", "9000");
    };
    "PC-078", pc_078: "NetworkPolicy shop/egress", |facts| {
        let spec = facts.network_policies.as_mut().unwrap()[0].spec.as_mut().unwrap();
        spec.egress.as_mut().unwrap()[0].ports.as_mut().unwrap().pop();
    };
    "PC-079", pc_079: "ReplicaSet shop/web-7d4b9c6f5d: its pods cannot be created: admission webhook denied", |facts| {
        let failure = json!({ "type": "ReplicaFailure", "status": "True", "message": "admission webhook denied" });
        facts.replica_sets.as_mut().unwrap()[0].status.as_mut().unwrap().conditions =
            serde_json::from_value(json!([failure])).unwrap();
    };
    "PC-080", pc_080: "Service shop/web: it is a NodePort", |facts| {
        facts.services.as_mut().unwrap()[0].spec.as_mut().unwrap().type_ = Some("NodePort".to_owned());
    };
    "PC-081", pc_081: "Workload shop/cart, port 8080: 10 requests came in without TLS", |facts| {
        facts.edges.as_mut().unwrap().push(serde_json::from_value(edge("", "cart", false)).unwrap());
    };
    "PC-082", pc_082: "its proxy's image is elsewhere/postern-proxy:1.2.3", |facts| {
        proxy_container(facts).image = Some(format!("elsewhere/postern-proxy:{VERSION}"));
    };
}

fn node(facts: &mut Facts) -> &mut k8s_openapi::api::core::v1::NodeSystemInfo {
    facts.nodes.as_mut().unwrap()[0]
        .status
        .as_mut()
        .unwrap()
        .node_info
        .as_mut()
        .unwrap()
}

/// On the namespace that is in the mesh.
fn label(facts: &mut Facts, key: &str, value: &str) {
    let shop = facts
        .namespaces
        .as_mut()
        .unwrap()
        .iter_mut()
        .find(|space| space.metadata.name.as_deref() == Some("shop"));
    shop.unwrap()
        .metadata
        .labels
        .get_or_insert_default()
        .insert(key.to_owned(), value.to_owned());
}

fn unready(facts: &mut Facts, component: usize) {
    let deployment = &mut facts.deployments.as_mut().unwrap()[component];
    deployment.status.as_mut().unwrap().ready_replicas = Some(1);
}

fn image_of(facts: &mut Facts, component: usize, image: &str) {
    let spec = facts.deployments.as_mut().unwrap()[component].spec.as_mut().unwrap();
    spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
}

/// The pod of web.
fn pod(facts: &mut Facts) -> &mut Pod {
    facts
        .pods
        .as_mut()
        .unwrap()
        .iter_mut()
        .find(|pod| pod.metadata.name.as_deref() == Some("web-7d4b9c6f5d-x2x7k"))
        .unwrap()
}

fn annotate(facts: &mut Facts, key: &str, value: &str) {
    pod(facts)
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(key.to_owned(), value.to_owned());
}

fn proxy_container(facts: &mut Facts) -> &mut Container {
    &mut pod(facts).spec.as_mut().unwrap().init_containers.as_mut().unwrap()[1]
}

fn app_container(facts: &mut Facts) -> &mut Container {
    &mut pod(facts).spec.as_mut().unwrap().containers[0]
}

fn roots(facts: &mut Facts, key: &str, value: &str) {
    let map = facts.roots.as_mut().unwrap().as_mut().unwrap();
    map.data.as_mut().unwrap().insert(key.to_owned(), value.to_owned());
}

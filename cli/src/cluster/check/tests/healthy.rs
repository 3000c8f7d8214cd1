//! A cluster in which every check passes, as the API server would show it.

use std::sync::OnceLock;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::super::facts::{CaMetrics, Facts, Permission, Server};
use super::super::{before, certificates, gather};

/// The version of everything.
pub(super) const VERSION: &str = "1.2.3";

/// Certificates that the mesh has, as PEM.
pub(super) struct Minted {
    pub(super) ca: String,
    pub(super) leaf: String,
    /// A CA that nobody knows.
    pub(super) other: String,
    /// A leaf that has a twentieth of its life left.
    pub(super) ending: String,
    /// A root that ends within a week.
    pub(super) ending_root: String,
}

pub(super) fn minted() -> &'static Minted {
    static MINTED: OnceLock<Minted> = OnceLock::new();
    MINTED.get_or_init(|| {
        let day = 24 * 60 * 60;
        let (issuer, ca) = root("ca", 3650 * day);
        let (_, other) = root("other", 3650 * day);
        let (_, ending_root) = root("ending", 7 * day + day / 2);
        Minted {
            leaf: leaf(&issuer, -day, 30 * day),
            ending: leaf(&issuer, -19 * day, day),
            ca,
            other,
            ending_root,
        }
    })
}

fn root(name: &str, ends: i64) -> (Issuer<'static, KeyPair>, String) {
    let mut params = lasting(-60, ends);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn leaf(issuer: &Issuer<'static, KeyPair>, begins: i64, ends: i64) -> String {
    let key = KeyPair::generate().unwrap();
    lasting(begins, ends).signed_by(&key, issuer).unwrap().pem()
}

fn lasting(begins: i64, ends: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now + time::Duration::seconds(begins);
    params.not_after = now + time::Duration::seconds(ends);
    params
}

fn sha256(pem: &str) -> String {
    certificates::hex(&certificates::ders(pem.as_bytes())[0])
}

fn time(seconds: i64) -> String {
    k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap().to_string()
}

fn micro(seconds: i64) -> String {
    time(seconds).replace('Z', ".000000Z")
}

fn base64(text: &str) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap()
}

fn typed<T: serde::de::DeserializeOwned>(values: Value) -> T {
    serde_json::from_value(values).unwrap()
}

/// See the module.
pub(super) fn healthy() -> Facts {
    let now = gather::now();
    Facts {
        now,
        version: VERSION.to_owned(),
        namespace: None,
        server: Ok(Server { major: 1, minor: 33 }),
        nodes: Ok(typed(json!([{
            "metadata": { "name": "node-1" },
            "status": {
                "conditions": [{ "type": "Ready", "status": "True" }],
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "6.1.0-28-amd64",
                    "kubeProxyVersion": "", "kubeletVersion": "v1.33.1", "machineID": "", "operatingSystem": "linux",
                    "osImage": "", "systemUUID": "",
                },
            },
        }]))),
        node_leases: Ok(typed(json!([{
            "metadata": { "name": "node-1", "namespace": "kube-node-lease" },
            "spec": { "holderIdentity": "node-1", "renewTime": micro(now - 3) },
        }]))),
        permissions: Ok(before::INSTALLS
            .map(|(verb, group, resource)| Permission {
                verb,
                group,
                resource,
                allowed: true,
            })
            .into()),
        front_proxy: Ok(Some(typed(json!({
            "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
            "data": { "requestheader-client-ca-file": minted().other },
        })))),
        namespaces: Ok(typed(json!([
            { "metadata": { "name": "postern-system", "labels": { "kubernetes.io/metadata.name": "postern-system" } } },
            { "metadata": { "name": "kube-system", "labels": { "kubernetes.io/metadata.name": "kube-system" } } },
            { "metadata": { "name": "shop", "labels": { "postern.dev/inject": "enabled" } } },
            { "metadata": { "name": "other" } },
        ]))),
        crds: Ok(vec![
            established(include_str!(
                "../../../../../charts/postern/files/crd-authorizationpolicies.yaml"
            )),
            established(include_str!("../../../../../charts/postern/files/crd-authorizers.yaml")),
            established(include_str!(
                "../../../../../charts/postern/files/crd-requestauthentications.yaml"
            )),
            established(include_str!(
                "../../../../../charts/postern/files/crd-peerauthentications.yaml"
            )),
        ]),
        mutating: Ok(typed(json!([{
            "metadata": { "name": "postern-injector" },
            "webhooks": [webhook("namespace.inject.postern.dev", "pods", true)],
        }]))),
        validating: Ok(typed(json!([{
            "metadata": { "name": "postern-injector" },
            "webhooks": [
                webhook("namespace.validate.postern.dev", "pods", true),
                webhook("policies.validate.postern.dev", "authorizationpolicies", false),
            ],
        }]))),
        policy_bindings: Ok(typed(json!([
            binding("postern-proxy-images"),
            binding("postern-ca-tokens")
        ]))),
        api_services: Ok(typed(json!([{
            "metadata": { "name": "v1alpha1.view.postern.dev" },
            "spec": {
                "group": "view.postern.dev", "version": "v1alpha1", "groupPriorityMinimum": 1000, "versionPriority": 15,
                "caBundle": base64(&minted().ca),
                "service": { "namespace": "postern-system", "name": "postern-control" },
            },
            "status": { "conditions": [{ "type": "Available", "status": "True" }] },
        }]))),
        deployments: Ok(typed(json!([
            deployment("ca"),
            deployment("control"),
            deployment("injector")
        ]))),
        budgets: Ok(typed(json!([budget("ca"), budget("control"), budget("injector")]))),
        leases: Ok(typed(json!([lease("ca", now), lease("control", now)]))),
        roots: Ok(Some(typed(json!({
            "metadata": { "name": "postern-ca-roots", "namespace": "postern-system" },
            "data": { "roots.pem": minted().ca, "roots.sha256": sha256(&minted().ca), "trust-domain": "cluster.local" },
        })))),
        serving: Ok(typed(json!([
            serving("postern-injector-tls"),
            serving("postern-control-tls")
        ]))),
        ca_metrics: Ok(vec![CaMetrics {
            pod: "postern-ca-1".to_owned(),
            issuer_not_after: now + 20 * 24 * 60 * 60,
            brought_refused: false,
        }]),
        pods: Ok(typed(json!([
            component("ca", now),
            component("control", now),
            component("injector", now),
            app("web-7d4b9c6f5d-x2x7k", "web", now),
            app("cart-5f6d7c8b9d-abcde", "cart", now),
            { "metadata": { "name": "elsewhere", "namespace": "other" }, "spec": { "containers": [{ "name": "app" }] } },
        ]))),
        services: Ok(typed(json!([{
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "type": "ClusterIP", "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }]))),
        replica_sets: Ok(typed(json!([{
            "metadata": { "name": "web-7d4b9c6f5d", "namespace": "shop" },
            "spec": { "selector": {}, "replicas": 1 },
            "status": { "replicas": 1 },
        }]))),
        network_policies: Ok(typed(json!([{
            "metadata": { "name": "egress", "namespace": "shop" },
            "spec": {
                "podSelector": { "matchLabels": { "app": "web" } },
                "policyTypes": ["Egress"],
                "egress": [{
                    "to": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "postern-system" } } }],
                    "ports": [{ "port": 15010 }, { "port": 15012 }],
                }],
            },
        }]))),
        policies: Ok(typed(json!([{
            "metadata": { "name": "allow-web", "namespace": "shop", "generation": 2 },
            "status": { "conditions": [
                { "type": "Accepted", "status": "True", "reason": "Accepted", "observedGeneration": 2 },
                { "type": "Enforced", "status": "True", "reason": "Enforced", "message": "2 of 2", "observedGeneration": 2 },
            ] },
        }]))),
        edges: Ok(typed(json!([edge("web", "cart", true)]))),
        identities: Ok(typed(json!([
            identity("web-7d4b9c6f5d-x2x7k", "web", now),
            identity("cart-5f6d7c8b9d-abcde", "cart", now)
        ]))),
        proxies: Ok(typed(json!([
            proxy("web-7d4b9c6f5d-x2x7k", "web"),
            proxy("cart-5f6d7c8b9d-abcde", "cart")
        ]))),
        replicas: Ok(typed(json!([
            replica("aaaaaaaaaaaaaaaa", now),
            replica("bbbbbbbbbbbbbbbb", now)
        ]))),
    }
}

fn established(
    crd: &str,
) -> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition {
    let mut crd = super::super::registration::parsed(crd).unwrap();
    crd.status = Some(typed(
        json!({ "conditions": [{ "type": "Established", "status": "True" }] }),
    ));
    crd
}

pub(super) fn webhook(name: &str, resource: &str, selects: bool) -> Value {
    let mut webhook = json!({
        "name": name,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {
            "service": { "namespace": "postern-system", "name": "postern-injector", "path": "/inject" },
            "caBundle": base64(&minted().ca),
        },
        "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "resources": [resource], "operations": ["CREATE"] }],
    });
    if selects {
        webhook["namespaceSelector"] = json!({ "matchExpressions": [
            { "key": "postern.dev/inject", "operator": "In", "values": ["enabled"] },
            { "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["postern-system", "kube-system"] },
        ] });
    }
    webhook
}

fn binding(policy: &str) -> Value {
    json!({
        "metadata": { "name": policy },
        "spec": { "policyName": policy, "validationActions": ["Deny"] },
    })
}

fn deployment(component: &str) -> Value {
    json!({
        "metadata": { "name": format!("postern-{component}"), "namespace": "postern-system" },
        "spec": {
            "replicas": 2,
            "selector": {},
            "template": { "spec": { "containers": [{
                "name": format!("postern-{component}"),
                "image": format!("registry:5000/postern/postern-{component}:{VERSION}"),
            }] } },
        },
        "status": { "readyReplicas": 2 },
    })
}

fn budget(component: &str) -> Value {
    json!({ "metadata": { "name": format!("postern-{component}"), "namespace": "postern-system" } })
}

fn lease(component: &str, now: i64) -> Value {
    json!({
        "metadata": { "name": format!("postern-{component}"), "namespace": "postern-system" },
        "spec": { "holderIdentity": format!("postern-{component}-1"), "leaseDurationSeconds": 15, "renewTime": micro(now - 2) },
    })
}

fn serving(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "postern-system" },
        "data": { "ca.crt": base64(&minted().ca), "tls.crt": base64(&minted().leaf) },
    })
}

fn component(component: &str, now: i64) -> Value {
    json!({
        "metadata": {
            "name": format!("postern-{component}-1"), "namespace": "postern-system", "creationTimestamp": time(now - 3600),
            "labels": { "app.kubernetes.io/name": format!("postern-{component}") },
        },
        "spec": { "containers": [{ "name": format!("postern-{component}") }] },
        "status": { "phase": "Running" },
    })
}

fn app(name: &str, account: &str, now: i64) -> Value {
    let (set, _) = name.rsplit_once('-').unwrap();
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "creationTimestamp": time(now - 3600),
            "labels": { "app": account },
            "annotations": { "postern.dev/injected": VERSION },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": "u", "controller": true }],
        },
        "spec": {
            "serviceAccountName": account,
            "initContainers": [
                { "name": "postern-init", "image": format!("registry:5000/postern/postern-proxy:{VERSION}") },
                {
                    "name": "postern-proxy",
                    "image": format!("registry:5000/postern/postern-proxy:{VERSION}"),
                    "restartPolicy": "Always",
                    "args": ["run", "--roots-sha256", sha256(&minted().ca)],
                    "securityContext": { "runAsUser": 15371 },
                },
            ],
            "containers": [{ "name": "app", "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
        "status": {
            "phase": "Running",
            "initContainerStatuses": [{
                "name": "postern-proxy", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            }],
        },
    })
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

pub(super) fn edge(source: &str, destination: &str, secured: bool) -> Value {
    let end = |account: &str| json!({ "spiffeId": spiffe(account), "namespace": "shop", "serviceAccount": account });
    json!({
        "apiVersion": "view.postern.dev/v1alpha1", "kind": "Edge",
        "metadata": { "name": "edge", "namespace": "shop" },
        "source": if secured { end(source) } else { json!({}) },
        "destination": end(destination),
        "port": 8080, "protocol": "http1", "secured": secured, "direction": "inbound",
        "allowed": 10, "denied": 0, "wouldDeny": 0, "failed": 0, "allowedPerSecond": 1.0, "deniedPerSecond": 0.0,
        "bytesSent": 0, "bytesReceived": 0, "reporters": 1,
    })
}

fn identity(name: &str, account: &str, now: i64) -> Value {
    json!({
        "apiVersion": "view.postern.dev/v1alpha1", "kind": "Identity",
        "metadata": { "name": name, "namespace": "shop" },
        "spiffeId": spiffe(account), "instance": "uid", "serial": "0a",
        "issued": time(now - 3600), "notAfter": time(now + 3 * 3600),
        "renewals": 1, "renewalFailures": 0, "connected": true,
    })
}

fn proxy(name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "view.postern.dev/v1alpha1", "kind": "Proxy",
        "metadata": { "name": name, "namespace": "shop" },
        "spiffeId": spiffe(account), "mode": "protect", "version": VERSION, "connected": true,
        "policyVersion": 7, "policyCurrent": true, "bundleSequence": 1, "bundleCurrent": true, "ready": true,
    })
}

fn replica(name: &str, now: i64) -> Value {
    json!({
        "apiVersion": "view.postern.dev/v1alpha1", "kind": "Replica",
        "metadata": { "name": name },
        "version": VERSION, "connectedProxies": 1, "policyVersion": 7, "bundleSequence": 1,
        "rootsSha256": [sha256(&minted().ca)], "issuerEpoch": 1, "caConnected": true, "notAfter": time(now + 7200),
    })
}

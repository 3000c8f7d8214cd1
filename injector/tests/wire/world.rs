//! An injector by what is known of a played cluster, and certificates that tests mint.

use std::sync::Arc;
use std::time::Duration;

use postern_cluster::serving::{ServingCertificate, Status};
use postern_cluster::testing::ApiServer;
use postern_injector::inject::Settings;
use postern_injector::namespaces::Namespaces;
use postern_injector::roots::Roots;
use postern_injector::server::{Cluster, Config, Running, serve};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use crate::caller::Caller;

pub(crate) const NAME: &str = "postern-injector.postern-system.svc";

pub(crate) struct World {
    pub(crate) api: ApiServer,
    pub(crate) cluster: Cluster,
    pub(crate) running: Running,
    pub(crate) authority: CertificateDer<'static>,
}

pub(crate) fn settings() -> Settings {
    let settings = json!({
        "image": "localhost/postern/postern-proxy:0.1.0", "imagePullPolicy": "IfNotPresent", "trustDomain": "cluster.local",
        "ca": "postern-ca.postern-system.svc:15012", "control": "postern-control.postern-system.svc:15010",
        "proxy": { "logLevel": "info", "accessLog": "denied", "drainSeconds": 25, "resources": {} },
        "metrics": { "annotations": true, "mutualTls": false },
    });
    Settings::parse(&settings.to_string()).unwrap()
}

/// A CA of its own, and what it signed.
pub(crate) fn minted() -> (CertificateDer<'static>, Arc<CertifiedKey>) {
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_der = authority.self_signed(&authority_key).unwrap().der().clone();
    let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(vec![leaf.der().clone()], key.into(), &provider).unwrap();
    (authority_der, Arc::new(certified))
}

pub(crate) fn published() -> Status {
    Status {
        not_after: Some(4_000_000_000),
        published: true,
        rotating: false,
    }
}

pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

impl World {
    /// Namespaces `shop`, which is in the mesh, and `plain`, which is not.
    pub(crate) async fn start() -> Self {
        Self::start_with(true, true).await
    }

    pub(crate) async fn start_with(roots: bool, certificate: bool) -> Self {
        let api = ApiServer::start().await;
        api.put(
            "/api/v1/namespaces/shop",
            namespace("shop", &json!({ "postern.dev/inject": "enabled" })),
        );
        api.put("/api/v1/namespaces/plain", namespace("plain", &json!({})));
        let cluster = Cluster {
            namespaces: Namespaces::new(api.client()),
            roots: Roots::default(),
            certificate: ServingCertificate::default(),
        };
        if roots {
            cluster.roots.take(&"ab".repeat(32)).unwrap();
        }
        let (authority, key) = minted();
        if certificate {
            cluster.certificate.serve(key, published());
        }
        let local = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::new(local, local, settings());
        config.linger = Duration::from_millis(300);
        let running = serve(config, cluster.clone()).await.unwrap();
        Self {
            api,
            cluster,
            running,
            authority,
        }
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller::new(self.running.listen, std::slice::from_ref(&self.authority))
    }
}

pub(crate) fn review(resource: &str, namespace: &str, object: Value) -> Value {
    let (group, resource) = resource.split_once('/').unwrap_or(("", resource));
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "0b3b2c6e-1", "kind": { "group": group, "version": "v1", "kind": "X" },
            "resource": { "group": group, "version": "v1", "resource": resource },
            "namespace": namespace, "operation": "CREATE", "userInfo": { "username": "somebody" },
            "object": object, "oldObject": null, "dryRun": false, "options": { "kind": "CreateOptions" },
        },
    })
}

pub(crate) fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "cart-" },
        "spec": {
            "serviceAccountName": "cart",
            "containers": [{ "name": "app", "image": "localhost/cart:1", "ports": [{ "containerPort": 8080 }] }],
        },
    })
}

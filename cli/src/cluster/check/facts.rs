//! What the checks look at: objects of the cluster and control's view, gathered before and apart, so that a check is a
//! pure function and a test can break anything.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use postern_control::api::objects::{Edge, Identity, Object, Proxy, Replica};
use serde::Deserialize;

/// Where the mesh's own components live.
pub(super) const SYSTEM: &str = "postern-system";
/// Components, as their Deployments are called.
pub(super) const COMPONENTS: [&str; 3] = ["postern-ca", "postern-control", "postern-injector"];
/// The proxy's container.
pub(super) const PROXY: &str = "postern-proxy";
/// The init container that redirects traffic.
pub(super) const INIT: &str = "postern-init";
/// Namespace and pod label.
pub(super) const INJECT: &str = "postern.dev/inject";
/// Namespace and pod label.
pub(super) const MODE: &str = "postern.dev/mode";
/// Namespace label.
pub(super) const ALLOW_LOOSENING: &str = "postern.dev/allow-loosening";
/// The proxy's user.
pub(super) const PROXY_UID: i64 = 15371;

/// Why something could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown(pub(crate) String);

/// Something, or why it is not known.
pub(crate) type Known<T> = Result<T, Unknown>;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Seconds since 1970, by this machine's clock.
    pub(crate) now: i64,
    /// Of this program.
    pub(crate) version: String,
    /// The one namespace that was asked about, if one was.
    pub(crate) namespace: Option<String>,
    pub(crate) server: Known<Server>,
    pub(crate) nodes: Known<Vec<Node>>,
    pub(crate) node_leases: Known<Vec<Lease>>,
    pub(crate) permissions: Known<Vec<Permission>>,
    /// `kube-system/extension-apiserver-authentication`
    pub(crate) front_proxy: Known<Option<ConfigMap>>,
    pub(crate) namespaces: Known<Vec<Namespace>>,
    pub(crate) crds: Known<Vec<CustomResourceDefinition>>,
    pub(crate) mutating: Known<Vec<MutatingWebhookConfiguration>>,
    pub(crate) validating: Known<Vec<ValidatingWebhookConfiguration>>,
    /// By which policies of the API server are in force; there since Kubernetes 1.30.
    pub(crate) policy_bindings: Known<Vec<ValidatingAdmissionPolicyBinding>>,
    pub(crate) api_services: Known<Vec<APIService>>,
    /// Of the mesh's own namespace.
    pub(crate) deployments: Known<Vec<Deployment>>,
    pub(crate) budgets: Known<Vec<PodDisruptionBudget>>,
    pub(crate) leases: Known<Vec<Lease>>,
    pub(crate) roots: Known<Option<ConfigMap>>,
    /// The serving certificates of injector and control, without their keys.
    pub(crate) serving: Known<Vec<Secret>>,
    /// What each CA pod's metrics say.
    pub(crate) ca_metrics: Known<Vec<CaMetrics>>,
    /// Of all namespaces, or of the one that was asked about.
    pub(crate) pods: Known<Vec<Pod>>,
    pub(crate) services: Known<Vec<Service>>,
    pub(crate) replica_sets: Known<Vec<ReplicaSet>>,
    pub(crate) network_policies: Known<Vec<NetworkPolicy>>,
    pub(crate) policies: Known<Vec<Policy>>,
    pub(crate) edges: Known<Vec<Object<Edge>>>,
    pub(crate) identities: Known<Vec<Object<Identity>>>,
    pub(crate) proxies: Known<Vec<Object<Proxy>>>,
    pub(crate) replicas: Known<Vec<Object<Replica>>>,
}

/// The API server's version.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// May whoever runs this do that?
#[derive(Debug, Clone)]
pub(crate) struct Permission {
    pub(crate) verb: &'static str,
    pub(crate) group: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) allowed: bool,
}

/// Of one CA pod.
#[derive(Debug, Clone)]
pub(crate) struct CaMetrics {
    pub(crate) pod: String,
    /// Seconds since 1970.
    pub(crate) issuer_not_after: i64,
    /// What is mounted for it as issuer is not taken.
    pub(crate) brought_refused: bool,
}

/// An AuthorizationPolicy's head and status; its spec is the webhook's and control's to judge.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Policy {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) status: PolicyStatus,
}

/// As control writes it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct PolicyStatus {
    #[serde(default)]
    pub(crate) conditions: Vec<Condition>,
}

/// As everywhere in Kubernetes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) observed_generation: Option<i64>,
}

/// What is known, or the reason for which it is not, to be handed on by `?`.
pub(super) fn known<T>(fact: &Known<T>) -> Result<&T, Unknown> {
    fact.as_ref().map_err(Clone::clone)
}

/// A label or an annotation.
pub(super) fn label<'m>(metadata: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// An annotation.
pub(super) fn annotation<'m>(metadata: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The name, which every object of a list has.
pub(super) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

/// Empty for what has none.
pub(super) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

impl Facts {
    /// Is this namespace one that was asked about?
    pub(super) fn concerns(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|only| only == namespace)
    }

    /// The namespaces whose pods get a proxy; the mesh's own never do.
    pub(super) fn meshed_namespaces(&self) -> Result<Vec<&Namespace>, Unknown> {
        let namespaces = known(&self.namespaces)?.iter();
        Ok(namespaces
            .filter(|ns| {
                label(&ns.metadata, INJECT) == Some("enabled")
                    && name(&ns.metadata) != SYSTEM
                    && self.concerns(name(&ns.metadata))
            })
            .collect())
    }

    /// Is this namespace labelled for injection?
    pub(super) fn is_meshed(&self, namespace: &str) -> Result<bool, Unknown> {
        Ok(self
            .meshed_namespaces()?
            .iter()
            .any(|ns| name(&ns.metadata) == namespace))
    }

    /// Pods that have a proxy, live and of a namespace that was asked about.
    pub(super) fn meshed_pods(&self) -> Result<Vec<&Pod>, Unknown> {
        Ok(self
            .live_pods()?
            .into_iter()
            .filter(|pod| sidecar(pod).is_some())
            .collect())
    }

    /// Pods that have neither ended nor are about to.
    pub(super) fn live_pods(&self) -> Result<Vec<&Pod>, Unknown> {
        let pods = known(&self.pods)?.iter();
        Ok(pods
            .filter(|pod| is_live(pod) && self.concerns(namespace(&pod.metadata)))
            .collect())
    }

    /// A component's Deployment.
    pub(super) fn deployment(&self, component: &str) -> Result<Option<&Deployment>, Unknown> {
        Ok(known(&self.deployments)?
            .iter()
            .find(|deployment| name(&deployment.metadata) == component))
    }
}

/// Its proxy's container.
pub(super) fn sidecar(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::Container> {
    let containers = pod.spec.as_ref()?.init_containers.as_ref()?;
    containers.iter().find(|container| container.name == PROXY)
}

/// The tag of an image reference; empty if it has none.
pub(super) fn tag(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    match image.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => "",
    }
}

fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

//! What the API shows and answers: `view.postern.dev/v1alpha1`. The CLI reads these same types.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::explain::{Answer, Question};

/// The API group.
pub const GROUP: &str = "view.postern.dev";
/// Its one version.
pub const VERSION: &str = "v1alpha1";
/// Group and version.
pub const API_VERSION: &str = "view.postern.dev/v1alpha1";

/// What there is to see, and to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Who talks to whom.
    Edges,
    /// Which certificate each proxy has.
    Identities,
    /// What each proxy holds in force.
    Proxies,
    /// What each replica of control knows.
    Replicas,
    /// Would this call be allowed, and by which rule? Asked and answered, never kept.
    Explanations,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Edges,
        Self::Identities,
        Self::Proxies,
        Self::Replicas,
        Self::Explanations,
    ];

    /// As in a path.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Edges => "edges",
            Self::Identities => "identities",
            Self::Proxies => "proxies",
            Self::Replicas => "replicas",
            Self::Explanations => "explanations",
        }
    }
    /// As `kubectl` also takes it.
    #[must_use]
    pub fn singular(self) -> &'static str {
        match self {
            Self::Edges => "edge",
            Self::Identities => "identity",
            Self::Proxies => "proxy",
            Self::Replicas => "replica",
            Self::Explanations => "explanation",
        }
    }
    /// As in a document.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Edges => "Edge",
            Self::Identities => "Identity",
            Self::Proxies => "Proxy",
            Self::Replicas => "Replica",
            Self::Explanations => "Explanation",
        }
    }
    /// Replicas of control belong to no namespace of the mesh.
    #[must_use]
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Replicas)
    }
    /// What can be done with it.
    #[must_use]
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Edges | Self::Identities | Self::Proxies | Self::Replicas => &["get", "list"],
            Self::Explanations => &["create"],
        }
    }
}

/// One object: what is common to all, and its own fields beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object<T> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// Of [`Resource::kind`].
    pub kind: String,
    /// Name, namespace and labels.
    pub metadata: ObjectMeta,
    /// The rest.
    #[serde(flatten)]
    pub body: T,
}

/// A list of objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// Such as `EdgeList`.
    pub kind: String,
    /// Empty: there is nothing to watch from.
    pub metadata: ListMeta,
    /// In the order of their names.
    pub items: Vec<Object<T>>,
}

/// Which side reported an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The one that was called: its proxy decided.
    Inbound,
    /// The one that called: the other side has no proxy, or is in another namespace.
    Outbound,
}

/// One end of an edge.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Empty: it proved nothing.
    #[serde(default)]
    pub spiffe_id: String,
    /// From the ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// From the ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// Who talks to whom, since the control replicas started; rates are over about half a minute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// Who called.
    pub source: End,
    /// Who was called.
    pub destination: End,
    /// Inbound: the port's name at the workload. Outbound: the Service that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// The number that goes with it.
    pub port: u32,
    /// `http1`, `http2`, `tcp`, or `unknown`.
    pub protocol: String,
    /// Mutual TLS with two verified identities?
    pub secured: bool,
    /// Who saw it.
    pub direction: Direction,
    /// Requests and streams that were let in.
    pub allowed: u64,
    /// That policy refused.
    pub denied: u64,
    /// That were let in, and would not be in `protect`.
    pub would_deny: u64,
    /// That were allowed and came to nothing.
    pub failed: u64,
    /// Over about half a minute.
    pub allowed_per_second: f64,
    /// Over about half a minute.
    pub denied_per_second: f64,
    /// That the reporter sent to its peers.
    pub bytes_sent: u64,
    /// That it received from them.
    pub bytes_received: u64,
    /// Proxies that report it.
    pub reporters: u32,
}

/// A proxy's certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Who it is.
    pub spiffe_id: String,
    /// Tells it from others of that ID: the pod's UID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// Of the certificate, lower-case hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// RFC 3339; absent until the proxy has reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// Since the proxy started.
    pub renewals: u64,
    /// Since the proxy started.
    pub renewal_failures: u64,
    /// Why the last attempt failed; empty if it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_renewal_error: String,
    /// Is its proxy connected to control now?
    pub connected: bool,
}

/// What a proxy holds in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Who it is.
    pub spiffe_id: String,
    /// `discover`, `monitor` or `protect`; empty if control does not know the workload any more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// Of the proxy; empty until it has connected.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// To any replica of control, now.
    pub connected: bool,
    /// The policies that it enforces.
    pub policy_version: u64,
    /// Are they the newest of the replica that serves it?
    pub policy_current: bool,
    /// The trust bundle that it verifies by.
    pub bundle_sequence: u64,
    /// Is it the newest?
    pub bundle_current: bool,
    /// The snapshot that it refused last and goes without; empty if none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
    /// All of the above is as it should be; else `reason` says what is not.
    pub ready: bool,
    /// In a few words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The replica of control that serves it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replica: String,
}

/// What a replica of control knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Of control.
    pub version: String,
    /// Proxies that it serves.
    pub connected_proxies: u64,
    /// The version that last changed any policy; of this replica's own count.
    pub policy_version: u64,
    /// Sequence of the trust bundle.
    pub bundle_sequence: u64,
    /// SHA-256 of the bundle's roots, lower-case hex.
    #[serde(default)]
    pub roots_sha256: Vec<String>,
    /// Grows with each issuing certificate.
    pub issuer_epoch: u64,
    /// Is the CA's stream open?
    pub ca_connected: bool,
    /// End of control's own certificate, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// Faults between documents.
    #[serde(default)]
    pub conditions: Vec<String>,
    /// Documents that are refused now, each with its first error.
    #[serde(default)]
    pub refused_documents: Vec<String>,
    /// Who is cut off, each with its reason, by the CA's word.
    #[serde(default)]
    pub quarantined: Vec<String>,
}

/// A question and its answer: the body of an `Explanation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// What is asked.
    pub spec: Question,
    /// What is said of it; absent in what is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Answer>,
}

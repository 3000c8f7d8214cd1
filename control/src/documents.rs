//! Kubernetes-shaped documents, decoded: what a file says, before it is put beside what other files say.

use std::sync::Arc;

use postern_identity::TrustDomain;
use postern_policy::document::{DocumentError, Object, Place, nearest};
use postern_policy::{AuthorizationPolicy, Authorizer, PeerAuthentication, RequestAuthentication};

mod authentication;
mod namespace;
mod peer_authentication;
mod refused_policy;
mod service;
mod workload;

pub(crate) use authentication::{believe_nobody, refuse_tokens_of_what_it_selects, with_files};
pub(crate) use namespace::Namespace;
pub(crate) use peer_authentication::strict_for_what_it_selects;
pub(crate) use refused_policy::deny_what_it_selects;
pub(crate) use service::{Backend, Service, ServicePort, TargetPort};
#[cfg(feature = "kubernetes")]
pub(crate) use workload::PodFacts;
pub(crate) use workload::{Capture, Workload, WorkloadPort};

/// Labels that we read.
pub(crate) const MODE: &str = "postern.dev/mode";
pub(crate) const INJECT: &str = "postern.dev/inject";
pub(crate) const ALLOW_LOOSENING: &str = "postern.dev/allow-loosening";
/// Everything under it is ours; an unknown name there is a mistake.
pub(crate) const OURS: &str = "postern.dev/";

/// Where an object without `metadata.namespace` belongs, as with kubectl.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// One decoded document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Document {
    Namespace(Namespace),
    Service(Arc<Service>),
    Workload(Arc<Workload>),
    Policy(AuthorizationPolicy),
    Authorizer(Arc<Authorizer>),
    Authentication(Arc<RequestAuthentication>),
    PeerAuthentication(Arc<PeerAuthentication>),
}

/// What makes a document unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The kinds that this source reads, as `apiVersion` and `kind`.
pub(crate) const KINDS: [(&str, &str); 13] = [
    ("v1", "Namespace"),
    ("v1", "Service"),
    ("postern.dev/v1alpha1", "Workload"),
    ("postern.dev/v1alpha1", "AuthorizationPolicy"),
    ("postern.dev/v1alpha1", "Authorizer"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    // The same document: what most policy sets still say.
    ("security.istio.io/v1beta1", "AuthorizationPolicy"),
    ("postern.dev/v1alpha1", "RequestAuthentication"),
    ("security.istio.io/v1", "RequestAuthentication"),
    ("security.istio.io/v1beta1", "RequestAuthentication"),
    ("postern.dev/v1alpha1", "PeerAuthentication"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("security.istio.io/v1beta1", "PeerAuthentication"),
];

/// Decodes one object; all of its errors at once.
pub(crate) fn decode(object: &Object, trust_domain: &TrustDomain) -> Result<Document, Vec<DocumentError>> {
    match (object.api_version.as_str(), object.kind.as_str()) {
        ("v1", "Namespace") => Namespace::decode(object).map(Document::Namespace),
        ("v1", "Service") => Service::decode(object).map(|service| Document::Service(Arc::new(service))),
        ("postern.dev/v1alpha1", "Workload") => {
            Workload::decode(object, trust_domain).map(|workload| Document::Workload(Arc::new(workload)))
        }
        ("postern.dev/v1alpha1" | "security.istio.io/v1" | "security.istio.io/v1beta1", "AuthorizationPolicy") => {
            AuthorizationPolicy::from_object(object).map(Document::Policy)
        }
        ("postern.dev/v1alpha1", "Authorizer") => {
            postern_authorizer::document::read(object).map(|authorizer| Document::Authorizer(Arc::new(authorizer)))
        }
        ("postern.dev/v1alpha1" | "security.istio.io/v1" | "security.istio.io/v1beta1", "RequestAuthentication") => {
            authentication::decode(object).map(|document| Document::Authentication(Arc::new(document)))
        }
        ("postern.dev/v1alpha1" | "security.istio.io/v1" | "security.istio.io/v1beta1", "PeerAuthentication") => {
            PeerAuthentication::from_object(object).map(|document| Document::PeerAuthentication(Arc::new(document)))
        }
        (version, kind) => Err(vec![unknown_kind(object, version, kind)]),
    }
}

fn unknown_kind(object: &Object, version: &str, kind: &str) -> DocumentError {
    let versions: Vec<&str> = KINDS.iter().filter(|(_, k)| *k == kind).map(|(v, _)| *v).collect();
    let (what, nearest) = if versions.is_empty() {
        let kinds = KINDS.iter().map(|(_, kind)| *kind);
        (format!("kind `{kind}` is not read here"), nearest(kind, kinds))
    } else {
        let what = format!(
            "kind `{kind}` is read under apiVersion {}, not `{version}`",
            versions.join(" or ")
        );
        (what, nearest(version, versions))
    };
    let nearest = nearest.map(ToOwned::to_owned);
    DocumentError {
        nearest,
        ..object.error("kind", what)
    }
}

/// Refuses names under `postern.dev/` that are not in `known`.
fn check_ours<'a>(
    object: &Object,
    path: &str,
    names: impl Iterator<Item = &'a String>,
    known: &[&str],
    errors: &mut Vec<DocumentError>,
) {
    for name in names.filter(|name| name.starts_with(OURS) && !known.contains(&name.as_str())) {
        let nearest = nearest(name, known.iter().copied()).map(ToOwned::to_owned);
        let what = format!("`{name}` means nothing here");
        errors.push(DocumentError {
            nearest,
            ..object.error(path, what)
        });
    }
}

/// One of two words; anything else is an error with the nearest.
fn one_of(
    object: &Object,
    path: &str,
    value: Option<&String>,
    words: [&str; 2],
    errors: &mut Vec<DocumentError>,
) -> Option<bool> {
    let value = value?;
    if let Some(at) = words.iter().position(|word| word == value) {
        return Some(at == 0);
    }
    let nearest = nearest(value, words).map(ToOwned::to_owned);
    let what = format!("`{value}` is neither `{}` nor `{}`", words[0], words[1]);
    errors.push(DocumentError {
        nearest,
        ..object.error(path, what)
    });
    None
}

/// The mode that a label asks for.
fn mode_label(object: &Object, errors: &mut Vec<DocumentError>) -> Option<postern_policy::Mode> {
    let value = object.labels.get(MODE)?;
    match postern_policy::Mode::parse(value) {
        Ok(mode) => Some(mode),
        Err(_) => {
            let words = ["discover", "monitor", "protect"];
            let nearest = nearest(value, words).map(ToOwned::to_owned);
            let what = format!("`{value}` is no mode: {}", words.join(", "));
            let path = format!("metadata.labels[{MODE}]");
            errors.push(DocumentError {
                nearest,
                ..object.error(&path, what)
            });
            None
        }
    }
}

fn done<T>(value: T, errors: Vec<DocumentError>) -> Result<T, Vec<DocumentError>> {
    if errors.is_empty() { Ok(value) } else { Err(errors) }
}

impl Document {
    /// What no other document may have as well.
    pub(crate) fn key(&self) -> Key {
        let (kind, namespace, name) = match self {
            Self::Namespace(namespace) => ("Namespace", "", namespace.name.as_str()),
            Self::Service(service) => ("Service", service.namespace.as_str(), service.name.as_str()),
            Self::Workload(workload) => ("Workload", workload.namespace.as_str(), workload.name.as_str()),
            Self::Policy(policy) => ("AuthorizationPolicy", policy.namespace.as_str(), policy.name.as_str()),
            Self::Authorizer(asked) => ("Authorizer", asked.namespace.as_str(), asked.name.as_str()),
            Self::Authentication(document) => (
                "RequestAuthentication",
                document.namespace.as_str(),
                document.name.as_str(),
            ),
            Self::PeerAuthentication(document) => (
                "PeerAuthentication",
                document.namespace.as_str(),
                document.name.as_str(),
            ),
        };
        Key {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Where it was read.
    pub(crate) fn place(&self) -> &Place {
        match self {
            Self::Namespace(namespace) => &namespace.place,
            Self::Service(service) => &service.place,
            Self::Workload(workload) => &workload.place,
            Self::Policy(policy) => &policy.place,
            Self::Authorizer(authorizer) => &authorizer.place,
            Self::Authentication(document) => &document.place,
            Self::PeerAuthentication(document) => &document.place,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind)?;
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests;

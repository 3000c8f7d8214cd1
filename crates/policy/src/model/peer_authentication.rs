//! `PeerAuthentication`: must callers of a port prove who they are? Istio's shape and scopes.
//!
//! The narrowest scope that says anything about a port decides: a document for workloads (by port, then as a whole), for
//! the namespace, for the mesh, else the workload's mode. Where ours is stricter than Istio's: docs/differences-from-istio.md.

use std::collections::BTreeMap;

use super::Mode;
use crate::document::{DocumentError, Object, Place};

mod decode;
mod effective;

pub use effective::{Effective, PortModes, Unheard, Workload, effective, port_modes, unheard};

/// What is taken at a port; ordered by strictness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MtlsMode {
    /// Plaintext alone: TLS is the app's own business, and passes as bytes.
    Disable,
    /// Mutual TLS of the mesh, and plaintext.
    Permissive,
    /// Mutual TLS alone.
    Strict,
}

/// For whom a document speaks; ordered from wide to narrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody: of the root namespace, without a selector.
    Mesh,
    /// Its namespace.
    Namespace,
    /// Workloads of its namespace, by their labels.
    Workload,
}

/// What callers of some workloads must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Where it was read.
    pub place: Place,
    /// Labels that a workload must have; empty selects all of the namespace.
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`; `None`: UNSET, what wider scopes say.
    pub mode: Option<MtlsMode>,
    /// `portLevelMtls`, without those that are UNSET: they say what `mode` says.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// It cannot be read: nobody knows what it would take, so what it selects takes mutual TLS alone, whatever others say.
    pub unreadable: bool,
}

impl PeerAuthentication {
    /// Decodes `kind: PeerAuthentication` under `postern.dev/v1alpha1` or `security.istio.io/v1`.
    pub fn from_object(object: &Object) -> Result<Self, Vec<DocumentError>> {
        decode::document(object)
    }

    /// A stand-in for a document that cannot be decoded: what it selects (its whole namespace, if even the selector cannot be
    /// read) takes mutual TLS alone.
    #[must_use]
    pub fn strict_for(object: &Object, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: object.name.clone(),
            place: object.place.clone(),
            selector: super::decode::selector_of(object),
            mode: Some(MtlsMode::Strict),
            ports: BTreeMap::new(),
            unreadable: true,
        }
    }

    /// What of it is strict: all that is in force of a document beside which something could not be read. `None`: nothing is.
    #[must_use]
    pub fn only_strict(&self) -> Option<Self> {
        let mut document = self.clone();
        document.mode = self.mode.filter(|mode| *mode == MtlsMode::Strict);
        document.ports.retain(|_, mode| *mode == MtlsMode::Strict);
        (document.mode.is_some() || !document.ports.is_empty()).then_some(document)
    }

    /// For whom it speaks.
    #[must_use]
    pub fn scope(&self, root_namespace: &str) -> Scope {
        if !self.selector.is_empty() {
            Scope::Workload
        } else if self.namespace == root_namespace {
            Scope::Mesh
        } else {
            Scope::Namespace
        }
    }

    /// Does it speak for a workload? With a selector it does so in its own namespace only, be that the root namespace.
    #[must_use]
    pub fn selects(&self, root_namespace: &str, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        match self.scope(root_namespace) {
            Scope::Mesh => true,
            Scope::Namespace => self.namespace == namespace,
            Scope::Workload => {
                self.namespace == namespace && self.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
            }
        }
    }

    /// What it says of a port itself.
    #[must_use]
    pub fn says(&self, port: u16) -> Option<MtlsMode> {
        self.ports.get(&port).copied().or(self.mode)
    }
}

impl MtlsMode {
    /// What a workload's mode takes where no document speaks.
    #[must_use]
    pub fn usual(mode: Mode) -> Self {
        match mode {
            Mode::Discover | Mode::Monitor => Self::Permissive,
            Mode::Protect => Self::Strict,
        }
    }

    /// The word in documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        }
    }
}

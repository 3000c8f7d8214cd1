//! Where control learns who is there: a directory of YAML, or a Kubernetes cluster. Both end in a [`Load`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::documents::Document;

/// Where namespaces, services, workloads and policies come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// YAML files, watched.
    Directory(PathBuf),
    /// The objects of a cluster, watched.
    #[cfg(feature = "kubernetes")]
    Kubernetes(crate::kubernetes::Cluster),
}

impl Source {
    /// The name of the pod that this process runs in, if it is one.
    pub(crate) fn own_pod(&self) -> Option<&str> {
        match self {
            Self::Directory(_) => None,
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(cluster) => cluster.own_pod.as_ref().map(|(_, name)| &**name),
        }
    }
}

/// What is in force now.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) documents: Vec<Document>,
    /// Files or objects that are refused, each with its errors.
    pub(crate) bad: BTreeMap<String, Vec<String>>,
    /// Faults that refuse nothing.
    pub(crate) conditions: Vec<String>,
    /// `None`: a directory, whose states are counted by the clock.
    pub(crate) revisions: Option<Revisions>,
}

/// How new a part of a cluster's state is, in its API server's own count: comparable between replicas of control.
///
/// Two numbers, because kinds are heard by watches of their own, any of which may be held back alone: what a proxy was given
/// contains nothing after `newest`, and a replica lacks nothing up to `complete`. So a replica is behind what a proxy has
/// unless its `complete` reaches the proxy's `newest`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The newest change that is in it, of whichever kind.
    pub(crate) newest: u64,
    /// Every change up to here, of every kind, is in it.
    pub(crate) complete: u64,
}

/// How new a cluster's state is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revisions {
    /// What selects policies: they, and the labels of pods.
    pub(crate) policies: Reach,
    /// What workloads, ranges and destinations are made of.
    pub(crate) others: Reach,
}

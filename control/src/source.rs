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

/// How new a cluster's state is, in its API server's own count: comparable between replicas of control.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revisions {
    /// Every change of a policy up to here is in it.
    pub(crate) policies: u64,
    /// The newest change of anything else that is in it.
    pub(crate) others: u64,
}

//! What the ports of workloads take (PeerAuthentication), and which documents about that are not in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postern_policy::peer_authentication::{self, PortModes, Scope, Unheard, port_modes, unheard};
use postern_policy::{Mode, PeerAuthentication};

use super::{Model, Workload};
use crate::documents::{self, Capture};

/// Workloads that one fault names; the rest are counted.
const MAX_NAMED: usize = 3;

/// What is wrong with a document, though it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault<'m> {
    pub(crate) document: &'m PeerAuthentication,
    pub(crate) kind: FaultKind,
    /// Goes on behind the document's name.
    pub(crate) says: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// It is for nobody, or says nothing.
    Idle,
    /// What it says does not hold.
    NotInForce,
}

/// Which other document is stricter, and at which port; none: the mode is.
type Stricter = Option<(usize, u16)>;

impl Model {
    /// What the ports of a workload take. Whoever has no proxy of ours takes what it takes.
    pub(super) fn port_modes(&self, document: &documents::Workload, mode: Mode) -> PortModes {
        let workload = self.asked(document, mode);
        let selecting = self.peer_authentications.iter().map(Arc::as_ref);
        // There are few in a mesh, and fewer for one workload.
        let selecting: Vec<&PeerAuthentication> = selecting
            .filter(|it| it.selects(workload.root_namespace, workload.namespace, workload.labels))
            .collect();
        if selecting.is_empty() || !has_a_door(document) {
            return PortModes::usual(mode);
        }
        port_modes(selecting, &workload)
    }

    fn asked<'a>(&'a self, document: &'a documents::Workload, mode: Mode) -> peer_authentication::Workload<'a> {
        peer_authentication::Workload {
            root_namespace: &self.root_namespace,
            namespace: &document.namespace,
            labels: &document.labels,
            mode,
        }
    }

    /// Documents that do not do what they say. Where no workload is described, nobody knows.
    pub(crate) fn idle_doors(&self) -> Vec<Fault<'_>> {
        let (mut selects_any, mut unheard) = (BTreeSet::new(), BTreeMap::new());
        for workload in self
            .workloads
            .values()
            .filter(|workload| has_a_door(&workload.document))
        {
            let selecting = self.selecting(workload);
            selects_any.extend(selecting.iter().map(|(at, _)| *at));
            self.unheard_at(workload, &selecting, &mut unheard);
        }
        let mut faults = Vec::new();
        for (at, document) in self.peer_authentications.iter().map(Arc::as_ref).enumerate() {
            let mut say = |kind, says: String| faults.push(Fault { document, kind, says });
            if document.mode.is_none() && document.ports.is_empty() {
                say(FaultKind::Idle, "says nothing: every mode in it is UNSET".to_owned());
            } else if !selects_any.contains(&at) {
                let by_labels_in_root = document.scope(&self.root_namespace) == Scope::Workload
                    && document.namespace == self.root_namespace;
                let hint = if by_labels_in_root {
                    ": with a selector it speaks for workloads of its own namespace alone, the root namespace included"
                } else {
                    ""
                };
                say(FaultKind::Idle, format!("selects no workload that has a proxy{hint}"));
            }
        }
        for ((at, why), workloads) in unheard {
            if let Some(document) = self.peer_authentications.get(at) {
                let why = match why.and_then(|(by, port)| Some((self.peer_authentications.get(by)?, port))) {
                    None => "in mode protect only a document that names the workload by its labels takes plaintext"
                        .to_owned(),
                    Some((by, port)) => {
                        let at = if port == 0 {
                            String::new()
                        } else {
                            format!(" of port {port}")
                        };
                        format!("{}/{} ({}) is stricter{at}", by.namespace, by.name, by.place)
                    }
                };
                faults.push(Fault {
                    document,
                    kind: FaultKind::NotInForce,
                    says: format!("is not in force at {workloads}: {why}"),
                });
            }
        }
        faults
    }

    /// The documents that speak for a workload, with their places among all.
    fn selecting(&self, workload: &Workload) -> Vec<(usize, &PeerAuthentication)> {
        let own = &workload.document;
        let all = self.peer_authentications.iter().map(Arc::as_ref).enumerate();
        all.filter(|(_, document)| document.selects(&self.root_namespace, &own.namespace, &own.labels))
            .collect()
    }

    /// Adds what of them does not hold at it: which document, and which other one is stricter at which port (0: at all that
    /// the document does not name); none: it is the mode that is.
    fn unheard_at(
        &self,
        workload: &Workload,
        selecting: &[(usize, &PeerAuthentication)],
        found: &mut BTreeMap<(usize, Stricter), Named>,
    ) {
        let asked = self.asked(&workload.document, workload.mode);
        for (at, document) in selecting {
            let mut told = BTreeSet::new();
            for port in document.ports.keys().copied().chain([0]) {
                let all = selecting.iter().map(|(_, document)| *document);
                let why = match unheard(all, &asked, document, port) {
                    None => continue,
                    Some(Unheard::Protected) => None,
                    Some(Unheard::Stricter(by)) => {
                        let by = selecting.iter().find(|(_, other)| std::ptr::eq(*other, by));
                        by.map(|(by, _)| (*by, port))
                    }
                };
                if told.insert(why) {
                    found.entry((*at, why)).or_default().add(workload);
                }
            }
        }
    }
}

/// The first of some workloads, and how many more there are.
#[derive(Debug, Default)]
struct Named {
    names: Vec<String>,
    more: usize,
}

impl Named {
    fn add(&mut self, workload: &Workload) {
        if self.names.len() == MAX_NAMED {
            self.more += 1;
        } else {
            let document = &workload.document;
            self.names.push(format!("{}/{}", document.namespace, document.name));
        }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names.join(", "))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Does a proxy of ours stand before it?
fn has_a_door(document: &documents::Workload) -> bool {
    let ours = match document.capture {
        Capture::Explicit | Capture::Redirect => true,
        Capture::Foreign => false,
    };
    ours && document.mesh && document.id.is_some()
}

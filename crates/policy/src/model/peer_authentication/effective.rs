//! What holds at a port of a workload, of all documents that speak for it.
//!
//! Each document of a scope answers as if it were alone in it; of their answers the strictest holds. Istio takes the answer
//! of the oldest: so ours is never looser than Istio's, whichever that is.

use std::collections::{BTreeMap, BTreeSet};

use super::{MtlsMode, PeerAuthentication, Scope};
use crate::model::Mode;

/// Who is called.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The namespace whose documents speak for the whole mesh.
    pub root_namespace: &'a str,
    /// Its own.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// In `protect` only a document for this very workload loosens.
    pub mode: Mode,
}

/// What holds, and by whose word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effective<'d> {
    /// What is taken at the port.
    pub mode: MtlsMode,
    /// `None`: by the workload's mode.
    pub by: Option<&'d PeerAuthentication>,
}

/// What holds at each port of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortModes {
    /// At all ports but these.
    pub usual: MtlsMode,
    /// Where it is something else.
    pub ports: BTreeMap<u16, MtlsMode>,
}

/// Why what a document says of a port does not hold there, though no narrower one says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheard<'d> {
    /// The workload is in `protect`, and the document is for more than this workload.
    Protected,
    /// Another one of the same scope is stricter.
    Stricter(&'d PeerAuthentication),
}

/// What holds at a port. The order of the documents does not matter but for who of equals is named.
pub fn effective<'d, D>(documents: D, workload: &Workload<'_>, port: u16) -> Effective<'d>
where
    D: IntoIterator<Item = &'d PeerAuthentication> + Clone,
{
    if let Some(unreadable) = selected(documents.clone(), workload).find(|document| document.unreadable) {
        return Effective {
            mode: MtlsMode::Strict,
            by: Some(unreadable),
        };
    }
    let mut holds = Effective {
        mode: MtlsMode::usual(workload.mode),
        by: None,
    };
    for scope in [Scope::Mesh, Scope::Namespace, Scope::Workload] {
        // As long as it is not for this very workload it could only loosen what `protect` promises.
        if scope < Scope::Workload && workload.mode == Mode::Protect {
            continue;
        }
        holds = strictest(documents.clone(), workload, port, scope, holds).unwrap_or(holds);
    }
    holds
}

/// The strictest answer of a scope, of which each document says what is wider where it says nothing itself. `None`: no
/// document is of it.
fn strictest<'d>(
    documents: impl IntoIterator<Item = &'d PeerAuthentication>,
    workload: &Workload<'_>,
    port: u16,
    scope: Scope,
    wider: Effective<'d>,
) -> Option<Effective<'d>> {
    let of_scope = selected(documents, workload).filter(|document| document.scope(workload.root_namespace) == scope);
    let answers = of_scope.map(|document| match document.says(port) {
        Some(mode) => Effective {
            mode,
            by: Some(document),
        },
        None => wider,
    });
    answers.reduce(|one, other| if other.mode > one.mode { other } else { one })
}

/// What holds at all ports.
pub fn port_modes<'d, D>(documents: D, workload: &Workload<'_>) -> PortModes
where
    D: IntoIterator<Item = &'d PeerAuthentication> + Clone,
{
    let named: BTreeSet<u16> = selected(documents.clone(), workload)
        .flat_map(|document| document.ports.keys().copied())
        .collect();
    // No port has the number 0, so no document names it.
    let usual = effective(documents.clone(), workload, 0).mode;
    let ports = named
        .into_iter()
        .map(|port| (port, effective(documents.clone(), workload, port).mode));
    PortModes {
        usual,
        ports: ports.filter(|(_, mode)| *mode != usual).collect(),
    }
}

/// Why what `document` says of a port of a workload that it selects does not hold; `None` if it holds, or a narrower one
/// decides.
pub fn unheard<'d, D>(
    documents: D,
    workload: &Workload<'_>,
    document: &PeerAuthentication,
    port: u16,
) -> Option<Unheard<'d>>
where
    D: IntoIterator<Item = &'d PeerAuthentication> + Clone,
{
    let says = document.says(port)?;
    let scope = document.scope(workload.root_namespace);
    if scope < Scope::Workload && workload.mode == Mode::Protect {
        return (says < MtlsMode::Strict).then_some(Unheard::Protected);
    }
    let holds = effective(documents.clone(), workload, port);
    let beside = || {
        let others = selected(documents.clone(), workload);
        others.filter(|other| other.scope(workload.root_namespace) == scope)
    };
    let stricter = beside().find(|other| other.says(port) > Some(says));
    let stricter = stricter.or_else(|| {
        // One of the same scope that says nothing, where what is wider is stricter.
        let overruled = scope == Scope::Workload && holds.mode > says;
        holds
            .by
            .filter(|by| by.unreadable)
            .or_else(|| beside().find(|other| overruled && other.says(port).is_none()))
    });
    stricter.map(Unheard::Stricter)
}

fn selected<'d>(
    documents: impl IntoIterator<Item = &'d PeerAuthentication>,
    workload: &Workload<'_>,
) -> impl Iterator<Item = &'d PeerAuthentication> {
    documents
        .into_iter()
        .filter(|document| document.selects(workload.root_namespace, workload.namespace, workload.labels))
}

impl PortModes {
    /// Where no document speaks.
    #[must_use]
    pub fn usual(mode: Mode) -> Self {
        Self {
            usual: MtlsMode::usual(mode),
            ports: BTreeMap::new(),
        }
    }

    /// At a port.
    #[must_use]
    pub fn of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.usual)
    }

    /// Is plaintext refused somewhere where a workload of this mode takes it otherwise?
    #[must_use]
    pub fn is_stricter_than(&self, mode: Mode) -> bool {
        let usual = MtlsMode::usual(mode);
        self.usual > usual || self.ports.values().any(|at| *at > usual)
    }
}

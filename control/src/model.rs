//! All documents together: who is there, how strictly each is treated, what each port speaks, and which policies are in force.
//! Immutable; a change of the directory makes the next one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use postern_identity::SpiffeId;
use postern_policy::{AuthorizationPolicy, Mode};

use crate::documents::{self, Capture, Document, Namespace, Service, TargetPort};
use crate::protocol::{self, Protocol};

mod conditions;
mod resolve;

pub(crate) use resolve::octets;

/// Namespace and name.
pub(crate) type Name = (String, String);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) root_namespace: String,
    namespaces: BTreeMap<String, Namespace>,
    pub(crate) workloads: BTreeMap<Name, Workload>,
    services: BTreeMap<Name, Service>,
    pub(crate) policies: Vec<AuthorizationPolicy>,
    /// Which workloads have an address, and which Services.
    by_address: HashMap<IpAddr, Vec<Name>>,
    by_cluster_ip: HashMap<IpAddr, Name>,
    /// Which Services lead to a workload's port: (workload, number) to (service, its port).
    fronts: HashMap<(Name, u16), Vec<(Name, u16)>>,
    /// Faults between documents: nothing is refused for them, but somebody should know.
    pub(crate) conditions: Vec<String>,
}

/// A workload in its surroundings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Workload {
    pub(crate) document: documents::Workload,
    /// After the namespace had its say.
    pub(crate) mode: Mode,
    pub(crate) standing: Standing,
    pub(crate) ports: Vec<Port>,
}

/// Who may answer for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    Meshed(SpiffeId),
    /// Known to run without a proxy.
    Unmeshed,
    /// In an injected, protected namespace, and nobody knows its identity.
    NoIdentity,
}

/// A port, after all who declare its protocol were heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) listen: u16,
    pub(crate) app: u16,
    pub(crate) protocol: Protocol,
}

impl Model {
    /// Puts documents together. Their keys are unique.
    pub(crate) fn build<'a>(root_namespace: &str, documents: impl IntoIterator<Item = &'a Document>) -> Self {
        let mut model = Self {
            root_namespace: root_namespace.to_owned(),
            ..Self::default()
        };
        let mut workloads = Vec::new();
        for document in documents {
            match document {
                Document::Namespace(namespace) => {
                    model.namespaces.insert(namespace.name.clone(), namespace.clone());
                }
                Document::Service(service) => {
                    let key = (service.namespace.clone(), service.name.clone());
                    model.services.insert(key, service.clone());
                }
                Document::Workload(workload) => workloads.push(workload),
                Document::Policy(policy) => model.policies.push(policy.clone()),
            }
        }
        let meshed: Vec<&str> = workloads
            .iter()
            .filter(|w| w.mesh && w.id.is_some())
            .map(|w| w.namespace.as_str())
            .collect();
        for document in &workloads {
            let has_meshed = meshed.contains(&document.namespace.as_str());
            let workload = model.placed(document, has_meshed);
            for ip in &document.addresses {
                model.by_address.entry(*ip).or_default().push(workload.key());
            }
            model.workloads.insert(workload.key(), workload);
        }
        model.connect_services();
        model.settle_protocols();
        model.check();
        model
    }

    fn placed(&mut self, document: &documents::Workload, has_meshed: bool) -> Workload {
        let namespace = self.namespaces.get(&document.namespace);
        let base = namespace.and_then(|n| n.mode).unwrap_or_default();
        let loosening = namespace.is_some_and(|n| n.allow_loosening);
        let mode = match document.mode {
            // Mode is ordered by strictness.
            Some(wanted) if wanted >= base || loosening => wanted,
            Some(wanted) => {
                self.conditions.push(format!(
                    "{}: Workload {}/{} asks for mode {wanted:?}, looser than its namespace's {base:?}; ignored, since \
                     the namespace does not carry postern.dev/allow-loosening",
                    document.place, document.namespace, document.name
                ));
                base
            }
            None => base,
        };
        let injected = namespace.and_then(|n| n.inject).unwrap_or(has_meshed);
        let standing = match &document.id {
            _ if !document.mesh => Standing::Unmeshed,
            Some(id) => Standing::Meshed(id.clone()),
            None if injected && mode == Mode::Protect => Standing::NoIdentity,
            None => Standing::Unmeshed,
        };
        let ports = document
            .ports
            .iter()
            .map(|port| Port {
                name: port.name.clone(),
                number: port.number,
                listen: port.listen,
                app: port.app,
                protocol: port.declared.unwrap_or(Protocol::Detect),
            })
            .collect();
        Workload {
            document: document.clone(),
            mode,
            standing,
            ports,
        }
    }

    /// Finds which workload ports each Service port leads to.
    fn connect_services(&mut self) {
        for (name, service) in &self.services {
            for ip in &service.cluster_ips {
                self.by_cluster_ip.entry(*ip).or_insert_with(|| name.clone());
            }
            for workload in self.workloads.values().filter(|w| w.selected_by(service)) {
                for port in &service.ports {
                    if let Some(number) = workload.target(&port.target) {
                        let front = (name.clone(), port.number);
                        self.fronts.entry((workload.key(), number)).or_default().push(front);
                    }
                }
            }
        }
    }

    /// What a workload's port speaks is what it and all Services in front of it declare; where they disagree, it is
    /// detected, and a condition says so.
    fn settle_protocols(&mut self) {
        let mut undeclared = Vec::new();
        for ((workload, number), fronts) in &self.fronts {
            let declared_by_services = fronts.iter().filter_map(|(service, port)| {
                let service = self.services.get(service)?;
                service.ports.iter().find(|p| p.number == *port)?.declared
            });
            let Some(workload) = self.workloads.get_mut(workload) else {
                continue;
            };
            let own = workload
                .document
                .ports
                .iter()
                .find(|p| p.number == *number)
                .and_then(|p| p.declared);
            let protocol = match protocol::agreed(own.into_iter().chain(declared_by_services)) {
                Ok(protocol) => protocol.unwrap_or(Protocol::Detect),
                Err(()) => {
                    let services: Vec<String> = fronts.iter().map(|((ns, s), p)| format!("{ns}/{s}:{p}")).collect();
                    self.conditions.push(format!(
                        "{}: what port {number} of Workload {}/{} speaks is declared differently by it and by {}; it \
                         is detected",
                        workload.document.place,
                        workload.document.namespace,
                        workload.document.name,
                        services.join(", ")
                    ));
                    Protocol::Detect
                }
            };
            match workload.ports.iter_mut().find(|p| p.number == *number) {
                Some(port) => port.protocol = protocol,
                None => undeclared.push((workload.key(), *number, protocol)),
            }
        }
        // A captured workload need not list its ports, as a pod need not.
        for (workload, number, protocol) in undeclared {
            if let Some(workload) = self.workloads.get_mut(&workload) {
                workload.ports.push(Port {
                    name: String::new(),
                    number,
                    listen: number,
                    app: number,
                    protocol,
                });
                workload.ports.sort_by_key(|port| port.number);
            }
        }
    }

    /// Does anything live in it?
    pub(crate) fn knows_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
            || self
                .workloads
                .keys()
                .chain(self.services.keys())
                .any(|(namespace, _)| namespace == name)
    }

    /// The policies that select a workload.
    pub(crate) fn policies_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a AuthorizationPolicy> {
        let document = &workload.document;
        self.policies
            .iter()
            .filter(|policy| policy.selects(&self.root_namespace, &document.namespace, &document.labels))
    }

    /// Every address that somebody may ask about.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().chain(self.by_cluster_ip.keys()).copied()
    }
}

impl Workload {
    pub(crate) fn key(&self) -> Name {
        (self.document.namespace.clone(), self.document.name.clone())
    }

    fn selected_by(&self, service: &Service) -> bool {
        !service.selector.is_empty()
            && self.document.namespace == service.namespace
            && service
                .selector
                .iter()
                .all(|(key, value)| self.document.labels.get(key) == Some(value))
    }

    /// The number of the port that a Service's targetPort means here.
    fn target(&self, target: &TargetPort) -> Option<u16> {
        let declared = |wanted: &dyn Fn(&documents::WorkloadPort) -> bool| {
            self.document
                .ports
                .iter()
                .find(|port| wanted(port))
                .map(|port| port.number)
        };
        match target {
            TargetPort::Name(name) => declared(&|port| port.name == *name),
            // Explicit: nobody listens on a port that is not listed. Captured: any port may be.
            TargetPort::Number(number) => declared(&|port| port.number == *number)
                .or_else(|| (self.document.capture == Capture::Redirect).then_some(*number)),
        }
    }
}

#[cfg(test)]
mod tests;

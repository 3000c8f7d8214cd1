//! All documents together: who is there, how strictly each is treated, what each port speaks, and which policies are in force.
//! Immutable; a change of the directory makes the next one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use postern_identity::{SpiffeId, TrustDomain};
use postern_policy::peer_authentication::PortModes;
use postern_policy::{Aliases, AuthorizationPolicy, Authorizer, Mode, PeerAuthentication, RequestAuthentication};

use crate::documents::{self, Capture, Document, Namespace, Service, TargetPort};
use crate::protocol::{self, Protocol};
use crate::source::Load;

mod backends;
mod conditions;
mod doors;
mod providers;
mod ranges;
mod resolve;

pub(crate) use doors::{Fault, FaultKind};
pub(crate) use providers::{Asked, denying};
pub(crate) use ranges::Range;
pub(crate) use resolve::octets;

/// Namespace and name.
pub(crate) type Name = (String, String);

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Model {
    pub(crate) root_namespace: String,
    /// Whose identities are at home here.
    pub(crate) home: Option<TrustDomain>,
    namespaces: BTreeMap<String, Namespace>,
    pub(crate) workloads: BTreeMap<Name, Arc<Workload>>,
    services: BTreeMap<Name, Arc<Service>>,
    pub(crate) policies: Vec<AuthorizationPolicy>,
    pub(crate) authentications: Vec<Arc<RequestAuthentication>>,
    pub(crate) peer_authentications: Vec<Arc<PeerAuthentication>>,
    authorizers: BTreeMap<Name, Arc<Authorizer>>,
    /// Where in the policies those of a namespace are.
    policies_in: HashMap<String, Vec<usize>>,
    /// Which workloads have an address, and which Services.
    by_address: HashMap<IpAddr, Vec<Name>>,
    by_cluster_ip: HashMap<IpAddr, Name>,
    /// Addresses that slices give to pods which are not heard of (yet): nobody knows who answers there.
    unheard: HashSet<(IpAddr, u16)>,
    /// (Namespace, instance) to the workload's name.
    by_instance: HashMap<Name, Name>,
    /// Which Services lead to a workload's port: (workload, number) to (service, its port).
    fronts: HashMap<(Name, u16), Vec<(Name, u16)>>,
    /// Faults between documents: nothing is refused for them, but somebody should know.
    pub(crate) conditions: Vec<String>,
    /// What control answers for.
    pub(crate) ranges: Vec<Range>,
    /// Pods, and not documents that somebody wrote by hand: most of them are no affair of a mesh.
    cluster: bool,
}

/// A workload in its surroundings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Workload {
    pub(crate) document: Arc<documents::Workload>,
    /// After the namespace had its say.
    pub(crate) mode: Mode,
    /// What its ports take.
    pub(crate) mtls: PortModes,
    pub(crate) standing: Standing,
    pub(crate) ports: Vec<Port>,
    /// Ports of its own that its proxy does not stand before.
    skipped_ports: Vec<u16>,
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
    pub(crate) fn build(root_namespace: &str, aliases: &Aliases, load: &Load) -> Self {
        let mut model = Self {
            root_namespace: root_namespace.to_owned(),
            home: aliases.own(),
            conditions: load.conditions.clone(),
            cluster: load.revisions.is_some(),
            ..Self::default()
        };
        let mut workloads = Vec::new();
        for document in &load.documents {
            match document {
                Document::Namespace(namespace) => {
                    model.namespaces.insert(namespace.name.clone(), namespace.clone());
                }
                Document::Service(service) => {
                    let key = (service.namespace.clone(), service.name.clone());
                    model.services.insert(key, Arc::clone(service));
                }
                Document::Workload(workload) => workloads.push(workload),
                Document::Policy(policy) => {
                    let of_namespace = model.policies_in.entry(policy.namespace.clone()).or_default();
                    of_namespace.push(model.policies.len());
                    model.policies.push(policy.clone().under(aliases));
                }
                Document::Authorizer(authorizer) => {
                    let key = (authorizer.namespace.clone(), authorizer.name.clone());
                    model.authorizers.insert(key, Arc::clone(authorizer));
                }
                Document::Authentication(document) => {
                    model.authentications.push(match aliases.is_idle() {
                        true => Arc::clone(document),
                        false => Arc::new(RequestAuthentication::clone(document).under(aliases)),
                    });
                }
                Document::PeerAuthentication(document) => model.peer_authentications.push(Arc::clone(document)),
            }
        }
        let meshed: HashSet<&str> = workloads
            .iter()
            .filter(|w| w.mesh && w.id.is_some())
            .map(|w| w.namespace.as_str())
            .collect();
        for document in workloads {
            let has_meshed = meshed.contains(document.namespace.as_str());
            let workload = model.placed(document, has_meshed);
            for ip in document.addresses.iter().filter(|_| !document.pod.host_network) {
                model.by_address.entry(*ip).or_default().push(workload.key());
            }
            let instance = (document.namespace.clone(), document.instance.clone());
            model.by_instance.insert(instance, workload.key());
            model.workloads.insert(workload.key(), Arc::new(workload));
        }
        model.connect_services();
        model.settle_protocols();
        model.check();
        model.ranges = model.all_ranges();
        model
    }

    fn placed(&mut self, document: &Arc<documents::Workload>, has_meshed: bool) -> Workload {
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
            // A pod that has our sidecar is captured, whatever its labels have come to say since.
            Some(id) => Standing::Meshed(id.clone()),
            None if document.pod.opted_out && loosening => Standing::Unmeshed,
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
        let skipped = &document.pod.skipped_ports;
        if !skipped.is_empty() && !loosening {
            self.conditions.push(format!(
                "{}: Workload {}/{} asks that its proxy be passed by on some ports; ignored, since the namespace does not \
                 carry postern.dev/allow-loosening",
                document.place, document.namespace, document.name
            ));
        }
        Workload {
            document: Arc::clone(document),
            mode,
            mtls: self.port_modes(document, mode),
            standing,
            ports,
            skipped_ports: if loosening { skipped.clone() } else { Vec::new() },
        }
    }

    /// Finds which workload ports each Service port leads to.
    fn connect_services(&mut self) {
        let (mut by_cluster_ip, mut fronts) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        let mut unheard = HashSet::new();
        for (name, service) in &self.services {
            for ip in &service.cluster_ips {
                by_cluster_ip.entry(*ip).or_insert_with(|| name.clone());
            }
            unheard.extend(self.unheard_behind(service));
            for (workload, number, front) in self.behind(service) {
                let fronts = fronts.entry((workload, number)).or_default();
                // Once per pair, though a pod stands in a slice per family.
                let front = (name.clone(), front);
                if !fronts.contains(&front) {
                    fronts.push(front);
                }
            }
        }
        (self.by_cluster_ip, self.fronts, self.unheard) = (by_cluster_ip, fronts, unheard);
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
            let Some(workload) = self.workloads.get_mut(workload).map(Arc::make_mut) else {
                continue;
            };
            let own = workload
                .document
                .ports
                .iter()
                .find(|p| p.number == *number)
                .and_then(|p| p.declared);
            let protocol = match protocol::agreed(own.into_iter().chain(declared_by_services)) {
                _ if workload.document.pod.opaque_ports.contains(number) => Protocol::Tcp,
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
            if let Some(workload) = self.workloads.get_mut(&workload).map(Arc::make_mut) {
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

    /// With the workloads of the model before it, where they are the same: that is quick to see for whoever follows one.
    pub(crate) fn sharing(mut self, before: &Self) -> Self {
        for (name, workload) in &mut self.workloads {
            if let Some(before) = before.workloads.get(name).filter(|before| *before == workload) {
                *workload = Arc::clone(before);
            }
        }
        self
    }

    /// Whose SVID says `instance`, in this namespace.
    pub(crate) fn by_instance(&self, namespace: &str, instance: &str) -> Option<&Workload> {
        let name = self.by_instance.get(&(namespace.to_owned(), instance.to_owned()))?;
        self.workloads.get(name).map(Arc::as_ref)
    }

    /// The policies that select a workload.
    pub(crate) fn policies_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a AuthorizationPolicy> {
        let document = &workload.document;
        let of = |namespace: &str| self.policies_in.get(namespace).map_or(&[][..], Vec::as_slice);
        let in_root = of(&self.root_namespace)
            .iter()
            .filter(|_| document.namespace != self.root_namespace);
        let mut places: Vec<usize> = of(&document.namespace).iter().chain(in_root).copied().collect();
        // In the order of their documents.
        places.sort_unstable();
        let policies = places.into_iter().filter_map(|at| self.policies.get(at));
        policies.filter(|policy| policy.selects(&self.root_namespace, &document.namespace, &document.labels))
    }

    /// Those that a document describes.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// The labels of a namespace; none if no document describes it.
    pub(crate) fn labels_of(&self, namespace: &str) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.namespaces
            .get(namespace)
            .map_or(&NONE, |namespace| &namespace.labels)
    }

    /// The same; `None` if no document describes it.
    pub(crate) fn described_labels_of(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(namespace).map(|namespace| &namespace.labels)
    }

    /// How strict a namespace is with its workloads.
    pub(crate) fn mode_of(&self, namespace: &str) -> Mode {
        self.namespaces
            .get(namespace)
            .and_then(|namespace| namespace.mode)
            .unwrap_or_default()
    }

    /// A workload by its name.
    pub(crate) fn workload(&self, namespace: &str, name: &str) -> Option<&Workload> {
        self.workloads
            .get(&(namespace.to_owned(), name.to_owned()))
            .map(Arc::as_ref)
    }

    /// The workloads that have an identity.
    pub(crate) fn with_id(&self, id: &SpiffeId) -> Vec<&Workload> {
        let all = self.workloads.values().map(Arc::as_ref);
        all.filter(|workload| workload.document.id.as_ref() == Some(id))
            .collect()
    }

    /// Whose tokens a workload believes, in the order of their documents. There are few of them in a mesh.
    pub(crate) fn authentications_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<RequestAuthentication>> {
        let (namespace, labels) = (&workload.document.namespace, &workload.document.labels);
        let all = self.authentications.iter();
        all.filter(|document| document.selects(&self.root_namespace, namespace, labels))
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

    /// Who answers on this port.
    fn standing_on(&self, port: u16) -> Standing {
        if self.skipped_ports.contains(&port) {
            return Standing::Unmeshed;
        }
        self.standing.clone()
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

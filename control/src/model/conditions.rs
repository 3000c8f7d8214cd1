//! Faults between documents. None is fatal; each is logged and shown when it appears.

use std::collections::HashMap;

use postern_policy::authentication::KeySource;

use super::{Model, Standing};
use crate::documents::{Capture, TargetPort};

/// A directory full of faults must not fill the memory with their descriptions.
const MAX_CONDITIONS: usize = 256;

impl Model {
    pub(super) fn check(&mut self) {
        let mut found = Vec::new();
        self.check_cluster_ips(&mut found);
        if !self.cluster {
            self.check_services(&mut found);
        }
        self.check_policies(&mut found);
        self.check_authentications(&mut found);
        self.check_peer_authentications(&mut found);
        self.check_addresses(&mut found);
        self.conditions.append(&mut found);
        self.conditions.sort();
        self.conditions.dedup();
        self.conditions.truncate(MAX_CONDITIONS);
    }

    fn check_cluster_ips(&self, found: &mut Vec<String>) {
        for ((namespace, name), service) in &self.services {
            let place = &service.place;
            for ip in &service.cluster_ips {
                if let Some((other_namespace, other)) = self.by_cluster_ip.get(ip)
                    && (other_namespace, other) != (namespace, name)
                {
                    found.push(format!(
                        "{place}: {ip} is claimed by Service {namespace}/{name} and by {other_namespace}/{other}, which \
                         has it"
                    ));
                }
            }
        }
    }

    fn check_services(&self, found: &mut Vec<String>) {
        for ((namespace, name), service) in &self.services {
            let place = &service.place;
            let selected: Vec<_> = self.workloads.values().filter(|w| w.selected_by(service)).collect();
            if selected.is_empty() {
                found.push(format!("{place}: Service {namespace}/{name} selects no workload"));
                continue;
            }
            for port in &service.ports {
                for workload in selected.iter().filter(|w| w.target(&port.target).is_none()) {
                    let target = match &port.target {
                        TargetPort::Name(target) => format!("named `{target}`"),
                        TargetPort::Number(target) => target.to_string(),
                    };
                    let ports: Vec<String> = workload
                        .document
                        .ports
                        .iter()
                        .map(|p| format!("{} ({})", p.number, p.name))
                        .collect();
                    found.push(format!(
                        "{}: Service {namespace}/{name} leads to port {target}, which Workload {namespace}/{} does not \
                         have; it has {}",
                        port.place,
                        workload.document.name,
                        if ports.is_empty() {
                            "none".to_owned()
                        } else {
                            ports.join(", ")
                        }
                    ));
                }
            }
        }
    }

    fn check_policies(&self, found: &mut Vec<String>) {
        for (policy, why) in self.unasked() {
            let (place, namespace, name) = (&policy.place, &policy.namespace, &policy.name);
            found.push(format!("{place}: AuthorizationPolicy {namespace}/{name}: {why}"));
        }
        for policy in &self.policies {
            let selects = self.workloads.values().any(|workload| {
                policy.selects(
                    &self.root_namespace,
                    &workload.document.namespace,
                    &workload.document.labels,
                )
            });
            if !selects {
                let (place, namespace, name) = (&policy.place, &policy.namespace, &policy.name);
                found.push(format!(
                    "{place}: AuthorizationPolicy {namespace}/{name} selects no workload"
                ));
            }
        }
    }

    fn check_authentications(&self, found: &mut Vec<String>) {
        for document in &self.authentications {
            let of = format!(
                "{}: RequestAuthentication {}/{}",
                document.place, document.namespace, document.name
            );
            if document.foreign_target {
                found.push(format!(
                    "{of} is for a gateway or waypoint (targetRefs), and applies to no sidecar"
                ));
                continue;
            }
            let selects = self.workloads.values().any(|workload| {
                let (namespace, labels) = (&workload.document.namespace, &workload.document.labels);
                document.selects(&self.root_namespace, namespace, labels)
            });
            if !selects {
                found.push(format!("{of} selects no workload"));
            }
            for rule in document.rules() {
                let issuer = &rule.issuer;
                match &rule.keys {
                    KeySource::File(name) => {
                        found.push(format!(
                            "{of}: there are no keys of {issuer}: no file {name} stands beside the documents"
                        ));
                    }
                    KeySource::Inline(text) => {
                        let set = postern_token::KeySet::parse(text.as_bytes()).unwrap_or_default();
                        let left_out = set.left_out().iter();
                        found.extend(
                            left_out
                                .map(|key| format!("{of}: the key {} of {issuer} is left out: {}", key.key, key.why)),
                        );
                    }
                    KeySource::Uri(_) | KeySource::Discovered => {}
                }
            }
        }
    }

    fn check_peer_authentications(&self, found: &mut Vec<String>) {
        found.extend(self.idle_doors().into_iter().map(|fault| {
            let (document, says) = (fault.document, fault.says);
            let (place, namespace, name) = (&document.place, &document.namespace, &document.name);
            format!("{place}: PeerAuthentication {namespace}/{name} {says}")
        }));
    }

    /// Two proxies cannot listen at one place, and an address that two workloads claim belongs to neither for sure.
    fn check_addresses(&self, found: &mut Vec<String>) {
        let mut taken = HashMap::new();
        for ((namespace, name), workload) in &self.workloads {
            let document = &workload.document;
            if !matches!(workload.standing, Standing::Meshed(_)) || document.pod.host_network {
                continue;
            }
            for ip in &document.addresses {
                let ports: Vec<u16> = match document.capture {
                    Capture::Explicit => document.ports.iter().map(|port| port.listen).collect(),
                    Capture::Redirect | Capture::Foreign => vec![0],
                };
                for port in ports {
                    if let Some(other) = taken.insert((*ip, port), name) {
                        let what = if port == 0 {
                            ip.to_string()
                        } else {
                            format!("{ip} port {port}")
                        };
                        let place = &document.place;
                        found.push(format!(
                            "{place}: {what} is claimed by Workload {namespace}/{name} and by {other}"
                        ));
                    }
                }
            }
        }
    }
}

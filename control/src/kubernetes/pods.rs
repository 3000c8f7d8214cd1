//! Pods are workloads: what is kept of one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use postern_identity::{SpiffeId, TrustDomain};
use postern_policy::Mode;
use postern_policy::document::Place;

use crate::documents::{Capture, INJECT, MODE, PodFacts, Workload, WorkloadPort};

/// Our proxy: a native sidecar.
const PROXY: &str = "postern-proxy";
/// What set up its capture, and with which arguments.
const INIT: &str = "postern-init";
const SKIPPED: &str = "--skip-inbound-ports";
/// The proxy's own, which is never captured.
const METRICS_PORT: u16 = 15_020;
const OPAQUE_PORTS: &str = "postern.dev/opaque-ports";
const SKIP_INBOUND_PORTS: &str = "postern.dev/skip-inbound-ports";
/// More than any pod has; what lies past it is not declared.
const MAX_PORTS: usize = 256;

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PodItem {
    pub(super) document: Arc<Workload>,
    /// Seconds since 1970.
    born: i64,
    /// It was told to end.
    ending: bool,
    pub(super) conditions: Vec<String>,
}

impl PodItem {
    /// `None`: it has ended, and its address may be another's already.
    pub(super) fn keep(pod: Pod, trust_domain: &TrustDomain) -> Option<Self> {
        let (metadata, spec) = (pod.metadata, pod.spec.unwrap_or_default());
        let status = pod.status.unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let namespace = metadata.namespace.unwrap_or_default();
        let name = metadata.name.unwrap_or_default();
        let place = super::place("Pod", &namespace, &name);
        let labels = metadata.labels.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        let mut conditions = Vec::new();
        let mut condition = |what: String| conditions.push(format!("{}: {what}", place.file));
        let account = spec.service_account_name.filter(|account| !account.is_empty());
        let account = account.unwrap_or_else(|| "default".to_owned());
        let init = spec.init_containers.unwrap_or_default();
        let meshed = init.iter().any(|container| container.name == PROXY && stays(container));
        let id = SpiffeId::for_workload(trust_domain, &namespace, &account).ok();
        let facts = PodFacts {
            host_network: spec.host_network == Some(true),
            opted_out: labels.get(INJECT).is_some_and(|value| value == "disabled"),
            opaque_ports: ports_of(&annotations, OPAQUE_PORTS, &mut condition),
            // Annotations may have been changed since; what is captured was settled when the pod began.
            skipped_ports: if meshed {
                skipped_by(&init)
            } else {
                ports_of(&annotations, SKIP_INBOUND_PORTS, &mut condition)
            },
        };
        let mode = labels.get(MODE).map(|text| {
            // The strictest: whatever was meant, it is not looser.
            Mode::parse(text).unwrap_or_else(|why| {
                condition(format!("label {MODE}: {why}; protect is assumed"));
                Mode::Protect
            })
        });
        let containers = init.iter().filter(|c| stays(c)).chain(&spec.containers);
        let ports = ports(containers.filter(|container| container.name != PROXY), &place);
        let document = Workload {
            place,
            namespace,
            name,
            instance: metadata.uid.unwrap_or_default(),
            labels,
            id: id.filter(|_| meshed),
            mesh: true,
            addresses: addresses(status.pod_ip, status.pod_ips.unwrap_or_default()),
            capture: Capture::Redirect,
            mode,
            ports,
            pod: facts,
        };
        Some(Self {
            document: Arc::new(document),
            born: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            ending: metadata.deletion_timestamp.is_some(),
            conditions,
        })
    }

    /// Of two pods with one address, whose it is: the one that is not ending, the younger one, and then any, but the same for
    /// all replicas.
    pub(super) fn rank(&self) -> (bool, i64, &str) {
        (!self.ending, self.born, &self.document.instance)
    }
}

/// A native sidecar runs beside the app's containers.
fn stays(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the pod's capture really leaves out. What cannot be read here is captured: callers then ask for the proxy.
fn skipped_by(init: &[Container]) -> Vec<u16> {
    let args = init.iter().find(|container| container.name == INIT);
    let args = args.and_then(|container| container.args.as_deref()).unwrap_or_default();
    let mut at = args.iter().skip_while(|arg| *arg != SKIPPED).skip(1);
    let texts = at.next().into_iter().flat_map(|list| list.split(','));
    let ports = texts.filter_map(|text| text.trim().parse::<u16>().ok());
    ports.filter(|port| *port > 0 && *port != METRICS_PORT).collect()
}

fn addresses(first: Option<String>, all: Vec<k8s_openapi::api::core::v1::PodIP>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in first.into_iter().chain(all.into_iter().map(|ip| ip.ip)) {
        if let Ok(ip) = text.parse::<IpAddr>().map(|ip| ip.to_canonical())
            && !addresses.contains(&ip)
        {
            addresses.push(ip);
        }
    }
    addresses
}

fn ports<'a>(containers: impl Iterator<Item = &'a Container>, place: &Place) -> Vec<WorkloadPort> {
    let mut ports: Vec<WorkloadPort> = Vec::new();
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let Some(number) = u16::try_from(port.container_port).ok().filter(|number| *number > 0) else {
            continue;
        };
        let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        if !tcp || ports.len() == MAX_PORTS || ports.iter().any(|other| other.number == number) {
            continue;
        }
        let name = port.name.clone().unwrap_or_default();
        ports.push(WorkloadPort {
            place: place.clone(),
            // Two containers may use one name; it is the first one's.
            name: if ports.iter().any(|other| other.name == name) {
                String::new()
            } else {
                name
            },
            number,
            // What a port speaks is for Services to say; its name here is the author's own.
            declared: None,
            listen: number,
            app: number,
        });
    }
    ports
}

/// `8080,9000`. What is no port was refused at admission; if it is there nevertheless it means nothing, which is the
/// stricter reading of both annotations.
fn ports_of(annotations: &BTreeMap<String, String>, name: &str, condition: &mut impl FnMut(String)) -> Vec<u16> {
    let mut ports = Vec::new();
    for text in annotations.get(name).into_iter().flat_map(|text| text.split(',')) {
        let text = text.trim();
        match text.parse::<u16>() {
            Ok(port) if port > 0 => ports.push(port),
            _ if text.is_empty() => {}
            Ok(_) | Err(_) => condition(format!("annotation {name}: `{text}` is no port: ignored")),
        }
    }
    ports
}

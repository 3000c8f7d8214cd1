//! `v1 Service`: a name for the workloads that a selector finds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use postern_policy::document::{DocumentError, Fields, Node, Object, Place, Value};

use super::{DEFAULT_NAMESPACE, check_ours, done};
use crate::protocol::{self, Protocol};

/// A Service's ports; Kubernetes itself stops far below.
const MAX_PORTS: usize = 256;

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) place: Place,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Empty selects nothing.
    pub(crate) selector: BTreeMap<String, String>,
    /// What captured traffic is sent to.
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) ports: Vec<ServicePort>,
    /// Who answers, if that is said apart (EndpointSlices); `None`: whom the selector finds.
    pub(crate) backends: Option<Vec<Backend>>,
}

/// One that answers for a port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Backend {
    /// The Service's port.
    pub(crate) front: u16,
    pub(crate) ip: IpAddr,
    /// Where it listens.
    pub(crate) port: u16,
    /// The pod that it is said to be: its name, and its UID.
    pub(crate) pod: Option<(String, String)>,
}

/// One of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) target: TargetPort,
    /// By `appProtocol`, else by the name; `None`: not declared.
    pub(crate) declared: Option<Protocol>,
}

/// Which port of a workload is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    Name(String),
}

impl Service {
    pub(crate) fn decode(object: &Object) -> Result<Self, Vec<DocumentError>> {
        let mut errors = Vec::new();
        check_ours(object, "metadata.labels", object.labels.keys(), &[], &mut errors);
        check_ours(
            object,
            "metadata.annotations",
            object.annotations.keys(),
            &[],
            &mut errors,
        );
        let mut service = Self {
            place: object.place.clone(),
            namespace: object.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            name: object.name.clone(),
            selector: BTreeMap::new(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            backends: None,
        };
        let Some(spec) = &object.spec else {
            errors.push(object.error("", "`spec` is missing"));
            return Err(errors);
        };
        let mut fields = match Fields::of(spec, "spec") {
            Ok(fields) => fields,
            Err(error) => {
                errors.push(error);
                return Err(errors);
            }
        };
        service.selector = fields.text_map("selector");
        cluster_ips(&mut fields, &mut service.cluster_ips);
        if let Some(node) = fields.take("type")
            && !matches!(&node.value, Value::Text(text) if text == "ClusterIP")
            && node.value != Value::Null
        {
            fields.error(
                &node.place,
                "type",
                "only `ClusterIP` is served by the directory source",
            );
        }
        let items = fields.list("ports").unwrap_or_default();
        let portless = items.is_empty();
        for (path, node) in items {
            if service.ports.len() == MAX_PORTS {
                errors.push(object.error("spec.ports", format!("more than {MAX_PORTS} ports")));
                break;
            }
            if let Some(port) = port(&path, node, &mut errors) {
                unique(&service.ports, &port, &path, &mut errors);
                service.ports.push(port);
            }
        }
        fields.finish(&mut errors);
        if portless && errors.is_empty() {
            errors.push(object.error("spec.ports", "a Service has at least one port"));
        }
        done(service, errors)
    }
}

fn cluster_ips(fields: &mut Fields<'_>, into: &mut Vec<IpAddr>) {
    let single = fields.take("clusterIP").map(|node| (&node.place, node.value.clone()));
    let many = fields.texts("clusterIPs").unwrap_or_default();
    let single = single.and_then(|(place, value)| match value {
        Value::Text(text) => Some((place, text)),
        Value::Null => None,
        Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => {
            fields.error(place, "clusterIP", "must be an address or `None`");
            None
        }
    });
    for (place, text) in single.into_iter().chain(many) {
        if text == "None" || text.is_empty() {
            continue;
        }
        match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if into.contains(&ip) => {}
            Ok(ip) => into.push(ip),
            Err(_) => fields.error(place, "clusterIP", format!("`{text}` is no IP address")),
        }
    }
}

fn port(path: &str, node: &Node, errors: &mut Vec<DocumentError>) -> Option<ServicePort> {
    let mut fields = match Fields::of(node, path) {
        Ok(fields) => fields,
        Err(error) => {
            errors.push(error);
            return None;
        }
    };
    let name = fields.text("name").unwrap_or_default();
    let number = fields.port("port");
    let target = target(&mut fields);
    let app_protocol = fields.text("appProtocol");
    // Layer 4; what is spoken above it is appProtocol's.
    let transport = fields.take("protocol");
    let udp = match transport.map(|node| (&node.place, &node.value)) {
        None | Some((_, Value::Null)) => false,
        Some((_, Value::Text(text))) if text == "TCP" => false,
        Some((_, Value::Text(text))) if text == "UDP" || text == "SCTP" => true,
        Some((place, Value::Text(text))) => {
            fields.unknown_value(place, "protocol", text, &["TCP", "UDP", "SCTP"]);
            false
        }
        Some((place, _)) => {
            fields.error(place, "protocol", "must be TCP, UDP or SCTP");
            false
        }
    };
    let before = errors.len();
    fields.finish(errors);
    let Some(number) = number else {
        if errors.len() == before {
            let (place, path) = (node.place.clone(), path.to_owned());
            errors.push(DocumentError {
                place,
                path,
                what: "`port` is missing".to_owned(),
                nearest: None,
            });
        }
        return None;
    };
    // Not ours to carry.
    if udp {
        return None;
    }
    let declared = match &app_protocol {
        Some(text) => protocol::of_app_protocol(text),
        None => protocol::of_port_name(&name),
    };
    Some(ServicePort {
        place: node.place.clone(),
        name,
        number,
        target: target.unwrap_or(TargetPort::Number(number)),
        declared,
    })
}

fn target(fields: &mut Fields<'_>) -> Option<TargetPort> {
    let node = fields.take("targetPort")?;
    match &node.value {
        Value::Null => None,
        Value::Text(name) if !name.is_empty() => Some(TargetPort::Name(name.clone())),
        Value::Int(number) => match u16::try_from(*number) {
            Ok(number) if number > 0 => Some(TargetPort::Number(number)),
            _ => {
                fields.error(&node.place, "targetPort", format!("{number} is no port: 1 to 65535"));
                None
            }
        },
        Value::Text(_) | Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => {
            fields.error(&node.place, "targetPort", "must be a port's number or name");
            None
        }
    }
}

fn unique(ports: &[ServicePort], port: &ServicePort, path: &str, errors: &mut Vec<DocumentError>) {
    let twice = |what: String| DocumentError {
        place: port.place.clone(),
        path: path.to_owned(),
        what,
        nearest: None,
    };
    if ports.iter().any(|other| other.number == port.number) {
        errors.push(twice(format!("port {} is given twice", port.number)));
    } else if ports.iter().any(|other| other.name == port.name) {
        errors.push(twice(format!(
            "two ports are named `{}`; several ports need distinct names",
            port.name
        )));
    }
}

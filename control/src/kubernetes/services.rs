//! Services and their EndpointSlices: which addresses answer for which port.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as Object;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::documents::{Backend, Service, ServicePort, TargetPort};
use crate::model::Name;
use crate::protocol;

/// Which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service, without those behind it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ServiceItem {
    pub(super) document: Arc<Service>,
}

/// Some of those behind a Service.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SliceItem {
    pub(super) service: Name,
    /// By name.
    ports: Vec<(String, u16)>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    /// Name and UID.
    pod: Option<(String, String)>,
    readiness: Readiness,
}

/// As kube-proxy reads an endpoint's conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// Of `publishNotReadyAddresses` as well: its endpoints are always ready.
    Ready,
    /// On its way out, and still answering: better than nobody.
    LastResort,
    No,
}

impl ServiceItem {
    /// `None`: a name in DNS and no more.
    pub(super) fn keep(object: Object) -> Option<Self> {
        let spec = object.spec.unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let namespace = object.metadata.namespace.unwrap_or_default();
        let name = object.metadata.name.unwrap_or_default();
        let place = super::place("Service", &namespace, &name);
        let single = spec.cluster_ip.into_iter();
        let mut cluster_ips = Vec::new();
        for text in single.chain(spec.cluster_ips.unwrap_or_default()) {
            // "None", if it is headless.
            if let Ok(ip) = text.parse::<IpAddr>().map(|ip| ip.to_canonical())
                && !cluster_ips.contains(&ip)
            {
                cluster_ips.push(ip);
            }
        }
        let tcp = |protocol: Option<&str>| protocol.is_none_or(|protocol| protocol == "TCP");
        let ports = spec.ports.unwrap_or_default().into_iter();
        let ports = ports.filter(|port| tcp(port.protocol.as_deref())).filter_map(|port| {
            let number = u16::try_from(port.port).ok().filter(|number| *number > 0)?;
            let name = port.name.unwrap_or_default();
            let declared = match &port.app_protocol {
                Some(text) => protocol::of_app_protocol(text),
                None => protocol::of_port_name(&name),
            };
            Some(ServicePort {
                place: place.clone(),
                name,
                number,
                // EndpointSlices say where it leads.
                target: TargetPort::Number(number),
                declared,
            })
        });
        let document = Service {
            ports: ports.collect(),
            place,
            namespace,
            name,
            selector: spec.selector.unwrap_or_default(),
            cluster_ips,
            backends: None,
        };
        Some(Self {
            document: Arc::new(document),
        })
    }
}

impl SliceItem {
    /// `None`: of no Service, or of host names.
    pub(super) fn keep(slice: EndpointSlice) -> Option<Self> {
        if slice.address_type == "FQDN" {
            return None;
        }
        let namespace = slice.metadata.namespace.unwrap_or_default();
        let service = slice.metadata.labels?.remove(SERVICE_NAME)?;
        let ports = slice.ports.unwrap_or_default().into_iter().filter_map(|port| {
            let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            let number = u16::try_from(port.port?).ok().filter(|number| tcp && *number > 0)?;
            Some((port.name.unwrap_or_default(), number))
        });
        let endpoints = slice.endpoints.into_iter().map(|endpoint| {
            let conditions = endpoint.conditions.unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let serving = conditions.serving.unwrap_or(ready);
            let pod = endpoint.target_ref.filter(|target| {
                target.kind.as_deref() == Some("Pod")
                    && target.namespace.as_ref().is_none_or(|theirs| *theirs == namespace)
            });
            let parsed = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
            Endpoint {
                addresses: parsed.map(|ip| ip.to_canonical()).collect(),
                pod: pod.map(|target| (target.name.unwrap_or_default(), target.uid.unwrap_or_default())),
                readiness: match (ready, serving && conditions.terminating == Some(true)) {
                    (true, _) => Readiness::Ready,
                    (false, true) => Readiness::LastResort,
                    (false, false) => Readiness::No,
                },
            }
        });
        Some(Self {
            ports: ports.collect(),
            endpoints: endpoints.collect(),
            service: (namespace, service),
        })
    }
}

/// Those that answer for a port: the ready ones; if there is none, those that end and still serve.
pub(super) fn backends(port: &ServicePort, slices: &[&SliceItem]) -> Vec<Backend> {
    for wanted in [Readiness::Ready, Readiness::LastResort] {
        let mut found = Vec::new();
        for slice in slices {
            // An unnamed port is a Service's only one.
            let target = slice.ports.iter().find(|(name, _)| *name == port.name);
            let Some((_, target)) = target else { continue };
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.readiness == wanted) {
                found.extend(endpoint.addresses.iter().map(|ip| Backend {
                    front: port.number,
                    ip: *ip,
                    port: *target,
                    pod: endpoint.pod.clone(),
                }));
            }
        }
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

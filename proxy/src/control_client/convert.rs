//! From the wire to what workers read. Every field is checked: enum 0, an absent oneof and a number out of range are
//! errors, never defaults.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use postern_api::authorizer_wire;
use postern_api::control::v1 as wire;
use postern_api::mtls_wire;
use postern_api::policy_wire::mode_from_wire;
use postern_identity::tls::alpn;
use postern_identity::{Expected, Instance, SpiffeId, TrustDomain};
use postern_policy::{AuthorizationPolicy, Authorizer, RequestAuthentication};
use prost::Message as _;

use crate::outcome::Failure;
use crate::snapshot::{Destination, Door, Endpoint, Peers, Port, Protocol, Ranges, Service, Target, Workload};

/// What is wrong, for the acknowledgement that refuses it.
pub(super) type Wrong = String;

pub(super) fn workload(config: &wire::WorkloadConfig) -> Result<Workload, Wrong> {
    let ports: Vec<Port> = config.ports.iter().map(port).collect::<Result<_, _>>()?;
    let mut listens = HashSet::new();
    if let Some(twice) = ports.iter().find(|port| !listens.insert(port.listen)) {
        return Err(format!("two ports listen on {}", twice.listen));
    }
    let mode = mode_from_wire(config.mode()).map_err(|e| e.to_string())?;
    Ok(Workload {
        namespace: config.namespace.clone(),
        name: config.name.clone(),
        mode,
        ports,
        mtls: mtls_wire::from_wire(config, mode).map_err(|e| e.to_string())?,
    })
}

fn port(port: &wire::WorkloadPort) -> Result<Port, Wrong> {
    let ip = match &port.address[..] {
        [] => Ipv4Addr::LOCALHOST.into(),
        bytes => address(bytes)?,
    };
    Ok(Port {
        name: port.name.as_str().into(),
        number: number(port.number)?,
        protocol: protocol(port.protocol())?,
        listen: SocketAddr::new(ip, number(port.listen)?),
        app: SocketAddr::new(ip, number(port.app)?),
    })
}

/// Policies, and whom they ask.
pub(super) fn policies(set: wire::PolicySet) -> Result<(Vec<AuthorizationPolicy>, Vec<Authorizer>), Wrong> {
    let read = |bytes: Bytes| {
        let policy = wire::AuthorizationPolicy::decode(bytes).map_err(|error| format!("a policy: {error}"))?;
        let name = format!("{}/{}", policy.namespace, policy.name);
        postern_api::policy_wire::from_wire(policy).map_err(|error| format!("policy {name}: {error}"))
    };
    // What asks one that is not understood denies what it matches; the other policies hold.
    let authorizers = set.authorizers.into_iter().filter_map(|authorizer| {
        let read = authorizer_wire::from_wire(authorizer);
        read.map_err(|error| tracing::error!(reason = "authorizer", "{error}"))
            .ok()
    });
    Ok((
        set.policies.into_iter().map(read).collect::<Result<_, _>>()?,
        authorizers.collect(),
    ))
}

/// Labels of peers; those of namespaces are of our own trust domain.
pub(super) fn peers(labels: &wire::PeerLabels, trust_domain: &TrustDomain) -> Result<Peers, Wrong> {
    let labels_of = |labels: &HashMap<String, String>| labels.clone().into_iter().collect();
    let instances = labels.instances.iter().map(|peer| {
        let id = SpiffeId::parse(&peer.spiffe_id).map_err(|e| e.to_string())?;
        let instance = Instance::parse(&peer.instance).map_err(|e| e.to_string())?;
        Ok((instance, (id, labels_of(&peer.labels))))
    });
    let namespaces = labels.namespaces.iter();
    Ok(Peers {
        trust_domain: Some(trust_domain.clone()),
        instances: instances.collect::<Result<_, Wrong>>()?,
        namespaces: namespaces
            .map(|namespace| (namespace.namespace.clone(), labels_of(&namespace.labels)))
            .collect(),
    })
}

/// Whose tokens are believed.
pub(super) fn authentications(documents: &[wire::RequestAuthentication]) -> Result<Vec<RequestAuthentication>, Wrong> {
    let read = |document: &wire::RequestAuthentication| {
        let name = format!("{}/{}", document.namespace, document.name);
        let read = postern_api::authentication_wire::from_wire(document.clone());
        read.map_err(|error| format!("RequestAuthentication {name}: {error}"))
    };
    documents.iter().map(read).collect()
}

pub(super) fn ranges(ranges: &wire::Ranges) -> Result<Ranges, Wrong> {
    let cidr = |cidr: &wire::Cidr| {
        let prefix = u8::try_from(cidr.prefix).map_err(|_| format!("prefix {}", cidr.prefix))?;
        Ok((address(&cidr.ip)?, prefix))
    };
    let cidrs: Vec<_> = ranges.cidrs.iter().map(cidr).collect::<Result<_, Wrong>>()?;
    Ranges::new(cidrs).ok_or_else(|| "a prefix is longer than its address".to_owned())
}

pub(super) fn destination(answer: &wire::Destination) -> Result<Destination, Wrong> {
    use wire::destination::State;
    match answer.state.as_ref().ok_or("the destination has no state")? {
        State::Meshed(meshed) => service(meshed).map(Destination::Meshed),
        State::Unmeshed(unmeshed) => {
            let addresses = unmeshed.addresses.iter().map(|a| socket_address(&a.ip, a.port));
            Ok(Destination::Unmeshed {
                service: format!("{}.{}", unmeshed.service, unmeshed.namespace).into(),
                addresses: addresses.collect::<Result<_, _>>()?,
            })
        }
        State::Outside(wire::Outside {}) => Ok(Destination::Outside),
        State::Unreachable(unreachable) => {
            let failure = match unreachable.reason.as_str() {
                "no_identity" => Failure::NoPeerIdentity,
                // unknown_host, unknown_port, and words from the future.
                _ => Failure::UnknownDestination,
            };
            Ok(Destination::Unreachable(failure, unreachable.detail.clone()))
        }
    }
}

fn service(meshed: &wire::Meshed) -> Result<Service, Wrong> {
    Ok(Service {
        name: meshed.service.as_str().into(),
        namespace: meshed.namespace.as_str().into(),
        port: number(meshed.port)?,
        protocol: protocol(meshed.protocol())?,
        mode: mode_from_wire(meshed.mode()).map_err(|e| e.to_string())?,
        endpoints: meshed.endpoints.iter().map(endpoint).collect::<Result<_, _>>()?,
    })
}

fn endpoint(endpoint: &wire::Endpoint) -> Result<Arc<Endpoint>, Wrong> {
    let ids = endpoint.spiffe_ids.iter().map(|id| SpiffeId::parse(id));
    let instance = match endpoint.instance.as_str() {
        "" => None,
        text => Some(Instance::parse(text).map_err(|e| e.to_string())?),
    };
    if endpoint.alpn.is_empty() != endpoint.spiffe_ids.is_empty() {
        // Half of either would be reached in clear, or by nobody.
        return Err("an endpoint has identities exactly if it speaks mutual TLS".to_owned());
    }
    Ok(Arc::new(Endpoint {
        address: socket_address(&endpoint.ip, endpoint.port)?,
        workload_port: number(endpoint.workload_port)?,
        expected: Expected {
            ids: ids.collect::<Result<_, _>>().map_err(|e| e.to_string())?,
            instance,
        },
        protocol: protocol(endpoint.protocol())?,
        door: match &endpoint.alpn[..] {
            [] => Door::Open,
            spoken if spoken.iter().any(|alpn| alpn.starts_with("postern/")) => Door::Sidecar,
            _ => Door::Spiffe,
        },
        readmits: endpoint
            .alpn
            .iter()
            .any(|spoken| spoken.as_bytes() == alpn::POSTERN_RENEW),
        workload: format!("{}/{}", endpoint.namespace, endpoint.workload).into(),
    }))
}

/// A target for the wire.
pub(super) fn resolve(id: u64, target: &Target) -> wire::Resolve {
    use wire::resolve::Target as On;
    let target = match target {
        Target::Name(host, port) => On::Name(wire::NamedTarget {
            host: host.to_string(),
            port: (*port).into(),
        }),
        Target::Address(address) => On::Address(wire::AddressTarget {
            ip: match address.ip() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            },
            port: address.port().into(),
        }),
    };
    wire::Resolve {
        id,
        target: Some(target),
    }
}

fn protocol(protocol: wire::Protocol) -> Result<Protocol, Wrong> {
    match protocol {
        wire::Protocol::Unspecified => Err("a protocol is missing or not understood".to_owned()),
        wire::Protocol::Detect => Ok(Protocol::Detect),
        wire::Protocol::Http1 => Ok(Protocol::Http1),
        wire::Protocol::Http2 => Ok(Protocol::Http2),
        wire::Protocol::Tcp => Ok(Protocol::Tcp),
    }
}

fn number(port: u32) -> Result<u16, Wrong> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{port} is no port"))
}

fn address(bytes: &[u8]) -> Result<IpAddr, Wrong> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| format!("an address has 4 or 16 bytes, not {}", bytes.len()))
}

fn socket_address(ip: &[u8], port: u32) -> Result<SocketAddr, Wrong> {
    Ok(SocketAddr::new(address(ip)?, number(port)?))
}

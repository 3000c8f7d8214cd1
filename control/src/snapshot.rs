//! What one proxy is told: only what concerns it.

use std::net::IpAddr;

use postern_api::control::v1 as wire;
use postern_api::control::v1::destination::State as Answer;
use postern_api::policy_wire::{mode_to_wire, to_wire};
use postern_policy::FeatureSet;

use crate::documents::Capture;
use crate::model::{Model, Workload, octets};
use crate::state::Bundles;

/// Its own workload.
pub(crate) fn workload(model: &Model, workload: &Workload, version: u64) -> wire::WorkloadConfig {
    let document = &workload.document;
    let explicit = document.capture == Capture::Explicit;
    let address = document
        .addresses
        .first()
        .filter(|_| explicit)
        .map(|ip| octets(*ip))
        .unwrap_or_default();
    let ports = workload.ports.iter().map(|port| wire::WorkloadPort {
        name: port.name.clone(),
        number: port.number.into(),
        protocol: port.protocol.to_wire() as i32,
        listen: port.listen.into(),
        app: port.app.into(),
        address: address.clone(),
        spiffe: false,
    });
    wire::WorkloadConfig {
        version,
        namespace: document.namespace.clone(),
        name: document.name.clone(),
        labels: document.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        mode: mode_to_wire(workload.mode) as i32,
        ports: ports.collect(),
        root_namespace: model.root_namespace.clone(),
    }
}

/// The policies that select it, without what it cannot evaluate.
pub(crate) fn policies(model: &Model, workload: &Workload, features: FeatureSet, version: u64) -> wire::PolicySet {
    let policies = model.policies_of(workload).map(|policy| {
        if features.covers(policy.features()) {
            to_wire(policy)
        } else {
            to_wire(&policy.masked(features))
        }
    });
    wire::PolicySet {
        version,
        policies: policies.collect(),
    }
}

/// The addresses that control answers for.
pub(crate) fn ranges(model: &Model, version: u64) -> wire::Ranges {
    let cidrs = model.ranges.iter().map(|range| wire::Cidr {
        ip: octets(range.ip),
        prefix: range.prefix.into(),
    });
    wire::Ranges {
        version,
        cidrs: cidrs.collect(),
    }
}

/// The CA's bundles, unchanged.
pub(crate) fn bundles(bundles: &Bundles, version: u64) -> wire::BundleSet {
    wire::BundleSet {
        version,
        bundles: bundles.links.clone(),
        issuer_epoch: bundles.issuer_epoch,
    }
}

/// What a proxy asked for, checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Name(String, u16),
    Address(IpAddr, u16),
}

impl Target {
    /// From the wire; the error names the field.
    pub(crate) fn parse(target: Option<wire::resolve::Target>) -> Result<Self, &'static str> {
        let port = |port: u32| u16::try_from(port).ok().filter(|port| *port > 0).ok_or("resolve: port");
        match target.ok_or("resolve: target")? {
            wire::resolve::Target::Name(name) => Ok(Self::Name(name.host, port(name.port)?)),
            wire::resolve::Target::Address(address) => {
                let ip = ip_of(&address.ip).ok_or("resolve: address of 4 or 16 bytes")?;
                Ok(Self::Address(ip, port(address.port)?))
            }
        }
    }

    /// The answer, seen from `namespace`.
    pub(crate) fn answer(&self, model: &Model, namespace: &str) -> Answer {
        match self {
            Self::Name(host, port) => model.resolve_name(namespace, host, *port),
            Self::Address(ip, port) => model.resolve_address(*ip, *port),
        }
    }
}

fn ip_of(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

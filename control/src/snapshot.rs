//! What one proxy is told: only what concerns it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use postern_api::control::v1 as wire;
use postern_api::control::v1::destination::State as Answer;
use postern_api::mtls_wire;
use postern_api::policy_wire::{mode_to_wire, to_bytes};
use postern_api::{authentication_wire, authorizer_wire};
use postern_identity::TrustDomain;
use postern_policy::authentication::{JwtRule, RequestAuthentication};
use postern_policy::{Action, AuthorizationPolicy, Feature, FeatureSet, Mode};

use crate::documents::Capture;
use crate::federation::{Foreign, Told};
use crate::model::{Asked, Model, Workload, octets};
use crate::state::Bundles;

/// Its own workload. A proxy that knows no PeerAuthentication goes by the mode: where one is stricter than that, it is told the
/// strictest, which denies more than it must.
pub(crate) fn workload(model: &Model, workload: &Workload, features: FeatureSet, version: u64) -> wire::WorkloadConfig {
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
    let knows_doors = features.has(Feature::PeerAuthentication);
    let mode = match workload.mode {
        mode if !knows_doors && workload.mtls.is_stricter_than(mode) => Mode::Protect,
        mode => mode,
    };
    let mut config = wire::WorkloadConfig {
        version,
        namespace: document.namespace.clone(),
        name: document.name.clone(),
        labels: document.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        mode: mode_to_wire(mode) as i32,
        ports: ports.collect(),
        root_namespace: model.root_namespace.clone(),
        ..wire::WorkloadConfig::default()
    };
    if knows_doors {
        mtls_wire::to_wire(&workload.mtls, &mut config);
    }
    config
}

/// The policies that select it, without what it cannot evaluate.
pub(crate) fn policies(model: &Model, workload: &Workload, features: FeatureSet, version: u64) -> wire::PolicySet {
    let (own, of_namespace) = (&workload.document.labels, model.labels_of(&workload.document.namespace));
    let mut asked = Asked::default();
    let mut policies = Vec::new();
    for policy in model.policies_of(workload) {
        let mut policy = Cow::Borrowed(policy);
        if policy.has_destination_labels() {
            policy = Cow::Owned(policy.resolved(own, of_namespace));
        }
        if !features.covers(policy.features()) {
            match policy.masked(features) {
                Some(masked) => policy = Cow::Owned(masked),
                None => continue,
            }
        }
        if policy.action == Action::Custom {
            policy = Cow::Owned(asked.settle(model, policy.into_owned()));
        }
        policies.push(to_bytes(&policy));
    }
    // A proxy that knows no users would let every token pass, and every forgery of what only it may tell the app.
    let (known, unknown): (Vec<_>, Vec<_>) = model.authentications_of(workload).partition(|_| knows_users(features));
    policies.extend(unknown.into_iter().map(|document| to_bytes(&denying_for(document))));
    let authentications = known.into_iter();
    wire::PolicySet {
        version,
        policies,
        authorizers: asked
            .authorizers
            .iter()
            .map(|authorizer| authorizer_wire::to_wire(authorizer))
            .collect(),
        authentications: authentications
            .map(|document| authentication_wire::to_wire(document))
            .collect(),
    }
}

/// Lets nobody pass where tokens should be looked for.
fn denying_for(document: &RequestAuthentication) -> AuthorizationPolicy {
    let RequestAuthentication {
        namespace,
        name,
        place,
        selector,
        ..
    } = document;
    AuthorizationPolicy::denying_all(namespace, name, place, selector.clone())
}

/// Does a proxy verify tokens?
pub(crate) fn knows_users(features: FeatureSet) -> bool {
    features.has(Feature::RequestPrincipals)
}

/// Whose keys a workload needs.
pub(crate) fn providers(model: &Model, workload: &Workload) -> BTreeSet<String> {
    let rules = model.authentications_of(workload).flat_map(|document| document.rules());
    rules.filter_map(JwtRule::provider).collect()
}

/// Labels that policies look at: of workloads, and of namespaces.
pub(crate) type LabelNames = [BTreeSet<String>; 2];

/// Which labels of peers the policies of a workload look at.
pub(crate) fn label_names(model: &Model, workload: &Workload) -> LabelNames {
    let mut names = LabelNames::default();
    for policy in model.policies_of(workload) {
        for (all, of_policy) in names.iter_mut().zip(policy.peer_labels()) {
            all.extend(of_policy.into_iter().map(str::to_owned));
        }
    }
    names
}

/// Those labels of everybody who has an identity.
pub(crate) fn peer_labels(model: &Model, [of_workloads, of_namespaces]: &LabelNames) -> wire::PeerLabels {
    let picked = |labels: &BTreeMap<String, String>, names: &BTreeSet<String>| {
        let picked = names.iter().filter_map(|name| labels.get_key_value(name));
        picked.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let instances = model.workloads.values().filter(|_| !of_workloads.is_empty());
    let instances = instances.filter_map(|workload| {
        let document = &workload.document;
        Some(wire::InstanceLabels {
            instance: document.instance.clone(),
            spiffe_id: document.id.as_ref()?.to_string(),
            labels: picked(&document.labels, of_workloads),
        })
    });
    let namespaces = model.namespaces().filter(|_| !of_namespaces.is_empty());
    let namespaces = namespaces.map(|namespace| wire::NamespaceLabels {
        namespace: namespace.name.clone(),
        labels: picked(&namespace.labels, of_namespaces),
    });
    wire::PeerLabels {
        version: 0,
        instances: instances.collect(),
        namespaces: namespaces.collect(),
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

/// The bundles of other trust domains, as we write them: what else stood in their documents is nobody's affair.
pub(crate) fn federation(told: &Told, version: u64) -> wire::Federation {
    let entry = |(name, foreign): (&TrustDomain, &Foreign)| wire::FederatedTrustDomain {
        trust_domain: name.to_string(),
        document: foreign
            .bundle
            .as_ref()
            .map_or_else(Vec::new, |bundle| bundle.to_document()),
        relationship: foreign.relationship.clone(),
        bootstrap: foreign.bootstrap,
    };
    wire::Federation {
        version,
        trust_domains: told.bundles.iter().map(entry).collect(),
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

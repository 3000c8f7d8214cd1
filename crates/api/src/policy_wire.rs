//! Policies on the wire and back. What a peer sent is checked field by field: enum 0, an absent oneof and a number
//! out of range are errors, never defaults.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use postern_policy::document::Place;
use postern_policy::{
    Action, AuthorizationPolicy, Condition, Feature, FeatureSet, IpBlock, Mode, Operation, Rule, Source, StringMatch,
    UserMatch, turns,
};
use prost::Message as _;

use crate::control::v1 as wire;

mod condition;

/// Which part of a message is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is missing or not understood")]
pub struct WireError {
    /// The field.
    pub what: &'static str,
}

pub(crate) fn missing(what: &'static str) -> WireError {
    WireError { what }
}

/// For the wire; the selector stays behind (control sends a policy only to whom it selects).
#[must_use]
pub fn to_wire(policy: &AuthorizationPolicy) -> wire::AuthorizationPolicy {
    wire::AuthorizationPolicy {
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        place: Some(place_to_wire(&policy.place)),
        action: match policy.action {
            Action::Allow => wire::PolicyAction::Allow,
            Action::Deny => wire::PolicyAction::Deny,
            Action::Audit => wire::PolicyAction::Audit,
            Action::Custom => wire::PolicyAction::Custom,
        } as i32,
        provider: policy.provider.clone(),
        rules: policy
            .rules
            .iter()
            .filter(|rule| is_settled(policy, rule))
            .map(|rule| rule_to_wire(rule).encode_to_vec().into())
            .collect(),
    }
}

/// The same in the one piece that a `PolicySet` has of it.
#[must_use]
pub fn to_bytes(policy: &AuthorizationPolicy) -> Bytes {
    to_wire(policy).encode_to_vec().into()
}

/// Conditions on labels of the workload itself are not sent. Control settles them before; where it has not, an ALLOW rule
/// without them would allow more.
fn is_settled(policy: &AuthorizationPolicy, rule: &Rule) -> bool {
    policy.action != Action::Allow || !rule.when.iter().any(Condition::is_of_destination)
}

/// From the wire.
pub fn from_wire(policy: wire::AuthorizationPolicy) -> Result<AuthorizationPolicy, WireError> {
    let action = match policy.action() {
        wire::PolicyAction::Allow => Action::Allow,
        wire::PolicyAction::Deny => Action::Deny,
        wire::PolicyAction::Audit => Action::Audit,
        wire::PolicyAction::Custom => Action::Custom,
        wire::PolicyAction::Unspecified => return Err(missing("policy action")),
    };
    if policy.provider.is_empty() == (action == Action::Custom) {
        return Err(missing("provider"));
    }
    Ok(AuthorizationPolicy {
        provider: policy.provider,
        foreign_target: false,
        namespace: policy.namespace,
        name: policy.name,
        place: policy.place.map(place_from_wire).unwrap_or_default(),
        selector: BTreeMap::new(),
        action,
        rules: policy
            .rules
            .into_iter()
            .map(rule_from_bytes)
            .collect::<Result<_, _>>()?,
    })
}

fn rule_from_bytes(bytes: Bytes) -> Result<Rule, WireError> {
    turns::next();
    rule_from_wire(wire::Rule::decode(bytes).map_err(|_| missing("rule"))?)
}

pub(crate) fn place_to_wire(place: &Place) -> wire::Place {
    wire::Place {
        file: place.file.to_string(),
        line: place.line,
        column: place.column,
    }
}

pub(crate) fn place_from_wire(place: wire::Place) -> Place {
    Place {
        file: place.file.into(),
        line: place.line,
        column: place.column,
    }
}

fn rule_to_wire(rule: &Rule) -> wire::Rule {
    turns::next();
    wire::Rule {
        place: Some(place_to_wire(&rule.place)),
        index: rule.index,
        from: rule
            .from
            .iter()
            .map(|s| wire::Source {
                principals: strings(&s.principals),
                not_principals: strings(&s.not_principals),
                namespaces: strings(&s.namespaces),
                not_namespaces: strings(&s.not_namespaces),
                service_accounts: strings(&s.service_accounts),
                not_service_accounts: strings(&s.not_service_accounts),
                trust_domains: strings(&s.trust_domains),
                not_trust_domains: strings(&s.not_trust_domains),
                request_principals: users(&s.request_principals),
                not_request_principals: users(&s.not_request_principals),
                ip_blocks: blocks(&s.ip_blocks),
                not_ip_blocks: blocks(&s.not_ip_blocks),
                remote_ip_blocks: blocks(&s.remote_ip_blocks),
                not_remote_ip_blocks: blocks(&s.not_remote_ip_blocks),
            })
            .collect(),
        to: rule
            .to
            .iter()
            .map(|o| wire::Operation {
                hosts: strings(&o.hosts),
                not_hosts: strings(&o.not_hosts),
                ports: o.ports.iter().copied().map(u32::from).collect(),
                not_ports: o.not_ports.iter().copied().map(u32::from).collect(),
                methods: strings(&o.methods),
                not_methods: strings(&o.not_methods),
                paths: strings(&o.paths),
                not_paths: strings(&o.not_paths),
            })
            .collect(),
        // Those on labels of the workload itself are settled before.
        when: rule.when.iter().filter_map(condition::to_wire).collect(),
    }
}

fn rule_from_wire(rule: wire::Rule) -> Result<Rule, WireError> {
    let sources = rule.from.into_iter().map(|s| {
        Ok(Arc::new(Source {
            principals: matches(s.principals)?,
            not_principals: matches(s.not_principals)?,
            namespaces: matches(s.namespaces)?,
            not_namespaces: matches(s.not_namespaces)?,
            service_accounts: matches(s.service_accounts)?,
            not_service_accounts: matches(s.not_service_accounts)?,
            trust_domains: matches(s.trust_domains)?,
            not_trust_domains: matches(s.not_trust_domains)?,
            request_principals: user_matches(s.request_principals)?,
            not_request_principals: user_matches(s.not_request_principals)?,
            ip_blocks: ip_blocks(s.ip_blocks)?,
            not_ip_blocks: ip_blocks(s.not_ip_blocks)?,
            remote_ip_blocks: ip_blocks(s.remote_ip_blocks)?,
            not_remote_ip_blocks: ip_blocks(s.not_remote_ip_blocks)?,
        }))
    });
    let operations = rule.to.into_iter().map(|o| {
        Ok(Arc::new(Operation {
            hosts: matches(o.hosts)?,
            not_hosts: matches(o.not_hosts)?,
            ports: ports(o.ports)?,
            not_ports: ports(o.not_ports)?,
            methods: matches(o.methods)?,
            not_methods: matches(o.not_methods)?,
            paths: matches(o.paths)?,
            not_paths: matches(o.not_paths)?,
        }))
    });
    Ok(Rule {
        place: rule.place.map(place_from_wire).unwrap_or_default(),
        index: rule.index,
        from: sources.collect::<Result<_, WireError>>()?,
        to: operations.collect::<Result<_, WireError>>()?,
        when: rule
            .when
            .into_iter()
            .map(condition::from_wire)
            .collect::<Result<_, _>>()?,
    })
}

pub(crate) fn strings(values: &[StringMatch]) -> Vec<wire::StringMatch> {
    use wire::string_match::How;
    let how = |value: &StringMatch| match value {
        StringMatch::Exact(text) => How::Exact(text.clone()),
        StringMatch::Prefix(text) => How::Prefix(text.clone()),
        StringMatch::Suffix(text) => How::Suffix(text.clone()),
        StringMatch::Present => How::Present(true),
        StringMatch::Wildcard(literal) => How::Wildcard(wire::Pieces {
            literal: literal.clone(),
        }),
        StringMatch::Template(text) => How::Template(text.clone()),
    };
    values
        .iter()
        .map(|value| wire::StringMatch { how: Some(how(value)) })
        .collect()
}

pub(crate) fn matches(values: Vec<wire::StringMatch>) -> Result<Vec<StringMatch>, WireError> {
    use wire::string_match::How;
    let read = |value: wire::StringMatch| match value.how.ok_or(missing("string match"))? {
        How::Exact(text) => Ok(StringMatch::Exact(text)),
        How::Prefix(text) => Ok(StringMatch::Prefix(text)),
        How::Suffix(text) => Ok(StringMatch::Suffix(text)),
        How::Present(true) => Ok(StringMatch::Present),
        How::Present(false) => Err(missing("string match `present`")),
        How::Wildcard(pieces) if pieces.literal.len() >= 2 => Ok(StringMatch::Wildcard(pieces.literal)),
        How::Wildcard(_) => Err(missing("string match `wildcard`")),
        How::Template(text) => Ok(StringMatch::Template(text)),
    };
    values.into_iter().map(read).collect()
}

fn users(values: &[UserMatch]) -> Vec<wire::UserMatch> {
    let one = |value: &StringMatch| strings(std::slice::from_ref(value)).pop();
    let user = |value: &UserMatch| wire::UserMatch {
        issuer: one(&value.issuer),
        subject: one(&value.subject),
    };
    values.iter().map(user).collect()
}

fn user_matches(values: Vec<wire::UserMatch>) -> Result<Vec<UserMatch>, WireError> {
    let one = |value: Option<wire::StringMatch>| {
        let read = matches(value.into_iter().collect())?;
        read.into_iter().next().ok_or(missing("user match"))
    };
    let user = |value: wire::UserMatch| {
        Ok(UserMatch {
            issuer: one(value.issuer)?,
            subject: one(value.subject)?,
        })
    };
    values.into_iter().map(user).collect()
}

fn blocks(values: &[IpBlock]) -> Vec<wire::IpBlock> {
    let block = |value: &IpBlock| wire::IpBlock {
        network: match value.network() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        },
        prefix: value.prefix().into(),
    };
    values.iter().map(block).collect()
}

fn ip_blocks(values: Vec<wire::IpBlock>) -> Result<Vec<IpBlock>, WireError> {
    let block = |value: wire::IpBlock| {
        let v4 = <[u8; 4]>::try_from(&value.network[..]).map(IpAddr::from);
        let network = v4.or_else(|_| <[u8; 16]>::try_from(&value.network[..]).map(IpAddr::from));
        let prefix = u8::try_from(value.prefix).ok();
        network
            .ok()
            .zip(prefix)
            .and_then(|(network, prefix)| IpBlock::new(network, prefix))
            .ok_or(missing("ip block"))
    };
    values.into_iter().map(block).collect()
}

fn ports(values: Vec<u32>) -> Result<Vec<u16>, WireError> {
    values
        .into_iter()
        .map(|p| u16::try_from(p).ok().filter(|p| *p > 0).ok_or(missing("port")))
        .collect()
}

/// Features on the wire; unknown numbers are a newer proxy's and are left out.
#[must_use]
pub fn features_from_wire(features: &[i32]) -> FeatureSet {
    features
        .iter()
        .filter_map(|f| wire::PolicyFeature::try_from(*f).ok())
        .filter_map(feature_from_wire)
        .collect()
}

fn feature_from_wire(feature: wire::PolicyFeature) -> Option<Feature> {
    Some(match feature {
        wire::PolicyFeature::Unspecified => return None,
        wire::PolicyFeature::Principals => Feature::Principals,
        wire::PolicyFeature::Namespaces => Feature::Namespaces,
        wire::PolicyFeature::ServiceAccounts => Feature::ServiceAccounts,
        wire::PolicyFeature::Methods => Feature::Methods,
        wire::PolicyFeature::Paths => Feature::Paths,
        wire::PolicyFeature::Hosts => Feature::Hosts,
        wire::PolicyFeature::Ports => Feature::Ports,
        wire::PolicyFeature::PathTemplates => Feature::PathTemplates,
        wire::PolicyFeature::RequestPrincipals => Feature::RequestPrincipals,
        wire::PolicyFeature::IpBlocks => Feature::IpBlocks,
        wire::PolicyFeature::TrustDomains => Feature::TrustDomains,
        wire::PolicyFeature::Conditions => Feature::Conditions,
        wire::PolicyFeature::UserConditions => Feature::UserConditions,
        wire::PolicyFeature::SourceLabels => Feature::SourceLabels,
        wire::PolicyFeature::Audit => Feature::Audit,
        wire::PolicyFeature::Custom => Feature::Custom,
        wire::PolicyFeature::PeerAuthentication => Feature::PeerAuthentication,
    })
}

/// Features for the wire.
#[must_use]
pub fn features_to_wire(features: FeatureSet) -> Vec<i32> {
    let number = |feature| match feature {
        Feature::Principals => wire::PolicyFeature::Principals,
        Feature::Namespaces => wire::PolicyFeature::Namespaces,
        Feature::ServiceAccounts => wire::PolicyFeature::ServiceAccounts,
        Feature::Methods => wire::PolicyFeature::Methods,
        Feature::Paths => wire::PolicyFeature::Paths,
        Feature::Hosts => wire::PolicyFeature::Hosts,
        Feature::Ports => wire::PolicyFeature::Ports,
        Feature::PathTemplates => wire::PolicyFeature::PathTemplates,
        Feature::RequestPrincipals => wire::PolicyFeature::RequestPrincipals,
        Feature::IpBlocks => wire::PolicyFeature::IpBlocks,
        Feature::TrustDomains => wire::PolicyFeature::TrustDomains,
        Feature::Conditions => wire::PolicyFeature::Conditions,
        Feature::UserConditions => wire::PolicyFeature::UserConditions,
        Feature::SourceLabels => wire::PolicyFeature::SourceLabels,
        Feature::Audit => wire::PolicyFeature::Audit,
        Feature::Custom => wire::PolicyFeature::Custom,
        Feature::PeerAuthentication => wire::PolicyFeature::PeerAuthentication,
    };
    Feature::ALL
        .into_iter()
        .filter(|f| features.has(*f))
        .map(|f| number(f) as i32)
        .collect()
}

/// A mode on the wire.
#[must_use]
pub fn mode_to_wire(mode: Mode) -> wire::Mode {
    match mode {
        Mode::Discover => wire::Mode::Discover,
        Mode::Monitor => wire::Mode::Monitor,
        Mode::Protect => wire::Mode::Protect,
    }
}

/// A mode from the wire.
pub fn mode_from_wire(mode: wire::Mode) -> Result<Mode, WireError> {
    match mode {
        wire::Mode::Unspecified => Err(missing("mode")),
        wire::Mode::Discover => Ok(Mode::Discover),
        wire::Mode::Monitor => Ok(Mode::Monitor),
        wire::Mode::Protect => Ok(Mode::Protect),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_policy::document;

    use super::*;

    /// As it was before rules were read one by one, and as other implementations may have it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct WithRules {
        #[prost(string, tag = "1")]
        namespace: String,
        #[prost(string, tag = "2")]
        name: String,
        #[prost(message, optional, tag = "3")]
        place: Option<wire::Place>,
        #[prost(enumeration = "wire::PolicyAction", tag = "4")]
        action: i32,
        #[prost(message, repeated, tag = "5")]
        rules: Vec<wire::Rule>,
        #[prost(string, tag = "6")]
        provider: String,
    }

    fn policy() -> AuthorizationPolicy {
        let yaml = "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  \
                    rules:\n  - from: [{source: {namespaces: [shop]}}]\n  - to: [{operation: {paths: [/a/*], methods: [GET]}}]\n";
        let object = document::parse("p.yaml", yaml).unwrap().remove(0);
        AuthorizationPolicy::from_object(&object).unwrap()
    }

    #[test]
    fn rules_are_the_same_bytes_as_if_they_were_messages_of_their_policy() {
        let bytes = to_wire(&policy()).encode_to_vec();
        let before = WithRules::decode(&bytes[..]).unwrap();
        assert_eq!(before.rules.len(), 2);
        assert_eq!(before.encode_to_vec(), bytes);
        let read = from_wire(wire::AuthorizationPolicy::decode(&bytes[..]).unwrap()).unwrap();
        assert_eq!(read.rules, policy().rules);
    }

    /// The part of `PolicySet` that policies are in, as a message says it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct WithPolicies {
        #[prost(message, repeated, tag = "2")]
        policies: Vec<wire::AuthorizationPolicy>,
    }

    #[test]
    fn policies_are_the_same_bytes_as_if_they_were_messages_of_their_set() {
        let set = wire::PolicySet {
            policies: vec![to_bytes(&policy()); 2],
            ..wire::PolicySet::default()
        };
        let before = WithPolicies::decode(&set.encode_to_vec()[..]).unwrap();
        assert_eq!(before.policies, vec![to_wire(&policy()); 2]);
        assert_eq!(before.encode_to_vec(), set.encode_to_vec());
    }

    #[test]
    fn a_rule_that_cannot_be_read_refuses_its_policy() {
        let mut sent = to_wire(&policy());
        sent.rules[1] = Bytes::from_static(&[0x0a, 0xff]);
        assert_eq!(from_wire(sent).unwrap_err(), missing("rule"));
    }
}

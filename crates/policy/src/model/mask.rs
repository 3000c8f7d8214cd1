//! Which features a rule needs, and how a rule that does not allow is broadened for a proxy that lacks some.

use std::sync::Arc;

use crate::{Action, Condition, Feature, FeatureSet, Operation, Rule, Source, StringMatch, TextKey};

pub(super) fn of_action(action: Action) -> Option<Feature> {
    match action {
        Action::Allow | Action::Deny => None,
        Action::Audit => Some(Feature::Audit),
        Action::Custom => Some(Feature::Custom),
    }
}

pub(super) fn features(rule: &Rule) -> FeatureSet {
    let of_sources = rule.from.iter().flat_map(|source| needed_by_source(source));
    let of_operations = rule.to.iter().flat_map(|operation| needed_by_operation(operation));
    let of_conditions = rule.when.iter().filter_map(needed_by_condition);
    of_sources.chain(of_operations).chain(of_conditions).collect()
}

fn needed_by_source(source: &Source) -> impl Iterator<Item = Feature> {
    let Source {
        principals,
        not_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        request_principals,
        not_request_principals,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
    } = source;
    let blocks = [ip_blocks, not_ip_blocks, remote_ip_blocks, not_remote_ip_blocks];
    let used = [
        (Feature::Principals, any([principals, not_principals])),
        (Feature::Namespaces, any([namespaces, not_namespaces])),
        (Feature::ServiceAccounts, any([service_accounts, not_service_accounts])),
        (Feature::TrustDomains, any([trust_domains, not_trust_domains])),
        (
            Feature::RequestPrincipals,
            any([request_principals, not_request_principals]),
        ),
        (Feature::IpBlocks, any(blocks)),
    ];
    used.into_iter().filter(|(_, used)| *used).map(|(feature, _)| feature)
}

fn needed_by_operation(operation: &Operation) -> impl Iterator<Item = Feature> {
    let Operation {
        hosts,
        not_hosts,
        ports,
        not_ports,
        methods,
        not_methods,
        paths,
        not_paths,
    } = operation;
    let templates = paths.iter().chain(not_paths).any(is_template);
    let used = [
        (Feature::Hosts, any([hosts, not_hosts])),
        (Feature::Ports, any([ports, not_ports])),
        (Feature::Methods, any([methods, not_methods])),
        (Feature::Paths, any([paths, not_paths])),
        (Feature::PathTemplates, templates),
    ];
    used.into_iter().filter(|(_, used)| *used).map(|(feature, _)| feature)
}

/// `None`: it is settled before a proxy is sent it.
fn needed_by_condition(condition: &Condition) -> Option<Feature> {
    Some(match condition {
        condition if condition.is_of_destination() => return None,
        condition if condition.is_of_user() => Feature::UserConditions,
        Condition::Text(TextKey::SourceLabel(_) | TextKey::SourceNamespaceLabel(_), _) => Feature::SourceLabels,
        Condition::Text(..) | Condition::Address(..) | Condition::Port(_) | Condition::User(_) | Condition::Age(_) => {
            Feature::Conditions
        }
    })
}

fn any<T, const N: usize>(fields: [&Vec<T>; N]) -> bool {
    fields.iter().any(|field| !field.is_empty())
}

/// Takes out of a rule every condition that cannot be evaluated: fewer conditions match, and so deny, more.
pub(super) fn broaden(rule: &mut Rule, features: FeatureSet) {
    for source in rule.from.iter_mut().map(Arc::make_mut) {
        let Source {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            trust_domains,
            not_trust_domains,
            request_principals,
            not_request_principals,
            ip_blocks,
            not_ip_blocks,
            remote_ip_blocks,
            not_remote_ip_blocks,
        } = source;
        let blocks = [ip_blocks, not_ip_blocks, remote_ip_blocks, not_remote_ip_blocks];
        keep(features, Feature::Principals, [principals, not_principals]);
        keep(features, Feature::Namespaces, [namespaces, not_namespaces]);
        keep(
            features,
            Feature::ServiceAccounts,
            [service_accounts, not_service_accounts],
        );
        keep(features, Feature::TrustDomains, [trust_domains, not_trust_domains]);
        keep(
            features,
            Feature::RequestPrincipals,
            [request_principals, not_request_principals],
        );
        keep(features, Feature::IpBlocks, blocks);
    }
    for operation in rule.to.iter_mut().map(Arc::make_mut) {
        let Operation {
            hosts,
            not_hosts,
            ports,
            not_ports,
            methods,
            not_methods,
            paths,
            not_paths,
        } = operation;
        keep(features, Feature::Hosts, [hosts, not_hosts]);
        keep(features, Feature::Ports, [ports, not_ports]);
        keep(features, Feature::Methods, [methods, not_methods]);
        if !features.has(Feature::PathTemplates) {
            // The whole list goes: without one of its alternatives it would match less, and so deny less.
            for paths in [&mut *paths, &mut *not_paths] {
                if paths.iter().any(is_template) {
                    paths.clear();
                }
            }
        }
        keep(features, Feature::Paths, [paths, not_paths]);
    }
    let known = |condition: &Condition| needed_by_condition(condition).is_none_or(|needed| features.has(needed));
    rule.when.retain(known);
}

fn keep<T, const N: usize>(features: FeatureSet, feature: Feature, fields: [&mut Vec<T>; N]) {
    if !features.has(feature) {
        fields.into_iter().for_each(Vec::clear);
    }
}

fn is_template(value: &StringMatch) -> bool {
    matches!(value, StringMatch::Template(_))
}

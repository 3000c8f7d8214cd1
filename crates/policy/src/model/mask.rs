//! Which features a rule needs, and how a DENY rule is broadened for a proxy that lacks some.

use crate::{Feature, FeatureSet, Rule, StringMatch};

pub(super) fn features(rule: &Rule) -> FeatureSet {
    let mut needed = Vec::new();
    for source in &rule.from {
        let pairs = [
            (&source.principals, &source.not_principals, Feature::Principals),
            (&source.namespaces, &source.not_namespaces, Feature::Namespaces),
            (
                &source.service_accounts,
                &source.not_service_accounts,
                Feature::ServiceAccounts,
            ),
        ];
        needed.extend(
            pairs
                .iter()
                .filter(|(yes, no, _)| !yes.is_empty() || !no.is_empty())
                .map(|(_, _, f)| *f),
        );
    }
    for operation in &rule.to {
        let pairs = [
            (&operation.hosts, &operation.not_hosts, Feature::Hosts),
            (&operation.methods, &operation.not_methods, Feature::Methods),
            (&operation.paths, &operation.not_paths, Feature::Paths),
        ];
        needed.extend(
            pairs
                .iter()
                .filter(|(yes, no, _)| !yes.is_empty() || !no.is_empty())
                .map(|(_, _, f)| *f),
        );
        if !operation.ports.is_empty() || !operation.not_ports.is_empty() {
            needed.push(Feature::Ports);
        }
        if operation.paths.iter().chain(&operation.not_paths).any(is_template) {
            needed.push(Feature::PathTemplates);
        }
    }
    needed.into_iter().collect()
}

/// Takes out of a DENY rule every condition that cannot be evaluated: fewer conditions deny more.
pub(super) fn broaden(rule: &mut Rule, features: FeatureSet) {
    for source in &mut rule.from {
        keep(
            features,
            Feature::Principals,
            [&mut source.principals, &mut source.not_principals],
        );
        keep(
            features,
            Feature::Namespaces,
            [&mut source.namespaces, &mut source.not_namespaces],
        );
        keep(
            features,
            Feature::ServiceAccounts,
            [&mut source.service_accounts, &mut source.not_service_accounts],
        );
    }
    for operation in &mut rule.to {
        keep(
            features,
            Feature::Hosts,
            [&mut operation.hosts, &mut operation.not_hosts],
        );
        keep(
            features,
            Feature::Methods,
            [&mut operation.methods, &mut operation.not_methods],
        );
        keep(
            features,
            Feature::Paths,
            [&mut operation.paths, &mut operation.not_paths],
        );
        if !features.has(Feature::Ports) {
            operation.ports.clear();
            operation.not_ports.clear();
        }
        if !features.has(Feature::PathTemplates) {
            // The whole list goes: without one of its alternatives it would match less, and so deny less.
            for paths in [&mut operation.paths, &mut operation.not_paths] {
                if paths.iter().any(is_template) {
                    paths.clear();
                }
            }
        }
    }
}

fn keep<const N: usize>(features: FeatureSet, feature: Feature, fields: [&mut Vec<StringMatch>; N]) {
    if !features.has(feature) {
        fields.into_iter().for_each(Vec::clear);
    }
}

fn is_template(value: &StringMatch) -> bool {
    matches!(value, StringMatch::Template(_))
}

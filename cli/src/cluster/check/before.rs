//! Before an installation.

use super::catalog::{Verdict, finding};
use super::facts::{Facts, SYSTEM, known, name};

/// A verb, a group, and a plural name.
pub(super) type Right = (&'static str, &'static str, &'static str);

/// What the chart creates, and what whoever installs it must be allowed to.
pub(super) const INSTALLS: [Right; 16] = [
    ("create", "", "namespaces"),
    ("create", "", "serviceaccounts"),
    ("create", "", "services"),
    ("create", "", "configmaps"),
    ("create", "", "secrets"),
    ("create", "apps", "deployments"),
    ("create", "policy", "poddisruptionbudgets"),
    ("create", "coordination.k8s.io", "leases"),
    ("create", "networking.k8s.io", "networkpolicies"),
    ("create", "rbac.authorization.k8s.io", "clusterroles"),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    ("create", "apiextensions.k8s.io", "customresourcedefinitions"),
    (
        "create",
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
    ),
    ("create", "admissionregistration.k8s.io", "validatingadmissionpolicies"),
    (
        "create",
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
    ),
    ("create", "apiregistration.k8s.io", "apiservices"),
];

pub(super) fn permissions(facts: &Facts) -> Verdict {
    let permissions = known(&facts.permissions)?.iter();
    let missing = permissions.filter(|permission| !permission.allowed).map(|permission| {
        let (verb, resource) = (permission.verb, permission.resource);
        let resource = if permission.group.is_empty() {
            resource.to_owned()
        } else {
            format!("{resource}.{}", permission.group)
        };
        finding(
            resource.clone(),
            format!("you may not {verb} {resource}, which the chart does"),
            format!("kubectl auth can-i {verb} {resource}  (cluster-admin may; ask who is)"),
        )
    });
    Ok(missing.collect())
}

/// A webhook whose Service is gone refuses what it should answer for; an APIService makes namespaces impossible to delete.
pub(super) fn leftovers(facts: &Facts) -> Verdict {
    let deployments: Vec<&str> = known(&facts.deployments)?.iter().map(|d| name(&d.metadata)).collect();
    let orphan = |namespace: Option<&str>, service: Option<&str>| {
        namespace == Some(SYSTEM) && service.is_some_and(|service| !deployments.contains(&service))
    };
    let mut found = Vec::new();
    let mut left = |kind: &str, name: &str| {
        found.push(finding(
            format!("{kind} {name}"),
            format!(
                "it leads to a Service of {SYSTEM} that no component stands behind: an earlier installation left it"
            ),
            format!("kubectl delete {} {name}", kind.to_ascii_lowercase()),
        ));
    };
    for config in known(&facts.mutating)? {
        let mut services = config
            .webhooks
            .iter()
            .flatten()
            .filter_map(|webhook| webhook.client_config.service.as_ref());
        if services.any(|service| orphan(Some(&service.namespace), Some(&service.name))) {
            left("MutatingWebhookConfiguration", name(&config.metadata));
        }
    }
    for config in known(&facts.validating)? {
        let mut services = config
            .webhooks
            .iter()
            .flatten()
            .filter_map(|webhook| webhook.client_config.service.as_ref());
        if services.any(|service| orphan(Some(&service.namespace), Some(&service.name))) {
            left("ValidatingWebhookConfiguration", name(&config.metadata));
        }
    }
    for api in known(&facts.api_services)? {
        let service = api.spec.as_ref().and_then(|spec| spec.service.as_ref());
        if service.is_some_and(|service| orphan(service.namespace.as_deref(), service.name.as_deref())) {
            left("APIService", name(&api.metadata));
        }
    }
    Ok(found)
}

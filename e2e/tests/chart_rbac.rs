//! What each component may do in the cluster: the rendered chart against a table that gives the reason and the place in
//! the code for each grant. A grant that is not in the table, one of the table that is not granted, a wildcard, and a
//! reason whose code is gone fail.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use postern_e2e::chart::{self, VALUE_SETS, name, of_kind, render, strings};
use postern_e2e::requires;
use serde_json::Value;

/// Everywhere, or in a namespace.
const CLUSTER: &str = "";
const OWN: &str = "postern-system";
/// RBAC cannot restrict lists, creations and reviews by name.
const ANY: &str = "";

/// One row: who, where, which API group and resource, which object, which verbs; why; and which code does it: a file, and
/// what to find there.
struct Grant {
    who: &'static str,
    place: &'static str,
    group: &'static str,
    resource: &'static str,
    object: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
    code: (&'static str, &'static str),
}

#[rustfmt::skip]
const GRANTS: &[Grant] = &[
    Grant { who: "postern-ca", place: CLUSTER, group: "authentication.k8s.io", resource: "tokenreviews", object: ANY, verbs: &["create"],
        why: "whose token a caller shows", code: ("ca/src", "TokenReview") },
    Grant { who: "postern-ca", place: OWN, group: "", resource: "secrets", object: "postern-ca", verbs: &["get", "update"],
        why: "its state", code: ("ca/src", "Secret") },
    Grant { who: "postern-ca", place: OWN, group: "", resource: "configmaps", object: "postern-ca-roots", verbs: &["get", "update"],
        why: "the roots, in public", code: ("ca/src", "ConfigMap") },
    Grant { who: "postern-ca", place: OWN, group: "coordination.k8s.io", resource: "leases", object: "postern-ca", verbs: &["get", "update"],
        why: "one replica rotates", code: ("crates/cluster/src", "Lease") },

    Grant { who: "postern-control", place: CLUSTER, group: "", resource: "namespaces", object: ANY, verbs: &["list", "watch"],
        why: "modes", code: ("control/src", "Namespace") },
    Grant { who: "postern-control", place: CLUSTER, group: "", resource: "pods", object: ANY, verbs: &["list", "watch"],
        why: "workloads", code: ("control/src", "Pod") },
    Grant { who: "postern-control", place: CLUSTER, group: "", resource: "services", object: ANY, verbs: &["list", "watch"],
        why: "destinations", code: ("control/src", "Service") },
    Grant { who: "postern-control", place: CLUSTER, group: "discovery.k8s.io", resource: "endpointslices", object: ANY, verbs: &["list", "watch"],
        why: "which pods are ready for a Service", code: ("control/src", "EndpointSlice") },
    Grant { who: "postern-control", place: CLUSTER, group: "postern.dev", resource: "authorizationpolicies", object: ANY, verbs: &["list", "watch"],
        why: "policies", code: ("control/src", "authorizationpolicies") },
    Grant { who: "postern-control", place: CLUSTER, group: "postern.dev", resource: "authorizers", object: ANY, verbs: &["list", "watch"],
        why: "whom CUSTOM policies ask", code: ("control/src", "authorizers") },
    Grant { who: "postern-control", place: CLUSTER, group: "security.istio.io", resource: "authorizationpolicies", object: ANY, verbs: &["list", "watch"],
        why: "policies that were brought along", code: ("control/src", "security.istio.io") },
    Grant { who: "postern-control", place: CLUSTER, group: "postern.dev", resource: "requestauthentications", object: ANY, verbs: &["list", "watch"],
        why: "whose tokens are believed", code: ("control/src", "requestauthentications") },
    Grant { who: "postern-control", place: CLUSTER, group: "security.istio.io", resource: "requestauthentications", object: ANY, verbs: &["list", "watch"],
        why: "the same, brought along", code: ("control/src", "requestauthentications.security.istio.io") },
    Grant { who: "postern-control", place: CLUSTER, group: "postern.dev", resource: "peerauthentications", object: ANY, verbs: &["list", "watch"],
        why: "what ports take", code: ("control/src", "peerauthentications") },
    Grant { who: "postern-control", place: CLUSTER, group: "security.istio.io", resource: "peerauthentications", object: ANY, verbs: &["list", "watch"],
        why: "the same, brought along", code: ("control/src", "peerauthentications.security.istio.io") },
    Grant { who: "postern-control", place: CLUSTER, group: "postern.dev", resource: "authorizationpolicies/status", object: ANY, verbs: &["patch"],
        why: "is it accepted, is it enforced", code: ("control/src", "patch_status") },
    Grant { who: "postern-control", place: CLUSTER, group: "apiextensions.k8s.io", resource: "customresourcedefinitions", object: "authorizationpolicies.security.istio.io", verbs: &["list", "watch"],
        why: "are there Istio's policies to be read", code: ("control/src", "CustomResourceDefinition") },
    Grant { who: "postern-control", place: CLUSTER, group: "apiextensions.k8s.io", resource: "customresourcedefinitions", object: "requestauthentications.security.istio.io", verbs: &["list", "watch"],
        why: "are there Istio's documents to be read", code: ("control/src", "CustomResourceDefinition") },
    Grant { who: "postern-control", place: CLUSTER, group: "apiextensions.k8s.io", resource: "customresourcedefinitions", object: "peerauthentications.security.istio.io", verbs: &["list", "watch"],
        why: "are there Istio's documents to be read", code: ("control/src", "CustomResourceDefinition") },
    Grant { who: "postern-control", place: CLUSTER, group: "authorization.k8s.io", resource: "subjectaccessreviews", object: ANY, verbs: &["create"],
        why: "may who asks the aggregated API see this", code: ("control/src", "SubjectAccessReview") },
    Grant { who: "postern-control", place: CLUSTER, group: "apiregistration.k8s.io", resource: "apiservices", object: "v1alpha1.view.postern.dev", verbs: &["get", "patch"],
        why: "the CA of its serving certificate", code: ("crates/cluster/src", "APIService") },
    Grant { who: "postern-control", place: OWN, group: "", resource: "secrets", object: "postern-control-tls", verbs: &["get", "update"],
        why: "the serving certificate that its replicas share", code: ("crates/cluster/src", "Secret") },
    Grant { who: "postern-control", place: OWN, group: "coordination.k8s.io", resource: "leases", object: ANY, verbs: &["create", "get", "list", "update"],
        why: "who leads; one Lease per replica with its acknowledgement counts", code: ("control/src", "Lease") },

    Grant { who: "postern-injector", place: CLUSTER, group: "", resource: "namespaces", object: ANY, verbs: &["get", "list", "watch"],
        why: "labels and annotations of the pod's namespace", code: ("injector/src", "Namespace") },
    Grant { who: "postern-injector", place: CLUSTER, group: "admissionregistration.k8s.io", resource: "mutatingwebhookconfigurations", object: "postern-injector", verbs: &["get", "patch"],
        why: "the CA of its serving certificate", code: ("crates/cluster/src", "MutatingWebhookConfiguration") },
    Grant { who: "postern-injector", place: CLUSTER, group: "admissionregistration.k8s.io", resource: "validatingwebhookconfigurations", object: "postern-injector", verbs: &["get", "patch"],
        why: "the CA of its serving certificate", code: ("crates/cluster/src", "ValidatingWebhookConfiguration") },
    Grant { who: "postern-injector", place: OWN, group: "", resource: "configmaps", object: "postern-ca-roots", verbs: &["get"],
        why: "the roots that sidecars are given", code: ("injector/src", "ConfigMap") },
    Grant { who: "postern-injector", place: OWN, group: "", resource: "secrets", object: "postern-injector-tls", verbs: &["get", "update"],
        why: "the serving certificate that its replicas share", code: ("crates/cluster/src", "Secret") },
];

/// ClusterRoles that the chart binds to nobody: people are bound to them.
const FOR_PEOPLE: [&str; 2] = ["postern-viewer", "postern-policy-editor"];
/// A Role of the cluster's own that control is bound to: the request-header CA of aggregated APIs.
const BORROWED: (&str, &str, &str) = (
    "postern-control",
    "kube-system",
    "extension-apiserver-authentication-reader",
);

/// Who, where, group, resource, object, verb.
type Right = [String; 6];

#[test]
fn every_component_has_exactly_the_rights_of_the_table() {
    if !requires(&["helm"], false) {
        return;
    }
    let wanted: BTreeSet<Right> = GRANTS
        .iter()
        .flat_map(|g| {
            g.verbs
                .iter()
                .map(|verb| [g.who, g.place, g.group, g.resource, g.object, verb].map(str::to_owned))
        })
        .collect();
    for set in VALUE_SETS {
        let granted = rights(&render(set));
        let more: Vec<_> = granted.difference(&wanted).collect();
        let less: Vec<_> = wanted.difference(&granted).collect();
        assert!(more.is_empty(), "{set}: granted, and not in the table: {more:#?}");
        assert!(less.is_empty(), "{set}: in the table, and not granted: {less:#?}");
    }
}

/// The rights of each service account, over all bindings.
fn rights(objects: &[Value]) -> BTreeSet<Right> {
    let mut rules: BTreeMap<(&str, &str, &str), &Value> = BTreeMap::new();
    for kind in ["ClusterRole", "Role"] {
        for role in of_kind(objects, kind) {
            rules.insert((kind, namespace(role), name(role)), &role["rules"]);
        }
    }
    let mut rights = BTreeSet::new();
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        for binding in of_kind(objects, kind) {
            for subject in binding["subjects"].as_array().unwrap() {
                assert_eq!(
                    (&subject["kind"], &subject["namespace"]),
                    (&"ServiceAccount".into(), &OWN.into())
                );
                let who = name_of(&subject["name"]);
                let role = &binding["roleRef"];
                let (role_kind, role_name) = (name_of(&role["kind"]), name_of(&role["name"]));
                if (who, namespace(binding), role_name) == BORROWED {
                    continue;
                }
                let place = if role_kind == "Role" {
                    namespace(binding)
                } else {
                    CLUSTER
                };
                let rules = rules.get(&(role_kind, place, role_name));
                for rule in rules
                    .unwrap_or_else(|| panic!("{role_name} is not of the chart"))
                    .as_array()
                    .unwrap()
                {
                    each(rule, |group, resource, object, verb| {
                        rights.insert([who, namespace(binding), group, resource, object, verb].map(str::to_owned));
                    });
                }
            }
        }
    }
    rights
}

fn each(rule: &Value, mut found: impl FnMut(&str, &str, &str, &str)) {
    assert!(rule["nonResourceURLs"].is_null(), "{rule}");
    let objects = match strings(&rule["resourceNames"]) {
        none if none.is_empty() => vec![ANY],
        some => some,
    };
    for group in strings(&rule["apiGroups"]) {
        for resource in strings(&rule["resources"]) {
            for object in &objects {
                for verb in strings(&rule["verbs"]) {
                    found(group, resource, object, verb);
                }
            }
        }
    }
}

fn namespace(object: &Value) -> &str {
    name_of(&object["metadata"]["namespace"])
}

fn name_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn no_rule_has_a_wildcard_or_a_verb_that_gives_more_than_it_says() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let objects = render(set);
        for role in of_kind(&objects, "ClusterRole").chain(of_kind(&objects, "Role")) {
            for rule in role["rules"].as_array().unwrap() {
                each(rule, |group, resource, object, verb| {
                    let row = format!("{set} {}: {group}/{resource} {object} {verb}", name(role));
                    assert!(
                        ![group, resource, object, verb].contains(&"*") && !resource.contains('*'),
                        "{row}"
                    );
                    assert!(
                        !["escalate", "bind", "impersonate", "approve", "sign"].contains(&verb),
                        "{row}"
                    );
                    let sensitive = ["secrets", "configmaps", "mutatingwebhookconfigurations", "apiservices"];
                    assert!(
                        !sensitive.contains(&resource) || !object.is_empty(),
                        "{row}: of every name"
                    );
                    assert!(
                        resource != "secrets" || ["get", "update", "patch"].contains(&verb),
                        "{row}"
                    );
                });
            }
        }
    }
}

#[test]
fn a_role_is_bound_to_its_component_or_for_people_and_there_are_no_others() {
    if !requires(&["helm"], false) {
        return;
    }
    for set in VALUE_SETS {
        let objects = render(set);
        let roles: BTreeSet<&str> = of_kind(&objects, "ClusterRole").map(name).collect();
        let components = ["postern-ca", "postern-control", "postern-injector"];
        assert_eq!(roles, components.into_iter().chain(FOR_PEOPLE).collect(), "{set}");
        // Who responds is bound by whoever installs, in the system's namespace alone; the account itself may do nothing.
        let of_people: Vec<&Value> = of_kind(&objects, "Role")
            .filter(|role| name(role) == "postern-responder")
            .collect();
        assert_eq!(of_people.len(), 1, "{set}");
        assert_eq!(namespace(of_people[0]), OWN, "{set}");
        for binding in of_kind(&objects, "RoleBinding") {
            assert_ne!(name_of(&binding["roleRef"]["name"]), "postern-responder", "{set}");
            assert!(!binding["subjects"].to_string().contains("postern-responder"), "{set}");
        }
        for binding in of_kind(&objects, "ClusterRoleBinding") {
            assert!(!FOR_PEOPLE.contains(&name_of(&binding["roleRef"]["name"])), "{set}");
        }
        // Who may look may ask, and change nothing.
        let viewer = of_kind(&objects, "ClusterRole")
            .find(|r| name(r) == "postern-viewer")
            .unwrap();
        for rule in viewer["rules"].as_array().unwrap() {
            let (resources, verbs) = (strings(&rule["resources"]), strings(&rule["verbs"]));
            let asks = resources == ["explanations"] && verbs == ["create"];
            let looks = verbs.iter().all(|verb| ["get", "list", "watch"].contains(verb));
            assert!(asks || (looks && !resources.contains(&"explanations")), "{set}: {rule}");
        }
        assert!(viewer.to_string().contains("explanations"), "{set}");
        // `edit` may not change policies, as it may not change Roles.
        let editor = of_kind(&objects, "ClusterRole")
            .find(|r| name(r) == "postern-policy-editor")
            .unwrap();
        let labels = editor["metadata"]["labels"].as_object().unwrap();
        let aggregated: Vec<&str> = labels
            .keys()
            .filter_map(|l| l.strip_prefix("rbac.authorization.k8s.io/"))
            .collect();
        let wanted: &[&str] = if set == "everything" {
            &[]
        } else {
            &["aggregate-to-admin"]
        };
        assert_eq!(aggregated, wanted, "{set}");
    }
}

/// A reason in the table is only as good as the code that it names.
#[test]
fn every_reason_names_code_that_is_there() {
    for grant in GRANTS {
        let (path, needle) = grant.code;
        assert!(!grant.why.is_empty());
        assert!(
            mentions(&chart::root().join(path), needle),
            "{} may {:?} {} ({}), but nothing under {path} mentions {needle}",
            grant.who,
            grant.verbs,
            grant.resource,
            grant.why
        );
    }
}

fn mentions(path: &std::path::Path, needle: &str) -> bool {
    if path.is_dir() {
        return fs::read_dir(path)
            .unwrap()
            .any(|entry| mentions(&entry.unwrap().path(), needle));
    }
    path.extension().is_some_and(|e| e == "rs") && fs::read_to_string(path).unwrap().contains(needle)
}

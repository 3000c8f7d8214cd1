//! What is registered with the API server: kinds, webhooks, the aggregated API.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{RuleWithOperations, ServiceReference, WebhookClientConfig};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::catalog::{Finding, Verdict, finding};
use super::certificates::ders;
use super::components::INSTALL;
use super::facts::{Facts, SYSTEM, Unknown, known, name};
use super::platform::NATIVE_SIDECARS;

/// What the configurations are called.
const CONFIG: &str = "postern-injector";
/// The Service behind them.
const SERVICE: &str = "postern-injector";
/// The aggregated API.
const API: &str = "v1alpha1.view.postern.dev";
/// The kinds of this version, as the chart has them.
const CRDS: [&str; 4] = [
    include_str!("../../../../charts/postern/files/crd-authorizationpolicies.yaml"),
    include_str!("../../../../charts/postern/files/crd-authorizers.yaml"),
    include_str!("../../../../charts/postern/files/crd-requestauthentications.yaml"),
    include_str!("../../../../charts/postern/files/crd-peerauthentications.yaml"),
];
/// Policies that the API server itself enforces, and what is open without each.
const POLICIES: [(&str, &str); 2] = [
    (
        "postern-proxy-images",
        "who may patch a running pod may change the image of its proxy, which holds the pod's identity",
    ),
    (
        "postern-ca-tokens",
        "a pod without a proxy may mount a token for the CA and get its account's identity",
    ),
];
/// ValidatingAdmissionPolicies are there since this minor version of Kubernetes 1.
const ADMISSION_POLICIES: u32 = 30;
/// Namespaces without which a cluster does not come up.
const NEVER: [&str; 2] = ["kube-system", SYSTEM];

pub(super) fn crds(facts: &Facts) -> Verdict {
    let there = known(&facts.crds)?;
    let mut found = Vec::new();
    for text in CRDS {
        let ours = parsed(text)?;
        let crd_name = name(&ours.metadata);
        let subject = format!("CustomResourceDefinition {crd_name}");
        let Some(theirs) = there.iter().find(|crd| name(&crd.metadata) == crd_name) else {
            found.push(finding(subject, "it is not there: policies cannot be applied", INSTALL));
            continue;
        };
        let conditions = theirs.status.as_ref().and_then(|status| status.conditions.as_ref());
        let established = conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == "Established" && c.status == "True");
        if !established {
            let fix = format!("kubectl describe crd {crd_name}");
            found.push(finding(subject, "the API server does not serve it", fix));
        } else if schemas(theirs) != schemas(&ours) {
            let cause = "its schema is another version's: fields of this one are dropped or refused";
            found.push(finding(
                subject,
                cause,
                format!("{INSTALL} --reuse-values --set crds.install=true"),
            ));
        }
    }
    Ok(found)
}

/// The definition as this program has it.
pub(super) fn parsed(text: &str) -> Result<CustomResourceDefinition, Unknown> {
    serde_saphyr::from_str(text).map_err(|error| Unknown(format!("this program's own CRD cannot be read: {error}")))
}

fn schemas(crd: &CustomResourceDefinition) -> Vec<serde_json::Value> {
    let versions = crd.spec.versions.iter();
    versions
        .map(|version| serde_json::json!({ "name": version.name, "schema": version.schema }))
        .collect()
}

pub(super) fn mutating(facts: &Facts) -> Verdict {
    let config = known(&facts.mutating)?
        .iter()
        .find(|config| name(&config.metadata) == CONFIG);
    let webhooks = config.and_then(|config| config.webhooks.as_ref());
    Ok(registered(
        "MutatingWebhookConfiguration",
        webhooks.map_or(0, Vec::len),
        "no pod gets a proxy",
    ))
}

pub(super) fn validating(facts: &Facts) -> Verdict {
    let config = known(&facts.validating)?
        .iter()
        .find(|config| name(&config.metadata) == CONFIG);
    let webhooks = config.and_then(|config| config.webhooks.as_ref());
    Ok(registered(
        "ValidatingWebhookConfiguration",
        webhooks.map_or(0, Vec::len),
        "a wrong policy is not refused",
    ))
}

fn registered(kind: &str, webhooks: usize, consequence: &str) -> Vec<Finding> {
    if webhooks > 0 {
        return Vec::new();
    }
    vec![finding(
        format!("{kind} {CONFIG}"),
        format!("it is not there: {consequence}"),
        INSTALL,
    )]
}

pub(super) fn admission_policies(facts: &Facts) -> Verdict {
    let server = known(&facts.server)?;
    if (server.major, server.minor) < (1, NATIVE_SIDECARS) {
        // No pod is in the mesh there, which another check says.
        return Ok(Vec::new());
    }
    if (server.major, server.minor) < (1, ADMISSION_POLICIES) {
        return Ok(vec![finding(
            "API server",
            format!(
                "version {}.{} has no ValidatingAdmissionPolicies: {}; {}",
                server.major, server.minor, POLICIES[0].1, POLICIES[1].1
            ),
            format!("upgrade the control plane to Kubernetes 1.{ADMISSION_POLICIES} or later, then {INSTALL}"),
        )]);
    }
    let bindings = known(&facts.policy_bindings)?;
    let in_force = |policy: &str| {
        bindings.iter().filter_map(|binding| binding.spec.as_ref()).any(|spec| {
            let denies = spec.validation_actions.iter().flatten().any(|action| action == "Deny");
            spec.policy_name.as_deref() == Some(policy) && denies && spec.match_resources.is_none()
        })
    };
    let missing = POLICIES.into_iter().filter(|(policy, _)| !in_force(policy));
    let found = missing.map(|(policy, open)| {
        finding(
            format!("ValidatingAdmissionPolicyBinding {policy}"),
            format!("it is not there, or does not deny everywhere: {open}"),
            INSTALL,
        )
    });
    Ok(found.collect())
}

/// A webhook of ours, of either kind.
struct Webhook<'f> {
    kind: &'static str,
    config: &'f str,
    name: &'f str,
    client: &'f WebhookClientConfig,
    failure_policy: Option<&'f str>,
    namespaces: Option<&'f LabelSelector>,
    rules: &'f [RuleWithOperations],
}

impl Webhook<'_> {
    fn subject(&self) -> String {
        format!("{} {}: {}", self.kind, self.config, self.name)
    }
    fn sees_pods(&self) -> bool {
        let resources = self.rules.iter().flat_map(|rule| rule.resources.iter().flatten());
        let mut resources = resources.map(|resource| resource.split('/').next().unwrap_or_default());
        resources.any(|resource| matches!(resource, "pods" | "*"))
    }
}

fn webhooks(facts: &Facts) -> Result<Vec<Webhook<'_>>, Unknown> {
    let mut found = Vec::new();
    for config in known(&facts.mutating)? {
        found.extend(config.webhooks.iter().flatten().map(|webhook| Webhook {
            kind: "MutatingWebhookConfiguration",
            config: name(&config.metadata),
            name: &webhook.name,
            client: &webhook.client_config,
            failure_policy: webhook.failure_policy.as_deref(),
            namespaces: webhook.namespace_selector.as_ref(),
            rules: webhook.rules.as_deref().unwrap_or_default(),
        }));
    }
    for config in known(&facts.validating)? {
        found.extend(config.webhooks.iter().flatten().map(|webhook| Webhook {
            kind: "ValidatingWebhookConfiguration",
            config: name(&config.metadata),
            name: &webhook.name,
            client: &webhook.client_config,
            failure_policy: webhook.failure_policy.as_deref(),
            namespaces: webhook.namespace_selector.as_ref(),
            rules: webhook.rules.as_deref().unwrap_or_default(),
        }));
    }
    found.retain(|webhook| webhook.client.service.as_ref().is_some_and(leads_to_injector));
    Ok(found)
}

fn leads_to_injector(service: &ServiceReference) -> bool {
    service.namespace == SYSTEM && service.name == SERVICE
}

pub(super) fn failure_policy(facts: &Facts) -> Verdict {
    let open = webhooks(facts)?
        .into_iter()
        .filter(|webhook| webhook.failure_policy == Some("Ignore"));
    let found = open.map(|webhook| {
        finding(
            webhook.subject(),
            "its failurePolicy is Ignore: while the injector is away, pods start without a proxy",
            format!("{INSTALL} --reuse-values"),
        )
    });
    Ok(found.collect())
}

pub(super) fn excluded(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    for webhook in webhooks(facts)?.into_iter().filter(Webhook::sees_pods) {
        let seen: Vec<&str> = NEVER
            .into_iter()
            .filter(|namespace| !excludes(webhook.namespaces, namespace))
            .collect();
        if !seen.is_empty() {
            found.push(finding(
                webhook.subject(),
                format!(
                    "it sees pods of {}: with the injector away they, and then it, could not be created",
                    seen.join(" and ")
                ),
                format!("{INSTALL} --reuse-values"),
            ));
        }
    }
    Ok(found)
}

fn excludes(selector: Option<&LabelSelector>, namespace: &str) -> bool {
    let expressions = selector.and_then(|selector| selector.match_expressions.as_ref());
    expressions.into_iter().flatten().any(|expression| {
        expression.key == "kubernetes.io/metadata.name"
            && expression.operator == "NotIn"
            && expression.values.iter().flatten().any(|value| value == namespace)
    })
}

pub(super) fn duplicates(facts: &Facts) -> Verdict {
    let mut others: Vec<(&str, &str)> = webhooks(facts)?
        .iter()
        .filter(|webhook| webhook.config != CONFIG)
        .map(|webhook| (webhook.kind, webhook.config))
        .collect();
    others.dedup();
    let found = others.into_iter().map(|(kind, config)| {
        finding(
            format!("{kind} {config}"),
            "it leads to the injector as well: nobody keeps its CA bundle current, and it fails when that has changed",
            format!("kubectl delete {} {config}", kind.to_ascii_lowercase()),
        )
    });
    Ok(found.collect())
}

pub(super) fn webhook_bundle(facts: &Facts) -> Verdict {
    let secret = serving(facts, "postern-injector-tls")?;
    let ours = webhooks(facts)?.into_iter().filter(|webhook| webhook.config == CONFIG);
    let uncovered = ours.filter(|webhook| !covers(webhook.client.ca_bundle.as_ref(), secret));
    let found = uncovered.map(|webhook| {
        finding(
            webhook.subject(),
            "its caBundle lacks the CA of the injector's certificate: every request to it fails, and refuses what it is about",
            format!("kubectl -n {SYSTEM} rollout restart deployment postern-injector"),
        )
    });
    Ok(found.collect())
}

pub(super) fn api_service(facts: &Facts) -> Verdict {
    let Some(api) = known(&facts.api_services)?
        .iter()
        .find(|api| name(&api.metadata) == API)
    else {
        return Ok(vec![finding(
            format!("APIService {API}"),
            "it is not there: nothing can be seen of the mesh",
            INSTALL,
        )]);
    };
    let conditions = api.status.as_ref().and_then(|status| status.conditions.as_ref());
    let available = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "Available");
    if available.is_some_and(|condition| condition.status == "True") {
        return Ok(Vec::new());
    }
    let why = available
        .and_then(|condition| condition.message.clone())
        .unwrap_or_else(|| "no word on it yet".to_owned());
    Ok(vec![finding(
        format!("APIService {API}"),
        format!("it is not available ({why}): nothing can be seen of the mesh, and namespaces cannot be deleted"),
        format!("kubectl describe apiservice {API}; kubectl -n {SYSTEM} logs deployment/postern-control"),
    )])
}

pub(super) fn api_bundle(facts: &Facts) -> Verdict {
    let Some(api) = known(&facts.api_services)?
        .iter()
        .find(|api| name(&api.metadata) == API)
    else {
        return Ok(Vec::new());
    };
    let secret = serving(facts, "postern-control-tls")?;
    let spec = api.spec.as_ref();
    let cause = if spec.and_then(|spec| spec.insecure_skip_tls_verify) == Some(true) {
        "insecureSkipTLSVerify is set: whoever can pose as control is believed"
    } else if !covers(spec.and_then(|spec| spec.ca_bundle.as_ref()), secret) {
        "its caBundle lacks the CA of control's certificate: the API server does not believe control"
    } else {
        return Ok(Vec::new());
    };
    let fix = format!("kubectl -n {SYSTEM} rollout restart deployment postern-control");
    Ok(vec![finding(format!("APIService {API}"), cause, fix)])
}

/// A serving certificate's Secret.
pub(super) fn serving<'f>(facts: &'f Facts, secret: &str) -> Result<&'f Secret, Unknown> {
    let mut secrets = known(&facts.serving)?.iter();
    let found = secrets.find(|candidate| name(&candidate.metadata) == secret);
    found.ok_or_else(|| Unknown(format!("Secret {SYSTEM}/{secret} is not there")))
}

/// Is the CA that signed what is served in the bundle? A Secret that nobody has filled yet is another check's matter.
fn covers(bundle: Option<&ByteString>, secret: &Secret) -> bool {
    let Some(ca) = secret.data.as_ref().and_then(|data| data.get("ca.crt")) else {
        return false;
    };
    let bundle = bundle.map(|bundle| ders(&bundle.0)).unwrap_or_default();
    let ca = ders(&ca.0);
    !ca.is_empty() && ca.iter().all(|root| bundle.contains(root))
}

//! Asks the cluster for everything that the checks look at. What cannot be had (no such kind, no right) is unknown, with the
//! reason, and the checks that need it say so.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Api, ListParams, PostParams};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Client, Resource};
use postern_control::api::objects;
use serde::de::DeserializeOwned;

use super::before;
use super::catalog::Group;
use super::facts::{CaMetrics, Facts, Known, Permission, Policy, SYSTEM, Server, Unknown, label, name};
use crate::cluster::view;

/// Longest metrics text that is read of a CA pod.
const MAX_METRICS: usize = 1024 * 1024;

/// Not asked for: no check of these groups looks at it.
fn unasked<T>() -> Known<T> {
    Err(Unknown("it was not asked for".to_owned()))
}

/// What the checks of these groups need.
pub(super) async fn facts(client: &Client, namespace: Option<&str>, groups: &[Group]) -> Facts {
    let mesh = groups.contains(&Group::Mesh);
    let proxies = groups.contains(&Group::Proxies);
    let view = mesh || proxies;
    let (nodes, node_leases, front_proxy, namespaces, crds, mutating, validating, policy_bindings, api_services) = tokio::join!(
        all(client),
        within(client, Some("kube-node-lease")),
        one::<ConfigMap>(client, "kube-system", "extension-apiserver-authentication"),
        all(client),
        all(client),
        all(client),
        all(client),
        all(client),
        all(client),
    );
    let (deployments, budgets, leases, roots, serving, permissions, server) = tokio::join!(
        within(client, Some(SYSTEM)),
        within(client, Some(SYSTEM)),
        within(client, Some(SYSTEM)),
        one::<ConfigMap>(client, SYSTEM, "postern-ca-roots"),
        serving(client),
        permissions(client, groups.contains(&Group::Before)),
        server(client),
    );
    let (pods, services, replica_sets, network_policies, policies) = tokio::join!(
        within(client, namespace),
        asked(proxies, within(client, namespace)),
        asked(proxies, within(client, namespace)),
        asked(proxies, within(client, namespace)),
        asked(mesh, policies(client)),
    );
    let ca_metrics = match &pods {
        Ok(pods) if mesh => ca_metrics(client, pods).await,
        Ok(_) => unasked(),
        Err(unknown) => Err(unknown.clone()),
    };
    let (edges, identities, proxies, replicas) = tokio::join!(
        asked(
            proxies,
            seen::<objects::Edge>(client, objects::Resource::Edges, namespace)
        ),
        asked(
            proxies,
            seen::<objects::Identity>(client, objects::Resource::Identities, namespace)
        ),
        asked(
            proxies,
            seen::<objects::Proxy>(client, objects::Resource::Proxies, namespace)
        ),
        asked(
            view,
            seen::<objects::Replica>(client, objects::Resource::Replicas, None)
        ),
    );
    Facts {
        now: now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        namespace: namespace.map(str::to_owned),
        server,
        nodes,
        node_leases,
        permissions,
        front_proxy,
        namespaces,
        crds,
        mutating,
        validating,
        policy_bindings,
        api_services,
        deployments,
        budgets,
        leases,
        roots,
        serving,
        ca_metrics,
        pods,
        services,
        replica_sets,
        network_policies,
        policies,
        edges,
        identities,
        proxies,
        replicas,
    }
}

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn asked<T>(wanted: bool, question: impl Future<Output = Known<T>>) -> Known<T> {
    if wanted { question.await } else { unasked() }
}

fn unknown(what: &str, error: &kube::Error) -> Unknown {
    match error {
        kube::Error::Api(status) if super::super::is_absent(status) => Unknown(format!(
            "the API server knows no {what}: nobody serves that API (see PC-030, PC-037)"
        )),
        kube::Error::Api(status) => Unknown(status.message.clone()),
        error => Unknown(format!("{what}: {}", crate::cluster::error_chain(error))),
    }
}

async fn all<K>(client: &Client) -> Known<Vec<K>>
where
    K: Resource<Scope = ClusterResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    listed(Api::<K>::all(client.clone())).await
}

async fn within<K>(client: &Client, namespace: Option<&str>) -> Known<Vec<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    listed(match namespace {
        Some(namespace) => Api::<K>::namespaced(client.clone(), namespace),
        None => Api::<K>::all(client.clone()),
    })
    .await
}

async fn listed<K>(api: Api<K>) -> Known<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let list = api.list(&ListParams::default()).await;
    list.map(|list| list.items)
        .map_err(|error| unknown(&K::plural(&()), &error))
}

async fn one<K>(client: &Client, namespace: &str, name: &str) -> Known<Option<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let found = Api::<K>::namespaced(client.clone(), namespace).get_opt(name).await;
    found.map_err(|error| unknown(name, &error))
}

/// Keys never stay in memory, and are in no report.
async fn serving(client: &Client) -> Known<Vec<Secret>> {
    let mut found = Vec::new();
    for secret in ["postern-injector-tls", "postern-control-tls"] {
        if let Some(mut secret) = one::<Secret>(client, SYSTEM, secret).await? {
            if let Some(data) = &mut secret.data {
                data.retain(|key, _| key.ends_with(".crt"));
            }
            found.push(secret);
        }
    }
    Ok(found)
}

async fn server(client: &Client) -> Known<Server> {
    let version = client
        .apiserver_version()
        .await
        .map_err(|error| unknown("version", &error))?;
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    Ok(Server {
        major: number(&version.major),
        minor: number(&version.minor),
    })
}

async fn permissions(client: &Client, wanted: bool) -> Known<Vec<Permission>> {
    if !wanted {
        return unasked();
    }
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answers = join_all(before::INSTALLS.into_iter().map(|(verb, group, resource)| {
        let reviews = reviews.clone();
        async move {
            let attributes = ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                ..ResourceAttributes::default()
            };
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(attributes),
                    ..Default::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await;
            let answer = answer.map_err(|error| unknown("selfsubjectaccessreviews", &error))?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok(Permission {
                verb,
                group,
                resource,
                allowed,
            })
        }
    }));
    answers.await.into_iter().collect()
}

async fn policies(client: &Client) -> Known<Vec<Policy>> {
    #[derive(serde::Deserialize)]
    struct Policies {
        items: Vec<Policy>,
    }
    let path = "/apis/postern.dev/v1alpha1/authorizationpolicies";
    let list: Result<Policies, kube::Error> = view::get(client, path).await;
    list.map(|list| list.items)
        .map_err(|error| unknown("authorizationpolicies", &error))
}

async fn seen<T: DeserializeOwned>(
    client: &Client,
    resource: objects::Resource,
    namespace: Option<&str>,
) -> Known<Vec<objects::Object<T>>> {
    let list = view::list(client, resource, namespace).await;
    list.map_err(|error| unknown(resource.plural(), &error))
}

/// Through the API server to the pods' metrics port.
async fn ca_metrics(client: &Client, pods: &[Pod]) -> Known<Vec<CaMetrics>> {
    let mut found = Vec::new();
    for pod in pods
        .iter()
        .filter(|pod| label(&pod.metadata, "app.kubernetes.io/name") == Some("postern-ca"))
    {
        let pod = name(&pod.metadata);
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:15020/proxy/metrics");
        let text = view::text(client, &path)
            .await
            .map_err(|error| unknown("the CA's metrics", &error))?;
        if text.len() > MAX_METRICS {
            return Err(Unknown(format!(
                "the metrics of {pod} are longer than {MAX_METRICS} bytes"
            )));
        }
        let value = |metric: &str| metric_value(&text, metric);
        // A replica that has no issuer yet is not ready, which another check sees.
        if let Some(issuer_not_after) = value("postern_ca_issuer_not_after_timestamp_seconds") {
            found.push(CaMetrics {
                pod: pod.to_owned(),
                issuer_not_after,
                // An older version has none.
                brought_refused: value("postern_ca_brought_issuer_refused") == Some(1),
            });
        }
    }
    Ok(found)
}

/// Of a metric without labels.
fn metric_value(text: &str, metric: &str) -> Option<i64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '))?;
    let value: f64 = line.split_whitespace().next()?.parse().ok()?;
    #[allow(clippy::cast_possible_truncation)] // Saturates, and a time in seconds is far from the ends.
    Some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_read_from_the_exposition() {
        let text = "# TYPE a gauge\npostern_ca_issuer_x 1\na 1.7e9 123\n";
        assert_eq!(metric_value(text, "a"), Some(1_700_000_000));
        assert_eq!(metric_value(text, "postern_ca_issuer"), None);
    }
}

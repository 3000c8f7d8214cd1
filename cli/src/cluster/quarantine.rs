//! `postern quarantine` in a cluster: the CA itself is asked, through the API server and end to end under the CA's own
//! certificate. Control is not in the way, and cannot lift what the CA set.
//!
//! ```text
//! RBAC: create serviceaccounts/token (postern-responder) -> a token of minutes    } shown together
//!       pods/portforward in postern-system -> TLS to a replica, by the published roots }
//! ```
//!
//! Every replica is asked for the same: the first writes it down, the others find it there, and each pushes at once.

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::certificate_authority_client::CertificateAuthorityClient;
use postern_api::ca::v1::operate_quarantine_request::Operation;
use postern_api::ca_client::{ALPN, RootPins, ca_id};
use postern_api::control::v1 as wire;
use postern_api::quarantine_wire::{OPERATOR_ACCOUNT, OPERATOR_AUDIENCE};
use postern_api::transport;
use postern_control::api::objects::{Identity, Resource};
use postern_identity::{SpiffeId, TrustDomain, tls};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::connect::{Cluster, ContextArgs};
use super::{CommandError, said, view};
use crate::quarantine::Known;

const SYSTEM: &str = "postern-system";
const ROOTS: &str = "postern-ca-roots";
const SUMS: &str = "roots.sha256";
const TRUST_DOMAIN: &str = "trust-domain";
const REPLICAS: &str = "app.kubernetes.io/name=postern-ca";
const PORT: u16 = 15012;
/// The least that an API server gives.
const TOKEN_SECONDS: i64 = 600;

/// Whoever runs this, as an operator of a cluster's CA.
pub(crate) struct Operator {
    cluster: Cluster,
    trust_domain: TrustDomain,
    user: String,
    token: String,
    /// By their pods.
    replicas: Vec<(String, CertificateAuthorityClient<Channel>)>,
}

impl Operator {
    pub(crate) async fn of(context: &ContextArgs) -> Result<Self, String> {
        let cluster = context.connect().await.map_err(|error| said(&error.into()))?;
        let (trust_domain, pins) = published(&cluster).await?;
        let user = user(&cluster).await;
        let token = token(&cluster).await?;
        let replicas = replicas(&cluster, &trust_domain, &pins).await?;
        Ok(Self {
            cluster,
            trust_domain,
            user,
            token,
            replicas,
        })
    }

    /// As the API server knows them.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) async fn list(&mut self) -> Result<pb::QuarantineState, String> {
        // The newest: one replica may be seconds behind.
        let states = self.each(&Operation::List(pb::ListQuarantineRequest {})).await;
        let newest = states
            .into_iter()
            .filter_map(Result::ok)
            .max_by_key(|state| state.version);
        newest.ok_or_else(|| "no replica of the CA answers".to_owned())
    }

    pub(crate) async fn add(&mut self, request: pb::AddQuarantineRequest) -> Result<pb::QuarantineState, String> {
        self.everywhere(&Operation::Add(request)).await
    }

    pub(crate) async fn lift(&mut self, request: pb::LiftQuarantineRequest) -> Result<pb::QuarantineState, String> {
        self.everywhere(&Operation::Lift(request)).await
    }

    /// The first that does it says what came of it; whoever finds it done has taken it over. Each that does not is named.
    async fn everywhere(&mut self, operation: &Operation) -> Result<pb::QuarantineState, String> {
        let mut done: Option<pb::QuarantineState> = None;
        let mut failed: Vec<(&String, Status)> = Vec::new();
        let pods: Vec<String> = self.replicas.iter().map(|(pod, _)| pod.clone()).collect();
        for (pod, state) in pods.iter().zip(self.each(operation).await) {
            match state {
                Ok(state) => done = Some(done.filter(|first| first.changed).unwrap_or(state)),
                Err(status) if done.is_some() && status.code() == Code::NotFound => {}
                Err(status) => failed.push((pod, status)),
            }
        }
        let Some(done) = done else {
            let first = failed.first().map(|(_, status)| status.message().to_owned());
            return Err(first.unwrap_or_else(|| "no replica of the CA answers".to_owned()));
        };
        for (pod, status) in failed {
            match status.code() {
                Code::Unimplemented => eprintln!(
                    "postern: {pod} is of a version that knows no quarantine, and goes on issuing: finish the upgrade of the CA"
                ),
                _ => eprintln!(
                    "postern: {pod} did not answer, and reads it from the Secret within seconds: {}",
                    status.message()
                ),
            }
        }
        Ok(done)
    }

    async fn each(&mut self, operation: &Operation) -> Vec<Result<pb::QuarantineState, Status>> {
        let mut answers = Vec::with_capacity(self.replicas.len());
        for (_, client) in &mut self.replicas {
            let request = pb::OperateQuarantineRequest {
                operation: Some(operation.clone()),
                operator_token: self.token.clone(),
            };
            let answer = client.operate_quarantine(request).await;
            answers.push(answer.map(tonic::Response::into_inner));
        }
        answers
    }

    /// The pods of a namespace, or all.
    pub(crate) async fn pods(&self, namespace: Option<&str>) -> Result<Known, String> {
        let client = self.cluster.client.clone();
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let pods = api.list(&ListParams::default()).await.map_err(failed)?;
        let view = |pod: Pod| {
            let namespace = pod.metadata.namespace?;
            let account = pod.spec?.service_account_name.unwrap_or_else(|| "default".to_owned());
            Some(wire::WorkloadView {
                spiffe_id: self.id(&namespace, &account)?,
                namespace,
                name: pod.metadata.name?,
                instance: pod.metadata.uid?,
                ..wire::WorkloadView::default()
            })
        };
        Ok(Known(pods.items.into_iter().filter_map(view).collect()))
    }

    /// The identities of the namespace that this one is of; `None`: it is of no namespace here.
    pub(crate) async fn accounts(&self, id: &SpiffeId) -> Result<Option<Known>, String> {
        let Some((namespace, _)) = id
            .workload()
            .filter(|_| id.trust_domain() == self.trust_domain.as_str())
        else {
            return Ok(None);
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.cluster.client.clone(), namespace);
        let accounts = api.list(&ListParams::default()).await.map_err(failed)?;
        let view = |account: ServiceAccount| {
            Some(wire::WorkloadView {
                spiffe_id: self.id(namespace, &account.metadata.name?)?,
                namespace: namespace.to_owned(),
                ..wire::WorkloadView::default()
            })
        };
        Ok(Some(Known(accounts.items.into_iter().filter_map(view).collect())))
    }

    /// Which certificate each proxy has, as control shows it.
    pub(crate) async fn certificates(&self) -> Result<Known, String> {
        let client = &self.cluster.client;
        let identities = view::list::<Identity>(client, Resource::Identities, None)
            .await
            .map_err(failed)?;
        let view = |identity: postern_control::api::objects::Object<Identity>| wire::WorkloadView {
            namespace: identity.metadata.namespace.unwrap_or_default(),
            name: identity.metadata.name.unwrap_or_default(),
            spiffe_id: identity.body.spiffe_id,
            certificate: Some(wire::Certificate {
                serial: identity.body.serial,
                ..wire::Certificate::default()
            }),
            ..wire::WorkloadView::default()
        };
        Ok(Known(identities.into_iter().map(view).collect()))
    }

    fn id(&self, namespace: &str, account: &str) -> Option<String> {
        let id = SpiffeId::for_workload(&self.trust_domain, namespace, account);
        id.ok().map(|id| id.to_string())
    }
}

fn failed(error: kube::Error) -> String {
    said(&CommandError::from(error))
}

/// For the list; an API server that does not say leaves it open.
async fn user(cluster: &Cluster) -> String {
    let api: Api<SelfSubjectReview> = Api::all(cluster.client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let user = review.ok().and_then(|review| review.status?.user_info?.username);
    user.unwrap_or_default()
}

async fn token(cluster: &Cluster) -> Result<String, String> {
    let api: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![OPERATOR_AUDIENCE.to_owned()],
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: None,
        },
        ..TokenRequest::default()
    };
    let made = api
        .create_token_request(OPERATOR_ACCOUNT, &PostParams::default(), &request)
        .await
        .map_err(failed)?;
    let status = made.status.ok_or("the API server made no token")?;
    Ok(status.token)
}

/// What the CA has published of itself.
async fn published(cluster: &Cluster) -> Result<(TrustDomain, RootPins), String> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let map = maps.get(ROOTS).await.map_err(failed)?;
    let of = |error: &dyn std::fmt::Display| format!("ConfigMap {SYSTEM}/{ROOTS}: {error}");
    let mut data = map.data.unwrap_or_default();
    let mut part = |key: &str| data.remove(key).unwrap_or_default();
    let trust_domain = TrustDomain::parse(&part(TRUST_DOMAIN)).map_err(|error| of(&error))?;
    Ok((trust_domain, RootPins::parse(&part(SUMS)).map_err(|error| of(&error))?))
}

async fn replicas(
    cluster: &Cluster,
    trust_domain: &TrustDomain,
    pins: &RootPins,
) -> Result<Vec<(String, CertificateAuthorityClient<Channel>)>, String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let found = pods
        .list(&ListParams::default().labels(REPLICAS))
        .await
        .map_err(failed)?;
    let names = found
        .items
        .into_iter()
        .filter(is_ready)
        .filter_map(|pod| pod.metadata.name);
    let mut replicas = Vec::new();
    let mut trouble = "there is no ready replica of the CA (postern check)".to_owned();
    for name in names {
        match channel(&pods, &name, pins, trust_domain).await {
            Ok(channel) => replicas.push((name, CertificateAuthorityClient::new(channel))),
            Err(error) => trouble = format!("{name}: {error}"),
        }
    }
    if replicas.is_empty() {
        return Err(trouble);
    }
    Ok(replicas)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions = conditions.filter(|condition| condition.type_ == "Ready");
    pod.metadata.deletion_timestamp.is_none() && conditions.any(|condition| condition.status == "True")
}

/// To the CA itself: whoever is in between sees nothing.
async fn channel(pods: &Api<Pod>, name: &str, pins: &RootPins, trust_domain: &TrustDomain) -> Result<Channel, String> {
    let expected = ca_id(trust_domain).map_err(|error| error.to_string())?;
    let mut trouble = String::new();
    for pin in pins.iter() {
        let config = tls::pinned_client_config(pin, expected.clone(), ALPN).map_err(|error| error.to_string())?;
        let mut forward = pods.portforward(name, &[PORT]).await.map_err(failed)?;
        let stream = forward.take_stream(PORT).ok_or("the port forward gave no stream")?;
        match transport::secure(name, stream, config).await {
            Ok(stream) => {
                let channel = transport::channel_over(name, stream).await;
                return channel.map_err(|error| super::error_chain(&error));
            }
            Err(error) => trouble = super::error_chain(&error),
        }
    }
    Err(trouble)
}

//! Objects by whose `caBundle` the API server believes us.

use std::fmt::Debug;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{ServingError, api};

/// An object whose `caBundle` is ours, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All webhooks of a MutatingWebhookConfiguration.
    MutatingWebhook(String),
    /// All webhooks of a ValidatingWebhookConfiguration.
    ValidatingWebhook(String),
    /// An APIService.
    ApiService(String),
}

/// A target as it was found.
pub(super) struct State {
    target: Target,
    version: String,
    /// Name and bundle of each webhook; an API service is one without a name.
    entries: Vec<(String, Option<ByteString>)>,
}

impl Target {
    pub(super) async fn read(&self, client: &Client) -> Result<State, ServingError> {
        let (version, entries) = match self {
            Self::MutatingWebhook(name) => {
                let found: MutatingWebhookConfiguration = self.get(client, name).await?;
                let webhooks = found.webhooks.unwrap_or_default().into_iter();
                let entries = webhooks.map(|webhook| entry(webhook.name, webhook.client_config));
                (found.metadata.resource_version, entries.collect())
            }
            Self::ValidatingWebhook(name) => {
                let found: ValidatingWebhookConfiguration = self.get(client, name).await?;
                let webhooks = found.webhooks.unwrap_or_default().into_iter();
                let entries = webhooks.map(|webhook| entry(webhook.name, webhook.client_config));
                (found.metadata.resource_version, entries.collect())
            }
            Self::ApiService(name) => {
                let found: APIService = self.get(client, name).await?;
                let bundle = found.spec.and_then(|spec| spec.ca_bundle);
                (found.metadata.resource_version, vec![(String::new(), bundle)])
            }
        };
        Ok(State {
            target: self.clone(),
            version: version.unwrap_or_default(),
            entries,
        })
    }

    async fn get<K>(&self, client: &Client, name: &str) -> Result<K, ServingError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let found = Api::<K>::all(client.clone()).get(name).await;
        found.map_err(|source| api(format!("read {self:?}"), source))
    }

    async fn patch<K>(&self, client: &Client, name: &str, patch: &Patch<Value>) -> Result<bool, ServingError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api_of = Api::<K>::all(client.clone());
        match api_of.patch(name, &PatchParams::default(), patch).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
            Err(source) => Err(api(format!("patch the caBundle of {self:?}"), source)),
        }
    }
}

fn entry(name: String, config: WebhookClientConfig) -> (String, Option<ByteString>) {
    (name, config.ca_bundle)
}

impl State {
    pub(super) fn bundles(&self) -> impl Iterator<Item = Option<Vec<u8>>> + '_ {
        self.entries
            .iter()
            .map(|(_, bundle)| bundle.as_ref().map(|bundle| bundle.0.clone()))
    }

    /// Makes `bundle` its `caBundle`, if it is not. `false`: somebody changed it since it was read.
    pub(super) async fn publish(&self, client: &Client, bundle: &[u8]) -> Result<bool, ServingError> {
        let stale = |have: &Option<ByteString>| have.as_ref().is_none_or(|have| have.0 != bundle);
        if !self.entries.iter().any(|(_, have)| stale(have)) {
            return Ok(true);
        }
        let encoded = ByteString(bundle.to_vec());
        let metadata = json!({ "resourceVersion": self.version });
        let webhooks = || {
            let entries = self.entries.iter();
            let each = entries.map(|(name, _)| json!({ "name": name, "clientConfig": { "caBundle": encoded } }));
            // Merged by name: nothing else of a webhook changes.
            Patch::Strategic(json!({ "metadata": metadata, "webhooks": each.collect::<Vec<_>>() }))
        };
        let done = match &self.target {
            target @ Target::MutatingWebhook(name) => {
                target
                    .patch::<MutatingWebhookConfiguration>(client, name, &webhooks())
                    .await?
            }
            target @ Target::ValidatingWebhook(name) => {
                target
                    .patch::<ValidatingWebhookConfiguration>(client, name, &webhooks())
                    .await?
            }
            target @ Target::ApiService(name) => {
                let patch = Patch::Merge(json!({ "metadata": metadata, "spec": { "caBundle": encoded } }));
                target.patch::<APIService>(client, name, &patch).await?
            }
        };
        if done {
            tracing::info!(target_object = ?self.target, "its caBundle is ours");
        }
        Ok(done)
    }
}

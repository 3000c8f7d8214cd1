//! Where the API server is, and as whom we call it.

use kube::{Client, Config};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// Neither in a pod nor with a kubeconfig.
    #[error("no Kubernetes cluster is configured: neither a pod's service account nor KUBECONFIG (or ~/.kube/config)")]
    NotConfigured(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The configuration is there and does not hold.
    #[error("the configuration of the Kubernetes API does not hold")]
    Configuration(#[source] Box<kube::Error>),
}

/// A client of the API server: by KUBECONFIG (or `~/.kube/config`), else as the pod's service account. Nothing is called
/// yet. Needs a tokio runtime.
///
/// It waits for an answer as long as it takes (watches are open for ever): whoever calls sets a deadline.
pub async fn client() -> Result<Client, ClusterError> {
    let mut config = Config::infer()
        .await
        .map_err(|error| ClusterError::NotConfigured(Box::new(error)))?;
    // By default kube repeats a call that was answered 429 or 503 for minutes, unseen. Every caller of ours has a deadline
    // and its own next attempt.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| ClusterError::Configuration(Box::new(error)))
}

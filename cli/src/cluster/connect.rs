//! Which cluster: as `kubectl` finds it, and with the flags of the same names.

use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// An operator waits; an API server that takes longer to accept a connection is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A list of all pods of a large cluster takes a few seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Flags as `kubectl` has them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    context: ContextArgs,
    /// The cluster of the kubeconfig
    #[arg(long, value_name = "NAME", hide = true)]
    cluster: Option<String>,
}

/// The same, for a command whose own `--cluster` is something else.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ContextArgs {
    /// The kubeconfig file [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// The context of it [default: the current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The user of it
    #[arg(long, value_name = "NAME", hide = true)]
    user: Option<String>,
}

/// Why no cluster can be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot read the kubeconfig {path}")]
    Read {
        path: String,
        #[source]
        source: KubeconfigError,
    },
    #[error("no cluster is configured (kubectl config current-context)")]
    Config(#[source] KubeconfigError),
    #[error("no cluster is configured: there is no kubeconfig, and this is no pod")]
    Infer(#[source] kube::config::InferConfigError),
    #[error("the cluster's configuration cannot be used")]
    Client(#[source] kube::Error),
}

/// A cluster, and the namespace that its context names.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl ClusterArgs {
    pub(crate) async fn connect(&self) -> Result<Cluster, ConnectError> {
        self.context.connect_to(self.cluster.clone()).await
    }
}

impl ContextArgs {
    pub(crate) async fn connect(&self) -> Result<Cluster, ConnectError> {
        self.connect_to(None).await
    }

    async fn connect_to(&self, cluster: Option<String>) -> Result<Cluster, ConnectError> {
        let mut config = self.config(cluster).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(ConnectError::Client)?;
        Ok(Cluster { client, namespace })
    }

    async fn config(&self, cluster: Option<String>) -> Result<Config, ConnectError> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            cluster,
            user: self.user.clone(),
        };
        if let Some(path) = &self.kubeconfig {
            let failed = |source| ConnectError::Read {
                path: path.display().to_string(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            return Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(ConnectError::Config);
        }
        if options.context.is_some() || options.cluster.is_some() || options.user.is_some() {
            return Config::from_kubeconfig(&options).await.map_err(ConnectError::Config);
        }
        Config::infer().await.map_err(ConnectError::Infer)
    }
}

//! Flags of `serve` in Kubernetes.

use std::time::Duration;

use postern_identity::TrustDomain;

use crate::replicas::Founding;
use crate::serve::{InCluster, Pace, Running, SecretState, ServeConfig, start, start_in_cluster};

#[derive(Debug, clap::Args)]
pub(super) struct ClusterArgs {
    /// Attest pods by their service-account tokens (TokenReview), instead of join tokens
    #[arg(long)]
    kubernetes_attestation: bool,
    /// Keep root and issuer in this Secret, which replicas share; an empty one is filled
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = place, requires = "kubernetes_attestation")]
    state_secret: Option<Place>,
    /// Publish the roots in this ConfigMap, of the Secret's or the pod's namespace
    #[arg(long, value_name = "NAME", requires = "kubernetes_attestation")]
    roots_config_map: Option<String>,
    /// The name of the trust domain that is founded or found in the Secret [default: cluster.local]
    #[arg(long, value_name = "NAME", value_parser = trust_domain, requires = "state_secret")]
    trust_domain: Option<TrustDomain>,
    /// Somebody collects the ledger's lines from standard output, so that nothing is to be said about it
    #[arg(long, requires = "state_secret")]
    ledger_collected: bool,
    /// How long the root is good; used when the CA is founded [default: 10y]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "state_secret")]
    root_life: Option<Duration>,
    /// How long each issuing certificate is good from the next on; it is replaced at two thirds [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "state_secret")]
    issuer_life: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    namespace: String,
    name: String,
}

fn place(text: &str) -> Result<Place, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(Place {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        Some(_) | None => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFE: Duration = DAY.saturating_mul(3650);
const ISSUER_LIFE: Duration = DAY.saturating_mul(30);

impl ClusterArgs {
    /// Starts serving in the way that the flags name.
    pub(super) async fn start(self, config: ServeConfig) -> Result<Running, String> {
        let clock = crate::clock::system();
        if !self.kubernetes_attestation {
            return start(config, clock).await.map_err(|error| crate::error_chain(&error));
        }
        if self.state_secret.is_some() && !self.ledger_collected {
            tracing::warn!(
                reason = "ledger",
                "the ledger goes to standard output, and is lost with the node's logs unless somebody collects it; \
                 --ledger-collected says that somebody does"
            );
        }
        let client = postern_cluster::client()
            .await
            .map_err(|error| crate::error_chain(&error))?;
        let own_namespace = client.default_namespace().to_owned();
        let namespace = self
            .state_secret
            .as_ref()
            .map_or(own_namespace, |place| place.namespace.clone());
        let cluster = InCluster {
            client,
            roots: self.roots_config_map.clone().map(|name| (namespace, name)),
            holder: std::env::var("POD_NAME").unwrap_or_else(|_| "postern-ca".to_owned()),
            pace: Pace::default(),
            state: self.state()?,
        };
        start_in_cluster(config, cluster, clock)
            .await
            .map_err(|error| crate::error_chain(&error))
    }

    fn state(self) -> Result<Option<SecretState>, String> {
        let Some(Place { namespace, name }) = self.state_secret else {
            return Ok(None);
        };
        let trust_domain = match self.trust_domain {
            Some(named) => named,
            None => trust_domain("cluster.local")?,
        };
        let founding = Founding {
            trust_domain,
            root_life: self.root_life.unwrap_or(ROOT_LIFE),
            issuer_life: self.issuer_life.unwrap_or(ISSUER_LIFE),
        };
        crate::init::check_lives(founding.root_life, founding.issuer_life).map_err(|error| error.to_string())?;
        Ok(Some(SecretState {
            namespace,
            name,
            founding,
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser as _;

    use super::super::Cli;

    fn parse(more: &[&str]) -> Result<(), String> {
        let needed = ["postern-ca", "serve", "--admin-socket", "/a"];
        Cli::try_parse_from(needed.iter().chain(more))
            .map(drop)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_state_is_in_a_directory_or_in_a_secret_and_a_secret_means_pods() {
        parse(&["--store", "/s"]).unwrap();
        parse(&["--store", "/s", "--kubernetes-attestation", "--roots-config-map", "r"]).unwrap();
        let secret = [
            "--state-secret",
            "x/y",
            "--kubernetes-attestation",
            "--trust-domain",
            "a.b",
            "--root-life",
            "10y",
            "--ledger-collected",
        ];
        parse(&secret).unwrap();
        for (bad, says) in [
            (&[][..], "--store"),
            (&["--state-secret", "x/y"], "--kubernetes-attestation"),
            (&["--state-secret", "y", "--kubernetes-attestation"], "NAMESPACE/NAME"),
            (
                &["--state-secret", "x/y/z", "--kubernetes-attestation"],
                "NAMESPACE/NAME",
            ),
            (
                &["--state-secret", "x/y", "--kubernetes-attestation", "--store", "/s"],
                "cannot be used with",
            ),
            (&["--store", "/s", "--issuer-life", "30d"], "--state-secret"),
            (&["--store", "/s", "--ledger-collected"], "--state-secret"),
            (
                &["--store", "/s", "--roots-config-map", "r"],
                "--kubernetes-attestation",
            ),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
    }
}

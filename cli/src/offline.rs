//! What the commands that read policy files have in common.

use clap::ValueEnum;
use postern_identity::TrustDomain;

/// What files do not say of their mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct Mesh {
    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "postern-system")]
    pub(crate) root_namespace: String,
    /// The name of the trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    pub(crate) trust_domain: TrustDomain,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

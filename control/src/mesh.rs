//! What nothing that is watched says of the mesh: its names.

use postern_identity::TrustDomain;
use postern_policy::Aliases;

/// Unless another is said.
const ROOT_NAMESPACE: &str = "postern-system";

/// Whose policies count for all, and whose identities these are.
#[derive(Debug, Clone, clap::Args)]
pub struct Mesh {
    /// The namespace whose policies apply to the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = ROOT_NAMESPACE)]
    pub root_namespace: String,
    /// The name of the trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,
    /// Another name of it: what policies say of one they say of all; may be repeated
    #[arg(long, value_name = "NAME", value_parser = trust_domain)]
    pub trust_domain_alias: Vec<TrustDomain>,
    /// SVIDs name no instance, as they are not our CA's: a workload is known by its ID, which it shares with none.
    #[arg(skip)]
    pub without_instances: bool,
}

impl Mesh {
    /// One that has nothing of its own but its name.
    #[must_use]
    pub fn named(trust_domain: TrustDomain) -> Self {
        Self {
            root_namespace: ROOT_NAMESPACE.to_owned(),
            trust_domain,
            trust_domain_alias: Vec::new(),
            without_instances: false,
        }
    }

    /// All names of its trust domain.
    pub(crate) fn aliases(&self) -> Aliases {
        Aliases::of(&self.trust_domain, &self.trust_domain_alias)
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

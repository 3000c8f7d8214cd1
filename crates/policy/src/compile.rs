//! From policies to an index that a decision walks without allocating.

use crate::AuthorizationPolicy;

/// All policies that select one workload, compiled. Immutable; swapped whole per policy generation.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    policies: Vec<AuthorizationPolicy>,
}

impl Compiled {
    /// Compiles the pool of policies that select one workload (already filtered by [`AuthorizationPolicy::selects`]).
    #[must_use]
    pub fn new(policies: Vec<AuthorizationPolicy>) -> Self {
        Self { policies }
    }
    /// Does any rule for this port look at HTTP fields? Such a port never silently becomes opaque.
    #[must_use]
    pub fn needs_http(&self, port: u16) -> bool {
        let _ = port;
        todo!()
    }
    /// The policies, in the order of their index in a decision.
    #[must_use]
    pub fn policies(&self) -> &[AuthorizationPolicy] {
        &self.policies
    }
}

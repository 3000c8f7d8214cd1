//! From policies to an index that a decision walks without allocating.
//!
//! A rule is any(from) and any(to): it is split into clauses, one per pair. Clauses are found by the peer's exact
//! principal, namespace or account first, then by path in a byte trie; what remains (a handful, however many rules there
//! are) is checked in full. Equal clauses are kept once, for the rule that comes first.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::{Action, AuthorizationPolicy, Operation, Source, StringMatch};

mod clause;
mod index;
mod trie;

pub(crate) use clause::Clause;
pub(crate) use index::Index;

/// All policies that select one workload, compiled. Immutable; swapped whole per policy generation.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    policies: Vec<AuthorizationPolicy>,
    pub(crate) deny: Index,
    pub(crate) allow: Index,
    pub(crate) has_allow_policy: bool,
}

impl Compiled {
    /// Compiles the pool of policies that select one workload (already filtered by [`AuthorizationPolicy::selects`]).
    #[must_use]
    pub fn new(policies: Vec<AuthorizationPolicy>) -> Self {
        let (mut deny, mut allow) = (Clauses::default(), Clauses::default());
        for (number, policy) in policies.iter().enumerate() {
            let clauses = match policy.action {
                Action::Allow => &mut allow,
                Action::Deny => &mut deny,
            };
            clauses.add(number, policy);
        }
        Self {
            has_allow_policy: policies.iter().any(|policy| policy.action == Action::Allow),
            deny: Index::new(deny.clauses, Action::Deny),
            allow: Index::new(allow.clauses, Action::Allow),
            policies,
        }
    }

    /// Does any rule for this port look at HTTP fields? Such a port never silently becomes opaque.
    #[must_use]
    pub fn needs_http(&self, port: u16) -> bool {
        let clauses = self.deny.clauses().iter().chain(self.allow.clauses());
        clauses
            .into_iter()
            .any(|clause| clause.operation.has_http_fields() && clause.operation.takes_port(port))
    }

    /// The policies, in the order of their index in a decision.
    #[must_use]
    pub fn policies(&self) -> &[AuthorizationPolicy] {
        &self.policies
    }
}

/// Clauses in order, equal ones once.
#[derive(Default)]
struct Clauses {
    clauses: Vec<Clause>,
    seen: HashMap<(Arc<Source>, Arc<Operation>), ()>,
}

impl Clauses {
    fn add(&mut self, policy: usize, of: &AuthorizationPolicy) {
        let any_source = [Arc::new(Source::default())];
        let any_operation = [Arc::new(Operation::default())];
        for (position, rule) in of.rules.iter().enumerate() {
            let from: Vec<_> = rule.from.iter().cloned().map(Arc::new).collect();
            let to: Vec<_> = rule.to.iter().cloned().map(Arc::new).collect();
            for source in if from.is_empty() { &any_source[..] } else { &from } {
                for operation in if to.is_empty() { &any_operation[..] } else { &to } {
                    let key = (Arc::clone(source), Arc::clone(operation));
                    if self.seen.insert(key, ()).is_none() {
                        self.clauses.push(Clause::new(policy, position, source, operation));
                    }
                }
            }
        }
    }
}

impl Operation {
    pub(crate) fn has_http_fields(&self) -> bool {
        [
            &self.hosts,
            &self.not_hosts,
            &self.methods,
            &self.not_methods,
            &self.paths,
            &self.not_paths,
        ]
        .iter()
        .any(|field: &&Vec<StringMatch>| !field.is_empty())
    }

    pub(crate) fn takes_port(&self, port: u16) -> bool {
        (self.ports.is_empty() || self.ports.contains(&port)) && !self.not_ports.contains(&port)
    }
}

//! From policies to an index that a decision walks without allocating.
//!
//! A rule is any(from) and any(to): it is split into clauses, one per pair. Clauses are found by the peer's exact
//! principal, namespace or account first, then by path in a byte trie; what remains (a handful, however many rules there
//! are) is checked in full. Equal clauses are kept once, for the rule that comes first.

use std::sync::Arc;

use hashbrown::HashSet;
use postern_identity::{SpiffeId, TrustDomain};

use crate::{Action, AuthorizationPolicy, Condition, Operation, Source, StringMatch, TextKey, turns};

mod clause;
mod index;
mod trie;

pub(crate) use clause::{Clause, Missed, names_principal, without_scheme};
pub(crate) use index::Index;

/// All policies that select one workload, compiled. Immutable; swapped whole per policy generation.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    policies: Vec<AuthorizationPolicy>,
    /// By provider, in the order of their first policy.
    pub(crate) custom: Vec<(Arc<str>, Index)>,
    pub(crate) deny: Index,
    pub(crate) allow: Index,
    pub(crate) audit: Index,
    pub(crate) has_allow_policy: bool,
    pub(crate) has_audit: bool,
    needs: Needs,
    home: Option<TrustDomain>,
}

/// What rules look at that is not at hand for each request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Labels of peers.
    pub peer_labels: bool,
    /// The time.
    pub clock: bool,
    /// Fields of the head, in lower case, each once.
    pub headers: Vec<Box<str>>,
}

impl Compiled {
    /// Compiles the pool of policies that select one workload (already filtered by [`AuthorizationPolicy::selects`], and
    /// [`AuthorizationPolicy::resolved`] for it).
    ///
    /// No identity is foreign to it: [`Compiled::at_home_in`] says whose mesh it is.
    #[must_use]
    pub fn new(policies: Vec<AuthorizationPolicy>) -> Self {
        Self::compile(policies, None)
    }

    /// The same for a workload of this trust domain. A peer of another one (whose bundle is held: federation) is allowed
    /// nothing but by an ALLOW rule that names its trust domain, in `principals` or `trustDomains`, or in conditions on
    /// them: `namespaces: [shop]` and `principals: ["*"]` were written with one mesh in mind.
    #[must_use]
    pub fn at_home_in(home: &TrustDomain, policies: Vec<AuthorizationPolicy>) -> Self {
        Self::compile(policies, Some(home))
    }

    fn compile(policies: Vec<AuthorizationPolicy>, home: Option<&TrustDomain>) -> Self {
        let clauses = |action| {
            let all = policies.iter().filter(|policy| policy.action == action);
            Clauses::for_rules(all.map(|policy| policy.rules.len()).sum())
        };
        let (mut deny, mut allow, mut audit) = (clauses(Action::Deny), clauses(Action::Allow), clauses(Action::Audit));
        allow.home = home.cloned();
        let mut custom: Vec<(Arc<str>, Clauses)> = Vec::new();
        for (number, policy) in policies.iter().enumerate() {
            let clauses = match policy.action {
                Action::Allow => &mut allow,
                Action::Deny => &mut deny,
                Action::Audit => &mut audit,
                Action::Custom => {
                    let known = custom.iter().position(|(provider, _)| **provider == *policy.provider);
                    let at = known.unwrap_or_else(|| {
                        custom.push((policy.provider.as_str().into(), Clauses::default()));
                        custom.len() - 1
                    });
                    &mut custom[at].1
                }
            };
            clauses.add(number, policy);
        }
        let custom = custom.into_iter();
        Self {
            has_allow_policy: policies.iter().any(|policy| policy.action == Action::Allow),
            has_audit: policies.iter().any(|policy| policy.action == Action::Audit),
            needs: Needs::of(&policies),
            home: home.cloned(),
            custom: custom
                .map(|(provider, clauses)| (provider, clauses.indexed(Action::Custom)))
                .collect(),
            deny: deny.indexed(Action::Deny),
            allow: allow.indexed(Action::Allow),
            audit: audit.indexed(Action::Audit),
            policies,
        }
    }

    /// Does any rule for this port look at HTTP fields? Such a port never silently becomes opaque.
    #[must_use]
    pub fn needs_http(&self, port: u16) -> bool {
        let custom = self.custom.iter().map(|(_, index)| index);
        let mut clauses = custom.chain([&self.deny, &self.allow]).flat_map(Index::clauses);
        clauses.any(|clause| clause.has_http_fields() && clause.operation.takes_port(port))
    }

    /// Is it an identity of another trust domain?
    #[must_use]
    pub fn is_foreign(&self, id: &SpiffeId) -> bool {
        self.home
            .as_ref()
            .is_some_and(|home| home.as_str() != id.trust_domain())
    }

    /// What its rules look at that is not at hand for each request.
    #[must_use]
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Frees it piece by piece.
    pub fn free(self) {
        let custom = self.custom.into_iter().map(|(_, index)| index);
        custom.chain([self.deny, self.allow, self.audit]).for_each(Index::free);
    }

    /// The policies, in the order of their index in a decision.
    #[must_use]
    pub fn policies(&self) -> &[AuthorizationPolicy] {
        &self.policies
    }
}

impl Needs {
    fn of(policies: &[AuthorizationPolicy]) -> Self {
        let mut needs = Self::default();
        let rules = policies.iter().flat_map(|policy| &policy.rules);
        for condition in rules.flat_map(|rule| &rule.when) {
            match condition {
                Condition::Text(TextKey::Header(name), _) => needs.headers.push(name.as_str().into()),
                Condition::Text(TextKey::SourceLabel(_) | TextKey::SourceNamespaceLabel(_), _) => {
                    needs.peer_labels = true
                }
                Condition::Age(_) => needs.clock = true,
                Condition::Text(..) | Condition::Address(..) | Condition::Port(_) | Condition::User(_) => {}
            }
        }
        needs.headers.sort_unstable();
        needs.headers.dedup();
        needs
    }
}

/// What makes clauses equal.
type Content = (Arc<Source>, Arc<Operation>, Arc<[Condition]>);

/// Clauses in order, equal ones once.
#[derive(Default)]
struct Clauses {
    clauses: Vec<Clause>,
    seen: HashSet<Content>,
    /// See [`Clause::home`].
    home: Option<TrustDomain>,
}

impl Clauses {
    /// With room for them all: making room later hashes what is there again, milliseconds of it at once.
    fn for_rules(count: usize) -> Self {
        Self {
            clauses: Vec::with_capacity(count),
            seen: HashSet::with_capacity(count),
            home: None,
        }
    }

    fn indexed(self, action: Action) -> Index {
        turns::free(self.seen);
        Index::new(self.clauses, action)
    }

    fn add(&mut self, policy: usize, of: &AuthorizationPolicy) {
        self.seen.reserve(of.rules.len());
        let any_source = [Arc::new(Source::default())];
        let any_operation = [Arc::new(Operation::default())];
        let always: Arc<[Condition]> = Arc::new([]);
        for (position, rule) in of.rules.iter().enumerate() {
            turns::next();
            let when = match &rule.when[..] {
                [] => Arc::clone(&always),
                when => when.into(),
            };
            for source in if rule.from.is_empty() {
                &any_source[..]
            } else {
                &rule.from
            } {
                for operation in if rule.to.is_empty() {
                    &any_operation[..]
                } else {
                    &rule.to
                } {
                    let key = (Arc::clone(source), Arc::clone(operation), Arc::clone(&when));
                    if self.seen.insert(key) {
                        self.clauses.push(Clause {
                            policy: number(policy),
                            rule: number(position),
                            source: Arc::clone(source),
                            operation: Arc::clone(operation),
                            when: Arc::clone(&when),
                            home: self.home.clone(),
                        });
                    }
                }
            }
        }
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Clause {
    fn has_http_fields(&self) -> bool {
        let source = &self.source;
        let of_user = !source.request_principals.is_empty() || !source.not_request_principals.is_empty();
        of_user || self.operation.has_http_fields() || self.when.iter().any(Condition::is_of_http)
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

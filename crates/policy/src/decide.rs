//! The decision: DENY, then ALLOW, then deny. Before it, whom CUSTOM policies ask; beside it, what AUDIT marks.

use crate::compile::Clause;
use crate::document::Place;
use crate::{AuthorizationPolicy, Compiled, Request};

/// Allowed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Forward.
    Allow,
    /// Refuse.
    Deny,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An ALLOW rule matched.
    AllowRule,
    /// A DENY rule matched.
    DenyRule,
    /// ALLOW policies apply and none matched.
    NoAllowRule,
    /// No ALLOW policy applies at all.
    NoPolicy,
}

/// A verdict with its reason. Borrows from [`Compiled`].
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// Allowed or not.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The policy that decided; `None` for [`Reason::NoAllowRule`] and [`Reason::NoPolicy`].
    pub policy: Option<&'a AuthorizationPolicy>,
    /// Index of that policy in [`Compiled::policies`], for metric handles resolved beforehand.
    pub policy_index: Option<u32>,
    /// Position in that policy's `rules`.
    pub rule: Option<u32>,
    /// The first AUDIT rule that matches, whatever the verdict.
    pub audit: Option<Matched<'a>>,
}

/// A rule that matches.
#[derive(Debug, Clone, Copy)]
pub struct Matched<'a> {
    /// Its policy.
    pub policy: &'a AuthorizationPolicy,
    /// Index of that policy in [`Compiled::policies`].
    pub policy_index: u32,
    /// Position in that policy's `rules`.
    pub rule: u32,
}

impl Reason {
    /// `snake_case`, for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowRule => "allow_rule",
            Self::DenyRule => "deny_rule",
            Self::NoAllowRule => "no_allow_rule",
            Self::NoPolicy => "no_policy",
        }
    }
}

impl Compiled {
    /// Decides. No lock, no heap allocation, flat in the number of rules. Whom CUSTOM policies ask is asked before:
    /// [`Compiled::custom`].
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision<'_> {
        if let Some(clause) = self.deny.first_match(request) {
            return self.decided(request, Verdict::Deny, Reason::DenyRule, Some(clause));
        }
        if let Some(clause) = self.allow.first_match(request) {
            return self.decided(request, Verdict::Allow, Reason::AllowRule, Some(clause));
        }
        let reason = if self.has_allow_policy {
            Reason::NoAllowRule
        } else {
            Reason::NoPolicy
        };
        self.decided(request, Verdict::Deny, reason, None)
    }

    /// Is there any CUSTOM policy?
    #[must_use]
    pub fn has_custom(&self) -> bool {
        !self.custom.is_empty()
    }

    /// The providers whose CUSTOM policies match, each once, with its first rule that does. Each must agree before
    /// [`Compiled::decide`] has its say. No allocation.
    pub fn custom<'a>(&'a self, request: &Request<'_>) -> impl Iterator<Item = (&'a str, Matched<'a>)> {
        self.custom.iter().filter_map(move |(provider, index)| {
            let clause = index.first_match(request)?;
            Some((&**provider, self.matched(clause)?))
        })
    }

    fn decided(
        &self,
        request: &Request<'_>,
        verdict: Verdict,
        reason: Reason,
        clause: Option<&Clause>,
    ) -> Decision<'_> {
        let audit = self.has_audit.then(|| self.audit.first_match(request)).flatten();
        Decision {
            verdict,
            reason,
            policy: clause.and_then(|clause| self.policies().get(clause.policy as usize)),
            policy_index: clause.map(|clause| clause.policy),
            rule: clause.map(|clause| clause.rule),
            audit: audit.and_then(|clause| self.matched(clause)),
        }
    }

    fn matched(&self, clause: &Clause) -> Option<Matched<'_>> {
        Some(Matched {
            policy: self.policies().get(clause.policy as usize)?,
            policy_index: clause.policy,
            rule: clause.rule,
        })
    }
}

impl<'a> Matched<'a> {
    /// Where the rule was read.
    #[must_use]
    pub fn place(&self) -> Option<&'a Place> {
        self.policy.rules.get(self.rule as usize).map(|rule| &rule.place)
    }
}

impl<'a> Decision<'a> {
    /// Where the rule that decided was read.
    #[must_use]
    pub fn place(&self) -> Option<&'a Place> {
        let rules = &self.policy?.rules;
        rules.get(self.rule? as usize).map(|rule| &rule.place)
    }
}

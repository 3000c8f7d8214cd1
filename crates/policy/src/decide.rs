//! The decision: DENY, then ALLOW, then deny.

use postern_identity::SpiffeId;

use crate::canonical::{CanonicalHost, CanonicalPathRef};
use crate::compile::Clause;
use crate::document::Place;
use crate::{AuthorizationPolicy, Compiled};

/// What is asked. Only parsed and verified things; never raw text.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The verified peer; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The workload's port number.
    pub port: u16,
    /// `None` on an opaque stream.
    pub http: Option<Http<'a>>,
}

/// The HTTP part of a request.
#[derive(Debug, Clone, Copy)]
pub struct Http<'a> {
    /// The method, case-sensitive.
    pub method: &'a str,
    /// The one effective authority.
    pub host: &'a CanonicalHost,
    /// The path as it will be forwarded.
    pub path: CanonicalPathRef<'a>,
}

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
    /// Decides. No lock, no heap allocation, flat in the number of rules.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision<'_> {
        if let Some(clause) = self.deny.first_match(request) {
            return self.decided(Verdict::Deny, Reason::DenyRule, Some(clause));
        }
        if let Some(clause) = self.allow.first_match(request) {
            return self.decided(Verdict::Allow, Reason::AllowRule, Some(clause));
        }
        let reason = if self.has_allow_policy {
            Reason::NoAllowRule
        } else {
            Reason::NoPolicy
        };
        self.decided(Verdict::Deny, reason, None)
    }

    fn decided(&self, verdict: Verdict, reason: Reason, clause: Option<&Clause>) -> Decision<'_> {
        Decision {
            verdict,
            reason,
            policy: clause.and_then(|clause| self.policies().get(clause.policy as usize)),
            policy_index: clause.map(|clause| clause.policy),
            rule: clause.map(|clause| clause.rule),
        }
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

//! What is valid and yet hardly what was meant: rules that never decide anything, rules that let in more than they seem to,
//! and traps.

use std::fmt;
use std::sync::Arc;

use postern_identity::TrustDomain;

use crate::document::Place;
use crate::{Action, AuthorizationPolicy, Operation, Rule, Source};

mod broad;
mod cover;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Good to know.
    Note,
    /// Hardly meant.
    Warning,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// An ALLOW rule that a DENY rule takes everything of.
    Unreachable,
    /// A rule that another one of the same action makes needless.
    Shadowed,
    /// A rule that no request meets.
    NeverMatches,
    /// An ALLOW rule for more callers or requests than it seems.
    TooBroad,
    /// A prefix or suffix that does not end where names do.
    LooseMatch,
    /// A DENY rule that a near variant of the request passes by.
    NarrowDeny,
    /// A rule about HTTP for a port that is no HTTP.
    OpaquePort,
    /// A policy that is for no sidecar, or selects no workload.
    AppliesToNothing,
    /// What a document says does not hold.
    NotInForce,
    /// A CUSTOM policy that asks nobody who is there.
    NoProvider,
    /// Rego that this build does not look at.
    UnreadRego,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub code: Code,
    /// How much it matters.
    pub level: Level,
    /// Where: the rule, or the policy.
    pub place: Place,
    /// `namespace/name`.
    pub policy: String,
    /// What is wrong, and what to do.
    pub says: String,
}

/// A rule where it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'p> {
    policy: &'p AuthorizationPolicy,
    rule: &'p Rule,
}

impl Standing<'_> {
    fn finding(&self, code: Code, level: Level, says: String) -> Finding {
        Finding {
            code,
            level,
            place: self.rule.place.clone(),
            policy: format!("{}/{}", self.policy.namespace, self.policy.name),
            says: format!("rule {}: {says}", self.rule.index),
        }
    }
}

impl fmt::Display for Standing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (policy, rule) = (self.policy, self.rule);
        write!(
            f,
            "rule {} of {}/{} ({})",
            rule.index, policy.namespace, policy.name, rule.place
        )
    }
}

/// Looks at all policies together. In the order of the policies. `home` is the mesh's trust domain; where it is not known, any
/// name may be another's.
#[must_use]
pub fn lint(policies: &[AuthorizationPolicy], root_namespace: &str, home: Option<&TrustDomain>) -> Vec<Finding> {
    let standing: Vec<Standing<'_>> = policies
        .iter()
        .filter(|policy| !policy.foreign_target)
        .flat_map(|policy| policy.rules.iter().map(move |rule| Standing { policy, rule }))
        .collect();
    let mut findings = Vec::new();
    for policy in policies.iter().filter(|policy| policy.foreign_target) {
        findings.push(Finding {
            code: Code::AppliesToNothing,
            level: Level::Note,
            place: policy.place.clone(),
            policy: format!("{}/{}", policy.namespace, policy.name),
            says: "it is for a gateway or waypoint (targetRefs): it applies to no sidecar".to_owned(),
        });
    }
    for (at, rule) in standing.iter().enumerate() {
        broad::look(rule, &mut findings);
        let others = standing.iter().enumerate().filter(|(other, _)| *other != at);
        cover::look(rule, at, others, (root_namespace, home), &mut findings);
    }
    findings
}

impl Code {
    /// `kebab-case`, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Shadowed => "shadowed",
            Self::NeverMatches => "never-matches",
            Self::TooBroad => "too-broad",
            Self::LooseMatch => "loose-match",
            Self::NarrowDeny => "narrow-deny",
            Self::OpaquePort => "opaque-port",
            Self::AppliesToNothing => "applies-to-nothing",
            Self::NotInForce => "not-in-force",
            Self::NoProvider => "no-provider",
            Self::UnreadRego => "unread-rego",
        }
    }
}

impl Level {
    /// For programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (level, code) = (self.level.as_str(), self.code.as_str());
        write!(f, "{}: {level}[{code}]: {}: {}", self.place, self.policy, self.says)
    }
}

/// The traps of a port that is opaque to the proxy (declared TCP): `selected` are the policies of the workload.
#[must_use]
pub fn opaque_port(selected: &[&AuthorizationPolicy], workload: &str, port: u16) -> Vec<Finding> {
    let mut findings = Vec::new();
    for policy in selected {
        for rule in &policy.rules {
            let any = [Arc::new(Operation::default())];
            let operations = if rule.to.is_empty() { &any[..] } else { &rule.to };
            let of_user = |source: &Arc<Source>| {
                !source.request_principals.is_empty() || !source.not_request_principals.is_empty()
            };
            let of_http = rule.from.iter().any(of_user) || rule.when.iter().any(crate::Condition::is_of_http);
            let here = |operation: &&Arc<Operation>| operation.takes_port(port);
            let trapped = operations
                .iter()
                .filter(here)
                .any(|operation| of_http || operation.has_http_fields());
            if !trapped {
                continue;
            }
            let says = match policy.action {
                Action::Allow => {
                    format!("never matches on port {port} of {workload}, which is declared TCP: it looks at HTTP")
                }
                Action::Deny => format!(
                    "denies everything that the rest of it matches on port {port} of {workload}, which is declared TCP: what \
                     it says of HTTP is left out there"
                ),
                Action::Custom | Action::Audit => format!(
                    "matches everything that the rest of it matches on port {port} of {workload}, which is declared TCP"
                ),
            };
            findings.push(Standing { policy, rule }.finding(Code::OpaquePort, Level::Warning, says));
        }
    }
    findings
}

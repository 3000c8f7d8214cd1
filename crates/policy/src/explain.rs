//! The same decision in words.

use std::fmt;

use crate::compile::Clause;
use crate::document::Place;
use crate::{Action, AuthorizationPolicy, Compiled, Doubt, Matched, Reason, Request, Verdict};

/// What decided, or for a denial the nearest ALLOW rule and which of its fields missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// That of [`Compiled::decide`]; `None` if it hangs on something that was not told.
    pub verdict: Option<Verdict>,
    /// Why.
    pub reason: Reason,
    /// The rule that decided.
    pub by: Option<NamedRule>,
    /// For a denial without a DENY rule: the ALLOW rule that came closest, and the field that missed.
    pub nearest: Option<Missing>,
    /// Whom CUSTOM policies ask before all this, each with the rule that asks.
    pub asks: Vec<(String, NamedRule)>,
    /// What an AUDIT rule marks.
    pub audit: Option<NamedRule>,
    /// If there is no verdict: the rule that hangs on something, and on what.
    pub hangs_on: Option<Missing>,
}

/// A rule, as a reader finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedRule {
    /// The policy's namespace.
    pub namespace: String,
    /// The policy's name.
    pub name: String,
    /// Its index in the document.
    pub index: u32,
    /// Where it was read.
    pub place: Place,
}

/// A rule, and a field or condition of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The rule.
    pub rule: NamedRule,
    /// `paths`, or `when request.headers[x-role]`.
    pub field: String,
}

impl Compiled {
    /// Explains the decision that [`Compiled::decide`] makes; the verdict is that one.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        let closed = self.decide(&Request {
            doubt: Doubt::Closed,
            ..*request
        });
        let open_request = Request {
            doubt: Doubt::Open,
            ..*request
        };
        let open = self.decide(&open_request);
        let certain = closed.verdict == open.verdict;
        // What denies even if all doubts are for the caller denies for certain; and so on.
        let decision = if certain && closed.verdict == Verdict::Deny {
            open
        } else {
            closed
        };
        Explanation {
            verdict: certain.then_some(decision.verdict),
            reason: decision.reason,
            by: decision
                .policy
                .zip(decision.rule)
                .and_then(|(policy, rule)| NamedRule::of(policy, rule)),
            nearest: (certain && decision.reason == Reason::NoAllowRule)
                .then(|| self.nearest(request))
                .flatten(),
            asks: self
                .custom(request)
                .filter_map(|(provider, by)| Some((provider.to_owned(), NamedRule::matched(by)?)))
                .collect(),
            audit: decision.audit.and_then(NamedRule::matched),
            hangs_on: if certain { None } else { self.hangs_on(request) },
        }
    }

    /// The ALLOW clause that a request misses by the least: one whose source matches is nearer than one whose operation does.
    fn nearest(&self, request: &Request<'_>) -> Option<Missing> {
        let judge = |clause: &Clause| {
            let source = clause.missed_by_source(request, Action::Allow);
            let operation = clause.missed_by_operation(request, Action::Allow);
            let condition = clause.missed_by_conditions(request, Action::Allow);
            u32::from(condition.is_some()) + 2 * u32::from(operation.is_some()) + 4 * u32::from(source.is_some())
        };
        let clause = self.allow.clauses().iter().min_by_key(|clause| judge(clause))?;
        self.missing(clause, request, Action::Allow)
    }

    /// The first clause that matches or not as the doubt is taken.
    fn hangs_on(&self, request: &Request<'_>) -> Option<Missing> {
        let doubted = |doubt| Request { doubt, ..*request };
        let (closed, open) = (doubted(Doubt::Closed), doubted(Doubt::Open));
        for (clauses, action) in [
            (self.deny.clauses(), Action::Deny),
            (self.allow.clauses(), Action::Allow),
        ] {
            for clause in clauses {
                match (clause.missed(&closed, action), clause.missed(&open, action)) {
                    (None, Some(_)) => return self.missing(clause, &open, action),
                    (Some(_), None) => return self.missing(clause, &closed, action),
                    (None, None) | (Some(_), Some(_)) => {}
                }
            }
        }
        None
    }

    fn missing(&self, clause: &Clause, request: &Request<'_>, action: Action) -> Option<Missing> {
        let policy = self.policies().get(clause.policy as usize)?;
        Some(Missing {
            rule: NamedRule::of(policy, clause.rule)?,
            field: clause.missed(request, action)?.to_string(),
        })
    }
}

impl NamedRule {
    fn of(policy: &AuthorizationPolicy, position: u32) -> Option<Self> {
        let rule = policy.rules.get(position as usize)?;
        Some(Self {
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            index: rule.index,
            place: rule.place.clone(),
        })
    }

    fn matched(by: Matched<'_>) -> Option<Self> {
        Self::of(by.policy, by.rule)
    }
}

impl fmt::Display for NamedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rule {} of {}/{} ({})",
            self.index, self.namespace, self.name, self.place
        )
    }
}

/// One line: verdict, policy, rule and place.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.verdict, &self.hangs_on) {
            (Some(Verdict::Allow), _) => "allowed",
            (Some(Verdict::Deny), _) => "denied",
            (None, Some(Missing { rule, field })) => return write!(f, "undecided: `{field}` of {rule} is not told"),
            (None, None) => "undecided",
        };
        match (&self.by, self.reason) {
            (Some(rule), _) => write!(f, "{verdict} by {rule}"),
            (None, Reason::NoPolicy) => write!(f, "{verdict}: no ALLOW policy selects this workload"),
            (None, Reason::NoAllowRule | Reason::AllowRule | Reason::DenyRule) => {
                write!(f, "{verdict}: no ALLOW rule matches")
            }
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` does not match", self.rule, self.field)
    }
}

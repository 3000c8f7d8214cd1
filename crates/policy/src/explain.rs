//! The same decision in words.

use crate::compile::Clause;
use crate::{Action, Compiled, Reason, Request, Verdict};

/// What decided, or for a denial the nearest ALLOW rule and which of its fields missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// One line: verdict, policy, rule and place.
    pub summary: String,
    /// For a denial without a DENY rule: the ALLOW rule that came closest, and the field that missed.
    pub nearest: Option<String>,
}

impl Compiled {
    /// Explains the decision that [`Compiled::decide`] makes; the verdict is that one.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        let decision = self.decide(request);
        let verdict = match decision.verdict {
            Verdict::Allow => "allowed",
            Verdict::Deny => "denied",
        };
        let summary = match (decision.policy, decision.rule) {
            (Some(policy), Some(rule)) => {
                let index = policy.rules.get(rule as usize).map_or(rule, |rule| rule.index);
                let place = decision.place().map(ToString::to_string).unwrap_or_default();
                format!(
                    "{verdict} by rule {index} of {}/{} ({place})",
                    policy.namespace, policy.name
                )
            }
            _ => match decision.reason {
                Reason::NoPolicy => format!("{verdict}: no ALLOW policy selects this workload"),
                Reason::NoAllowRule | Reason::AllowRule | Reason::DenyRule => {
                    format!("{verdict}: no ALLOW rule matches")
                }
            },
        };
        let nearest = (decision.reason == Reason::NoAllowRule)
            .then(|| self.nearest(request))
            .flatten();
        Explanation { summary, nearest }
    }

    /// The ALLOW clause that a request misses by the least: one whose source matches is nearer than one whose operation does.
    fn nearest(&self, request: &Request<'_>) -> Option<String> {
        let judge = |clause: &Clause| {
            let source = clause.missed_by_source(request, Action::Allow);
            let operation = clause.missed_by_operation(request, Action::Allow);
            let condition = clause.missed_by_conditions(request, Action::Allow);
            u32::from(condition.is_some()) + 2 * u32::from(operation.is_some()) + 4 * u32::from(source.is_some())
        };
        let clause = self.allow.clauses().iter().min_by_key(|clause| judge(clause))?;
        let missed = clause.missed(request, Action::Allow)?;
        let policy = self.policies().get(clause.policy as usize)?;
        let rule = policy.rules.get(clause.rule as usize)?;
        Some(format!(
            "rule {} of {}/{} ({}): `{missed}` does not match",
            rule.index, policy.namespace, policy.name, rule.place
        ))
    }
}

//! What of a denial a login would change, for the answer (RFC 6750 section 3, RFC 9470 section 3). Looked for only after a
//! denial; it changes no verdict, and says nothing that the policies do not.

use crate::compile::{Clause, Missed};
use crate::model::{Condition, TextKey};
use crate::{Action, Compiled, Request, StringMatch};

/// What the caller could do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepUp {
    /// Show a token: there is none, and a rule asks for an end user.
    Token,
    /// Log in again, more strongly or anew: `acr_values` and `max_age` as RFC 9470 has them.
    Login {
        /// Values of `acr` that would do; empty if it is not about `acr`.
        acr_values: Vec<String>,
        /// Seconds that a login may be old; `None` if it is not about its age.
        max_age: Option<u64>,
    },
    /// Get a token for more: the scopes that would do.
    Scope(Vec<String>),
}

/// Claims that say how somebody logged in.
const OF_LOGIN: [&str; 2] = ["acr", "amr"];

impl Compiled {
    /// After a denial: `None` if no login would change it.
    #[must_use]
    pub fn step_up(&self, request: &Request<'_>) -> Option<StepUp> {
        let http = request.http?;
        if let Some(denies) = self.deny.first_match(request) {
            // A DENY rule that asks for the absence of something, such as `notRequestPrincipals: ["*"]`.
            return of_denial(denies, http.user.is_none());
        }
        let near = self.allow.clauses().iter().filter(|clause| {
            // All but the end user is as it must be.
            let source = clause.missed_by_source(request, Action::Allow);
            let of_user = |missed: Missed<'_>| match missed {
                Missed::Field(name) => matches!(name, "requestPrincipals" | "notRequestPrincipals"),
                Missed::Condition(condition, _) => condition.is_of_user(),
            };
            clause.missed_by_operation(request, Action::Allow).is_none()
                && source.is_none_or(of_user)
                && clause
                    .all_missed_conditions(request, Action::Allow)
                    .all(|(condition, _)| condition.is_of_user())
        });
        if http.user.is_none() {
            return near.into_iter().next().map(|_| StepUp::Token);
        }
        let mut of_scope = None;
        for clause in near {
            // Another user is no login of this one.
            if clause.missed_by_source(request, Action::Allow).is_some() {
                continue;
            }
            let missed: Vec<_> = clause.all_missed_conditions(request, Action::Allow).collect();
            if let Some(login) = login(&missed) {
                return Some(login);
            }
            of_scope = of_scope.or_else(|| scope(&missed));
        }
        of_scope
    }
}

/// Would the rule not match if somebody had logged in (as it asks)?
fn of_denial(clause: &Clause, no_user: bool) -> Option<StepUp> {
    let negated = |condition: &&Condition| condition.is_of_user() && !condition.has_positive();
    let conditions: Vec<_> = clause.when.iter().filter(negated).collect();
    if no_user {
        let by_source = !clause.source.not_request_principals.is_empty();
        return (by_source || !conditions.is_empty()).then_some(StepUp::Token);
    }
    // It matched because none of its `notValues` was met: each of them alone would have kept it from matching.
    conditions.iter().find_map(|condition| {
        let missed = [(*condition, true)];
        login(&missed).or_else(|| scope(&missed))
    })
}

/// If all that is missed is how or when they logged in.
fn login(missed: &[(&Condition, bool)]) -> Option<StepUp> {
    let (mut acr_values, mut max_age) = (Vec::new(), None);
    for (condition, negated) in missed {
        match condition {
            Condition::Text(TextKey::UserClaim(path), values) => {
                let [name] = &path[..] else { return None };
                if !OF_LOGIN.contains(&name.as_str()) {
                    return None;
                }
                if name == "acr" {
                    let wanted = if *negated { &values.none } else { &values.any };
                    acr_values.extend(wanted.iter().filter_map(exact));
                }
            }
            Condition::Age(values) => {
                let wanted = if *negated { &values.none } else { &values.any };
                max_age = max_age.max(wanted.iter().max().copied());
            }
            Condition::Text(..) | Condition::Address(..) | Condition::Port(_) | Condition::User(_) => return None,
        }
    }
    (!missed.is_empty()).then_some(StepUp::Login { acr_values, max_age })
}

/// If all that is missed is a scope.
fn scope(missed: &[(&Condition, bool)]) -> Option<StepUp> {
    let mut scopes = Vec::new();
    for (condition, negated) in missed {
        match condition {
            Condition::Text(TextKey::UserClaim(path), values) if path[..] == ["scope"] => {
                let wanted = if *negated { &values.none } else { &values.any };
                scopes.extend(wanted.iter().filter_map(exact));
            }
            Condition::Text(..)
            | Condition::Address(..)
            | Condition::Port(_)
            | Condition::User(_)
            | Condition::Age(_) => return None,
        }
    }
    (!scopes.is_empty()).then_some(StepUp::Scope(scopes))
}

fn exact(value: &StringMatch) -> Option<String> {
    match value {
        StringMatch::Exact(text) => Some(text.clone()),
        StringMatch::Prefix(_)
        | StringMatch::Suffix(_)
        | StringMatch::Present
        | StringMatch::Wildcard(_)
        | StringMatch::Template(_) => None,
    }
}

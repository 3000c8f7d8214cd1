//! Policies and what they are about.

use std::collections::BTreeSet;

use super::catalog::{Verdict, finding};
use super::facts::{Condition, Facts, Policy, known, name, namespace};

pub(super) fn accepted(facts: &Facts) -> Verdict {
    let refused = known(&facts.policies)?.iter().filter_map(|policy| {
        let cause = match condition(policy, "Accepted") {
            None => "control has not looked at it: is control ready?".to_owned(),
            Some(condition) if condition.status == "True" => return None,
            Some(condition) => format!(
                "it is not accepted ({}): {}; until it is, it denies what it selects",
                condition.reason, condition.message
            ),
        };
        let (namespace, name) = (namespace(&policy.metadata), name(&policy.metadata));
        let fix = format!("kubectl -n {namespace} edit authorizationpolicies.postern.dev {name}");
        Some(finding(subject(policy), cause, fix))
    });
    Ok(refused.collect())
}

pub(super) fn enforced(facts: &Facts) -> Verdict {
    let behind = known(&facts.policies)?.iter().filter_map(|policy| {
        let condition = condition(policy, "Enforced")?;
        let current = condition
            .observed_generation
            .is_none_or(|seen| Some(seen) == policy.metadata.generation);
        let cause = if condition.status != "True" {
            format!("it is not in force everywhere: {}", condition.message)
        } else if !current {
            "what is said of it is about an earlier version of it".to_owned()
        } else {
            return None;
        };
        let fix = format!("kubectl postern check --proxy -n {}", namespace(&policy.metadata));
        Some(finding(subject(policy), cause, fix))
    });
    Ok(behind.collect())
}

pub(super) fn conditions(facts: &Facts) -> Verdict {
    let replicas = known(&facts.replicas)?.iter();
    let texts: BTreeSet<&String> = replicas
        .flat_map(|replica| replica.body.conditions.iter().chain(&replica.body.refused_documents))
        .collect();
    let found = texts.into_iter().map(|text| {
        // `Service/shop/cart: what is wrong with it`
        let (subject, cause) = text.split_once(": ").unwrap_or(("control", text));
        finding(
            subject,
            cause,
            "kubectl postern check --output json | less; then change what it names",
        )
    });
    Ok(found.collect())
}

/// Not a fault, and nothing to be forgotten.
pub(super) fn quarantined(facts: &Facts) -> Verdict {
    let replicas = known(&facts.replicas)?.iter();
    let texts: BTreeSet<&String> = replicas.flat_map(|replica| &replica.body.quarantined).collect();
    let found = texts.into_iter().map(|text| {
        // A SPIFFE ID has a colon, and no space behind it.
        let (subject, cause) = text.split_once(": ").unwrap_or((text, ""));
        finding(
            subject,
            cause,
            "kubectl postern quarantine list; lift it once it is well",
        )
    });
    Ok(found.collect())
}

fn condition<'p>(policy: &'p Policy, kind: &str) -> Option<&'p Condition> {
    policy.status.conditions.iter().find(|condition| condition.kind == kind)
}

fn subject(policy: &Policy) -> String {
    format!(
        "AuthorizationPolicy {}/{}",
        namespace(&policy.metadata),
        name(&policy.metadata)
    )
}

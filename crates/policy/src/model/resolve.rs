//! Conditions on the labels of the workload that is called are settled where its labels are known: by control, or by
//! `explain`. An evaluator that meets one all the same cannot tell.

use std::collections::{BTreeMap, BTreeSet};

use super::{AuthorizationPolicy, Condition, Rule, StringMatch, TextKey, Values};

type Labels = BTreeMap<String, String>;

/// Takes such conditions out of a rule; false if one does not hold, so that the rule cannot match.
pub(super) fn settle(rule: &mut Rule, labels: &Labels, namespace: &Labels) -> bool {
    let mut all_hold = true;
    rule.when.retain(|condition| match holds(condition, labels, namespace) {
        None => true,
        Some(holds) => {
            all_hold &= holds;
            false
        }
    });
    all_hold
}

fn holds(condition: &Condition, labels: &Labels, namespace: &Labels) -> Option<bool> {
    match condition {
        Condition::Text(TextKey::DestinationLabel(name), values) => Some(meets(values, labels.get(name))),
        Condition::Text(TextKey::DestinationNamespaceLabel(name), values) => Some(meets(values, namespace.get(name))),
        Condition::Text(..) | Condition::Address(..) | Condition::Port(_) | Condition::User(_) | Condition::Age(_) => {
            None
        }
    }
}

fn meets(values: &Values<StringMatch>, label: Option<&String>) -> bool {
    let hits = |matches: &[StringMatch]| label.is_some_and(|label| matches.iter().any(|m| m.matches(label)));
    (values.any.is_empty() || hits(&values.any)) && !hits(&values.none)
}

pub(super) fn peer_labels(policy: &AuthorizationPolicy) -> [BTreeSet<&str>; 2] {
    let mut names = [BTreeSet::new(), BTreeSet::new()];
    let [workloads, namespaces] = &mut names;
    for condition in policy.rules.iter().flat_map(|rule| &rule.when) {
        match condition {
            Condition::Text(TextKey::SourceLabel(name), _) => {
                workloads.insert(name.as_str());
            }
            Condition::Text(TextKey::SourceNamespaceLabel(name), _) => {
                namespaces.insert(name.as_str());
            }
            Condition::Text(..)
            | Condition::Address(..)
            | Condition::Port(_)
            | Condition::User(_)
            | Condition::Age(_) => {}
        }
    }
    names
}

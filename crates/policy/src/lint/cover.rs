//! Rules that another rule takes everything of. What is said is certain: where it cannot be seen, nothing is said.

use std::sync::Arc;

use postern_identity::TrustDomain;

use self::foreign::lets_in_as_many;
use super::{Code, Finding, Level, Standing};
use crate::model::IpBlock;
use crate::{Action, AuthorizationPolicy, Condition, Operation, Source, StringMatch, UserMatch};

mod foreign;

pub(super) fn look<'p>(
    rule: &Standing<'p>,
    at: usize,
    others: impl Iterator<Item = (usize, &'p Standing<'p>)>,
    (root_namespace, home): (&str, Option<&TrustDomain>),
    findings: &mut Vec<Finding>,
) {
    let mut shadow = None;
    for (other_at, other) in others {
        let selects_all = covers_selection(other.policy, rule.policy, root_namespace);
        if !selects_all || !covers(other, rule, home) {
            continue;
        }
        match (rule.policy.action, other.policy.action) {
            (Action::Allow, Action::Deny) => {
                let says = format!("never allows anything: {other} denies all of it");
                findings.push(rule.finding(Code::Unreachable, Level::Warning, says));
                return;
            }
            (Action::Allow, Action::Allow) | (Action::Deny, Action::Deny) | (Action::Audit, Action::Audit) => {
                // Of two that say the same, the later one is needless.
                let same = covers(rule, other, home) && covers_selection(rule.policy, other.policy, root_namespace);
                if !same || other_at < at {
                    shadow = shadow.or(Some(*other));
                }
            }
            (Action::Custom, Action::Custom) if rule.policy.provider == other.policy.provider => {
                if other_at < at {
                    shadow = shadow.or(Some(*other));
                }
            }
            (Action::Allow | Action::Deny | Action::Audit | Action::Custom, _) => {}
        }
    }
    if let Some(other) = shadow {
        let says = format!("changes nothing: {other} matches all of it");
        findings.push(rule.finding(Code::Shadowed, Level::Warning, says));
    }
}

/// Does `wide` select every workload that `narrow` does?
fn covers_selection(wide: &AuthorizationPolicy, narrow: &AuthorizationPolicy, root_namespace: &str) -> bool {
    (wide.namespace == narrow.namespace || wide.namespace == root_namespace)
        && wide
            .selector
            .iter()
            .all(|(key, value)| narrow.selector.get(key) == Some(value))
}

/// Does `wide` match whatever `narrow` does?
fn covers(wide: &Standing<'_>, narrow: &Standing<'_>, home: Option<&TrustDomain>) -> bool {
    // Only an ALLOW rule has to name whom it lets in from elsewhere.
    let by_name = wide.policy.action == Action::Allow;
    let (wide, narrow) = (wide.rule, narrow.rule);
    let (any_source, any_operation) = ([Arc::new(Source::default())], [Arc::new(Operation::default())]);
    let of_wide = if wide.from.is_empty() {
        &any_source[..]
    } else {
        &wide.from
    };
    let of_narrow = if narrow.from.is_empty() {
        &any_source[..]
    } else {
        &narrow.from
    };
    let from = of_narrow.iter().all(|one| {
        of_wide.iter().any(|other| {
            covers_source(other, one) && (!by_name || lets_in_as_many((other, &wide.when), (one, &narrow.when), home))
        })
    });
    let to = wide.to.is_empty()
        || (if narrow.to.is_empty() {
            &any_operation[..]
        } else {
            &narrow.to
        })
        .iter()
        .all(|narrow| wide.to.iter().any(|wide| covers_operation(wide, narrow)));
    let when = |condition: &Condition| narrow.when.contains(condition);
    from && to && wide.when.iter().all(when)
}

fn covers_source(wide: &Source, narrow: &Source) -> bool {
    let Source {
        principals,
        not_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        request_principals,
        not_request_principals,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
    } = wide;
    field(principals, &narrow.principals, covers_text)
        && field(namespaces, &narrow.namespaces, covers_text)
        && field(service_accounts, &narrow.service_accounts, covers_text)
        && field(trust_domains, &narrow.trust_domains, covers_text)
        && field(request_principals, &narrow.request_principals, covers_user)
        && field(ip_blocks, &narrow.ip_blocks, covers_block)
        && field(remote_ip_blocks, &narrow.remote_ip_blocks, covers_block)
        && negated(not_principals, &narrow.not_principals, covers_text)
        && negated(not_namespaces, &narrow.not_namespaces, covers_text)
        && negated(not_service_accounts, &narrow.not_service_accounts, covers_text)
        && negated(not_trust_domains, &narrow.not_trust_domains, covers_text)
        && negated(not_request_principals, &narrow.not_request_principals, covers_user)
        && negated(not_ip_blocks, &narrow.not_ip_blocks, covers_block)
        && negated(not_remote_ip_blocks, &narrow.not_remote_ip_blocks, covers_block)
}

fn covers_operation(wide: &Operation, narrow: &Operation) -> bool {
    let Operation {
        hosts,
        not_hosts,
        ports,
        not_ports,
        methods,
        not_methods,
        paths,
        not_paths,
    } = wide;
    let same = |wide: &u16, narrow: &u16| wide == narrow;
    field(hosts, &narrow.hosts, covers_text)
        && field(methods, &narrow.methods, covers_text)
        && field(paths, &narrow.paths, covers_text)
        && field(ports, &narrow.ports, same)
        && negated(not_hosts, &narrow.not_hosts, covers_text)
        && negated(not_methods, &narrow.not_methods, covers_text)
        && negated(not_paths, &narrow.not_paths, covers_text)
        && negated(not_ports, &narrow.not_ports, same)
}

/// Every value of `narrow` is one of `wide`.
fn field<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    let within = |narrow: &T| wide.iter().any(|wide| covers(wide, narrow));
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(within))
}

/// What `wide` leaves out, `narrow` leaves out as well.
fn negated<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    wide.iter().all(|wide| narrow.iter().any(|narrow| covers(narrow, wide)))
}

fn covers_text(wide: &StringMatch, narrow: &StringMatch) -> bool {
    match (wide, narrow) {
        (wide, narrow) if wide == narrow => true,
        (wide, StringMatch::Exact(text)) => wide.matches(text),
        (StringMatch::Present, StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Template(_)) => true,
        (StringMatch::Prefix(wide), StringMatch::Prefix(narrow)) => narrow.starts_with(wide.as_str()),
        (StringMatch::Prefix(wide), StringMatch::Template(narrow)) => narrow
            .split('{')
            .next()
            .is_some_and(|start| start.starts_with(wide.as_str())),
        (StringMatch::Suffix(wide), StringMatch::Suffix(narrow)) => narrow.ends_with(wide.as_str()),
        (
            StringMatch::Exact(_)
            | StringMatch::Prefix(_)
            | StringMatch::Suffix(_)
            | StringMatch::Present
            | StringMatch::Wildcard(_)
            | StringMatch::Template(_),
            _,
        ) => false,
    }
}

fn covers_user(wide: &UserMatch, narrow: &UserMatch) -> bool {
    covers_text(&wide.issuer, &narrow.issuer) && covers_text(&wide.subject, &narrow.subject)
}

fn covers_block(wide: &IpBlock, narrow: &IpBlock) -> bool {
    wide.prefix() <= narrow.prefix() && wide.contains(narrow.network())
}

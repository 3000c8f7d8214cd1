//! Rules that match more, or less, than a reader of them thinks.

use super::{Code, Finding, Level, Standing};
use crate::{Action, Condition, Operation, Source, StringMatch, TextKey};

pub(super) fn look(rule: &Standing<'_>, findings: &mut Vec<Finding>) {
    let mut found = |code, level, says: String| findings.push(rule.finding(code, level, says));
    let allows = rule.policy.action == Action::Allow;
    for operation in &rule.rule.to {
        for method in operation.methods.iter().chain(&operation.not_methods) {
            if let StringMatch::Exact(text) = method
                && text.bytes().any(|b| b.is_ascii_lowercase())
            {
                let upper = text.to_ascii_uppercase();
                let says = format!("method `{text}` is compared as it is written: did you mean `{upper}`?");
                found(Code::NeverMatches, Level::Warning, says);
            }
        }
        for host in &operation.hosts {
            if let StringMatch::Prefix(start) = host
                && !start.ends_with([':', '.', '-'])
            {
                let says =
                    format!("host `{start}*` is also `{start}.elsewhere.example`: write `{start}` and `{start}:*`");
                found(Code::LooseMatch, Level::Warning, says);
            }
        }
        for path in operation.paths.iter().filter(|_| allows) {
            match path {
                StringMatch::Prefix(start) if start.len() > 1 && !start.ends_with('/') => {
                    let says = format!("path `{start}*` is also `{start}-other`: write `{start}` and `{start}/*`");
                    found(Code::LooseMatch, Level::Note, says);
                }
                StringMatch::Suffix(end) => {
                    let says = format!(
                        "path `*{end}` is any path that ends so, in every folder; a path of servers' own choice can"
                    );
                    found(Code::LooseMatch, Level::Warning, says);
                }
                StringMatch::Exact(_)
                | StringMatch::Prefix(_)
                | StringMatch::Present
                | StringMatch::Wildcard(_)
                | StringMatch::Template(_) => {}
            }
        }
        if rule.policy.action == Action::Deny {
            narrow_denial(operation, &mut found);
        }
    }
    for source in &rule.rule.from {
        of_source(source, allows, &mut found);
    }
    if allows && !names_a_caller(rule) {
        let says =
            "tells no caller from another: whoever has any identity of our trust domain may, and without `from`, on a permissive \
             port, anybody"
                .to_owned();
        found(Code::TooBroad, Level::Warning, says);
    }
}

/// `/admin` leaves `/admin/` and what is below; many servers answer them alike.
fn narrow_denial(operation: &Operation, found: &mut impl FnMut(Code, Level, String)) {
    for path in &operation.paths {
        let StringMatch::Exact(text) = path else { continue };
        let below = format!("{}/", text.trim_end_matches('/'));
        let also = |other: &StringMatch| other.matches(&below) && other.matches(&format!("{below}x"));
        if text.len() > 1 && !text.ends_with('/') && !operation.paths.iter().any(also) {
            let says = format!(
                "denies `{text}` and not `{below}` or what is below it, which many servers answer alike: add `{below}*`"
            );
            found(Code::NarrowDeny, Level::Note, says);
        }
    }
}

fn of_source(source: &Source, allows: bool, found: &mut impl FnMut(Code, Level, String)) {
    for principal in &source.principals {
        if let StringMatch::Prefix(start) = principal
            && !start.ends_with('/')
        {
            let says = format!("principal `{start}*` is also of names that go on differently: end it with `/*`");
            found(
                Code::LooseMatch,
                if allows { Level::Warning } else { Level::Note },
                says,
            );
        }
        if let StringMatch::Suffix(end) = principal
            && !end.starts_with('/')
        {
            let says = format!("principal `*{end}` is also of names that begin differently: begin it with `*/`");
            found(
                Code::LooseMatch,
                if allows { Level::Warning } else { Level::Note },
                says,
            );
        }
    }
    let everybody = |values: &[crate::UserMatch]| {
        let any = |user: &crate::UserMatch| user.issuer == StringMatch::Present && user.subject == StringMatch::Present;
        values.iter().any(any)
    };
    if allows && everybody(&source.not_request_principals) {
        let says = "matches nobody: a negated end user is never met by a request without one; leave it out".to_owned();
        found(Code::NeverMatches, Level::Warning, says);
    }
    for (yes, no) in [
        (&source.principals, &source.not_principals),
        (&source.namespaces, &source.not_namespaces),
        (&source.service_accounts, &source.not_service_accounts),
    ] {
        if !yes.is_empty() && yes.iter().all(|value| no.contains(value)) {
            let says = "matches nobody: all that it names it leaves out again".to_owned();
            found(Code::NeverMatches, Level::Warning, says);
        }
    }
}

/// Is any caller kept out by who they are?
fn names_a_caller(rule: &Standing<'_>) -> bool {
    let tells_apart = |values: &[StringMatch]| !values.is_empty() && !values.contains(&StringMatch::Present);
    let source = |source: &Source| {
        tells_apart(&source.principals)
            || tells_apart(&source.namespaces)
            || tells_apart(&source.service_accounts)
            || tells_apart(&source.trust_domains)
            || !source.request_principals.is_empty()
            || !source.ip_blocks.is_empty()
            || !source.remote_ip_blocks.is_empty()
    };
    let condition = |condition: &Condition| {
        let of_caller = match condition {
            Condition::Text(key, _) => match key {
                TextKey::SourcePrincipal
                | TextKey::SourceNamespace
                | TextKey::SourceServiceAccount
                | TextKey::SourceTrustDomain
                | TextKey::SourceLabel(_)
                | TextKey::SourceNamespaceLabel(_)
                | TextKey::UserAudiences
                | TextKey::UserPresenter
                | TextKey::UserClaim(_) => true,
                // Whoever calls chooses them.
                TextKey::Header(_)
                | TextKey::Sni
                | TextKey::DestinationLabel(_)
                | TextKey::DestinationNamespaceLabel(_) => false,
            },
            Condition::Address(key, _) => *key != crate::AddressKey::Destination,
            Condition::User(_) | Condition::Age(_) => true,
            Condition::Port(_) => false,
        };
        of_caller && condition.has_positive()
    };
    (!rule.rule.from.is_empty() && rule.rule.from.iter().all(|s| source(s))) || rule.rule.when.iter().any(condition)
}

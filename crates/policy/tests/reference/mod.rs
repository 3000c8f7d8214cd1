//! The naive evaluator: sections 2.1 to 2.3 of what mesh users know, word by word, with no thought for speed.
//! Shares no code with the crate but the model's types.

use postern_policy::{Action, AuthorizationPolicy, Operation, Reason, Request, Source, StringMatch};

use crate::random::text_of;

/// Why, and which policy and rule.
pub(crate) fn evaluate(policies: &[AuthorizationPolicy], request: &Request<'_>) -> (Reason, Option<(u32, u32)>) {
    if let Some(at) = any_match(policies, request, Action::Deny) {
        return (Reason::DenyRule, Some(at));
    }
    if !policies.iter().any(|policy| policy.action == Action::Allow) {
        // Here Istio allows; `protect` denies.
        return (Reason::NoPolicy, None);
    }
    match any_match(policies, request, Action::Allow) {
        Some(at) => (Reason::AllowRule, Some(at)),
        None => (Reason::NoAllowRule, None),
    }
}

/// The first rule that matches among the policies of one action.
fn any_match(policies: &[AuthorizationPolicy], request: &Request<'_>, action: Action) -> Option<(u32, u32)> {
    for (p, policy) in (0..).zip(policies) {
        if policy.action != action {
            continue;
        }
        for (r, rule) in (0..).zip(&policy.rules) {
            let from = rule.from.is_empty() || rule.from.iter().any(|s| source(s, request, action));
            let to = rule.to.is_empty() || rule.to.iter().any(|o| operation(o, request, action));
            if from && to {
                return Some((p, r));
            }
        }
    }
    None
}

fn source(source: &Source, request: &Request<'_>, action: Action) -> bool {
    let principal = request.peer.map(|id| id.as_str().replacen("spiffe://", "", 1));
    // Only an ID of the shape <trust domain>/ns/<namespace>/sa/<account> has these two.
    let parts: Vec<&str> = principal.as_deref().unwrap_or_default().split('/').collect();
    let shaped = parts.len() == 5 && parts[1] == "ns" && parts[3] == "sa";
    let (namespace, account) = if shaped {
        (Some(parts[2]), Some(parts[4]))
    } else {
        (None, None)
    };

    let is_principal = |text: &str| plain(text, principal.as_deref().unwrap());
    let is_namespace = |text: &str| glob(text.as_bytes(), namespace.unwrap().as_bytes());
    let is_account = |text: &str| match text.split_once('/') {
        None => text == "*",
        Some((n, a)) => {
            glob(n.as_bytes(), namespace.unwrap().as_bytes()) && glob(a.as_bytes(), account.unwrap().as_bytes())
        }
    };
    identity(
        &source.principals,
        &source.not_principals,
        principal.is_some(),
        action,
        is_principal,
    ) && identity(&source.namespaces, &source.not_namespaces, shaped, action, is_namespace)
        && identity(
            &source.service_accounts,
            &source.not_service_accounts,
            shaped,
            action,
            is_account,
        )
}

/// `known`: the peer has such a name at all. Without one no value matches, and its negation is good enough to deny, never to
/// allow (ISTIO-SECURITY-2021-004).
fn identity(
    yes: &[StringMatch],
    no: &[StringMatch],
    known: bool,
    action: Action,
    matches: impl Fn(&str) -> bool,
) -> bool {
    let hits = |values: &[StringMatch]| known && values.iter().any(|value| matches(&text_of(value)));
    let positive = yes.is_empty() || hits(yes);
    let negative = no.is_empty() || if known { !hits(no) } else { action == Action::Deny };
    positive && negative
}

fn operation(operation: &Operation, request: &Request<'_>, action: Action) -> bool {
    let http_fields = [
        &operation.hosts,
        &operation.not_hosts,
        &operation.methods,
        &operation.not_methods,
        &operation.paths,
        &operation.not_paths,
    ];
    let ports = operation.ports.is_empty() || operation.ports.contains(&request.port);
    if !ports || operation.not_ports.contains(&request.port) {
        return false;
    }
    let Some(http) = request.http else {
        // HTTP-only fields: an ALLOW rule with any does not match, a DENY rule goes on without them.
        return action == Action::Deny || http_fields.iter().all(|field| field.is_empty());
    };
    let field = |yes: &[StringMatch], no: &[StringMatch], matches: &dyn Fn(&str) -> bool| {
        (yes.is_empty() || yes.iter().any(|value| matches(&text_of(value))))
            && !no.iter().any(|value| matches(&text_of(value)))
    };
    field(&operation.hosts, &operation.not_hosts, &|text| {
        plain(text, http.host.as_str())
    }) && field(&operation.methods, &operation.not_methods, &|text| {
        plain(text, http.method)
    }) && field(&operation.paths, &operation.not_paths, &|text| {
        path(text, http.path.as_str())
    })
}

/// exact; `abc*`; `*abc`; `*` is present and not empty.
fn plain(pattern: &str, value: &str) -> bool {
    if pattern == "*" {
        !value.is_empty()
    } else if let Some(prefix) = pattern.strip_suffix('*') {
        value.get(..prefix.len()) == Some(prefix)
    } else if let Some(suffix) = pattern.strip_prefix('*') {
        value.len() >= suffix.len() && value[value.len() - suffix.len()..] == *suffix
    } else {
        value == pattern
    }
}

/// A star is any characters, none included; `*` alone needs one.
fn glob(pattern: &[u8], value: &[u8]) -> bool {
    match pattern {
        [] => value.is_empty(),
        [b'*', rest @ ..] => (0..=value.len()).any(|cut| glob(rest, &value[cut..])),
        [byte, rest @ ..] => value.first() == Some(byte) && glob(rest, &value[1..]),
    }
}

/// Plain, or a template: `{*}` is one segment that is not empty, `{**}` is any number of segments.
fn path(pattern: &str, value: &str) -> bool {
    if !pattern.contains('{') {
        return plain(pattern, value);
    }
    let pattern: Vec<&str> = pattern.split('/').collect();
    let value: Vec<&str> = value.split('/').collect();
    segments(&pattern, &value)
}

fn segments(pattern: &[&str], value: &[&str]) -> bool {
    match pattern {
        [] => value.is_empty(),
        ["{**}", rest @ ..] => (0..=value.len()).any(|cut| segments(rest, &value[cut..])),
        [one, rest @ ..] => match value {
            [] => false,
            [segment, others @ ..] => {
                (if *one == "{*}" {
                    !segment.is_empty()
                } else {
                    segment == one
                }) && segments(rest, others)
            }
        },
    }
}

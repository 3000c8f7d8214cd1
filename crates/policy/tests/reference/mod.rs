//! The naive evaluator: sections 2.1 to 2.3 of what mesh users know, word by word, with no thought for speed.
//! Shares no code with the crate but the model's types.

use std::net::IpAddr;

use postern_policy::{
    Action, AuthorizationPolicy, Condition, IpBlock, Operation, Reason, Request, Source, StringMatch, TextKey,
    UserMatch,
};

use crate::random::text_of;

mod conditions;

/// The trust domain that rules mean where they name none.
pub(crate) const HOME: &str = "cluster.local";

/// Why, and which policy and rule.
pub(crate) fn evaluate(policies: &[AuthorizationPolicy], request: &Request<'_>) -> (Reason, Option<(u32, u32)>) {
    if let Some(at) = any_match(policies, request, Action::Deny, "") {
        return (Reason::DenyRule, Some(at));
    }
    if !policies.iter().any(|policy| policy.action == Action::Allow) {
        // Here Istio allows; `protect` denies.
        return (Reason::NoPolicy, None);
    }
    match any_match(policies, request, Action::Allow, "") {
        Some(at) => (Reason::AllowRule, Some(at)),
        None => (Reason::NoAllowRule, None),
    }
}

/// The first rule that matches among the policies of one action.
pub(crate) fn any_match(
    policies: &[AuthorizationPolicy],
    request: &Request<'_>,
    action: Action,
    provider: &str,
) -> Option<(u32, u32)> {
    for (p, policy) in (0..).zip(policies) {
        if policy.action != action || policy.provider != provider {
            continue;
        }
        for (r, rule) in (0..).zip(&policy.rules) {
            let welcome = |source: Option<&Source>| action != Action::Allow || is_welcome(source, &rule.when, request);
            let from = if rule.from.is_empty() {
                welcome(None)
            } else {
                rule.from.iter().any(|s| source(s, request, action) && welcome(Some(s)))
            };
            let to = rule.to.is_empty() || rule.to.iter().any(|o| operation(o, request, action));
            let when = rule
                .when
                .iter()
                .all(|condition| conditions::holds(condition, request, action));
            if from && to && when {
                return Some((p, r));
            }
        }
    }
    None
}

/// Somebody of another trust domain is allowed what names it, whole: `partner.example/*` does, and `*`, `*/sa/web` and `part*`
/// do not. In `trustDomains` a star beside something else is a name, too.
fn is_welcome(source: Option<&Source>, when: &[Condition], request: &Request<'_>) -> bool {
    let Some(principal) = request.peer.map(|id| id.as_str().replacen("spiffe://", "", 1)) else {
        return true;
    };
    let domain = principal.split('/').next().unwrap();
    if domain == HOME {
        return true;
    }
    let by_principal = |values: &[StringMatch]| {
        let mut texts = values.iter().map(text_of);
        texts.any(|text| !text.starts_with('*') && text.contains('/') && plain(&text, &principal))
    };
    let by_domain = |values: &[StringMatch]| {
        let mut texts = values.iter().map(text_of);
        texts.any(|text| text != "*" && plain(&text, domain))
    };
    source.is_some_and(|source| by_principal(&source.principals) || by_domain(&source.trust_domains))
        || when.iter().any(|condition| match condition {
            Condition::Text(TextKey::SourcePrincipal, values) => by_principal(&values.any),
            Condition::Text(TextKey::SourceTrustDomain, values) => by_domain(&values.any),
            _ => false,
        })
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
        && identity(
            &source.trust_domains,
            &source.not_trust_domains,
            principal.is_some(),
            action,
            |text| plain(text, parts[0]),
        )
        && users(
            &source.request_principals,
            &source.not_request_principals,
            request,
            action,
        )
        && addresses(&source.ip_blocks, &source.not_ip_blocks, request.source_ip, action)
        && addresses(
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
            request.remote_ip,
            action,
        )
}

/// End users: HTTP only; without a token as without an identity.
fn users(yes: &[UserMatch], no: &[UserMatch], request: &Request<'_>, action: Action) -> bool {
    if yes.is_empty() && no.is_empty() {
        return true;
    }
    let Some(http) = request.http else {
        return action != Action::Allow;
    };
    let Some(user) = http.user else {
        return yes.is_empty() && action != Action::Allow;
    };
    let is = |wanted: &UserMatch| {
        plain(&text_of(&wanted.issuer), user.issuer()) && plain(&text_of(&wanted.subject), user.subject())
    };
    (yes.is_empty() || yes.iter().any(is)) && !no.iter().any(is)
}

fn addresses(yes: &[IpBlock], no: &[IpBlock], ip: Option<IpAddr>, action: Action) -> bool {
    if yes.is_empty() && no.is_empty() {
        return true;
    }
    let Some(ip) = ip else {
        return action != Action::Allow;
    };
    (yes.is_empty() || yes.iter().any(|block| inside(block, ip))) && !no.iter().any(|block| inside(block, ip))
}

/// Bit by bit.
fn inside(block: &IpBlock, ip: IpAddr) -> bool {
    let ip = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (network, ip) = (octets(block.network()), octets(ip));
    let bit = |octets: &[u8], n: usize| octets[n / 8] >> (7 - n % 8) & 1;
    network.len() == ip.len() && (0..usize::from(block.prefix())).all(|n| bit(&network, n) == bit(&ip, n))
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
    let negative = no.is_empty() || if known { !hits(no) } else { action != Action::Allow };
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
        return action != Action::Allow || http_fields.iter().all(|field| field.is_empty());
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

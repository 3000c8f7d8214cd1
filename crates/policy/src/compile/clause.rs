//! One source and one operation: the unit that matches or not.

use std::sync::Arc;

use postern_identity::SpiffeId;

use crate::decide::Request;
use crate::{Action, Operation, Source, StringMatch};

/// A source and an operation of one rule.
#[derive(Debug, Clone)]
pub(crate) struct Clause {
    pub(crate) policy: u32,
    pub(crate) rule: u32,
    pub(crate) source: Arc<Source>,
    pub(crate) operation: Arc<Operation>,
}

/// A field, its negation, their values, and what they are compared with.
type Field<'c, With> = (&'static str, &'c [StringMatch], &'static str, &'c [StringMatch], With);

/// The field of a clause that a request misses, in the words of the document.
pub(crate) type Missed = Option<&'static str>;

impl Clause {
    pub(super) fn new(policy: usize, rule: usize, source: &Arc<Source>, operation: &Arc<Operation>) -> Self {
        let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            policy: number(policy),
            rule: number(rule),
            source: Arc::clone(source),
            operation: Arc::clone(operation),
        }
    }

    pub(crate) fn matches(&self, request: &Request<'_>, action: Action) -> bool {
        self.missed_by_source(request, action).is_none() && self.missed_by_operation(request, action).is_none()
    }

    pub(crate) fn missed_by_source(&self, request: &Request<'_>, action: Action) -> Missed {
        let source = &*self.source;
        let peer = request.peer;
        let fields: [Field<'_, Compare>; 3] = [
            (
                "principals",
                &source.principals,
                "notPrincipals",
                &source.not_principals,
                principal,
            ),
            (
                "namespaces",
                &source.namespaces,
                "notNamespaces",
                &source.not_namespaces,
                namespace,
            ),
            (
                "serviceAccounts",
                &source.service_accounts,
                "notServiceAccounts",
                &source.not_service_accounts,
                service_account,
            ),
        ];
        for (name, yes, not_name, no, compare) in fields {
            if !yes.is_empty() && !peer.is_some_and(|id| yes.iter().any(|m| compare(m, id) == Some(true))) {
                return Some(name);
            }
            if no.is_empty() {
                continue;
            }
            let excluded = match peer {
                // No identity to negate: never good enough for ALLOW (ISTIO-SECURITY-2021-004), always for DENY.
                None => action == Action::Allow,
                Some(id) => no.iter().any(|m| match compare(m, id) {
                    Some(hit) => hit,
                    // An ID of another shape has no namespace: as with no identity.
                    None => action == Action::Allow,
                }),
            };
            if excluded {
                return Some(not_name);
            }
        }
        None
    }

    pub(crate) fn missed_by_operation(&self, request: &Request<'_>, action: Action) -> Missed {
        let operation = &*self.operation;
        if !operation.ports.is_empty() && !operation.ports.contains(&request.port) {
            return Some("ports");
        }
        if operation.not_ports.contains(&request.port) {
            return Some("notPorts");
        }
        let Some(http) = request.http else {
            // On an opaque stream an ALLOW rule with HTTP fields does not match; a DENY rule loses them and denies more.
            return (action == Action::Allow && operation.has_http_fields()).then_some("HTTP fields");
        };
        let fields: [Field<'_, &str>; 3] = [
            (
                "methods",
                &operation.methods,
                "notMethods",
                &operation.not_methods,
                http.method,
            ),
            (
                "paths",
                &operation.paths,
                "notPaths",
                &operation.not_paths,
                http.path.as_str(),
            ),
            (
                "hosts",
                &operation.hosts,
                "notHosts",
                &operation.not_hosts,
                http.host.as_str(),
            ),
        ];
        for (name, yes, not_name, no, value) in fields {
            if !yes.is_empty() && !yes.iter().any(|m| m.matches(value)) {
                return Some(name);
            }
            if no.iter().any(|m| m.matches(value)) {
                return Some(not_name);
            }
        }
        None
    }
}

/// `None`: the peer's ID has no such part.
type Compare = fn(&StringMatch, &SpiffeId) -> Option<bool>;

fn principal(pattern: &StringMatch, id: &SpiffeId) -> Option<bool> {
    Some(pattern.matches(without_scheme(id)))
}

fn namespace(pattern: &StringMatch, id: &SpiffeId) -> Option<bool> {
    id.workload().map(|(namespace, _)| pattern.matches(namespace))
}

fn service_account(pattern: &StringMatch, id: &SpiffeId) -> Option<bool> {
    let (namespace, account) = id.workload()?;
    Some(match pattern {
        StringMatch::Present => true,
        StringMatch::Exact(text) => text.split_once('/') == Some((namespace, account)),
        StringMatch::Wildcard(pieces) => wildcard_pair(pieces, namespace, account),
        // The decoder makes no other form for this field.
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Template(_) => false,
    })
}

/// `ns/sa` with stars, compared without joining the two: the one slash divides the pieces.
fn wildcard_pair(pieces: &[String], namespace: &str, account: &str) -> bool {
    let Some(at) = pieces.iter().position(|piece| piece.contains('/')) else {
        return false;
    };
    let Some((before, after)) = pieces.get(at).and_then(|piece| piece.split_once('/')) else {
        return false;
    };
    let (head, tail) = (
        pieces.get(..at).unwrap_or_default(),
        pieces.get(at + 1..).unwrap_or_default(),
    );
    ends(head, before, namespace) && starts(after, tail, account)
}

/// Do `pieces` (each followed by a star) and `last` make up `value`?
fn ends(pieces: &[String], last: &str, value: &str) -> bool {
    let Some((first, middle)) = pieces.split_first() else {
        return value == last;
    };
    let Some(rest) = value.strip_prefix(first.as_str()) else {
        return false;
    };
    in_order(middle, rest).is_some_and(|rest| rest.ends_with(last))
}

/// Do `first` and `pieces` (each preceded by a star) make up `value`?
fn starts(first: &str, pieces: &[String], value: &str) -> bool {
    let Some((last, middle)) = pieces.split_last() else {
        return value == first;
    };
    let Some(rest) = value.strip_prefix(first) else {
        return false;
    };
    in_order(middle, rest).is_some_and(|rest| rest.ends_with(last.as_str()))
}

fn in_order<'v>(pieces: &[String], mut rest: &'v str) -> Option<&'v str> {
    for piece in pieces {
        rest = &rest[rest.find(piece.as_str())? + piece.len()..];
    }
    Some(rest)
}

/// As policies write principals.
pub(super) fn without_scheme(id: &SpiffeId) -> &str {
    id.as_str().strip_prefix("spiffe://").unwrap_or_default()
}

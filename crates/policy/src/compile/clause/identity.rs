//! How the parts of a verified identity are compared.

use postern_identity::SpiffeId;

use crate::StringMatch;

/// `None`: the peer's ID has no such part.
pub(super) type Compare = fn(&StringMatch, &SpiffeId) -> Option<bool>;

pub(super) fn principal(pattern: &StringMatch, id: &SpiffeId) -> Option<bool> {
    Some(pattern.matches(without_scheme(id)))
}

pub(super) fn trust_domain(pattern: &StringMatch, id: &SpiffeId) -> Option<bool> {
    Some(pattern.matches(id.trust_domain()))
}

/// Does it match the peer, and say the whole name of its trust domain? A star alone, or before a slash, says no name.
pub(crate) fn names_principal(pattern: &StringMatch, id: &SpiffeId) -> bool {
    let says_it = match pattern {
        StringMatch::Exact(_) => true,
        StringMatch::Prefix(start) => start.contains('/'),
        StringMatch::Suffix(_) | StringMatch::Present | StringMatch::Wildcard(_) | StringMatch::Template(_) => false,
    };
    says_it && pattern.matches(without_scheme(id))
}

/// The same of a value of `trustDomains`, where a star is meant for names: `*.partner.example`. Alone it names nobody.
pub(super) fn names_trust_domain(pattern: &StringMatch, id: &SpiffeId) -> bool {
    *pattern != StringMatch::Present && pattern.matches(id.trust_domain())
}

pub(super) fn namespace(pattern: &StringMatch, id: &SpiffeId) -> Option<bool> {
    id.workload().map(|(namespace, _)| pattern.matches(namespace))
}

pub(super) fn service_account(pattern: &StringMatch, id: &SpiffeId) -> Option<bool> {
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
pub(crate) fn without_scheme(id: &SpiffeId) -> &str {
    id.as_str().strip_prefix("spiffe://").unwrap_or_default()
}

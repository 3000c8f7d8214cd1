//! Callers of other trust domains, whom an ALLOW rule lets in only by naming theirs: what matches them without that is for
//! callers of our own alone (as `compile/clause.rs` decides it).

use postern_identity::TrustDomain;

use super::covers_text;
use crate::{Condition, Source, StringMatch, TextKey};

/// A source, and the conditions of its rule.
type From<'r> = (&'r Source, &'r [Condition]);

/// Where `wide` matches all that `narrow` does: does it also name every foreigner whom `narrow` names?
pub(super) fn lets_in_as_many(wide: From<'_>, narrow: From<'_>, home: Option<&TrustDomain>) -> bool {
    let elsewhere = |(source, when): From<'_>| {
        let principal = |value: &StringMatch| names_by_principal(value, home);
        let domain = |value: &StringMatch| names_by_domain(value, home);
        source.principals.iter().any(principal)
            || source.trust_domains.iter().any(domain)
            || of(when, &TextKey::SourcePrincipal).flatten().any(principal)
            || of(when, &TextKey::SourceTrustDomain).flatten().any(domain)
    };
    if !elsewhere(narrow) {
        return true;
    }
    // Whoever meets the field of `narrow` meets one of these, which names them.
    let field =
        |wide: &[StringMatch], narrow: &[StringMatch], names: fn(&StringMatch, Option<&TrustDomain>) -> bool| {
            let named = |narrow: &StringMatch| wide.iter().any(|wide| names(wide, None) && covers_text(wide, narrow));
            !narrow.is_empty() && narrow.iter().all(named)
        };
    // A condition of `wide` is one of `narrow`.
    let condition = |key: &TextKey, names: fn(&StringMatch, Option<&TrustDomain>) -> bool| {
        of(wide.1, key).any(|any| !any.is_empty() && any.iter().all(|value| names(value, None)))
    };
    field(&wide.0.principals, &narrow.0.principals, names_by_principal)
        || field(&wide.0.trust_domains, &narrow.0.trust_domains, names_by_domain)
        || condition(&TextKey::SourcePrincipal, names_by_principal)
        || condition(&TextKey::SourceTrustDomain, names_by_domain)
}

/// The values of each condition on this.
fn of<'r>(when: &'r [Condition], key: &TextKey) -> impl Iterator<Item = &'r Vec<StringMatch>> {
    when.iter().filter_map(move |condition| match condition {
        Condition::Text(of, values) if of == key => Some(&values.any),
        Condition::Text(..) | Condition::Address(..) | Condition::Port(_) | Condition::User(_) | Condition::Age(_) => {
            None
        }
    })
}

/// Does it name a trust domain, which is not home?
fn names_by_principal(pattern: &StringMatch, home: Option<&TrustDomain>) -> bool {
    let (StringMatch::Exact(text) | StringMatch::Prefix(text)) = pattern else {
        return false;
    };
    let name = text.split('/').next().unwrap_or_default();
    let whole = matches!(pattern, StringMatch::Exact(_)) || text.contains('/');
    whole && home.is_none_or(|home| home.as_str() != name)
}

/// The same of a value of `trustDomains`.
fn names_by_domain(pattern: &StringMatch, home: Option<&TrustDomain>) -> bool {
    match pattern {
        StringMatch::Exact(text) => home.is_none_or(|home| home.as_str() != text),
        StringMatch::Present => false,
        StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Wildcard(_) | StringMatch::Template(_) => true,
    }
}

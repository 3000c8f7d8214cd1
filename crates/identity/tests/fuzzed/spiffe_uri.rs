//! A SPIFFE ID from a certificate or a document: what passes is one by the standard's own words, and says what its parts say.

use postern_identity::{Instance, SpiffeId, TrustDomain};

/// Panics where it does not hold; is it an ID?
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    instance(text);
    let parsed = SpiffeId::parse(text);
    assert_eq!(parsed.is_ok(), is_workload_id(text), "{text:?}: {parsed:?}");
    let Ok(id) = parsed else { return false };
    assert_eq!(id.as_str(), text);
    assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
    let domain = TrustDomain::parse(id.trust_domain()).expect("the trust domain of an ID is one");
    assert_eq!(domain.as_str(), id.trust_domain());
    if let Some((namespace, account)) = id.workload() {
        assert!(!namespace.is_empty() && !account.is_empty());
        assert!(!namespace.contains('/') && !account.contains('/'));
        assert_eq!(SpiffeId::for_workload(&domain, namespace, account).as_ref(), Ok(&id));
    }
    true
}

/// SPIFFE-ID sections 2 to 2.3, word by word, in another way than the parser's.
fn is_workload_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else {
        return false;
    };
    let mut parts = rest.split('/');
    let domain = parts.next().unwrap_or_default();
    let segments: Vec<&str> = parts.collect();
    let of = |text: &str, allowed: &str| text.chars().all(|each| allowed.contains(each));
    let lower = "abcdefghijklmnopqrstuvwxyz0123456789.-_";
    text.len() <= 2048
        && (1..=255).contains(&domain.len())
        && of(domain, lower)
        && !segments.is_empty()
        && segments.iter().all(|segment| {
            !segment.is_empty() && !matches!(*segment, "." | "..") && of(&segment.to_ascii_lowercase(), lower)
        })
}

fn instance(text: &str) {
    if let Ok(instance) = Instance::parse(text) {
        assert_eq!(instance.as_str(), text);
        assert!((1..=253).contains(&text.len()) && text.is_ascii() && !text.contains('/'));
    }
}

//! A SPIFFE bundle document: what is read is written, and reads back as the same bundle; what is no root or key is left out.

use std::time::Duration;

use postern_identity::{TrustBundle, TrustDomain, federation};
use rustls_pki_types::UnixTime;

/// Panics where it does not hold; is it a document (of roots, or of keys, or of none)?
pub fn check(data: &[u8]) -> bool {
    let domain = TrustDomain::parse("cluster.local").expect("it is one");
    // Roots of a corpus do not expire here.
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_750_000_000));
    foreign(&domain, data, now);
    let Ok(bundle) = TrustBundle::from_document(domain.clone(), data, now) else {
        return false;
    };
    let written = bundle.to_document();
    // A document is bounded, and what was read of one is no longer than it was, but for what ours adds to each key.
    let again = match TrustBundle::from_document(domain, &written, now) {
        Ok(again) => again,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&written)),
    };
    assert_eq!(again.sequence(), bundle.sequence());
    assert_eq!(again.roots(), bundle.roots());
    assert_eq!(again.jwt_keys().len(), bundle.jwt_keys().len());
    assert_eq!(again.to_document(), written, "a fixed point");
    for key in bundle.jwt_keys() {
        assert!(!key.id().is_empty());
    }
    let jwks: serde_json::Value = serde_json::from_slice(&bundle.jwks()).expect("JSON");
    assert_eq!(jwks["keys"].as_array().map(Vec::len), Some(bundle.jwt_keys().len()));
    true
}

/// The stricter reader of other trust domains' documents takes nothing that the first refuses, and reads the same of it.
fn foreign(domain: &TrustDomain, data: &[u8], now: UnixTime) {
    if let Ok(document) = federation::parse_document(data) {
        let sequence = document.sequence();
        let bundle = document.into_bundle(domain.clone(), now);
        let ours = TrustBundle::from_document(domain.clone(), data, now).expect("what the stricter reader takes");
        assert_eq!((bundle.sequence(), bundle.roots()), (sequence, ours.roots()));
    }
    if let Ok(map) = federation::parse_map(data) {
        for (of, document) in map {
            assert_eq!(document.into_bundle(of.clone(), now).trust_domain(), &of);
        }
    }
}

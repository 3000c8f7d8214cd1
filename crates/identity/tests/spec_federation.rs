//! The SPIFFE checklist, rows 61 to 68 for documents of others, and 76: bundles of trust domains that are not ours.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use mint::{Signer, authority};
use postern_identity::bundle::BundleError;
use postern_identity::federation::{self, Document};
use postern_identity::verify::verify_peer;
use postern_identity::{BundleSet, Role, Trust, TrustDomain, VerifyError};
use proptest::prelude::*;
use serde_json::{Value, json};

mod mint;

const OURS: &str = "cluster.local";
const THEIRS: &str = "partner.example";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn root(name: &str) -> Signer {
    mint::root(&authority(name, None))
}

fn text_of(roots: &[&Signer]) -> String {
    String::from_utf8(mint::bundle(THEIRS, 7, roots).to_document()).unwrap()
}

fn parsed(text: &str) -> Result<Document, BundleError> {
    federation::parse_document(text.as_bytes())
}

fn roots_of(text: &str) -> usize {
    let bundle = parsed(text).unwrap().into_bundle(domain(THEIRS), mint::now());
    bundle.roots().len()
}

#[test]
fn spec_061_a_name_that_stands_twice_spoils_a_document_wherever_it_is() {
    let good = text_of(&[&root("root")]);
    assert_eq!(roots_of(&good), 1);
    for (from, to) in [
        ("{\"keys\"", "{\"keys\":[],\"keys\""),
        ("\"use\":\"x509-svid\"", "\"use\":\"x509-svid\",\"use\":\"jwt-svid\""),
        (
            "\"use\":\"x509-svid\"",
            "\"u\\u0073e\":\"jwt-svid\",\"use\":\"x509-svid\"",
        ),
        ("{\"keys\"", "{\"extra\":[{\"a\":1,\"b\":{\"c\":1,\"c\":1}}],\"keys\""),
        ("\"spiffe_sequence\":7", "\"spiffe_sequence\":7,\"spiffe_sequence\":8"),
    ] {
        assert!(good.contains(from), "{from}");
        let twice = good.replacen(from, to, 1);
        let error = parsed(&twice).unwrap_err().to_string();
        assert!(error.contains("twice"), "{twice}: {error}");
    }
    // The same name in two objects is two names.
    assert_eq!(
        roots_of(&good.replacen("{\"keys\"", "{\"extra\":[{\"a\":1},{\"a\":1}],\"keys\"", 1)),
        1
    );
}

#[test]
fn spec_061_a_document_of_others_needs_keys_and_they_may_be_empty() {
    for bad in [
        "",
        "[]",
        "{}",
        "{\"keys\":{}}",
        "{\"keys\":[]} 1",
        "{\"keys\":[",
        "\"keys\"",
    ] {
        parsed(bad).unwrap_err();
    }
    assert_eq!(roots_of("{\"keys\":[]}"), 0);
}

#[test]
fn spec_064_what_we_publish_is_what_others_read_strictly() {
    let (one, two) = (root("one"), root("two"));
    let document = parsed(&text_of(&[&one, &two])).unwrap();
    assert_eq!(document.sequence(), 7);
    let bundle = document.into_bundle(domain(THEIRS), mint::now());
    assert_eq!(bundle.roots(), [one.der, two.der]);
    assert_eq!(bundle.trust_domain().as_str(), THEIRS);
}

#[test]
fn spec_066_the_hint_is_a_positive_number_of_whole_seconds_or_none() {
    let hint = |value: Value| {
        let document = json!({ "keys": [], "spiffe_refresh_hint": value });
        parsed(&document.to_string()).unwrap().refresh_hint()
    };
    assert_eq!(hint(json!(60)), Some(Duration::from_secs(60)));
    assert_eq!(hint(json!(u64::MAX)), Some(Duration::from_secs(u64::MAX)));
    for none in [json!(0), json!(-1), json!(1.5), json!("60"), json!(null), json!([60])] {
        assert_eq!(hint(none.clone()), None, "{none}");
    }
    assert_eq!(parsed("{\"keys\":[]}").unwrap().refresh_hint(), None);
    assert_eq!(federation::DEFAULT_REFRESH, Duration::from_secs(300));
}

#[test]
fn spec_067_a_bundle_map_names_each_trust_domain_once_and_keeps_the_hints_of_its_bundles() {
    let (one, two) = (text_of(&[&root("one")]), text_of(&[&root("two")]));
    let map = format!("{{\"trust_domains\":{{\"a.example\":{one},\"b.example\":{two}}},\"extra\":1}}");
    let read = federation::parse_map(map.as_bytes()).unwrap();
    assert_eq!(
        read.keys().map(TrustDomain::as_str).collect::<Vec<_>>(),
        ["a.example", "b.example"]
    );
    for document in read.values() {
        assert_eq!(document.refresh_hint(), Some(Duration::from_secs(300)));
    }
    let twice = format!("{{\"trust_domains\":{{\"a.example\":{one},\"a.example\":{two}}}}}");
    for bad in [
        "{}",
        "{\"trust_domains\":null}",
        "{\"trust_domains\":[]}",
        "{\"trust_domains\":{\"A.example\":{\"keys\":[]}}}",
        "{\"trust_domains\":{\"spiffe://a.example\":{\"keys\":[]}}}",
        "{\"trust_domains\":{\"a.example\":{}}}",
        &twice,
    ] {
        federation::parse_map(bad.as_bytes()).unwrap_err();
    }
    assert!(federation::parse_map(b"{\"trust_domains\":{}}").unwrap().is_empty());
    // A file may hold one or the other; what a map says of others is not taken for the one that was asked for.
    let of = |name: &str, json: &str| federation::parse_for(&domain(name), json.as_bytes());
    assert_eq!(of("b.example", &map).unwrap(), parsed(&two).unwrap());
    assert_eq!(of("b.example", &two).unwrap(), parsed(&two).unwrap());
    let missing = of("c.example", &map).unwrap_err().to_string();
    assert!(missing.contains("c.example"), "{missing}");
}

#[test]
fn spec_067_a_bundle_map_of_256_trust_domains_is_the_largest() {
    let map = |count: usize| {
        let bundles: Vec<String> = (0..count).map(|n| format!("\"d{n}\":{{\"keys\":[]}}")).collect();
        federation::parse_map(format!("{{\"trust_domains\":{{{}}}}}", bundles.join(",")).as_bytes())
    };
    assert_eq!(map(federation::MAX_MAP).unwrap().len(), federation::MAX_MAP);
    map(federation::MAX_MAP + 1).unwrap_err();
}

#[test]
fn spec_068_a_document_of_others_without_a_usable_entry_believes_nobody() {
    let signer = root("root");
    let text = text_of(&[&signer]).replace("x509-svid", "X509-SVID");
    let trust = Trust {
        bundles: BundleSet::default().with(parsed(&text).unwrap().into_bundle(domain(THEIRS), mint::now())),
        ..Trust::default()
    };
    let chain = [signer.sign(&mint::leaf("spiffe://partner.example/ns/a/sa/b")).der];
    let verdict = verify_peer(&chain, Role::Client, &trust, mint::now());
    assert_eq!(verdict, Err(VerifyError::EmptyBundle(THEIRS.into())));
}

#[test]
fn spec_076_bundles_of_two_trust_domains_are_never_merged() {
    let (ours, theirs) = (root("ours"), root("theirs"));
    let foreign = parsed(&text_of(&[&theirs])).unwrap();
    let set = BundleSet::default()
        .with(mint::bundle(OURS, 1, &[&ours]))
        .with(foreign.into_bundle(domain(THEIRS), mint::now()));
    let trust = |bundles: BundleSet| Trust {
        bundles,
        ..Trust::default()
    };
    let both = trust(set.clone());
    let verdict = |signer: &Signer, id: &str, trust: &Trust| {
        verify_peer(&[signer.sign(&mint::leaf(id)).der], Role::Client, trust, mint::now()).map(|_| ())
    };
    let (our_id, their_id) = ("spiffe://cluster.local/ns/a/sa/b", "spiffe://partner.example/ns/a/sa/b");
    verdict(&ours, our_id, &both).unwrap();
    verdict(&theirs, their_id, &both).unwrap();
    // Whoever holds the key of one trust domain names nobody of the other.
    assert_eq!(
        verdict(&theirs, our_id, &both),
        Err(VerifyError::UnknownIssuer(OURS.into()))
    );
    assert_eq!(
        verdict(&ours, their_id, &both),
        Err(VerifyError::UnknownIssuer(THEIRS.into()))
    );
    // The relationship ends.
    let alone = trust(set.only(|trust_domain| trust_domain.as_str() == OURS));
    verdict(&ours, our_id, &alone).unwrap();
    let gone = verdict(&theirs, their_id, &alone);
    assert_eq!(gone, Err(VerifyError::UnknownTrustDomain(THEIRS.into())));
}

#[test]
fn a_document_of_others_of_256_kib_is_the_longest_and_depth_is_bounded() {
    let mut text = br#"{"keys":[]}"#.to_vec();
    text.resize(256 * 1024, b' ');
    federation::parse_document(&text).unwrap();
    text.push(b' ');
    federation::parse_document(&text).unwrap_err();
    federation::parse_map(&text).unwrap_err();
    federation::parse_for(&domain(THEIRS), &text).unwrap_err();
    let deep = [b"{\"keys\":[],\"x\":".as_slice(), &[b'['; 100_000]].concat();
    federation::parse_document(&deep).unwrap_err();
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = federation::parse_document(&bytes);
        let _ = federation::parse_map(&bytes);
        let _ = federation::parse_for(&domain(THEIRS), &bytes);
    }

    #[test]
    fn what_is_read_strictly_is_read_alike_by_our_other_reader(at in 0_usize..2_000, byte in any::<u8>()) {
        let mut text = text_of(&[&root("root")]).into_bytes();
        let at = at % text.len();
        text[at] = byte;
        if let Ok(document) = federation::parse_document(&text) {
            let loose = postern_identity::TrustBundle::from_document(domain(THEIRS), &text, mint::now()).unwrap();
            let strict = document.into_bundle(domain(THEIRS), mint::now());
            prop_assert_eq!(strict.roots(), loose.roots());
            prop_assert_eq!(strict.sequence(), loose.sequence());
        }
    }
}

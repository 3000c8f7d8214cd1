//! The SPIFFE checklist, rows 45, 47 and 61 to 68 as far as they are a bundle's: which roots are loaded, and the
//! document that they travel in. How a bundle is followed by the next is in `bundle_chain.rs`.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mint::{Signer, authority, der};
use postern_identity::bundle::BundleError;
use postern_identity::verify::verify_peer;
use postern_identity::{BundleSet, Role, Trust, TrustBundle, TrustDomain, VerifyError};
use proptest::prelude::*;
use rcgen::KeyPair;
use serde_json::{Value, json};

mod mint;

const DOMAIN: &str = "cluster.local";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn domain() -> TrustDomain {
    TrustDomain::parse(DOMAIN).unwrap()
}

fn root(name: &str) -> Signer {
    mint::root(&authority(name, None))
}

fn read(document: &Value) -> Result<TrustBundle, BundleError> {
    TrustBundle::from_document(domain(), document.to_string().as_bytes(), mint::now())
}

/// A document of these entries, and how many roots come of it.
fn roots_of(keys: &[Value]) -> usize {
    read(&json!({ "keys": keys, "spiffe_sequence": 1 }))
        .unwrap()
        .roots()
        .len()
}

/// An entry as we publish it.
fn entry(root: &Signer) -> Value {
    let document: Value = serde_json::from_slice(&mint::bundle(DOMAIN, 1, &[root]).to_document()).unwrap();
    document["keys"][0].clone()
}

/// The entry, changed.
fn with(entry: &Value, member: &str, value: Value) -> Value {
    let mut entry = entry.clone();
    entry[member] = value;
    entry
}

fn without(entry: &Value, member: &str) -> Value {
    let mut entry = entry.clone();
    entry.as_object_mut().unwrap().remove(member).unwrap();
    entry
}

#[test]
fn spec_045_an_expired_root_is_not_loaded() {
    let root = mint::root(&authority("root", None).valid(-60, 10));
    let bundle_at = |seconds| TrustBundle::new(domain(), 1, vec![root.der.clone()], mint::at(seconds));
    assert_eq!(bundle_at(10).roots().len(), 1);
    assert_eq!(bundle_at(11).roots().len(), 0);
    // One that is prepared ahead is; the verifier says when it begins to count.
    let root = mint::root(&authority("root", None).valid(600, 3_600));
    assert_eq!(mint::bundle(DOMAIN, 1, &[&root]).roots().len(), 1);
}

#[test]
fn spec_047_what_is_no_authority_is_not_loaded_and_spoils_nothing_else() {
    let good = root("root");
    let leaf = mint::root(&mint::leaf(WEB));
    let idle = mint::root(&authority("idle", None).with(mint::USAGE, true, der::usage(mint::CRL_SIGN)));
    let mut roots = vec![
        leaf.der,
        idle.der,
        b"garbage".as_slice().into(),
        good.der.clone(),
        good.der.clone(),
    ];
    roots.push([&good.der[..], b"\0"].concat().into());
    let bundle = TrustBundle::new(domain(), 7, roots, mint::now());
    assert_eq!(bundle.roots(), [good.der]);
    assert_eq!(bundle.sequence(), 7);
}

#[test]
fn spec_061_keys_must_be_there_and_may_be_empty() {
    for document in [
        json!({}),
        json!({ "spiffe_sequence": 1 }),
        json!({ "keys": null }),
        json!({ "keys": {} }),
        json!(1),
    ] {
        assert!(matches!(read(&document), Err(BundleError::Document(_))), "{document}");
    }
    for text in ["", "{", "[]", r#"{"keys":[]} x"#, r#"{"keys":[],"keys":[]}"#] {
        let read = TrustBundle::from_document(domain(), text.as_bytes(), mint::now());
        assert!(matches!(read, Err(BundleError::Document(_))), "{text}");
    }
    let empty = read(&json!({ "keys": [] })).unwrap();
    assert_eq!((empty.roots().len(), empty.sequence()), (0, 0));
}

#[test]
fn spec_062_an_entry_of_unknown_type_or_use_is_passed_over() {
    let good = entry(&root("root"));
    for bad in [
        with(&good, "kty", json!("oct")),
        with(&good, "kty", json!("ec")),
        with(&good, "kty", json!(1)),
        without(&good, "kty"),
        with(&good, "use", json!("jwt-svid")),
        with(&good, "use", json!("X509-SVID")),
        with(&good, "use", json!("sig")),
        with(&good, "use", json!(["x509-svid"])),
        without(&good, "use"),
        json!(null),
        json!("x509-svid"),
        json!([]),
    ] {
        assert_eq!(roots_of(&[bad.clone(), good.clone()]), 1, "{bad}");
        assert_eq!(roots_of(&[bad]), 0);
    }
    assert_eq!(roots_of(&[with(&good, "alg", json!("ES256"))]), 1);
}

#[test]
fn spec_063_an_entry_without_a_certificate_is_passed_over() {
    let good = entry(&root("root"));
    let pem = "-----BEGIN CERTIFICATE-----";
    for x5c in [
        json!([]),
        json!(null),
        json!("text"),
        json!([1]),
        json!([""]),
        json!(["!"]),
        json!([pem]),
    ] {
        assert_eq!(roots_of(&[with(&good, "x5c", x5c.clone()), good.clone()]), 1, "{x5c}");
    }
    assert_eq!(roots_of(&[without(&good, "x5c")]), 0);
}

#[test]
fn spec_063_of_two_certificates_the_first_is_the_root() {
    let (first, second) = (root("first"), root("second"));
    let encoded = |signer: &Signer| STANDARD.encode(&signer.der);
    let two = with(&entry(&first), "x5c", json!([encoded(&first), encoded(&second)]));
    let bundle = read(&json!({ "keys": [two] })).unwrap();
    assert_eq!(bundle.roots(), std::slice::from_ref(&first.der));
    let spoilt = with(&entry(&first), "x5c", json!(["!", encoded(&second)]));
    assert_eq!(roots_of(&[spoilt]), 0);
}

#[test]
fn spec_064_what_we_publish_has_one_certificate_per_entry_and_no_kid() {
    let (p256, p384, ed25519) = (
        KeyPair::generate().unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
    );
    let roots = [p256, p384, ed25519].map(|key| mint::root_with(&authority("root", None), key));
    let bundle = mint::bundle(DOMAIN, 9, &roots.each_ref());
    let document: Value = serde_json::from_slice(&bundle.to_document()).unwrap();
    let keys = document["keys"].as_array().unwrap();
    for (key, root) in keys.iter().zip(&roots) {
        assert_eq!(key["use"], "x509-svid");
        assert_eq!(key["x5c"], json!([STANDARD.encode(&root.der)]));
        assert!(key.get("kid").is_none());
    }
    let kinds: Vec<_> = keys
        .iter()
        .map(|key| (key["kty"].as_str().unwrap(), key["crv"].as_str().unwrap()))
        .collect();
    assert_eq!(kinds, [("EC", "P-256"), ("EC", "P-384"), ("OKP", "Ed25519")]);
    for (key, bytes) in keys.iter().zip([32, 48, 32]) {
        let x = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(key["x"].as_str().unwrap())
            .unwrap();
        assert_eq!(x.len(), bytes);
    }
    assert_eq!(document["spiffe_sequence"], 9);
    // What is written is read, and written alike.
    let again = TrustBundle::from_document(domain(), &bundle.to_document(), mint::now()).unwrap();
    assert_eq!((again.sequence(), again.roots()), (9, bundle.roots()));
    assert_eq!(again.to_document(), bundle.to_document());
}

#[test]
fn spec_065_a_sequence_has_64_bits_and_strangers_are_tolerated() {
    let good = entry(&root("root"));
    let of = |sequence: Value| read(&json!({ "keys": [good], "spiffe_sequence": sequence }));
    for sequence in [0, 1, u64::from(u32::MAX) + 1, (1 << 53) + 1, u64::MAX] {
        assert_eq!(of(json!(sequence)).unwrap().sequence(), sequence);
    }
    for sequence in [json!(-1), json!(1.5), json!("1"), json!(null), json!(1e300)] {
        assert!(matches!(of(sequence), Err(BundleError::Document(_))));
    }
    let document =
        json!({ "keys": [with(&good, "colour", json!("red"))], "spiffe_sequence": 1, "extra": { "a": [1] } });
    assert_eq!(read(&document).unwrap().roots().len(), 1);
}

#[test]
fn spec_066_the_refresh_hint_is_published_in_whole_seconds_and_tolerated_in_any_form() {
    let document: Value = serde_json::from_slice(&mint::bundle(DOMAIN, 1, &[]).to_document()).unwrap();
    assert_eq!(document["spiffe_refresh_hint"].as_u64(), Some(300));
    for hint in [json!(1), json!("soon"), json!(null)] {
        read(&json!({ "keys": [], "spiffe_refresh_hint": hint })).unwrap();
    }
}

#[test]
fn spec_068_a_bundle_of_which_no_entry_survives_admits_nobody() {
    let signer = root("root");
    let bundle = read(&json!({ "keys": [with(&entry(&signer), "use", json!("tls"))], "spiffe_sequence": 3 })).unwrap();
    assert_eq!(bundle.sequence(), 3);
    let trust = Trust {
        bundles: BundleSet::default().with(bundle),
        ..Trust::default()
    };
    let chain = [signer.sign(&mint::leaf(WEB)).der];
    let verdict = verify_peer(&chain, Role::Client, &trust, mint::now());
    assert_eq!(verdict, Err(VerifyError::EmptyBundle(DOMAIN.into())));
}

#[test]
fn a_document_of_256_kib_is_the_longest() {
    let mut text = br#"{"keys":[]}"#.to_vec();
    text.resize(256 * 1024, b' ');
    TrustBundle::from_document(domain(), &text, mint::now()).unwrap();
    text.push(b' ');
    TrustBundle::from_document(domain(), &text, mint::now()).unwrap_err();
    let deep = [b"{\"keys\":".as_slice(), &[b'['; 100_000]].concat();
    TrustBundle::from_document(domain(), &deep, mint::now()).unwrap_err();
}

#[test]
fn a_bundle_set_holds_one_bundle_per_trust_domain() {
    let (old, new) = (root("old"), root("new"));
    let set = BundleSet::default()
        .with(mint::bundle(DOMAIN, 2, &[&old]))
        .with(mint::bundle("elsewhere.example", 1, &[&old]))
        .with(mint::bundle(DOMAIN, 1, &[&new]));
    assert_eq!(set.get(DOMAIN).unwrap().roots(), [new.der]);
    assert_eq!(set.get("elsewhere.example").unwrap().roots(), [old.der]);
    assert!(set.get("spiffe://cluster.local").is_none());
}

/// Almost documents: the members that are looked at, with values of any kind.
fn almost_a_document() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        "null",
        "1",
        "-1",
        "\"x509-svid\"",
        "\"EC\"",
        "\\[\"AAAA\"\\]",
        "\\[\\]",
        "\\{\\}",
        "[ -~]{0,8}"
    ];
    let member = prop_oneof!["keys", "use", "kty", "x5c", "spiffe_sequence"];
    let object = prop::collection::vec((member, value), 0..5).prop_map(|members| {
        let members: Vec<_> = members
            .iter()
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        members.join(",")
    });
    (object.clone(), object).prop_map(|(inner, outer)| format!("{{\"keys\":[{{{inner}}}],\"x\":{{{outer}}}}}"))
}

proptest! {
    #[test]
    fn spec_068_whatever_a_document_says_it_has_no_root_that_is_not_one(text in almost_a_document()) {
        if let Ok(bundle) = TrustBundle::from_document(domain(), text.as_bytes(), mint::now()) {
            prop_assert!(bundle.roots().is_empty());
        }
    }
}

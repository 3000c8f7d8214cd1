//! Key sets: what is used, what is left out, and what is no set.

use postern_token::KeySet;
use postern_token::key_set::{KeySetError, MAX_KEYS, MAX_SET};
use serde_json::{Value, json};

use crate::mint::{ED25519, OTHER_P256, P256, P384, RSA, base64url, full_set, set};

/// Why the only key of a set is left out; empty if it is used.
fn left_out(key: &Value) -> &'static str {
    let set = KeySet::parse(set(std::slice::from_ref(key)).to_string().as_bytes()).unwrap();
    assert_eq!(set.len() + set.left_out().len(), 1);
    set.left_out().first().map_or("", |left| left.why)
}

fn with(mut key: Value, field: &str, value: Value) -> Value {
    key[field] = value;
    key
}

#[test]
fn a_key_of_each_kind_is_used() {
    let set = KeySet::parse(full_set().to_string().as_bytes()).unwrap();
    assert_eq!((set.len(), set.left_out()), (4, &[][..]));
}

#[test]
fn t_jwks_keys_that_must_not_verify_are_left_out_with_their_reason() {
    let rsa = || RSA.jwk("rsa");
    let ec = || P256.jwk("ec");
    let modulus = |bytes: usize| {
        let mut n = vec![0x5a_u8; bytes];
        n[0] = 0x80;
        n[bytes - 1] |= 1;
        json!(base64url(n))
    };
    let flipped = {
        let mut x = vec![1_u8; 32];
        x[31] = 2;
        json!(base64url(x))
    };
    for (key, why) in [
        (json!({"kty": "oct", "k": "c2VjcmV0", "kid": "x"}), "a shared secret"),
        (
            json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
            "a shared secret",
        ),
        (json!({"kid": "x"}), "its `kty`"),
        (with(rsa(), "n", modulus(64)), "less than 2048 bits"),
        (with(rsa(), "n", modulus(255)), "less than 2048 bits"),
        (with(rsa(), "n", modulus(1_025)), "more than 8192 bits"),
        (with(rsa(), "e", json!("AQ")), "its exponent"),
        (with(rsa(), "e", json!("Ag")), "its exponent"),
        (with(rsa(), "e", json!("AAAA")), "is zero"),
        (with(rsa(), "e", json!(base64url([1, 0, 0, 0, 1]))), "its exponent"),
        (with(rsa(), "n", json!("!")), "no base64url"),
        (with(rsa(), "n", json!(7)), "is missing"),
        (with(rsa(), "d", json!("AQAB")), "a private key"),
        (with(ec(), "d", json!("AQAB")), "a private key"),
        (with(rsa(), "use", json!("enc")), "its `use`"),
        (with(rsa(), "use", json!("x509-svid")), "its `use`"),
        (with(rsa(), "key_ops", json!(["encrypt"])), "its `key_ops`"),
        (with(rsa(), "key_ops", json!("verify")), "its `key_ops`"),
        (with(rsa(), "alg", json!("RSA-OAEP")), "its `alg`"),
        (with(rsa(), "alg", json!("HS256")), "its `alg`"),
        (with(rsa(), "alg", json!("ES256")), "not one for a key of its kind"),
        (with(ec(), "alg", json!("ES384")), "not one for a key of its kind"),
        (with(rsa(), "kid", json!(7)), "its `kid` is no text"),
        (with(rsa(), "kid", json!("x".repeat(257))), "its `kid` is too long"),
        (with(ec(), "x", flipped), "not on its curve"),
        (with(ec(), "x", json!(base64url([0; 32]))), "not on its curve"),
        (with(ec(), "x", json!(base64url([0xff; 32]))), "not on its curve"),
        (
            with(ec(), "x", json!(base64url([1; 31]))),
            "not the length of its curve",
        ),
        (with(ec(), "crv", json!("P-521")), "neither P-256 nor P-384"),
        (with(ec(), "crv", json!("secp256k1")), "neither P-256 nor P-384"),
        (
            with(P384.jwk("x"), "crv", json!("P-256")),
            "not the length of its curve",
        ),
        (with(ED25519.jwk("x"), "crv", json!("Ed448")), "not Ed25519"),
        (with(ED25519.jwk("x"), "crv", json!("X25519")), "not Ed25519"),
        (
            with(ED25519.jwk("x"), "x", json!(base64url([1; 31]))),
            "not one of Ed25519",
        ),
        (json!("key"), "no object"),
    ] {
        let said = left_out(&key);
        assert!(said.contains(why) && !said.is_empty(), "{key}: {said}");
    }
    for key in [
        with(rsa(), "alg", json!("PS384")),
        with(rsa(), "use", json!("sig")),
        with(rsa(), "key_ops", json!(["sign", "verify"])),
        with(rsa(), "x5c", json!(["MIIB"])),
        with(rsa(), "e", json!("AAEAAQ")),
    ] {
        assert_eq!(left_out(&key), "", "{key}");
    }
}

#[test]
fn t_jwks_of_two_keys_with_one_name_the_first_stands() {
    let twins = set(&[P256.jwk("a"), OTHER_P256.jwk("a"), P384.jwk("a"), RSA.jwk("a")]);
    let read = KeySet::parse(twins.to_string().as_bytes()).unwrap();
    assert_eq!(read.len(), 3, "keys of other kinds are no twins");
    assert!(read.left_out()[0].why.contains("the same `kid`"));
}

#[test]
fn t_jwks_a_text_that_is_no_set_or_too_large_is_refused_whole() {
    for (text, error) in [
        ("", KeySetError::NoJson),
        ("[]", KeySetError::NoJson),
        ("{\"keys\":[],\"keys\":[]}", KeySetError::NoJson),
        ("<html></html>", KeySetError::NoJson),
        ("{}", KeySetError::NoKeys),
        ("{\"keys\":{}}", KeySetError::NoKeys),
        ("{\"error\":\"x\"}", KeySetError::NoKeys),
    ] {
        assert_eq!(KeySet::parse(text.as_bytes()).unwrap_err(), error, "{text}");
    }
    let keys = |count: usize| set(&(0..count).map(|n| P256.jwk(&n.to_string())).collect::<Vec<_>>()).to_string();
    assert_eq!(KeySet::parse(keys(MAX_KEYS).as_bytes()).unwrap().len(), MAX_KEYS);
    assert_eq!(
        KeySet::parse(keys(MAX_KEYS + 1).as_bytes()).unwrap_err(),
        KeySetError::TooMany
    );
    let padded = |length: usize| format!("{}{{\"keys\":[]}}", " ".repeat(length - 11));
    assert!(KeySet::parse(padded(MAX_SET).as_bytes()).is_ok());
    assert_eq!(
        KeySet::parse(padded(MAX_SET + 1).as_bytes()).unwrap_err(),
        KeySetError::TooLong
    );
}

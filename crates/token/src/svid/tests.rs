#![allow(clippy::unwrap_used)]
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_identity::TrustDomain;
use rustls_pki_types::UnixTime;
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn key_pair(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap()
}

fn es256() -> EcdsaKeyPair {
    key_pair(&ECDSA_P256_SHA256_FIXED_SIGNING)
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn jwk(kid: &str, key: &EcdsaKeyPair) -> Value {
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y), "kid": kid, "use": "jwt-svid"})
}

fn bundle(trust_domain: &str, keys: &[Value]) -> TrustBundle {
    let document = json!({"keys": keys, "spiffe_sequence": 1}).to_string();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    TrustBundle::from_document(TrustDomain::parse(trust_domain).unwrap(), document.as_bytes(), now).unwrap()
}

fn bundles(all: &[TrustBundle]) -> BundleSet {
    all.iter()
        .fold(BundleSet::default(), |set, bundle| set.with(bundle.clone()))
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "one", "typ": "JWT"})
}

fn claims() -> Value {
    json!({"sub": WEB, "aud": ["db", "cache"], "iat": NOW - 5, "exp": NOW + 300})
}

fn signed(key: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let input = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let signature = key.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    format!("{input}.{}", b64(signature.as_ref()))
}

fn with(mut value: Value, field: &str, to: Value) -> Value {
    if to.is_null() {
        value.as_object_mut().unwrap().remove(field);
    } else {
        value[field] = to;
    }
    value
}

/// A world with one key, and what it makes of a token.
struct World {
    key: EcdsaKeyPair,
    bundles: BundleSet,
}

impl World {
    fn new() -> Self {
        let key = es256();
        let bundles = bundles(&[bundle("cluster.local", &[jwk("one", &key)])]);
        Self { key, bundles }
    }

    fn verify(&self, token: &str) -> Result<JwtSvid, SvidRefusal> {
        verify(token, "db", &self.bundles, NOW)
    }

    fn of(&self, header: &Value, claims: &Value) -> Result<JwtSvid, SvidRefusal> {
        self.verify(&signed(&self.key, header, claims))
    }
}

#[test]
fn spec_077_compact_serialization_and_asymmetric_algorithms_only() {
    let world = World::new();
    let token = signed(&world.key, &header(), &claims());
    assert_eq!(world.verify(&token).unwrap().id.as_str(), WEB);
    let parts: Vec<&str> = token.split('.').collect();
    let json = json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]}).to_string();
    let two = format!("{}.{}", parts[0], parts[1]);
    for bad in [
        json,
        two,
        format!("{token}.x"),
        format!("{token}="),
        String::new(),
        "..".to_owned(),
    ] {
        assert!(
            matches!(world.verify(&bad), Err(SvidRefusal::Token(Refusal::Malformed(_)))),
            "{bad}"
        );
    }
    for algorithm in ["none", "HS256", "EdDSA", "es256", "ES512", ""] {
        let refused = world.of(&with(header(), "alg", json!(algorithm)), &claims());
        assert!(
            matches!(refused, Err(SvidRefusal::Token(Refusal::Unsupported(_)))),
            "{algorithm}"
        );
    }
}

#[test]
fn spec_078_other_types_and_other_header_fields_are_refused() {
    let world = World::new();
    for good in [json!("JWT"), json!("JOSE"), Value::Null] {
        assert!(
            world.of(&with(header(), "typ", good.clone()), &claims()).is_ok(),
            "{good}"
        );
    }
    for bad in ["jwt", "at+jwt", "JWT ", "", "secevent+jwt"] {
        assert!(
            world.of(&with(header(), "typ", json!(bad)), &claims()).is_err(),
            "{bad}"
        );
    }
    for field in [
        "jku", "jwk", "x5u", "x5c", "x5t", "crit", "cty", "b64", "zip", "anything",
    ] {
        let refused = world.of(&with(header(), field, json!("x")), &claims());
        assert!(
            matches!(refused, Err(SvidRefusal::Token(Refusal::Unsupported(_)))),
            "{field}"
        );
    }
}

#[test]
fn spec_079_a_token_names_its_key() {
    let world = World::new();
    for bad in [Value::Null, json!(1), json!(["one"])] {
        let refused = world.of(&with(header(), "kid", bad.clone()), &claims());
        assert!(
            matches!(refused, Err(SvidRefusal::Token(Refusal::Malformed(_)))),
            "{bad}"
        );
    }
}

#[test]
fn spec_080_subject_audience_and_expiry_must_be_there_and_hold() {
    let world = World::new();
    let of = |field: &str, to: Value| world.of(&header(), &with(claims(), field, to));
    for bad in [
        Value::Null,
        json!("web"),
        json!("spiffe://cluster.local"),
        json!("spiffe://u@td/x"),
        json!(1),
    ] {
        assert!(matches!(of("sub", bad.clone()), Err(SvidRefusal::Subject(_))), "{bad}");
    }
    for bad in [
        Value::Null,
        json!([]),
        json!(["cache"]),
        json!("cache"),
        json!("DB"),
        json!(1),
        json!(["db", 1]),
    ] {
        assert!(of("aud", bad.clone()).is_err(), "{bad}");
    }
    assert!(of("aud", json!("db")).is_ok());
    for bad in [Value::Null, json!("soon"), json!(NOW - LEEWAY), json!(0), json!(-1)] {
        assert!(of("exp", bad.clone()).is_err(), "{bad}");
    }
    assert!(of("exp", json!(NOW - LEEWAY + 1)).is_ok());
    assert!(of("iat", json!(NOW + 3_600)).is_ok(), "a clock that is ahead");
    assert!(of("nbf", json!(NOW + LEEWAY)).is_ok() && of("nbf", json!(NOW + LEEWAY + 1)).is_err());
}

#[test]
fn spec_081_the_key_comes_from_the_bundle_of_the_subjects_trust_domain() {
    let (ours, theirs) = (es256(), es256());
    let set = bundles(&[
        bundle("cluster.local", &[jwk("one", &ours)]),
        bundle("example.org", &[jwk("one", &theirs)]),
    ]);
    let foreign = with(claims(), "sub", json!("spiffe://example.org/x"));
    let judge = |key: &EcdsaKeyPair, header: &Value, claims: &Value| {
        verify(&signed(key, header, claims), "db", &set, NOW).map(|svid| svid.id.to_string())
    };
    assert_eq!(judge(&theirs, &header(), &foreign).unwrap(), "spiffe://example.org/x");
    assert_eq!(
        judge(&theirs, &header(), &claims()),
        Err(SvidRefusal::Token(Refusal::Signature))
    );
    assert_eq!(
        judge(&ours, &header(), &foreign),
        Err(SvidRefusal::Token(Refusal::Signature))
    );
    let unknown = judge(&ours, &with(header(), "kid", json!("two")), &claims());
    assert_eq!(unknown, Err(SvidRefusal::Token(Refusal::UnknownKey { provider: None })));
    let nobody = with(claims(), "sub", json!("spiffe://nobody/x"));
    assert_eq!(
        judge(&ours, &header(), &nobody),
        Err(SvidRefusal::TrustDomain("nobody".into()))
    );
}

/// The modulus of a key that `openssl genrsa` made, and its signature (`openssl dgst -sha256 -sign`) of [`header`] with
/// RS256 and [`claims`].
const RSA_2048: &str = concat!(
    "rvQSYyX96hFGj54YJEaD9-2-Htg7oLPYvcRttdeOd5eGmfq9wcdxsIiT8H9ZyNRSJNSgVNw29hsVP--ffgx-yMZiUDzNAWRgLH0nanVSm4FmXs",
    "aE92JQ4hZcBfrds7-QseTdaaPaPbJ-XaoDLspzLE4s5RI6B7jW2dJ70cnBazpxAJ4yUspu0W4x4CJGizyevt28QG6t69aGLWV9b79KfVKDs15D",
    "qeXFo_acKb_xJw4-ZBz7D6JUh79T79ib_MgSghsc4QA3CjGwDvs79olT44F0uZJu-VRw0xBakh2OZEta-OVd27OME4YoZ3v6maH5OOl2oHsNk7",
    "J6Xs0tCov_yw",
);

/// See [`RSA_2048`].
const RSA_2048_SIGNATURE: &str = concat!(
    "avwEdpnsDSuskgHWB158TQufcvvy1da9LkjMZXP9isul29LcAIlNlWlsisEmNHnKMp8OhxTYmwx7A1xKJ82C17osvWmE_Svt4BPudLiOEzb07a",
    "IMAn-1EZ29ae_60p7QEWLRmVypZ7UYV-tvjczBTToPwtHne8IemBHixh22bpXqcZ-YoqDkUQRVjdyDEbR_ZRUelMfVTCU99y17j3CLyd_EEQ8A",
    "N6eaUvtMwUKlzOihZerRCt4aynsoG3rLQeORRwVP2C5-9mdZduDazEz4cYwXcP-SNwk_GVL5cBH7xS-iRIzwliN5KmnnfvcGy5D5qISRZig9YE",
    "HMpGbO6jlOFg",
);

/// The same of a key that is too short; its signature is as good.
const RSA_1024: &str = concat!(
    "qqAic9bXXLdFBm_gWfNf5buYZC0ftD2YNbpl7AxkvTUC7eT1Vpw70J4B33JhoA2IppPMc7PfQVLjFEEN6eXrDSuRZjEi3xoj94LopNPcsZLwRP",
    "fc5LKFhXsegv57nXTOV3YoYd6nrbiC3kOLh_ii-pslZH9kCYbMZB2t1f5XY-U",
);

/// See [`RSA_1024`].
const RSA_1024_SIGNATURE: &str = concat!(
    "Ju4kUUZZotcVKZFf3kPvrQFJ6HTz2IBoK08sYPuhEDU6VvIDtIenbQB9VmabZeV642wGvp2MGaKS6woSpAQ7kVYemhqnBI_I66xiBYL9wqr_ex",
    "-iOv4F4AwpvLSQXmDlEbaLqdc3nW9eeXwK-UDSiSzgnbTPgesdMWo8V9flPvw",
);

#[test]
fn spec_082_rsa_keys_of_2048_bits_verify_and_shorter_ones_do_not() {
    let rsa = |n: &str| json!({"kty": "RSA", "n": n, "e": "AQAB", "kid": "one", "use": "jwt-svid"});
    let judge = |jwk: Value, alg: &str, signature: &str| {
        let set = bundles(&[bundle("cluster.local", &[jwk])]);
        let header = with(header(), "alg", json!(alg));
        let token = format!("{}.{}.{signature}", b64(header.to_string()), b64(claims().to_string()));
        verify(&token, "db", &set, NOW).map(drop)
    };
    assert_eq!(judge(rsa(RSA_2048), "RS256", RSA_2048_SIGNATURE), Ok(()));
    let refused = judge(rsa(RSA_1024), "RS256", RSA_1024_SIGNATURE);
    let unknown = Err(SvidRefusal::Token(Refusal::UnknownKey { provider: None }));
    assert_eq!(refused, unknown, "its signature is good, and its key is none");
    let other = judge(rsa(RSA_2048), "PS256", RSA_2048_SIGNATURE);
    assert_eq!(other, Err(SvidRefusal::Token(Refusal::Signature)));
    // Another kind of signature than the key's is not even tried.
    for (jwk, alg) in [
        (rsa(RSA_2048), "ES256"),
        (with(rsa(RSA_2048), "alg", json!("RS512")), "RS256"),
        (with(rsa(RSA_2048), "use", json!("x509-svid")), "RS256"),
        (with(rsa(RSA_2048), "e", json!("AQ")), "RS256"),
    ] {
        let refused = judge(jwk.clone(), alg, RSA_2048_SIGNATURE);
        assert_eq!(refused, unknown, "{alg} {jwk}");
    }
}

#[test]
fn spec_082_a_key_verifies_only_its_own_kind_of_signature() {
    let key = es256();
    let good = jwk("one", &key);
    let judge = |jwk: Value, header: &Value| {
        let set = bundles(&[bundle("cluster.local", &[jwk])]);
        verify(&signed(&key, header, &claims()), "db", &set, NOW).map(drop)
    };
    assert_eq!(judge(good.clone(), &header()), Ok(()));
    let rsa = json!({"kty": "RSA", "n": RSA_2048, "e": "AQAB", "kid": "one", "use": "jwt-svid"});
    for (bad, alg) in [
        (rsa, "ES256"),
        (good.clone(), "RS256"),
        (good.clone(), "ES384"),
        (with(good.clone(), "use", json!("x509-svid")), "ES256"),
        (with(good.clone(), "use", json!("sig")), "ES256"),
        (with(good.clone(), "use", Value::Null), "ES256"),
        (with(good.clone(), "crv", json!("P-384")), "ES256"),
        (with(good.clone(), "x", json!(b64([1_u8; 31]))), "ES256"),
        (with(good.clone(), "alg", json!("ES384")), "ES256"),
        (
            json!({"kty": "oct", "k": b64("secret"), "kid": "one", "use": "jwt-svid"}),
            "ES256",
        ),
    ] {
        let refused = judge(bad.clone(), &with(header(), "alg", json!(alg)));
        // Whatever it verified, a signature would not be tried: such a key is none for it.
        let unknown = Err(SvidRefusal::Token(Refusal::UnknownKey { provider: None }));
        assert_eq!(refused, unknown, "{alg} {bad}");
    }
    // HS256 keyed with the public key.
    assert!(judge(good, &with(header(), "alg", json!("HS256"))).is_err());
    // P-384 with its own algorithm is fine.
    let p384 = key_pair(&ECDSA_P384_SHA384_FIXED_SIGNING);
    let (x, y) = p384.public_key().as_ref()[1..].split_at(48);
    let jwk = json!({"kty": "EC", "crv": "P-384", "x": b64(x), "y": b64(y), "kid": "one", "use": "jwt-svid"});
    let set = bundles(&[bundle("cluster.local", &[jwk])]);
    let token = signed(&p384, &with(header(), "alg", json!("ES384")), &claims());
    assert!(verify(&token, "db", &set, NOW).is_ok());
}

#[test]
fn spec_083_keys_of_jwts_and_roots_are_never_of_use_for_one_another_and_no_token_is_shown() {
    let key = es256();
    let set = bundle("cluster.local", &[jwk("one", &key)]);
    assert!(set.roots().is_empty() && set.jwt_keys().len() == 1);
    // An entry that could be either, by what it holds, is what its `use` says.
    let roots = include_bytes!("../../../../fuzz/corpus/bundle_json/one_root");
    let roots: Value = serde_json::from_slice(roots).unwrap();
    let either = with(jwk("one", &key), "x5c", roots["keys"][0]["x5c"].clone());
    let for_jwts = bundle("cluster.local", std::slice::from_ref(&either));
    assert_eq!((for_jwts.roots().len(), for_jwts.jwt_keys().len()), (0, 1));
    let for_x509 = bundle("cluster.local", &[with(either, "use", json!("x509-svid"))]);
    assert_eq!((for_x509.roots().len(), for_x509.jwt_keys().len()), (1, 0));
    let by_a_roots_key = verify(&signed(&key, &header(), &claims()), "db", &bundles(&[for_x509]), NOW);
    let unknown = SvidRefusal::Token(Refusal::UnknownKey { provider: None });
    assert_eq!(by_a_roots_key.unwrap_err(), unknown);
    let world = World::new();
    let svid = world.of(&header(), &claims()).unwrap();
    assert!(!format!("{svid:?}").contains("db"), "{svid:?}");
    let token = signed(&es256(), &header(), &claims());
    let refused = world.verify(&token).unwrap_err();
    assert!(!format!("{refused:?} {refused}").contains(&token[..20]));
}

#[test]
fn spec_097_a_wit_svid_is_no_bearer_token() {
    let world = World::new();
    let wit = with(with(claims(), "aud", Value::Null), "cnf", json!({"jwk": {}}));
    assert!(world.of(&with(header(), "typ", json!("wit+jwt")), &wit).is_err());
    assert!(world.of(&with(header(), "typ", json!("wit+jwt")), &claims()).is_err());
}

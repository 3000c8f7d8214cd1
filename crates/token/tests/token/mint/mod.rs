//! An issuer: keys of every kind, sets of them, and tokens, also such as no honest issuer makes.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaSignatureEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_policy::document::parse;
use postern_policy::{Headers, RequestAuthentication, User};
use postern_token::{Authenticator, Caller, KeySet, Keys, Refusal, Verified};
use serde_json::{Value, json};

pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const ISSUER: &str = "https://sso.test";

pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// One of each kind, made once.
pub(crate) static RSA: LazyLock<Signer> =
    LazyLock::new(|| Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));
pub(crate) static P256: LazyLock<Signer> =
    LazyLock::new(|| Signer::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()));
pub(crate) static OTHER_P256: LazyLock<Signer> =
    LazyLock::new(|| Signer::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()));
pub(crate) static P384: LazyLock<Signer> =
    LazyLock::new(|| Signer::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()));
pub(crate) static ED25519: LazyLock<Signer> = LazyLock::new(|| Signer::Ed25519(Ed25519KeyPair::generate().unwrap()));

/// Every algorithm, and a key for it.
pub(crate) fn every_algorithm() -> [(&'static str, &'static Signer, &'static str); 9] {
    [
        ("RS256", &RSA, "rsa"),
        ("RS384", &RSA, "rsa"),
        ("RS512", &RSA, "rsa"),
        ("PS256", &RSA, "rsa"),
        ("PS384", &RSA, "rsa"),
        ("PS512", &RSA, "rsa"),
        ("ES256", &P256, "p256"),
        ("ES384", &P384, "p384"),
        ("EdDSA", &ED25519, "ed"),
    ]
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub(crate) fn jwk(&self, id: &str) -> Value {
        let curve = |name: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at((point.len() - 1) / 2);
            json!({"kty": "EC", "crv": name, "x": base64url(x), "y": base64url(y), "kid": id})
        };
        match self {
            Self::Rsa(key) => {
                // RFC 8017 appendix A.1.1: a sequence of n (256 bytes behind a zero) and e (three bytes).
                let der = key.public_key().as_ref();
                json!({"kty": "RSA", "n": base64url(&der[9..265]), "e": base64url(&der[der.len() - 3..]), "kid": id})
            }
            Self::P256(key) => curve("P-256", key.public_key().as_ref()),
            Self::P384(key) => curve("P-384", key.public_key().as_ref()),
            Self::Ed25519(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key()), "kid": id}),
        }
    }

    pub(crate) fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let encoding: &'static RsaSignatureEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Self::P256(key) | Self::P384(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token of any header and payload.
    pub(crate) fn raw(&self, algorithm: &str, header: &[u8], payload: &[u8]) -> String {
        let signed = format!("{}.{}", base64url(header), base64url(payload));
        format!("{signed}.{}", base64url(self.sign(algorithm, signed.as_bytes())))
    }

    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        let algorithm = header["alg"].as_str().unwrap_or_default();
        self.raw(algorithm, header.to_string().as_bytes(), claims.to_string().as_bytes())
    }
}

pub(crate) fn set(keys: &[Value]) -> Value {
    json!({ "keys": keys })
}

/// A set with one key of each kind.
pub(crate) fn full_set() -> Value {
    set(&[RSA.jwk("rsa"), P256.jwk("p256"), P384.jwk("p384"), ED25519.jwk("ed")])
}

/// A good ES256 token's claims.
pub(crate) fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "alice", "aud": "shop", "exp": NOW + 300, "iat": NOW, "azp": "web", "amr": ["pwd"]})
}

pub(crate) fn header() -> Value {
    json!({"alg": "ES256", "kid": "p256", "typ": "at+jwt"})
}

pub(crate) fn good_token() -> String {
    P256.token(&header(), &claims())
}

/// A document of ours with one rule.
pub(crate) fn document(fields: &Value) -> RequestAuthentication {
    let mut rule = json!({"issuer": ISSUER, "audiences": ["shop"], "jwks": full_set().to_string()});
    for (name, value) in fields.as_object().unwrap() {
        if value.is_null() {
            rule.as_object_mut().unwrap().remove(name);
        } else {
            rule[name] = value.clone();
        }
    }
    documents(&json!([rule]))
}

pub(crate) fn documents(rules: &Value) -> RequestAuthentication {
    let text = json!({"apiVersion": "postern.dev/v1alpha1", "kind": "RequestAuthentication",
        "metadata": {"name": "sso", "namespace": "shop"}, "spec": {"jwtRules": rules}});
    let object = parse("sso.json", &text.to_string()).unwrap().remove(0);
    RequestAuthentication::from_object(&object).unwrap()
}

pub(crate) fn believing(document: RequestAuthentication) -> Authenticator {
    Authenticator::new(&[document], |_| None)
}

/// With keys that were fetched.
pub(crate) fn with_fetched(document: RequestAuthentication, set: &Value, fetched: u64) -> Authenticator {
    let set = Arc::new(KeySet::parse(set.to_string().as_bytes()).unwrap());
    Authenticator::new(&[document], |_| {
        Some(Keys {
            set: Arc::clone(&set),
            fetched,
        })
    })
}

/// A head.
#[derive(Debug, Default)]
pub(crate) struct Head(pub(crate) Vec<(String, String)>);

impl Head {
    pub(crate) fn of(fields: &[(&str, &str)]) -> Self {
        Self(
            fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    pub(crate) fn bearer(token: &str) -> Self {
        Self::of(&[("Authorization", &format!("Bearer {token}"))])
    }
}

impl Headers for Head {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        for (given, value) in &self.0 {
            if postern_policy::request::is_same_field(given, name) {
                found(value.trim().as_bytes());
            }
        }
        true
    }
}

/// A token in `Authorization`, verified.
pub(crate) fn verified(authenticator: &Authenticator, token: &str, now: u64) -> Result<Verified, Refusal> {
    let found = authenticator
        .find(&Head::bearer(token), None)?
        .expect("it is where it usually is");
    authenticator.verify(&found, now)
}

/// The user of a good token, brought by anybody.
pub(crate) fn user(authenticator: &Authenticator, token: &str) -> Result<User, Refusal> {
    let verified = verified(authenticator, token, NOW)?;
    verified.admits(Caller::default()).map(|user| User::clone(user))
}

/// What is told to the app.
pub(crate) fn told(verified: &Verified) -> BTreeMap<String, String> {
    verified
        .told()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

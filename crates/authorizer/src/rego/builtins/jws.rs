//! Signatures of tokens: keys as OPA takes them (a certificate or public key in PEM, a JWK or a set of them, a secret).

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde_json::Value as Json;
use zeroize::Zeroizing;

/// Keys of one set.
const MAX_KEYS: usize = 64;

/// What a signature is checked with.
pub(super) enum Keys {
    Secret(Secret),
    /// A SubjectPublicKeyInfo.
    Spki(Vec<u8>),
    Set(Vec<Jwk>),
}

pub(super) struct Jwk {
    id: Option<String>,
    algorithm: Option<String>,
    key: Key,
}

enum Key {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Curve, and the point as X9.62 writes it.
    Ec(String, Vec<u8>),
    Ed25519(Vec<u8>),
    Secret(Secret),
}

/// Wiped when it is dropped.
pub(super) struct Secret(Zeroizing<Vec<u8>>);

impl Keys {
    pub(super) fn secret(text: &str) -> Self {
        Self::Secret(Secret(text.as_bytes().to_vec().into()))
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.starts_with('{') {
            return Self::read_set(text);
        }
        if text.contains("BEGIN CERTIFICATE") {
            let der = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
            let certificate = webpki::EndEntityCert::try_from(&der).ok()?;
            return Some(Self::Spki(certificate.subject_public_key_info().to_vec()));
        }
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).ok()?;
        Some(Self::Spki(der.to_vec()))
    }

    fn read_set(text: &str) -> Option<Self> {
        let json: Json = serde_json::from_str(text).ok()?;
        let keys = match json.get("keys") {
            Some(Json::Array(keys)) => keys.as_slice(),
            Some(_) => return None,
            None => std::slice::from_ref(&json),
        };
        if keys.len() > MAX_KEYS {
            return None;
        }
        Some(Self::Set(keys.iter().filter_map(Jwk::read).collect()))
    }
}

impl Jwk {
    fn read(json: &Json) -> Option<Self> {
        let text = |name: &str| json.get(name).and_then(Json::as_str);
        let bytes = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let key = match (text("kty")?, text("crv")) {
            ("RSA", _) => Key::Rsa {
                n: bytes("n")?,
                e: bytes("e")?,
            },
            ("EC", Some(curve)) => {
                let mut point = vec![4];
                point.extend(bytes("x")?);
                point.extend(bytes("y")?);
                Key::Ec(curve.to_owned(), point)
            }
            ("OKP", Some("Ed25519")) => Key::Ed25519(bytes("x")?),
            ("oct", _) => Key::Secret(Secret(bytes("k")?.into())),
            _ => return None,
        };
        Some(Self {
            id: text("kid").map(str::to_owned),
            algorithm: text("alg").map(str::to_owned),
            key,
        })
    }
}

/// What a name of RFC 7518 means.
enum Algorithm {
    Hmac(hmac::Algorithm),
    Rsa(&'static RsaParameters),
    /// With the curve's name.
    Ec(&'static dyn VerificationAlgorithm, &'static str),
    Ed25519,
}

fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "HS256" => Algorithm::Hmac(hmac::HMAC_SHA256),
        "HS384" => Algorithm::Hmac(hmac::HMAC_SHA384),
        "HS512" => Algorithm::Hmac(hmac::HMAC_SHA512),
        "RS256" => Algorithm::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => Algorithm::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => Algorithm::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => Algorithm::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
        "PS384" => Algorithm::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
        "PS512" => Algorithm::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
        "ES256" => Algorithm::Ec(&signature::ECDSA_P256_SHA256_FIXED, "P-256"),
        "ES384" => Algorithm::Ec(&signature::ECDSA_P384_SHA384_FIXED, "P-384"),
        "ES512" => Algorithm::Ec(&signature::ECDSA_P521_SHA512_FIXED, "P-521"),
        "EdDSA" => Algorithm::Ed25519,
        _ => return None,
    })
}

/// A set is asked for the key that the token names, else each key of the right kind. Only a secret verifies HS*, and
/// nothing else does: a public key is never taken for one.
pub(super) fn verifies(name: &str, kid: Option<&str>, keys: &Keys, signed: &[u8], signature: &[u8]) -> bool {
    let Some(algorithm) = algorithm(name) else { return false };
    match keys {
        Keys::Secret(secret) => by_secret(&algorithm, secret, signed, signature),
        Keys::Spki(spki) => match algorithm {
            Algorithm::Hmac(_) => false,
            Algorithm::Rsa(parameters) => UnparsedPublicKey::new(parameters, spki)
                .verify(signed, signature)
                .is_ok(),
            Algorithm::Ec(curve, _) => UnparsedPublicKey::new(curve, spki).verify(signed, signature).is_ok(),
            Algorithm::Ed25519 => UnparsedPublicKey::new(&signature::ED25519, spki)
                .verify(signed, signature)
                .is_ok(),
        },
        Keys::Set(set) => set
            .iter()
            .filter(|jwk| kid.is_none_or(|kid| jwk.id.as_deref() == Some(kid)))
            .filter(|jwk| jwk.algorithm.as_deref().is_none_or(|own| own == name))
            .any(|jwk| by_jwk(&algorithm, &jwk.key, signed, signature)),
    }
}

fn by_jwk(algorithm: &Algorithm, key: &Key, signed: &[u8], signature: &[u8]) -> bool {
    match (algorithm, key) {
        (Algorithm::Rsa(parameters), Key::Rsa { n, e }) => RsaPublicKeyComponents { n, e }
            .verify(parameters, signed, signature)
            .is_ok(),
        (Algorithm::Ec(verification, curve), Key::Ec(own, point)) if own == curve => {
            UnparsedPublicKey::new(*verification, point)
                .verify(signed, signature)
                .is_ok()
        }
        (Algorithm::Ed25519, Key::Ed25519(point)) => UnparsedPublicKey::new(&signature::ED25519, point)
            .verify(signed, signature)
            .is_ok(),
        (Algorithm::Hmac(_), Key::Secret(secret)) => by_secret(algorithm, secret, signed, signature),
        _ => false,
    }
}

fn by_secret(algorithm: &Algorithm, secret: &Secret, signed: &[u8], signature: &[u8]) -> bool {
    match algorithm {
        Algorithm::Hmac(algorithm) => hmac::verify(&hmac::Key::new(*algorithm, &secret.0), signed, signature).is_ok(),
        _ => false,
    }
}

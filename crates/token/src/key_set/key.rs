//! One public key (JWK), and what it may verify.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_policy::authentication::Algorithm;
use serde_json::{Map, Value};

use super::MAX_NAME;

/// NIST SP 800-131A; also the least that the library verifies with.
const MIN_RSA_BITS: usize = 2_048;
/// The most that the library verifies with; longer ones cost time and prove no more.
const MAX_RSA_BITS: usize = 8_192;
/// 65537 has three; longer exponents only slow verification down.
const MAX_EXPONENT: usize = 4;

/// A key that may verify.
pub(crate) struct Key {
    /// `kid`.
    pub(crate) id: Option<Box<str>>,
    /// `alg`: the one algorithm that it is for, if it says so.
    only: Option<Algorithm>,
    material: Material,
}

enum Material {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    /// A curve's key takes one algorithm.
    Curve(Algorithm, ParsedPublicKey),
}

impl Key {
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Self, &'static str> {
        let id = match fields.get("kid") {
            None => None,
            Some(Value::String(id)) if id.len() <= MAX_NAME => Some(id.as_str().into()),
            Some(Value::String(_)) => return Err("its `kid` is too long"),
            Some(_) => return Err("its `kid` is no text"),
        };
        is_for_signatures(fields)?;
        if ["d", "p", "q", "k"].iter().any(|name| fields.contains_key(*name)) && text(fields, "kty") != Some("oct") {
            return Err("it is a private key: whoever reads the set can sign");
        }
        let material = match text(fields, "kty") {
            Some("RSA") => rsa(fields)?,
            Some("EC") => elliptic(fields)?,
            Some("OKP") => edwards(fields)?,
            Some("oct") => return Err("it is a shared secret: whoever verifies with it can sign"),
            Some(_) | None => return Err("its `kty` is none of RSA, EC, OKP"),
        };
        let mut key = Self {
            id,
            only: None,
            material,
        };
        if let Some(named) = fields.get("alg") {
            let named = named
                .as_str()
                .and_then(Algorithm::parse)
                .ok_or("its `alg` is not one that is verified here")?;
            if !key.takes(named) {
                return Err("its `alg` is not one for a key of its kind");
            }
            key.only = Some(named);
        }
        Ok(key)
    }

    /// May it verify a signature of this algorithm?
    pub(crate) fn takes(&self, algorithm: Algorithm) -> bool {
        let fits = match self.material {
            Material::Rsa(_) => rsa_parameters(algorithm).is_some(),
            Material::Curve(of, _) => of == algorithm,
        };
        fits && self.only.is_none_or(|only| only == algorithm)
    }

    /// Is it the key's signature under this algorithm?
    pub(crate) fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        if !self.takes(algorithm) {
            return false;
        }
        match &self.material {
            Material::Rsa(key) => {
                rsa_parameters(algorithm).is_some_and(|parameters| key.verify(parameters, signed, signature).is_ok())
            }
            Material::Curve(_, key) => key.verify_sig(signed, signature).is_ok(),
        }
    }
}

fn is_for_signatures(fields: &Map<String, Value>) -> Result<(), &'static str> {
    match fields.get("use") {
        None => {}
        Some(Value::String(purpose)) if purpose == "sig" => {}
        Some(_) => return Err("its `use` is not `sig`"),
    }
    match fields.get("key_ops") {
        None => Ok(()),
        Some(Value::Array(purposes)) if purposes.iter().any(|purpose| purpose == "verify") => Ok(()),
        Some(_) => Err("its `key_ops` do not say `verify`"),
    }
}

fn rsa(fields: &Map<String, Value>) -> Result<Material, &'static str> {
    let n = number(fields, "n")?;
    let e = number(fields, "e")?;
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if bits < MIN_RSA_BITS {
        return Err("its modulus has less than 2048 bits");
    }
    if bits > MAX_RSA_BITS {
        return Err("its modulus has more than 8192 bits");
    }
    // 1 makes every message its own signature.
    let odd = e.last().is_some_and(|byte| byte & 1 == 1);
    if !odd || e.len() > MAX_EXPONENT || e == [1] {
        return Err("its exponent is none for signatures");
    }
    let key = RsaPublicKeyComponents { n, e };
    match key.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256) {
        Ok(_) => Ok(Material::Rsa(key)),
        Err(_) => Err("its modulus and exponent are no RSA key"),
    }
}

fn elliptic(fields: &Map<String, Value>) -> Result<Material, &'static str> {
    let (algorithm, length): (_, usize) = match text(fields, "crv") {
        Some("P-256") => (Algorithm::Es256, 32),
        Some("P-384") => (Algorithm::Es384, 48),
        Some(_) | None => return Err("its curve is neither P-256 nor P-384"),
    };
    let (x, y) = (bytes(fields, "x")?, bytes(fields, "y")?);
    if x.len() != length || y.len() != length {
        return Err("its coordinates have not the length of its curve");
    }
    // Uncompressed (SEC 1 section 2.3.3).
    let point = [&[4], x.as_slice(), y.as_slice()].concat();
    let parameters: &'static dyn VerificationAlgorithm = if algorithm == Algorithm::Es256 {
        &ECDSA_P256_SHA256_FIXED
    } else {
        &ECDSA_P384_SHA384_FIXED
    };
    match ParsedPublicKey::new(parameters, point) {
        Ok(key) => Ok(Material::Curve(algorithm, key)),
        Err(_) => Err("its point is not on its curve"),
    }
}

fn edwards(fields: &Map<String, Value>) -> Result<Material, &'static str> {
    if text(fields, "crv") != Some("Ed25519") {
        return Err("its curve is not Ed25519");
    }
    match ParsedPublicKey::new(&ED25519, bytes(fields, "x")?) {
        Ok(key) => Ok(Material::Curve(Algorithm::EdDsa, key)),
        Err(_) => Err("its point is not one of Ed25519"),
    }
}

/// `None`: no algorithm of RSA keys.
fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return None,
    })
}

fn text<'f>(fields: &'f Map<String, Value>, name: &str) -> Option<&'f str> {
    fields.get(name).and_then(Value::as_str)
}

fn bytes(fields: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    let text = text(fields, name).ok_or("a part of it is missing")?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| "a part of it is no base64url")
}

/// A number without leading zeros (RFC 7518 section 2, Base64urlUInt); some issuers write one all the same.
fn number(fields: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = bytes(fields, name)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    if bytes.is_empty() {
        Err("a part of it is zero")
    } else {
        Ok(bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

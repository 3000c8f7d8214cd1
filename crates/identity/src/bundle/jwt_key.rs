//! Keys of JWT-SVIDs in a bundle (SPIFFE JWT-SVID section 6): public, named by `kid`, and never of use for certificates.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Longer names are nobody's (thumbprints have 43 characters).
const MAX_ID: usize = 256;

/// A public key that a trust domain's JWT-SVIDs are verified with, as it stands in the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtKey {
    id: String,
    jwk: Value,
}

impl JwtKey {
    /// For ES256: a point of P-256, uncompressed (SEC 1 section 2.3.3).
    #[must_use]
    pub fn es256(id: &str, point: &[u8]) -> Option<Self> {
        let coordinates = point.strip_prefix(&[4]).filter(|xy| xy.len() == 64)?;
        let (x, y) = coordinates.split_at(32);
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y), "use": "jwt-svid", "kid": id, "alg": "ES256" });
        Self::read(&jwk)
    }

    /// An entry of a bundle document; `None`: it is for something else, or names no key.
    pub(super) fn read(entry: &Value) -> Option<Self> {
        let known_type = matches!(entry.get("kty")?.as_str()?, "EC" | "RSA");
        let id = entry.get("kid")?.as_str()?;
        let named = (1..=MAX_ID).contains(&id.len());
        (known_type && named && entry.get("use")?.as_str()? == "jwt-svid").then(|| Self {
            id: id.to_owned(),
            jwk: entry.clone(),
        })
    }

    /// `kid`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole key, as a JWK (RFC 7517).
    #[must_use]
    pub fn jwk(&self) -> &Value {
        &self.jwk
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_of_a_bundle_is_for_jwts_alone_and_has_a_name() {
        let point = [&[4_u8][..], &[7; 64]].concat();
        let key = JwtKey::es256("one", &point).unwrap();
        assert_eq!((key.id(), key.jwk()["use"].as_str()), ("one", Some("jwt-svid")));
        assert_eq!(JwtKey::read(key.jwk()), Some(key.clone()));
        for (field, value) in [
            ("use", json!("x509-svid")),
            ("use", json!("JWT-SVID")),
            ("use", Value::Null),
            ("kid", json!("")),
            ("kid", json!("k".repeat(MAX_ID + 1))),
            ("kid", json!(1)),
            ("kty", json!("oct")),
            ("kty", json!("OKP")),
        ] {
            let mut other = key.jwk().clone();
            other[field] = value;
            assert_eq!(JwtKey::read(&other), None, "{field}");
        }
        assert!(JwtKey::es256("one", &point[1..]).is_none() && JwtKey::es256("", &point).is_none());
    }
}

//! The SPIFFE bundle document: a JWKS of `x509-svid` and `jwt-svid` keys (SPIFFE Trust Domain and Bundle section 4.2).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::{Value, json};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::{BundleError, JwtKey};

/// A bundle of a few roots; a document past this is no bundle of ours.
pub(crate) const MAX_DOCUMENT: usize = 256 * 1024;
/// What a consumer without better knowledge polls at, in seconds.
const REFRESH_HINT: u64 = 300;

#[derive(Deserialize)]
struct Document {
    // Absent is invalid, empty is a bundle that believes nobody. Entries are read one by one: a bad one is skipped.
    keys: Vec<Value>,
    #[serde(default)]
    spiffe_sequence: u64,
    // Only a hint: of any other form it is as good as left out.
    spiffe_refresh_hint: Option<Value>,
}

/// What a document says.
pub(crate) struct Read {
    pub(crate) sequence: u64,
    pub(crate) refresh_hint: Option<Duration>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    pub(crate) jwt_keys: Vec<JwtKey>,
}

pub(crate) fn read(json: &[u8]) -> Result<Read, BundleError> {
    if json.len() > MAX_DOCUMENT {
        return Err(BundleError::Document(format!("longer than {MAX_DOCUMENT} bytes")));
    }
    let document: Document = serde_json::from_slice(json).map_err(|error| BundleError::Document(error.to_string()))?;
    Ok(Read {
        sequence: document.spiffe_sequence,
        refresh_hint: document
            .spiffe_refresh_hint
            .and_then(|hint| hint.as_u64())
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
        roots: document.keys.iter().filter_map(root).collect(),
        jwt_keys: document.keys.iter().filter_map(JwtKey::read).collect(),
    })
}

fn root(key: &Value) -> Option<CertificateDer<'static>> {
    let known_type = matches!(key.get("kty")?.as_str()?, "EC" | "RSA" | "OKP");
    if !known_type || key.get("use")?.as_str()? != "x509-svid" {
        return None;
    }
    // With several values the first is the root (section 4.2.2).
    let der = STANDARD.decode(key.get("x5c")?.as_array()?.first()?.as_str()?).ok()?;
    Some(CertificateDer::from(der))
}

pub(super) fn write(sequence: u64, roots: &[CertificateDer<'static>], jwt_keys: &[JwtKey]) -> Vec<u8> {
    let jwt_keys = jwt_keys.iter().map(|key| key.jwk().clone());
    let keys: Vec<Value> = roots.iter().filter_map(entry).chain(jwt_keys).collect();
    let document = json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": REFRESH_HINT });
    // serde_json's map is sorted: the same bundle gives the same bytes.
    document.to_string().into_bytes()
}

pub(super) fn entry(root: &CertificateDer<'static>) -> Option<Value> {
    let (_, certificate) = X509Certificate::from_der(root).ok()?;
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = certificate.public_key();
    let mut entry = match key.parsed().ok()? {
        PublicKey::EC(point) => {
            let coordinates = point.data().strip_prefix(&[4])?;
            let curve = match coordinates.len() {
                64 => "P-256",
                96 => "P-384",
                132 => "P-521",
                _ => return None,
            };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            json!({ "kty": "EC", "crv": curve, "x": b64(x), "y": b64(y) })
        }
        PublicKey::RSA(rsa) => json!({ "kty": "RSA", "n": b64(rsa.modulus), "e": b64(rsa.exponent) }),
        PublicKey::Unknown(raw) => json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(raw) }),
        PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) => return None,
    };
    entry["use"] = "x509-svid".into();
    entry["x5c"] = json!([STANDARD.encode(root)]);
    Some(entry)
}

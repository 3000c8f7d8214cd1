//! Certificate requests: checked for possession of a sound key; nothing but that key is kept.
//!
//! Names, extensions and attributes of a request are never read: there is no path from them to a certificate.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA512_ASN1, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use postern_api::refusal::RefusalReason;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::der_parser::asn1_rs::{Oid, oid};
use x509_parser::prelude::FromDer;
use x509_parser::x509::AlgorithmIdentifier;

use crate::refusal::Refusal;

mod known_keys;
#[cfg(test)]
mod tests;

/// The longest request that is read, in bytes: one with a P-384 key and a page of names takes under 2 KiB.
pub(crate) const MAX_CSR: usize = 16 * 1024;

const EC_PUBLIC_KEY: Oid<'static> = oid!(1.2.840.10045.2.1);
const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
const P384: Oid<'static> = oid!(1.3.132.0.34);
const ECDSA_SHA256: Oid<'static> = oid!(1.2.840.10045.4.3.2);
const ECDSA_SHA384: Oid<'static> = oid!(1.2.840.10045.4.3.3);
const ECDSA_SHA512: Oid<'static> = oid!(1.2.840.10045.4.3.4);
const ED25519_OID: Oid<'static> = oid!(1.3.101.112);

/// SHA-256 of a SubjectPublicKeyInfo.
pub(crate) type KeyFingerprint = [u8; 32];

/// A public key whose owner has proved possession.
#[derive(Debug)]
pub(crate) struct ProvenKey {
    spki: SubjectPublicKeyInfo,
    fingerprint: KeyFingerprint,
}

/// SHA-256 of the key (SubjectPublicKeyInfo) that this DER request proves, or the word of the refusal.
pub fn proven_key(der: &[u8]) -> Result<[u8; 32], &'static str> {
    let proven = ProvenKey::from_csr(der).map_err(|refusal| refusal.reason().as_str())?;
    Ok(proven.fingerprint())
}

/// The kinds of key that are certified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    P256,
    P384,
    Ed25519,
}

impl ProvenKey {
    /// Checks a DER PKCS#10 request and takes its key.
    pub(crate) fn from_csr(der: &[u8]) -> Result<Self, Refusal> {
        if der.len() > MAX_CSR {
            return Err(refuse(
                RefusalReason::CsrTooLarge,
                format!("the CSR has {} bytes, {MAX_CSR} are read at most", der.len()),
            ));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| {
            refuse(
                RefusalReason::CsrMalformed,
                "the CSR is not DER PKCS#10 (PEM is not read)",
            )
        })?;
        if !rest.is_empty() {
            let message = format!("{} bytes trail the CSR", rest.len());
            return Err(refuse(RefusalReason::CsrMalformed, message));
        }
        let info = &csr.certification_request_info;
        let algorithm = &info.subject_pki.algorithm;
        let bits = &info.subject_pki.subject_public_key;
        if bits.unused_bits != 0 || csr.signature_value.unused_bits != 0 {
            return Err(refuse(
                RefusalReason::CsrMalformed,
                "a bit string of the CSR has unused bits",
            ));
        }
        // The parser forgives wrong tag classes and such; one request has one encoding.
        let plain = encoding(info.raw, &csr.signature_algorithm.algorithm, &csr.signature_value.data);
        if csr.signature_algorithm.parameters.is_none() && plain != der {
            return Err(refuse(
                RefusalReason::CsrMalformed,
                "the CSR is not in distinguished encoding",
            ));
        }
        let key: &[u8] = &bits.data;
        let kind = kind_of(algorithm)?;
        check_key(kind, key)?;
        let verifier = verifier_for(kind, &csr.signature_algorithm)?;
        ParsedPublicKey::new(verifier, key)
            .map_err(|_| refuse(RefusalReason::CsrKey, "the CSR's key is not a point of its curve"))?
            .verify_sig(info.raw, &csr.signature_value.data)
            .map_err(|_| refuse(RefusalReason::CsrSignature, "the CSR is not signed by its own key"))?;
        // Read from the key's own bytes: rcgen's CSR reader takes the curve from the signature algorithm (P-384 signed
        // with SHA-256 would become a broken P-256 leaf).
        let spki = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
            .map_err(|_| refuse(RefusalReason::CsrMalformed, "the CSR's key cannot be read"))?;
        Ok(Self {
            fingerprint: fingerprint(info.subject_pki.raw),
            spki,
        })
    }

    /// For the certificate.
    pub(crate) fn spki(&self) -> &SubjectPublicKeyInfo {
        &self.spki
    }
    /// To tell keys apart.
    pub(crate) fn fingerprint(&self) -> KeyFingerprint {
        self.fingerprint
    }
}

/// Works out what is worked out once, so that the first caller does not wait for it.
pub(crate) fn prepare() {
    known_keys::is_known(&[]);
}

/// SHA-256 of a DER SubjectPublicKeyInfo.
pub(crate) fn fingerprint(spki: &[u8]) -> KeyFingerprint {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
    out
}

/// The DER of a request with these parts and a signature algorithm without parameters.
fn encoding(info: &[u8], algorithm: &Oid<'_>, signature: &[u8]) -> Vec<u8> {
    let algorithm = tagged(0x30, &tagged(0x06, algorithm.as_bytes()));
    let signature = tagged(0x03, &[&[0], signature].concat());
    tagged(0x30, &[info, &algorithm, &signature].concat())
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let head: &[u8] = match content.len() {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        // A CSR is at most 16 KiB.
        _ => &[tag, 0x82, high, low],
    };
    [head, content].concat()
}

fn kind_of(algorithm: &AlgorithmIdentifier<'_>) -> Result<KeyKind, Refusal> {
    if algorithm.algorithm == ED25519_OID && algorithm.parameters.is_none() {
        return Ok(KeyKind::Ed25519);
    }
    if algorithm.algorithm == EC_PUBLIC_KEY {
        let curve = algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.as_oid().ok());
        if curve == Some(P256) {
            return Ok(KeyKind::P256);
        }
        if curve == Some(P384) {
            return Ok(KeyKind::P384);
        }
        let message = "the CSR's key is on a curve that is not certified; P-256, P-384 and Ed25519 are";
        return Err(refuse(RefusalReason::CsrKey, message));
    }
    let message = "the CSR's key is of a kind that is not certified (RSA is not); P-256, P-384 and Ed25519 are";
    Err(refuse(RefusalReason::CsrKey, message))
}

/// Uncompressed points of the right length, and no key that somebody else is known to hold.
fn check_key(kind: KeyKind, key: &[u8]) -> Result<(), Refusal> {
    let (length, first) = match kind {
        KeyKind::P256 => (65, Some(4)),
        KeyKind::P384 => (97, Some(4)),
        KeyKind::Ed25519 => (32, None),
    };
    if key.len() != length || first.is_some_and(|first| key.first() != Some(&first)) {
        return Err(refuse(
            RefusalReason::CsrKey,
            "the CSR's key is not in its plain, uncompressed form",
        ));
    }
    if known_keys::is_known(key) {
        return Err(refuse(
            RefusalReason::CsrKey,
            "the CSR's key is a published or trivial one",
        ));
    }
    Ok(())
}

fn verifier_for(
    kind: KeyKind,
    algorithm: &AlgorithmIdentifier<'_>,
) -> Result<&'static dyn VerificationAlgorithm, Refusal> {
    let hash = &algorithm.algorithm;
    let found: Option<&'static dyn VerificationAlgorithm> = match kind {
        KeyKind::P256 if *hash == ECDSA_SHA256 => Some(&ECDSA_P256_SHA256_ASN1),
        KeyKind::P256 if *hash == ECDSA_SHA384 => Some(&ECDSA_P256_SHA384_ASN1),
        KeyKind::P256 if *hash == ECDSA_SHA512 => Some(&ECDSA_P256_SHA512_ASN1),
        // `openssl req` signs with SHA-256 whatever the curve.
        KeyKind::P384 if *hash == ECDSA_SHA256 => Some(&ECDSA_P384_SHA256_ASN1),
        KeyKind::P384 if *hash == ECDSA_SHA384 => Some(&ECDSA_P384_SHA384_ASN1),
        KeyKind::P384 if *hash == ECDSA_SHA512 => Some(&ECDSA_P384_SHA512_ASN1),
        KeyKind::Ed25519 if *hash == ED25519_OID => Some(&ED25519),
        KeyKind::P256 | KeyKind::P384 | KeyKind::Ed25519 => None,
    };
    match found {
        Some(verifier) if algorithm.parameters.is_none() => Ok(verifier),
        Some(_) | None => Err(refuse(
            RefusalReason::CsrSignature,
            "the CSR's signature algorithm does not go with its key (SHA-256, SHA-384 or SHA-512 with ECDSA, or Ed25519)",
        )),
    }
}

/// The algorithm that a certified key signs a renewal with, by its SubjectPublicKeyInfo; and the key's raw bytes.
pub(crate) fn renewal_verifier(spki: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<ParsedPublicKey, Refusal> {
    let verifier: &'static dyn VerificationAlgorithm = match kind_of(&spki.algorithm)? {
        KeyKind::P256 => &ECDSA_P256_SHA256_ASN1,
        KeyKind::P384 => &ECDSA_P384_SHA384_ASN1,
        KeyKind::Ed25519 => &ED25519,
    };
    ParsedPublicKey::new(verifier, &*spki.subject_public_key.data)
        .map_err(|_| refuse(RefusalReason::RenewalChain, "the previous SVID's key cannot be read"))
}

fn refuse(reason: RefusalReason, message: impl Into<String>) -> Refusal {
    Refusal::new(reason, message)
}

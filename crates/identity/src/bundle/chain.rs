//! Walking the chain of bundles: each link signed under a root of the one before it.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;

use super::{BundleError, SignedBundle, TrustBundle, document, signing_input};
use crate::authority::{self, Unfit};

/// The issuing intermediate, and room for one above it that stays offline.
const MAX_SIGNER_CHAIN: usize = 3;

/// Walks from `current` along `links` (oldest first) as far as they hold: links at or below the current
/// sequence are skipped, the first newer link that does not verify is an error and nothing is taken.
pub fn advance(current: &TrustBundle, links: &[SignedBundle], now: UnixTime) -> Result<TrustBundle, BundleError> {
    let mut bundle = current.clone();
    for link in links {
        let sequence = document::read(&link.document)?.sequence;
        if sequence <= bundle.sequence {
            continue;
        }
        check(&bundle, link, now).map_err(|why| BundleError::Unsigned {
            sequence,
            previous: bundle.sequence,
            why,
        })?;
        bundle = TrustBundle::from_document(bundle.trust_domain.clone(), &link.document, now)?;
    }
    Ok(bundle)
}

fn check(bundle: &TrustBundle, link: &SignedBundle, now: UnixTime) -> Result<(), &'static str> {
    let message = signing_input(&bundle.trust_domain, &link.document);
    verify_signed(bundle, &message, &link.signature, &link.signer_chain, now)
}

/// Was this signed by an issuing intermediate under a root of `bundle`? The word says what is not as it should be.
pub(crate) fn verify_signed(
    bundle: &TrustBundle,
    message: &[u8],
    signature: &[u8],
    signer_chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), &'static str> {
    if signer_chain.len() > MAX_SIGNER_CHAIN {
        return Err("the signer's chain is too long");
    }
    let chain: Vec<X509Certificate<'_>> = signer_chain.iter().map(|der| parse(der)).collect::<Result<_, _>>()?;
    // The bundle may have been loaded long ago: a root that has expired since then vouches for nothing.
    let valid = bundle
        .anchors
        .iter()
        .zip(&bundle.roots)
        .filter(|(anchor, _)| anchor.facts.valid_at(now));
    let roots: Vec<X509Certificate<'_>> = valid.map(|(_, der)| parse(der)).collect::<Result<_, _>>()?;
    let signer = chain.first().ok_or("the signer's chain is empty")?;
    for der in signer_chain {
        if !authority::inspect(der).map_err(Unfit::as_str)?.valid_at(now) {
            return Err("a certificate of the signer's chain is not valid now");
        }
    }
    for (i, certificate) in chain.iter().enumerate() {
        let issued_by = |issuer: &X509Certificate<'_>| {
            issuer.subject().as_raw() == certificate.issuer().as_raw()
                && certificate.verify_signature(Some(issuer.public_key())).is_ok()
        };
        match chain.get(i + 1) {
            Some(issuer) if issued_by(issuer) => {}
            Some(_) => return Err("the signer's chain is broken"),
            None if roots.iter().any(issued_by) => {}
            None => return Err("the signer's chain does not reach a root"),
        }
    }
    // The root's own pathLen: the signer chain is made of CAs only.
    verify_signature(signer, message, signature)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, &'static str> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|_| "a certificate is malformed")
}

/// By the one algorithm of the signer's key; RSA is that of issuers that were brought.
fn verify_signature(signer: &X509Certificate<'_>, message: &[u8], signature: &[u8]) -> Result<(), &'static str> {
    let key = signer.public_key();
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    let kind = &key.algorithm.algorithm;
    let algorithm: &'static dyn VerificationAlgorithm = match curve {
        _ if *kind == oid::OID_PKCS1_RSAENCRYPTION => &RSA_PKCS1_2048_8192_SHA256,
        Some(curve) if curve == oid::OID_EC_P256 => &ECDSA_P256_SHA256_ASN1,
        Some(curve) if curve == oid::OID_NIST_EC_P384 => &ECDSA_P384_SHA384_ASN1,
        _ => return Err("the signer's key is neither P-256, P-384 nor RSA"),
    };
    UnparsedPublicKey::new(algorithm, &key.subject_public_key.data)
        .verify(message, signature)
        .map_err(|_| "the signature does not verify")
}

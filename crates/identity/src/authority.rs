//! What a certificate must be to vouch for others: a root in a bundle, or an intermediate in a path.

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;

use crate::leaf;

/// The facts of a CA certificate that webpki does not look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Authority {
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    /// How many intermediates may follow it.
    pub(crate) path_len: Option<u32>,
}

/// Reads a CA certificate; the error says which rule it breaks.
pub(crate) fn inspect(der: &CertificateDer<'_>) -> Result<Authority, &'static str> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| "is not well-formed DER")?;
    if !rest.is_empty() {
        return Err("has bytes after it");
    }
    let mut path_len = None;
    let (mut ca, mut cert_sign) = (false, false);
    let all = certificate.extensions();
    for (i, extension) in all.iter().enumerate() {
        if all.iter().skip(i + 1).any(|other| other.oid == extension.oid) {
            return Err("has an extension twice");
        }
        if extension.oid == oid::OID_X509_EXT_BASIC_CONSTRAINTS {
            let Some(ParsedExtension::BasicConstraints(constraints)) = leaf::parsed(extension) else {
                return Err("has malformed BasicConstraints");
            };
            ca = constraints.ca;
            path_len = constraints.path_len_constraint;
        } else if extension.oid == oid::OID_X509_EXT_KEY_USAGE {
            let Some(ParsedExtension::KeyUsage(usage)) = leaf::parsed(extension) else {
                return Err("has a malformed KeyUsage");
            };
            cert_sign = usage.key_cert_sign();
        } else if extension.oid == oid::OID_X509_EXT_NAME_CONSTRAINTS {
            // webpki refuses every chain in which they meet a URI SAN (RUSTSEC-2026-0098): say so here, clearly.
            return Err("has name constraints, which no SPIFFE chain can satisfy here");
        } else if extension.critical
            && extension.oid != oid::OID_X509_EXT_SUBJECT_ALT_NAME
            && extension.oid != oid::OID_X509_EXT_EXTENDED_KEY_USAGE
        {
            return Err("has a critical extension that is not understood");
        }
    }
    if !ca {
        return Err("is not a CA certificate");
    }
    if !cert_sign {
        return Err("may not sign certificates (keyCertSign)");
    }
    let (not_before, not_after) = leaf::validity(&certificate).map_err(|_| "has an impossible validity period")?;
    Ok(Authority {
        not_before,
        not_after,
        path_len,
    })
}

impl Authority {
    pub(crate) fn valid_at(&self, now: UnixTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

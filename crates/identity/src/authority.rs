//! What a certificate must be to vouch for others: a root in a bundle, or an intermediate in a path.

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;

use crate::leaf;

/// The facts of a CA certificate that webpki does not look at.
#[derive(Debug, Clone, Copy)]
pub struct Authority {
    /// First instant of its validity.
    pub not_before: UnixTime,
    /// Last instant of its validity.
    pub not_after: UnixTime,
    /// How many intermediates may follow it.
    pub path_len: Option<u32>,
}

/// The rule that a certificate breaks, so that it may not vouch for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is said by as_str")]
pub enum Unfit {
    Malformed,
    TrailingBytes,
    DuplicateExtension,
    BasicConstraints,
    KeyUsage,
    NameConstraints,
    UnknownCritical,
    NotCa,
    NoCertSign,
    Validity,
}

impl Unfit {
    /// What is wrong, to follow "it" or a place.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "is not well-formed DER",
            Self::TrailingBytes => "has bytes after it",
            Self::DuplicateExtension => "has an extension twice",
            Self::BasicConstraints => "has malformed BasicConstraints",
            Self::KeyUsage => "has a malformed KeyUsage",
            Self::NameConstraints => "has name constraints, which no SPIFFE chain can satisfy here",
            Self::UnknownCritical => "has a critical extension that is not understood",
            Self::NotCa => "is not a CA certificate",
            Self::NoCertSign => "may not sign certificates (keyCertSign)",
            Self::Validity => "has an impossible validity period",
        }
    }
}

/// Is its key of a kind and strength that every verifier here takes? The error says what it is.
pub fn check_key(der: &CertificateDer<'_>) -> Result<(), &'static str> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Unfit::Malformed.as_str())?;
    leaf::check_key(&certificate).map_err(|error| match error {
        leaf::LeafError::Key(what) => what,
        _ => Unfit::Malformed.as_str(),
    })
}

/// Reads a CA certificate.
pub fn inspect(der: &CertificateDer<'_>) -> Result<Authority, Unfit> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Unfit::Malformed)?;
    if !rest.is_empty() {
        return Err(Unfit::TrailingBytes);
    }
    let mut path_len = None;
    let (mut ca, mut cert_sign) = (false, false);
    let all = certificate.extensions();
    for (i, extension) in all.iter().enumerate() {
        if all.iter().skip(i + 1).any(|other| other.oid == extension.oid) {
            return Err(Unfit::DuplicateExtension);
        }
        if extension.oid == oid::OID_X509_EXT_BASIC_CONSTRAINTS {
            let Some(ParsedExtension::BasicConstraints(constraints)) = leaf::parsed(extension) else {
                return Err(Unfit::BasicConstraints);
            };
            ca = constraints.ca;
            path_len = constraints.path_len_constraint;
        } else if extension.oid == oid::OID_X509_EXT_KEY_USAGE {
            let Some(ParsedExtension::KeyUsage(usage)) = leaf::parsed(extension) else {
                return Err(Unfit::KeyUsage);
            };
            cert_sign = usage.key_cert_sign();
        } else if extension.oid == oid::OID_X509_EXT_NAME_CONSTRAINTS {
            // webpki refuses every chain in which they meet a URI SAN (RUSTSEC-2026-0098): say so here, clearly.
            return Err(Unfit::NameConstraints);
        } else if extension.critical
            && extension.oid != oid::OID_X509_EXT_SUBJECT_ALT_NAME
            && extension.oid != oid::OID_X509_EXT_EXTENDED_KEY_USAGE
        {
            return Err(Unfit::UnknownCritical);
        }
    }
    if !ca {
        return Err(Unfit::NotCa);
    }
    if !cert_sign {
        return Err(Unfit::NoCertSign);
    }
    let (not_before, not_after) = leaf::validity(&certificate).map_err(|_| Unfit::Validity)?;
    Ok(Authority {
        not_before,
        not_after,
        path_len,
    })
}

impl Authority {
    /// Is `now` within its validity?
    #[must_use]
    pub fn valid_at(&self, now: UnixTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

//! A CA and the one certificate that it has signed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// How far a notBefore lies in the past, for API servers whose clocks are behind ours.
const BACKDATE: Duration = Duration::from_secs(60 * 60);
/// Two certificates and a key have 2 KiB.
const MAX_PEM: usize = 16 * 1024;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    /// No random numbers, a name that is none, or signing failed.
    #[error("signing failed")]
    Signing(#[from] rcgen::Error),
    /// A time that no certificate can hold.
    #[error("{0} seconds since 1970 do not fit a certificate")]
    Time(u64),
    /// What is in the Secret, or what we made, cannot be used.
    #[error("{0}")]
    Unusable(&'static str),
}

/// A published CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) der: CertificateDer<'static>,
    pub(super) pem: String,
}

/// A CA, what it signed, and that one's key.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) authority: Authority,
    pub(super) certificate_pem: String,
    pub(super) key_pem: Zeroizing<String>,
    pub(super) names: BTreeSet<String>,
    /// Seconds since 1970.
    pub(super) not_after: u64,
    pub(super) key: Arc<CertifiedKey>,
}

impl Authority {
    /// The certificates of a bundle, such as `old-ca.crt`.
    pub(super) fn all(pem: &[u8]) -> Result<Vec<Self>, PairError> {
        if pem.len() > MAX_PEM {
            return Err(PairError::Unusable("it is too long"));
        }
        let text = std::str::from_utf8(pem).map_err(|_| PairError::Unusable("it is no text"))?;
        let end = "-----END CERTIFICATE-----";
        let parts = text.split_inclusive(end).filter(|part| part.contains(end));
        let each = parts.map(|part| {
            let pem = format!("{}\n", part.trim());
            let der = CertificateDer::from_pem_slice(pem.as_bytes());
            let der = der.map_err(|_| PairError::Unusable("a CA certificate cannot be read"))?;
            Ok(Self { der, pem })
        });
        each.collect()
    }
}

impl Pair {
    /// Makes a CA and a certificate for `names`, good for `life` from `now` (seconds since 1970).
    pub(super) fn mint(names: &BTreeSet<String>, life: Duration, now: u64) -> Result<Self, PairError> {
        let blank = |common_name: String| -> Result<CertificateParams, PairError> {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "Postern");
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.not_before = date(now.saturating_sub(BACKDATE.as_secs()))?;
            params.not_after = date(now.saturating_add(life.as_secs()))?;
            Ok(params)
        };
        let authority_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // A name of its own, so that who verifies need not try one CA after the other.
        let mut authority = blank(format!("postern serving CA {now}-{:08x}", fastrand::u32(..)))?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_pem = authority.self_signed(&authority_key)?.pem();

        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = blank(names.first().cloned().unwrap_or_default())?;
        for name in names {
            let name = rcgen::string::Ia5String::try_from(name.as_str())?;
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate_pem = params.signed_by(&key, &Issuer::new(authority, authority_key))?.pem();
        let key_pem = Zeroizing::new(key.serialize_pem());
        Self::read(authority_pem.as_bytes(), certificate_pem.as_bytes(), key_pem.as_bytes())
    }

    /// Reads what [`Self::mint`] made: one that could not be served, or would not be believed, is an error.
    pub(super) fn read(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let unusable = PairError::Unusable;
        if certificate.len() > MAX_PEM || key.len() > MAX_PEM {
            return Err(unusable("it is too long"));
        }
        let [authority]: [Authority; 1] = Authority::all(authority)?
            .try_into()
            .map_err(|_| unusable("there is not exactly one CA certificate"))?;
        let der = CertificateDer::from_pem_slice(certificate);
        let der = der.map_err(|_| unusable("the certificate cannot be read"))?;
        let private = PrivateKeyDer::from_pem_slice(key).map_err(|_| unusable("the key cannot be read"))?;
        let (names, not_after) = checked(&der, &authority.der)?;
        let provider = aws_lc_rs::default_provider();
        let key_pem = std::str::from_utf8(key).map_err(|_| unusable("the key is no text"))?;
        let certificate_pem = std::str::from_utf8(certificate).map_err(|_| unusable("the certificate is no text"))?;
        let certified = CertifiedKey::from_der(vec![der], private, &provider)
            .map_err(|_| unusable("certificate and key do not belong together"))?;
        Ok(Self {
            authority,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: Zeroizing::new(key_pem.to_owned()),
            names,
            not_after,
            key: Arc::new(certified),
        })
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Names and end of a certificate that `authority` has signed.
fn checked(der: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> Result<(BTreeSet<String>, u64), PairError> {
    let unusable = PairError::Unusable;
    let (_, authority) =
        X509Certificate::from_der(authority).map_err(|_| unusable("the CA certificate cannot be read"))?;
    let (_, leaf) = X509Certificate::from_der(der).map_err(|_| unusable("the certificate cannot be read"))?;
    leaf.verify_signature(Some(authority.public_key()))
        .map_err(|_| unusable("the certificate is not signed by the CA"))?;
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|names| &names.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let not_after = leaf.validity().not_after.timestamp();
    let not_after = u64::try_from(not_after).map_err(|_| unusable("the certificate's validity lies before 1970"))?;
    Ok((names.collect(), not_after))
}

fn date(seconds: u64) -> Result<OffsetDateTime, PairError> {
    let signed = i64::try_from(seconds).ok();
    let date = signed.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    date.ok_or(PairError::Time(seconds))
}

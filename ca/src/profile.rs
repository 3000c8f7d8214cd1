//! The shape of every certificate that this CA signs. Nothing here sees a CSR; the key comes in proven.

use std::time::Duration;

use aws_lc_rs::rand;
use postern_identity::leaf::{APP_EXTENSION_DER, APP_OID, INSTANCE_OID, instance_extension_der};
use postern_identity::{Instance, SpiffeId, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use crate::tokens::hex;

/// How far a notBefore lies in the past, for peers whose clocks are behind ours.
pub(crate) const BACKDATE: Duration = Duration::from_secs(60);
/// Serial numbers have 128 random bits; a repeat is not to be expected.
const SERIAL_LEN: usize = 16;

/// First and last instant of validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// Who holds the key of a workload's SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Its proxy, or the one process that it is.
    Proxy,
    /// The app, by its proxy's Workload API. See [`APP_OID`].
    App,
}

impl Validity {
    pub(crate) fn contains(&self, now: UnixTime) -> bool {
        (self.not_before.as_secs()..=self.not_after.as_secs()).contains(&now.as_secs())
    }
    /// What both have.
    pub(crate) fn within(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: self.not_after.min(other.not_after),
        }
    }
}

/// Why a certificate could not be made: a fault of our own.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No random numbers, or signing failed.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A time that no certificate can hold.
    #[error("{0} seconds since 1970 do not fit a certificate")]
    Time(u64),
}

/// A self-signed root of `trust_domain`.
pub(crate) fn root(
    trust_domain: &TrustDomain,
    name: &str,
    key: &KeyPair,
    validity: Validity,
) -> Result<CertificateDer<'static>, ProfileError> {
    let mut params = authority(trust_domain, &format!("{trust_domain} {name}"), validity)?;
    // One issuer below it, leaves below that.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    Ok(params.self_signed(key)?.der().clone())
}

/// An issuing intermediate, number `epoch`.
pub(crate) fn issuer(
    trust_domain: &TrustDomain,
    epoch: u64,
    key: &KeyPair,
    validity: Validity,
    root: &rcgen::Issuer<'_, impl SigningKey>,
) -> Result<CertificateDer<'static>, ProfileError> {
    let mut params = authority(trust_domain, &format!("{trust_domain} issuer {epoch}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, root)?.der().clone())
}

/// What is asked of whoever keeps an offline root, DER: the same as [`issuer`].
pub(crate) fn issuer_request(trust_domain: &TrustDomain, epoch: u64, key: &KeyPair) -> Result<Vec<u8>, ProfileError> {
    let nothing = UnixTime::since_unix_epoch(Duration::ZERO);
    let validity = Validity {
        not_before: nothing,
        not_after: nothing,
    };
    let mut params = authority(trust_domain, &format!("{trust_domain} issuer {epoch}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    // A request has none of these, and rcgen would not write one with them.
    params.serial_number = None;
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// An X.509-SVID for a workload, and its serial number.
pub(crate) fn leaf(
    id: &SpiffeId,
    instance: Option<&Instance>,
    holder: Holder,
    key: &impl PublicKeyData,
    validity: Validity,
    issuer: &rcgen::Issuer<'_, impl SigningKey>,
) -> Result<(CertificateDer<'static>, [u8; SERIAL_LEN]), ProfileError> {
    let (mut params, serial) = blank(validity)?;
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id.as_str())?)];
    // NoCa would leave BasicConstraints out, and SPIFFE wants it there.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    if let Some(instance) = instance {
        let value = instance_extension_der(instance);
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(INSTANCE_OID, value));
    }
    if holder == Holder::App {
        let value = APP_EXTENSION_DER.to_vec();
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(APP_OID, value));
    }
    Ok((params.signed_by(key, issuer)?.der().clone(), serial))
}

/// What root and issuers have in common. No name constraints: webpki refuses any chain with a URI one.
fn authority(trust_domain: &TrustDomain, name: &str, validity: Validity) -> Result<CertificateParams, ProfileError> {
    let (mut params, _) = blank(validity)?;
    params.distinguished_name.push(DnType::OrganizationName, "Postern");
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(format!("spiffe://{trust_domain}"))?)];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// rcgen's defaults are a subject, a serial made from the key and validity from 1975 to 4096: all set anew.
fn blank(validity: Validity) -> Result<(CertificateParams, [u8; SERIAL_LEN]), ProfileError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    let serial = serial()?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok((params, serial))
}

fn serial() -> Result<[u8; SERIAL_LEN], ProfileError> {
    let mut serial = [0; SERIAL_LEN];
    rand::fill(&mut serial).map_err(|_| ProfileError::Random)?;
    Ok(serial)
}

/// As `openssl x509 -serial` shows it, and without the zero that DER puts before a high bit.
pub(crate) fn serial_shown(serial: &[u8]) -> String {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    hex(serial.get(zeros..).unwrap_or_default())
}

fn date(time: UnixTime) -> Result<OffsetDateTime, ProfileError> {
    let out_of_range = || ProfileError::Time(time.as_secs());
    let seconds = i64::try_from(time.as_secs()).map_err(|_| out_of_range())?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| out_of_range())
}

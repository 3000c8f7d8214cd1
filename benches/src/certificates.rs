//! A root, an issuing intermediate and leaves, all P-256: the hierarchy of DESIGN section 2.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_identity::TrustDomain;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

/// Longer than any bench runs.
const LIFE: Duration = Duration::from_hours(24);
const BACKDATE: Duration = Duration::from_mins(1);

/// A root and the intermediate that signs leaves.
pub struct Authority {
    root: rcgen::Certificate,
    intermediate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
    now: Duration,
}

/// A leaf with its chain (without the root) and its key.
pub struct Leaf {
    certificate: rcgen::Certificate,
    intermediate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    /// New keys and certificates, valid now.
    pub fn new(trust_domain: &TrustDomain) -> Result<Self, rcgen::Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let root_key = KeyPair::generate()?;
        let root_params = authority(trust_domain, "root", 1, now)?;
        let root = root_params.self_signed(&root_key)?;
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate()?;
        let params = authority(trust_domain, "issuer", 0, now)?;
        let intermediate = params.signed_by(&key, &root_issuer)?;
        Ok(Self {
            root,
            intermediate,
            issuer: Issuer::new(params, key),
            now,
        })
    }

    /// An X.509-SVID. With `name`, also a subject and a DNS name, which is what HAProxy can compare.
    pub fn leaf(&self, spiffe_id: &str, name: Option<&str>) -> Result<Leaf, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = blank(self.now)?;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(spiffe_id)?)];
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
            params
                .subject_alt_names
                .push(SanType::DnsName(Ia5String::try_from(name)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(Leaf {
            certificate: params.signed_by(&key, &self.issuer)?,
            intermediate: self.intermediate.clone(),
            key,
        })
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// The root for a `ca-file`.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// When the certificates were made: a time at which all of them are valid.
    #[must_use]
    pub fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(self.now)
    }
}

impl Leaf {
    /// As a peer presents it: leaf, intermediate.
    #[must_use]
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone(), self.intermediate.der().clone()]
    }

    /// Its private key.
    #[must_use]
    pub fn key_pkcs8(&self) -> Vec<u8> {
        self.key.serialize_der()
    }

    /// Chain and key in one PEM file, as HAProxy's `crt` takes it.
    #[must_use]
    pub fn pem_with_key(&self) -> String {
        [
            self.certificate.pem(),
            self.intermediate.pem(),
            self.key.serialize_pem(),
        ]
        .concat()
    }
}

fn authority(
    trust_domain: &TrustDomain,
    name: &str,
    path_len: u8,
    now: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = blank(now)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(format!("spiffe://{trust_domain}"))?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn blank(now: Duration) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(now.saturating_sub(BACKDATE))?;
    params.not_after = date(now + LIFE)?;
    Ok(params)
}

fn date(since_epoch: Duration) -> Result<OffsetDateTime, rcgen::Error> {
    i64::try_from(since_epoch.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(rcgen::Error::Time)
}

//! Mints certificates as the CA does.

use postern_identity::leaf::{APP_EXTENSION_DER, APP_OID, INSTANCE_OID, instance_extension_der};
use postern_identity::{Instance, Svid, TrustBundle, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{PrivateKeyDer, UnixTime};
use time::OffsetDateTime;

use super::domain;

/// A root that signs leaves.
pub(crate) struct Authority {
    domain: TrustDomain,
    root: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::of(domain())
    }

    /// Of another trust domain.
    pub(crate) fn of(domain: TrustDomain) -> Self {
        let mut params = blank(3600);
        params.distinguished_name.push(DnType::CommonName, "root");
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        Self {
            domain,
            root,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        self.bundle_beside(1, &[])
    }

    /// Of this sequence, with the roots of others beside ours.
    pub(crate) fn bundle_beside(&self, sequence: u64, others: &[&Self]) -> TrustBundle {
        let roots = std::iter::once(self).chain(others.iter().copied());
        let roots = roots.map(|authority| authority.root.der().clone()).collect();
        TrustBundle::new(self.domain.clone(), sequence, roots, UnixTime::now())
    }

    pub(crate) fn svid(&self, id: &str, instance: Option<&str>, seconds: i64) -> Svid {
        self.made(id, instance, false, seconds)
    }

    /// `of_app`: what that workload's app has from the Workload API.
    pub(crate) fn made(&self, id: &str, instance: Option<&str>, of_app: bool, seconds: i64) -> Svid {
        let mut params = blank(seconds);
        params.subject_alt_names = vec![uri(id)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(instance) = instance {
            let value = instance_extension_der(&Instance::parse(instance).unwrap());
            params.custom_extensions = vec![CustomExtension::from_oid_content(INSTANCE_OID, value)];
        }
        if of_app {
            let mark = CustomExtension::from_oid_content(APP_OID, APP_EXTENSION_DER.to_vec());
            params.custom_extensions.push(mark);
        }
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Svid::new(vec![leaf.der().clone()], key).unwrap()
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

fn blank(seconds: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::now_utc() - time::Duration::seconds(60);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    params
}

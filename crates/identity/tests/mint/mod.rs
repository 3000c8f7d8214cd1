//! A CA that signs anything. rcgen writes the frame of a certificate; each extension is written here, byte by byte,
//! because the interesting ones are those that no library agrees to write.
#![allow(dead_code, unreachable_pub, reason = "each test crate mints something else")]

use std::sync::LazyLock;
use std::time::Duration;

use postern_identity::{BundleSet, Trust, TrustBundle, TrustDomain};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use time::OffsetDateTime;

pub mod der;

pub const USAGE: &[u64] = &[2, 5, 29, 15];
pub const SAN: &[u64] = &[2, 5, 29, 17];
pub const BASIC: &[u64] = &[2, 5, 29, 19];
pub const NAMES: &[u64] = &[2, 5, 29, 30];
pub const EXTENDED: &[u64] = &[2, 5, 29, 37];
/// Somebody else's private extension.
pub const FOREIGN: &[u64] = &[1, 3, 6, 1, 4, 1, 99_999, 1];

/// Bits of KeyUsage, as in its first byte.
pub const DIGITAL_SIGNATURE: u8 = 0x80;
pub const KEY_CERT_SIGN: u8 = 0x04;
pub const CRL_SIGN: u8 = 0x02;

/// The test's clock, stopped: what certificates are dated by and verified at.
pub fn now() -> UnixTime {
    static NOW: LazyLock<UnixTime> = LazyLock::new(UnixTime::now);
    *NOW
}

/// The clock, `seconds` from now.
pub fn at(seconds: i64) -> UnixTime {
    let seconds = now().as_secs().checked_add_signed(seconds).unwrap();
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// What a certificate is to say.
#[derive(Clone)]
pub struct Form {
    /// The common name; empty: an empty subject.
    name: String,
    extensions: Vec<(&'static [u64], bool, Vec<u8>)>,
    /// First and last second of validity, from now.
    valid: (i64, i64),
}

/// A leaf as the CA issues it, without the instance.
pub fn leaf(id: &str) -> Form {
    Form {
        name: String::new(),
        extensions: vec![
            (SAN, true, der::san(&[der::uri(id)])),
            (BASIC, true, der::basic(false, None)),
            (USAGE, true, der::usage(DIGITAL_SIGNATURE)),
            (EXTENDED, false, der::extended(&[der::SERVER_AUTH, der::CLIENT_AUTH])),
        ],
        valid: (-60, 3_600),
    }
}

/// A signing certificate.
pub fn authority(name: &str, path_len: Option<u8>) -> Form {
    Form {
        name: name.to_owned(),
        extensions: vec![
            (BASIC, true, der::basic(true, path_len)),
            (USAGE, true, der::usage(KEY_CERT_SIGN | CRL_SIGN)),
        ],
        valid: (-3_600, 86_400),
    }
}

impl Form {
    pub fn without(mut self, oid: &[u64]) -> Self {
        self.extensions.retain(|(present, ..)| *present != oid);
        self
    }
    /// One more extension, also if it is there.
    pub fn and(mut self, oid: &'static [u64], critical: bool, value: impl Into<Vec<u8>>) -> Self {
        self.extensions.push((oid, critical, value.into()));
        self
    }
    pub fn with(self, oid: &'static [u64], critical: bool, value: impl Into<Vec<u8>>) -> Self {
        self.without(oid).and(oid, critical, value)
    }
    /// A SAN of these GeneralNames.
    pub fn named(self, names: &[Vec<u8>]) -> Self {
        self.with(SAN, true, der::san(names))
    }
    pub fn valid(mut self, from: i64, to: i64) -> Self {
        self.valid = (from, to);
        self
    }
    pub fn subject(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if !self.name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, self.name.as_str());
        }
        params.not_before = date(self.valid.0);
        params.not_after = date(self.valid.1);
        params.custom_extensions = self
            .extensions
            .iter()
            .map(|(oid, critical, value)| {
                let mut extension = CustomExtension::from_oid_content(oid, value.clone());
                extension.set_criticality(*critical);
                extension
            })
            .collect();
        params
    }
}

fn date(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at(seconds).as_secs().try_into().unwrap()).unwrap()
}

/// A certificate and its key, which signs whether it may or not.
pub struct Signer {
    pub der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A self-signed certificate.
pub fn root(form: &Form) -> Signer {
    root_with(form, KeyPair::generate().unwrap())
}

/// A self-signed certificate of this key.
pub fn root_with(form: &Form, key: KeyPair) -> Signer {
    let params = form.params();
    let der = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    Signer { der, issuer }
}

impl Signer {
    /// A certificate with a key of its own.
    pub fn sign(&self, form: &Form) -> Signer {
        let key = KeyPair::generate().unwrap();
        let der = self.sign_for(form, &key);
        let issuer = Issuer::new(form.params(), key);
        Signer { der, issuer }
    }
    /// A certificate for this public key.
    pub fn sign_for(&self, form: &Form, key: &impl PublicKeyData) -> CertificateDer<'static> {
        form.params().signed_by(key, &self.issuer).unwrap().der().clone()
    }
    pub fn key(&self) -> &KeyPair {
        self.issuer.key()
    }
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key().serialize_der().into())
    }
}

/// Trust in these roots, each a bundle of one.
pub fn trust(bundles: &[(&str, &[&Signer])]) -> Trust {
    let mut set = BundleSet::default();
    for (domain, roots) in bundles {
        set = set.with(bundle(domain, 1, roots));
    }
    Trust {
        revision: 1,
        bundles: set,
        ..Trust::default()
    }
}

pub fn bundle(domain: &str, sequence: u64, roots: &[&Signer]) -> TrustBundle {
    let domain = TrustDomain::parse(domain).unwrap();
    let roots = roots.iter().map(|root| root.der.clone()).collect();
    TrustBundle::new(domain, sequence, roots, now())
}

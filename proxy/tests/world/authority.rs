//! Mints certificates as the CA does, and as it never would.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_identity::leaf::{INSTANCE_OID, instance_extension_der};
use postern_identity::tls::{self, client_config, provider};
use postern_identity::{BundleSet, Instance, SharedTrust, Svid, Trust, TrustBundle, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use time::OffsetDateTime;

/// Root, intermediate, leaves: P-256, as in DESIGN section 2.
pub struct Authority {
    domain: TrustDomain,
    root: rcgen::Certificate,
    intermediate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
    trust: SharedTrust,
    revision: Cell<u64>,
}

/// What a peer presents: chain and key, whatever they are worth.
pub struct Card {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

pub fn in_seconds(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::seconds(seconds)
}

impl Authority {
    pub fn new(domain: &str) -> Self {
        let domain = TrustDomain::parse(domain).unwrap();
        let root_key = KeyPair::generate().unwrap();
        let root_params = authority(&domain, "root", 1);
        let root = root_params.self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().unwrap();
        let params = authority(&domain, "issuer", 0);
        let intermediate = params.signed_by(&key, &root_issuer).unwrap();
        let made = Self {
            domain,
            root,
            intermediate,
            issuer: Issuer::new(params, key),
            trust: SharedTrust::default(),
            revision: Cell::new(0),
        };
        made.publish(|_| {});
        made
    }

    /// The root, in DER.
    pub fn root(&self) -> Vec<u8> {
        self.root.der().to_vec()
    }

    pub fn bundle(&self) -> TrustBundle {
        let roots = vec![self.root.der().clone()];
        TrustBundle::new(self.domain.clone(), 1, roots, UnixTime::now())
    }

    /// What peers of this authority believe; shared by its clients, and copied into proxies.
    pub fn trust(&self) -> Trust {
        (**self.trust.load()).clone()
    }

    fn publish(&self, change: impl FnOnce(&mut Trust)) {
        self.revision.set(self.revision.get() + 1);
        let mut trust = Trust {
            revision: self.revision.get(),
            bundles: BundleSet::default().with(self.bundle()),
            ..Trust::default()
        };
        change(&mut trust);
        self.trust.store(Arc::new(trust));
    }

    /// A certificate as `change` wants it.
    pub fn card(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Card {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf(id);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Card {
            chain: vec![certificate.der().clone(), self.intermediate.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }

    pub fn svid(&self, id: &str, instance: Option<&str>) -> Svid {
        self.svid_for(id, instance, 3_600)
    }

    /// One that ends in `seconds`.
    pub fn svid_for(&self, id: &str, instance: Option<&str>, seconds: i64) -> Svid {
        let card = self.card(id, |params| {
            params.not_after = in_seconds(seconds);
            if let Some(instance) = instance {
                let value = instance_extension_der(&Instance::parse(instance).unwrap());
                params.custom_extensions = vec![CustomExtension::from_oid_content(INSTANCE_OID, value)];
            }
        });
        Svid::new(card.chain, card.key).unwrap()
    }

    /// The config of one of several that have an ID.
    pub fn client_with(&self, id: &str, instance: &str, alpn: &[u8]) -> Arc<ClientConfig> {
        let svid = self.svid(id, Some(instance));
        client_config(Some(&svid), Arc::clone(&self.trust), &[alpn]).unwrap()
    }

    /// A good client's config.
    pub fn client(&self, id: &str, alpn: &[u8]) -> Arc<ClientConfig> {
        let svid = self.svid(id, None);
        let offered: &[&[u8]] = if alpn.is_empty() { &[] } else { &[alpn] };
        client_config(Some(&svid), Arc::clone(&self.trust), offered).unwrap()
    }

    /// A good server's config.
    pub fn server(&self, id: &str, instance: Option<&str>, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
        let svid = self.svid(id, instance);
        tls::server_config(&svid, Arc::clone(&self.trust), tls::ClientAuth::Required, alpn).unwrap()
    }

    /// Whose trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The root's own trust as a set to put another's bundle into.
    pub fn shared_trust(&self) -> SharedTrust {
        Arc::new(ArcSwap::from_pointee(self.trust()))
    }
}

/// A client that presents anything, or nothing, and believes anybody.
pub fn hostile_client(card: Option<Card>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let resolver: Arc<dyn ResolvesClientCert> = match card {
        None => Arc::new(Shows(None)),
        Some(Card { chain, key }) => {
            let key = provider().key_provider.load_private_key(key).unwrap();
            Arc::new(Shows(Some(Arc::new(CertifiedKey::new(chain, key)))))
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // Whatever tickets there were, it would use them.
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    Arc::new(config)
}

#[derive(Debug)]
struct Shows(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

fn leaf(id: &str) -> CertificateParams {
    let mut params = blank();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn authority(domain: &TrustDomain, name: &str, path_len: u8) -> CertificateParams {
    let mut params = blank();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn blank() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params.not_before = in_seconds(-60);
    params.not_after = in_seconds(3_600);
    params
}

/// A minute: what certificates are backdated by.
pub const BACKDATE: Duration = Duration::from_secs(60);

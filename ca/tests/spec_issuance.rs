//! The SPIFFE checklist, rows 17 to 26: what a certificate says, whatever its CSR asked for.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use postern_identity::leaf;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use world::{WEB, World, csr, new_key};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

mod world;

const INSTANCE: &str = "2.25.153715371.1";

fn read(der: &[u8]) -> X509Certificate<'_> {
    let (rest, cert) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    cert
}

fn uris<'a>(cert: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let san = cert.subject_alternative_name().unwrap().unwrap();
    san.value
        .general_names
        .iter()
        .map(|name| {
            if let GeneralName::URI(uri) = name {
                *uri
            } else {
                panic!("{name:?}")
            }
        })
        .collect()
}

#[tokio::test]
async fn spec_017_the_attested_identity_is_the_only_san() {
    let world = World::new().await;
    let issued = world.issue_for(csr(&new_key())).await.unwrap();
    assert_eq!(uris(&read(&issued.chain[0])), [WEB]);
}

#[tokio::test]
async fn spec_018_c_01_no_name_of_a_csr_gets_into_a_certificate() {
    let world = World::new().await;
    let key = new_key();
    let mut asked = CertificateParams::default();
    asked.distinguished_name.push(DnType::CommonName, "admin");
    asked.subject_alt_names = vec![
        SanType::URI("spiffe://cluster.local/ns/shop/sa/ledger".try_into().unwrap()),
        SanType::URI("spiffe://cluster.local/ns/shop/sa/payments".try_into().unwrap()),
        SanType::DnsName("ledger.shop".try_into().unwrap()),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::Rfc822Name("root@cluster.local".try_into().unwrap()),
    ];
    let csr = asked.serialize_request(&key).unwrap();
    let issued = world.issue_for(csr.der().to_vec()).await.unwrap();
    let cert = read(&issued.chain[0]);
    assert_eq!(uris(&cert), [WEB]);
    assert_eq!(cert.subject().iter().count(), 0);
    for word in ["admin", "ledger", "payments", "root@"] {
        assert!(
            !issued.chain[0]
                .windows(word.len())
                .any(|window| window == word.as_bytes()),
            "{word}"
        );
    }
}

#[tokio::test]
async fn spec_019_c_01_no_extension_of_a_csr_gets_into_a_certificate() {
    let world = World::new().await;
    let (plain, bold) = (new_key(), new_key());
    let mut asked = CertificateParams::default();
    asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    asked.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    asked.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::Any];
    let mut instance = CustomExtension::from_oid_content(leaf::INSTANCE_OID, b"\x0c\x05other".to_vec());
    instance.set_criticality(true);
    asked.custom_extensions = vec![
        instance,
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], vec![5, 0]),
    ];
    let bold = asked.serialize_request(&bold).unwrap().der().to_vec();
    let (plain, bold) = (
        world.issue_for(csr(&plain)).await.unwrap(),
        world.issue_for(bold).await.unwrap(),
    );
    let extensions = |der: &[u8]| -> Vec<(String, bool, Vec<u8>)> {
        let varies = ["2.5.29.14"]; // The subject key identifier.
        let cert = read(der);
        let shown = cert
            .extensions()
            .iter()
            .map(|e| (e.oid.to_id_string(), e.critical, e.value.to_vec()));
        shown.filter(|(oid, ..)| !varies.contains(&oid.as_str())).collect()
    };
    assert_eq!(extensions(&plain.chain[0]), extensions(&bold.chain[0]));
    assert_eq!(read(&bold.chain[0]).extensions().len(), 7);
}

#[tokio::test]
async fn spec_021_the_subject_is_empty_and_the_san_critical() {
    let world = World::new().await;
    let issued = world.issue_for(csr(&new_key())).await.unwrap();
    let cert = read(&issued.chain[0]);
    assert_eq!(cert.subject().iter().count(), 0);
    assert!(cert.subject_alternative_name().unwrap().unwrap().critical);
}

#[tokio::test]
async fn spec_022_to_024_a_leaf_is_no_ca_and_signs_and_serves_and_calls() {
    let world = World::new().await;
    let issued = world.issue_for(csr(&new_key())).await.unwrap();
    let cert = read(&issued.chain[0]);
    // 22: there, and cA=FALSE.
    assert!(!cert.basic_constraints().unwrap().unwrap().value.ca);
    // 23
    let usage = cert.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature and nothing else");
    // 24
    let extended = cert.extended_key_usage().unwrap().unwrap();
    assert!(!extended.critical);
    assert!(extended.value.server_auth && extended.value.client_auth);
    assert!(!extended.value.any && !extended.value.code_signing && extended.value.other.is_empty());
    // The instance.
    let instance = cert
        .extensions()
        .iter()
        .find(|e| e.oid.to_id_string() == INSTANCE)
        .unwrap();
    assert!(!instance.critical);
    assert_eq!(instance.value, b"\x0c\x05web-1");
}

#[tokio::test]
async fn spec_025_validity_is_backdated_by_a_minute_and_ends_after_the_configured_life() {
    let world = World::new().await;
    let before = UnixTime::now().as_secs();
    let issued = world.first_issue(WEB, "web-1").await;
    let after = UnixTime::now().as_secs();
    let leaf = issued.svid.leaf();
    assert!((before - 60..=after - 60).contains(&leaf.not_before.as_secs()));
    assert!((before + 3600..=after + 3600).contains(&leaf.not_after.as_secs()));
}

#[tokio::test]
async fn spec_025_no_leaf_outlives_its_issuer() {
    let world = World::with(|making, _| making.issuer_life = Duration::from_secs(1800)).await;
    let issued = world.issue_for(csr(&new_key())).await.unwrap();
    let (leaf, issuer) = (read(&issued.chain[0]), read(&issued.chain[1]));
    assert_eq!(leaf.validity().not_after, issuer.validity().not_after);
    assert!(leaf.validity().not_before >= issuer.validity().not_before);
}

#[tokio::test]
async fn spec_026_serials_are_random_and_positive_also_for_one_key() {
    let mut world = World::new().await;
    let key = new_key();
    let mut serials = Vec::new();
    for _ in 0..3 {
        let issued = world.issue_for(csr(&key)).await.unwrap();
        let cert = read(&issued.chain[0]);
        let raw = cert.raw_serial().to_vec();
        assert!(raw.len() <= 20 && raw.len() >= 14, "{raw:02x?}");
        assert_eq!(raw[0] & 0x80, 0, "positive");
        serials.push(raw);
        // The memory of keys does not outlive the process; the randomness of serials must not rest on it.
        world = world.restarted().await;
    }
    assert!(serials[0] != serials[1] && serials[1] != serials[2] && serials[0] != serials[2]);
}

#[tokio::test]
async fn spec_026_key_identifiers_link_leaf_and_issuer() {
    let world = World::new().await;
    let issued = world.issue_for(csr(&new_key())).await.unwrap();
    let key_id = |der: &[u8], authority: bool| -> Vec<u8> {
        let cert = read(der);
        let found = cert
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) if !authority => Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) if authority => {
                    Some(id.key_identifier.as_ref()?.0.to_vec())
                }
                _ => None,
            });
        found.unwrap()
    };
    assert_eq!(key_id(&issued.chain[0], true), key_id(&issued.chain[1], false));
    assert!(!key_id(&issued.chain[0], false).is_empty());
}

#[tokio::test]
async fn spec_027_the_certificate_has_exactly_the_proven_key() {
    let world = World::new().await;
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let issued = world.issue_for(csr(&key)).await.unwrap();
        assert_eq!(read(&issued.chain[0]).public_key().raw, key.subject_public_key_info());
        leaf::inspect(&CertificateDer::from(issued.chain[0].clone())).unwrap();
    }
}

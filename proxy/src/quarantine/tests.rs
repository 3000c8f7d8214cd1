#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use std::collections::BTreeSet;

use postern_identity::quarantine::{Subject, signing_input};
use postern_identity::{BundleSet, SpiffeId, Trust, TrustBundle};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey as _};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;

use super::*;

/// A root and an issuer under it.
struct Ca {
    root: CertificateDer<'static>,
    issuer: CertificateDer<'static>,
    key: KeyPair,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

impl Ca {
    fn new() -> Self {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = params("root").self_signed(&root_key).unwrap();
        let issuer = params("issuer")
            .signed_by(&key, &Issuer::from_ca_cert_der(root.der(), &root_key).unwrap())
            .unwrap();
        Self {
            root: root.der().clone(),
            issuer: issuer.der().clone(),
            key,
        }
    }

    fn signs(&self, version: u64, ids: &[&str]) -> wire::Quarantine {
        let subjects: BTreeSet<Subject> = ids.iter().map(|id| Subject::Id(SpiffeId::parse(id).unwrap())).collect();
        let document = QuarantineSet::new(version, subjects).to_document();
        let signature = self.key.sign(&signing_input(&domain(), &document)).unwrap();
        wire::Quarantine {
            version,
            signed: Some(postern_api::ca::v1::SignedQuarantine {
                document,
                signature,
                signer_chain: vec![self.issuer.to_vec()],
            }),
            ..wire::Quarantine::default()
        }
    }
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn under(ca: &Ca) -> Shared {
    let shared = Shared::new(mpsc::channel(1).0);
    let bundle = TrustBundle::new(domain(), 1, vec![ca.root.clone()], UnixTime::now());
    shared.trust.store(Arc::new(Trust {
        bundles: BundleSet::default().with(bundle),
        ..Trust::default()
    }));
    shared
}

fn taken(shared: &Shared, message: &wire::Quarantine) -> Result<(), String> {
    take(shared, &Metrics::default(), &domain(), message, UnixTime::now())
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn cut_off(shared: &Shared) -> Vec<String> {
    let held = shared.trust.load().cut_off();
    held.iter().map(ToString::to_string).collect()
}

#[test]
fn quarantine_never_goes_back() {
    let ca = Ca::new();
    let shared = under(&ca);
    taken(&shared, &ca.signs(2, &[WEB])).unwrap();
    let why = taken(&shared, &ca.signs(1, &[])).unwrap_err();
    assert!(why.contains("older than 2"), "{why}");
    assert_eq!(cut_off(&shared), [WEB]);
    // Said again under another signature: nothing new.
    taken(&shared, &ca.signs(2, &[WEB])).unwrap();
    taken(&shared, &ca.signs(3, &[])).unwrap();
    assert!(cut_off(&shared).is_empty());
}

#[test]
fn what_control_forged_shortened_or_made_up_changes_nothing() {
    let (ca, other) = (Ca::new(), Ca::new());
    let shared = under(&ca);
    taken(&shared, &ca.signs(2, &[WEB, CART])).unwrap();
    let mut shortened = ca.signs(2, &[WEB, CART]);
    let signed = shortened.signed.as_mut().unwrap();
    signed.document = ca.signs(3, &[WEB]).signed.unwrap().document;
    assert!(taken(&shared, &shortened).is_err());
    assert!(taken(&shared, &other.signs(3, &[])).is_err());
    let unsigned = wire::Quarantine {
        version: 9,
        spiffe_ids: vec![WEB.to_owned()],
        ..wire::Quarantine::default()
    };
    assert!(taken(&shared, &unsigned).is_err());
    // A control that has heard of nobody does not say that there is nobody.
    let silent = wire::Quarantine {
        version: 9,
        ..wire::Quarantine::default()
    };
    taken(&shared, &silent).unwrap();
    assert_eq!(cut_off(&shared), [CART, WEB]);
}

//! When an SVID is renewed before half of its life is over.
#![allow(clippy::unwrap_used)]

use postern_identity::BundleSet;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::drain::Drain;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

struct Root {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// Each has a name of its own, as our CA's have.
fn root(name: &str) -> Root {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local".try_into().unwrap())];
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Root {
        certificate,
        issuer: Issuer::new(params, key),
    }
}

fn bundle(sequence: u64, root: &Root) -> TrustBundle {
    TrustBundle::new(domain(), sequence, vec![root.certificate.clone()], UnixTime::now())
}

fn issued(root: &Root, issuer_epoch: u64) -> Issued {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
    let leaf = params.signed_by(&key, &root.issuer).unwrap().der().clone();
    Issued {
        svid: Svid::new(vec![leaf], PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap(),
        bundle: bundle(1, root),
        issuer_epoch,
        quarantine: None,
    }
}

fn trust(root: &Root) -> Trust {
    Trust {
        bundles: BundleSet::default().with(bundle(1, root)),
        ..Trust::default()
    }
}

#[test]
fn an_svid_that_is_behind_is_asked_for_again_within_half_a_minute_but_not_for_ever() {
    let mut behind = Behind::default();
    assert_eq!(behind.again_after(false, 0.5), None);
    let seconds = Duration::from_secs;
    assert_eq!(behind.again_after(true, 0.0), Some(seconds(10)));
    assert_eq!(behind.again_after(true, 1.0), Some(seconds(30)));
    assert!(behind.again_after(true, 0.5).is_some());
    assert_eq!(
        behind.again_after(true, 0.5),
        None,
        "a CA that stays behind is left in peace"
    );
    assert_eq!(behind.again_after(false, 0.5), None);
    assert!(behind.again_after(true, 0.5).is_some(), "counted anew");
}

#[tokio::test]
async fn an_svid_of_an_older_issuer_than_announced_or_under_a_root_that_left_is_renewed_long_before_half_of_its_life() {
    let (old, new) = (root("old"), root("new"));
    let held = issued(&old, 1);
    assert!(is_believed(&held.svid, &trust(&old)) && !is_believed(&held.svid, &trust(&new)));
    let (announce, epoch) = watch::channel(1);
    let shared = Arc::new(Shared::new(tokio::sync::mpsc::channel(1).0));
    let mut keeper = Keeper {
        ca: String::new(),
        source: Source::JoinToken(PathBuf::new()),
        trust_domain: domain(),
        shared: Arc::clone(&shared),
        metrics: Arc::default(),
        status: Arc::new(Status::new(Arc::clone(&shared), domain(), Drain::new().1)),
        epoch,
    };
    shared.change_trust(|_| Some(trust(&old)));
    let (wait, mut behind) = (Duration::from_millis(200), Behind::default());
    assert!(
        tokio::time::timeout(wait, keeper.until_due(&held, &mut behind))
            .await
            .is_err(),
        "nothing is due"
    );
    // Its root leaves the bundle.
    let leaves = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        shared.change_trust(|_| Some(trust(&new)));
    };
    let due = tokio::time::timeout(DISTRUST_SPREAD * 4, keeper.until_due(&held, &mut behind));
    assert!(tokio::join!(due, leaves).0.is_ok());
    // It was announced while it came from a CA that had not heard.
    shared.change_trust(|_| Some(trust(&old)));
    announce.send_replace(2);
    let longest = BEHIND_WAIT + BEHIND_SPREAD + Duration::from_secs(5);
    let mut behind = Behind::default();
    let due = tokio::time::timeout(longest, keeper.until_due(&held, &mut behind));
    assert!(due.await.is_ok());
}

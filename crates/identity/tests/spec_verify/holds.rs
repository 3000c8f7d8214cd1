//! Row 57: what a connection was admitted on, asked again while it lives; and those who are cut off.

use postern_identity::bundle::fingerprint;
use postern_identity::leaf::{INSTANCE_OID, instance_extension_der};
use postern_identity::{Instance, SpiffeId, VerifyError};

use super::{WEB, World, chain, judge};
use crate::mint;

#[test]
fn spec_057_a_peer_holds_until_it_expires_or_its_root_is_withdrawn() {
    let (old, new) = (World::new(), World::new());
    let chain = chain(&[&old.issuer.sign(&mint::leaf(WEB)), &old.issuer]);
    let both = mint::trust(&[("cluster.local", &[&old.root, &new.root])]);
    let peer = judge(&chain, &both).unwrap();
    assert_eq!(*peer.anchor(), fingerprint(&old.root.der));
    peer.still_holds(&both, mint::now()).unwrap();
    peer.still_holds(&mint::trust(&[("cluster.local", &[&old.root])]), mint::now())
        .unwrap();
    // To the last second, and no longer.
    peer.still_holds(&both, peer.not_after()).unwrap();
    let late = peer.still_holds(&both, mint::at(3_601)).unwrap_err();
    assert!(matches!(
        late,
        VerifyError::Expired {
            which: "certificate",
            ..
        }
    ));
    for (trust, reason) in [
        (mint::trust(&[("cluster.local", &[&new.root])]), "root_withdrawn"),
        (mint::trust(&[("cluster.local", &[])]), "empty_bundle"),
        (
            mint::trust(&[("elsewhere.example", &[&old.root])]),
            "unknown_trust_domain",
        ),
    ] {
        assert_eq!(peer.still_holds(&trust, mint::now()).unwrap_err().reason(), reason);
    }
}

#[test]
fn the_quarantined_are_refused_by_id_and_by_instance() {
    let world = World::new();
    let instance = Instance::parse("web-1").unwrap();
    let value = instance_extension_der(&instance);
    let form = mint::leaf(WEB).and(INSTANCE_OID, false, value);
    let chain = chain(&[&world.issuer.sign(&form), &world.issuer]);
    let peer = judge(&chain, &world.trust).unwrap();
    let (mut by_id, mut by_instance) = (world.trust.clone(), world.trust.clone());
    by_id.quarantined_ids.insert(SpiffeId::parse(WEB).unwrap());
    by_instance.quarantined_instances.insert(instance);
    for trust in [by_id, by_instance] {
        assert_eq!(judge(&chain, &trust).unwrap_err().reason(), "quarantined");
        assert_eq!(
            peer.still_holds(&trust, mint::now()).unwrap_err().reason(),
            "quarantined"
        );
    }
    peer.still_holds(&world.trust, mint::now()).unwrap();
    // The others of its ID, and those without an instance.
    let mut other = world.trust.clone();
    other.quarantined_instances.insert(Instance::parse("web-2").unwrap());
    judge(&chain, &other).unwrap();
    peer.still_holds(&other, mint::now()).unwrap();
}

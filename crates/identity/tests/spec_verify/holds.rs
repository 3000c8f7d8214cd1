//! Row 57: what a connection was admitted on, asked again while it lives.

use postern_identity::VerifyError;
use postern_identity::bundle::fingerprint;

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

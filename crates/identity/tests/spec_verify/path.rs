//! Rows 44 to 54: the path above the leaf, and the bundle that it must end in.

use std::time::{Duration, Instant};

use postern_identity::leaf::{INSTANCE_OID, LeafError, instance_extension_der};
use postern_identity::verify::MAX_CHAIN;
use postern_identity::{Expected, Instance, SpiffeId, Trust, VerifyError};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;

use super::{WEB, World, chain, judge, judge_at};
use crate::mint::der::{self, basic, usage};
use crate::mint::{self, BASIC, CRL_SIGN, FOREIGN, Form, KEY_CERT_SIGN, NAMES, Signer, USAGE, authority};

/// A leaf under an issuer of this form, under a root of that form.
fn under(root: &Form, issuer: &Form) -> (Vec<CertificateDer<'static>>, Trust) {
    let root = mint::root(root);
    let issuer = root.sign(issuer);
    let leaf = issuer.sign(&mint::leaf(WEB));
    (chain(&[&leaf, &issuer]), mint::trust(&[("cluster.local", &[&root])]))
}

/// `count` authorities, each signed by the one before; the first by `root`.
fn descent(root: &Signer, count: usize) -> Vec<Signer> {
    let mut signers: Vec<Signer> = Vec::new();
    for i in 0..count {
        let form = authority(&format!("authority {i}"), None);
        signers.push(signers.last().unwrap_or(root).sign(&form));
    }
    signers
}

#[test]
fn spec_044_a_leaf_holds_from_its_first_second_to_its_last() {
    let world = World::new();
    let leaf = world.issuer.sign(&mint::leaf(WEB).valid(10, 20));
    let chain = chain(&[&leaf, &world.issuer]);
    let verdict = |seconds| judge_at(&chain, &world.trust, mint::at(seconds));
    assert!(matches!(
        verdict(9),
        Err(VerifyError::NotYetValid {
            which: "certificate",
            ..
        })
    ));
    verdict(10).unwrap();
    verdict(20).unwrap();
    assert!(matches!(
        verdict(21),
        Err(VerifyError::Expired {
            which: "certificate",
            ..
        })
    ));
}

#[test]
fn spec_044_an_intermediate_holds_from_its_first_second_to_its_last() {
    let (chain, trust) = under(&authority("root", None), &authority("issuer", None).valid(10, 20));
    let verdict = |seconds| judge_at(&chain, &trust, mint::at(seconds));
    assert!(matches!(
        verdict(9),
        Err(VerifyError::NotYetValid {
            which: "certificate",
            ..
        })
    ));
    assert!(matches!(
        verdict(21),
        Err(VerifyError::Expired {
            which: "certificate",
            ..
        })
    ));
    verdict(10).unwrap();
    // A connection must not outlive the intermediate.
    assert_eq!(verdict(20).unwrap().not_after(), mint::at(20));
}

#[test]
fn spec_044_a_validity_that_ends_before_it_begins_is_refused() {
    let world = World::new();
    let error = world.leaf_error(&mint::leaf(WEB).valid(60, 59));
    assert_eq!(error, LeafError::Validity);
}

#[test]
fn spec_045_an_anchor_is_judged_at_the_handshake_too() {
    let (chain, trust) = under(&authority("root", None).valid(10, 20), &authority("issuer", None));
    let verdict = |seconds| judge_at(&chain, &trust, mint::at(seconds));
    assert!(matches!(
        verdict(9),
        Err(VerifyError::NotYetValid { which: "root", .. })
    ));
    verdict(10).unwrap();
    let peer = verdict(20).unwrap();
    assert!(matches!(verdict(21), Err(VerifyError::Expired { which: "root", .. })));
    // And on the connection.
    peer.still_holds(&trust, mint::at(20)).unwrap();
    assert!(matches!(
        peer.still_holds(&trust, mint::at(21)),
        Err(VerifyError::Expired { .. })
    ));
}

#[test]
fn spec_045_a_root_renewed_with_its_key_carries_on() {
    let key = KeyPair::generate().unwrap();
    let again = KeyPair::from_pkcs8_pem_and_sign_algo(&key.serialize_pem(), &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let old = mint::root_with(&authority("root", None).valid(-60, 20), key);
    let new = mint::root_with(&authority("root", None).valid(-60, 86_400), again);
    let issuer = old.sign(&authority("issuer", None));
    let chain = chain(&[&issuer.sign(&mint::leaf(WEB)), &issuer]);
    for roots in [[&old, &new], [&new, &old]] {
        let trust = mint::trust(&[("cluster.local", &roots)]);
        judge_at(&chain, &trust, mint::at(20)).unwrap();
        let peer = judge_at(&chain, &trust, mint::at(21)).unwrap();
        assert_eq!(*peer.anchor(), postern_identity::bundle::fingerprint(&new.der));
        assert_eq!(peer.not_after(), mint::at(3_600));
    }
}

#[test]
fn spec_046_an_intermediate_that_may_not_sign_is_refused() {
    let issuer = || authority("issuer", None);
    for form in [
        issuer().with(BASIC, true, basic(false, None)),
        issuer().without(BASIC),
        issuer().without(USAGE),
        issuer().with(USAGE, true, usage(CRL_SIGN)),
        issuer().with(USAGE, true, [usage(KEY_CERT_SIGN), usage(CRL_SIGN)].concat()),
        issuer().with(USAGE, true, usage(mint::DIGITAL_SIGNATURE)),
        issuer().and(USAGE, true, usage(KEY_CERT_SIGN)),
        issuer().with(BASIC, true, [basic(true, None), vec![0]].concat()),
    ] {
        let (chain, trust) = under(&authority("root", None), &form);
        let error = judge(&chain, &trust).unwrap_err();
        assert!(
            matches!(error, VerifyError::Authority(_) | VerifyError::Chain(_)),
            "{error:?}"
        );
    }
    let (chain, trust) = under(&authority("root", None), &issuer());
    judge(&chain, &trust).unwrap();
}

#[test]
fn spec_046_a_workload_signs_for_nobody() {
    let world = World::new();
    let workload = world
        .issuer
        .sign(&mint::leaf("spiffe://cluster.local/ns/shop/sa/mallory").subject("mallory"));
    let forged = workload.sign(&mint::leaf(WEB));
    let error = judge(&chain(&[&forged, &workload, &world.issuer]), &world.trust).unwrap_err();
    assert_eq!(error.reason(), "bad_authority");
}

#[test]
fn spec_046_path_length_bounds_the_path_wherever_it_is_set() {
    for (on_root, on_first, good) in [
        (None, None, true),
        (Some(2), Some(1), true),
        (Some(1), None, false),
        (Some(0), None, false),
        (None, Some(1), true),
        (None, Some(0), false),
    ] {
        let root = mint::root(&authority("root", on_root));
        let first = root.sign(&authority("first", on_first));
        let second = first.sign(&authority("second", None));
        let chain = chain(&[&second.sign(&mint::leaf(WEB)), &second, &first]);
        let verdict = judge(&chain, &mint::trust(&[("cluster.local", &[&root])]));
        if good {
            verdict.unwrap();
        } else {
            assert_eq!(verdict, Err(VerifyError::PathLength), "{on_root:?} {on_first:?}");
        }
    }
    // A root of pathLen 0 may sign leaves.
    let root = mint::root(&authority("root", Some(0)));
    let leaf = root.sign(&mint::leaf(WEB));
    judge(&chain(&[&leaf]), &mint::trust(&[("cluster.local", &[&root])])).unwrap();
}

#[test]
fn spec_047_what_may_not_vouch_anchors_nothing() {
    let root = || authority("root", None);
    for form in [
        root().with(BASIC, true, basic(false, None)),
        root().without(BASIC),
        root().without(USAGE),
        root().with(USAGE, true, usage(CRL_SIGN)),
        root().with(USAGE, true, [usage(KEY_CERT_SIGN), usage(CRL_SIGN)].concat()),
        root().and(NAMES, true, der::uri_constraint(false, "cluster.local")),
        root().and(NAMES, false, der::uri_constraint(true, "elsewhere.example")),
        root().and(FOREIGN, false, [5, 0]).and(FOREIGN, false, [5, 0]),
        root().and(FOREIGN, true, [5, 0]),
        root().valid(-60, -1),
    ] {
        let (chain, trust) = under(&form, &authority("issuer", None));
        assert_eq!(
            judge(&chain, &trust),
            Err(VerifyError::EmptyBundle("cluster.local".into()))
        );
    }
    // A leaf in the bundle does not vouch for itself.
    let leaf = mint::root(&mint::leaf(WEB));
    let trust = mint::trust(&[("cluster.local", &[&leaf])]);
    assert_eq!(judge(&chain(&[&leaf]), &trust).unwrap_err().reason(), "empty_bundle");
}

#[test]
fn spec_048_a_root_speaks_for_its_own_trust_domain_only() {
    let (ours, theirs) = (World::new(), World::new());
    let trust = mint::trust(&[("cluster.local", &[&ours.root]), ("partner.example", &[&theirs.root])]);
    let partner = "spiffe://partner.example/ns/shop/sa/web";
    for (world, id, good) in [
        (&ours, WEB, true),
        (&theirs, partner, true),
        (&ours, partner, false),
        (&theirs, WEB, false),
    ] {
        let chain = chain(&[&world.issuer.sign(&mint::leaf(id)), &world.issuer, &world.root]);
        match judge(&chain, &trust) {
            Ok(peer) => assert!(good && peer.id().as_str() == id, "{id}"),
            Err(error) => assert!(
                !good && matches!(error.reason(), "unknown_issuer" | "bad_chain"),
                "{id}: {error}"
            ),
        }
    }
}

#[test]
fn spec_049_an_unknown_trust_domain_and_an_empty_bundle_admit_nobody() {
    let world = World::new();
    let chain = chain(&[&world.issuer.sign(&mint::leaf(WEB)), &world.issuer, &world.root]);
    let unknown = VerifyError::UnknownTrustDomain("cluster.local".into());
    assert_eq!(judge(&chain, &Trust::default()), Err(unknown.clone()));
    // A trust domain is not found by its beginning, or its end.
    for near in ["cluster.loca", "cluster.local.", "cluster", "local", "x.cluster.local"] {
        assert_eq!(
            judge(&chain, &mint::trust(&[(near, &[&world.root])])),
            Err(unknown.clone())
        );
    }
    let empty = VerifyError::EmptyBundle("cluster.local".into());
    assert_eq!(judge(&chain, &mint::trust(&[("cluster.local", &[])])), Err(empty));
}

#[test]
fn spec_049_another_root_of_the_same_name_is_another_root() {
    let (ours, theirs) = (World::new(), World::new());
    let chain = chain(&[&theirs.issuer.sign(&mint::leaf(WEB)), &theirs.issuer, &theirs.root]);
    assert_eq!(judge(&chain, &ours.trust).unwrap_err().reason(), "bad_chain");
    let own = mint::root(&mint::leaf(WEB));
    assert_eq!(
        judge(std::slice::from_ref(&own.der), &ours.trust).unwrap_err().reason(),
        "unknown_issuer"
    );
}

#[test]
fn spec_051_name_constraints_and_unknown_critical_extensions_of_an_intermediate_are_refused() {
    let issuer = || authority("issuer", None);
    for critical in [true, false] {
        for excluded in [true, false] {
            for host in ["cluster.local", "elsewhere.example"] {
                let form = issuer().and(NAMES, critical, der::uri_constraint(excluded, host));
                let (chain, trust) = under(&authority("root", None), &form);
                judge(&chain, &trust).unwrap_err();
            }
        }
    }
    let (chain, trust) = under(&authority("root", None), &issuer().and(FOREIGN, true, [5, 0]));
    judge(&chain, &trust).unwrap_err();
    let (chain, trust) = under(&authority("root", None), &issuer().and(FOREIGN, false, [5, 0]));
    judge(&chain, &trust).unwrap();
}

#[test]
fn spec_052_unordered_and_unrelated_intermediates_do_not_hide_a_path() {
    let world = World::new();
    let path = descent(&world.root, 3);
    let unrelated = mint::root(&authority("unrelated", None));
    let leaf = path[2].sign(&mint::leaf(WEB));
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]] {
        let mut chain = chain(&[&leaf, &unrelated]);
        chain.extend(order.map(|i| path[i].der.clone()));
        // The root, and something that is no certificate at all.
        chain.push(world.root.der.clone());
        judge(&chain, &world.trust).unwrap();
    }
    let mut incomplete = chain(&[&leaf, &unrelated]);
    incomplete.extend([path[2].der.clone(), path[0].der.clone()]);
    assert_eq!(judge(&incomplete, &world.trust).unwrap_err().reason(), "unknown_issuer");
}

#[test]
fn spec_052_a_bad_path_does_not_hide_a_good_one() {
    let world = World::new();
    // The same key and name, once without keyCertSign.
    let bad = world.root.sign_for(
        &authority("issuer", None).with(USAGE, true, usage(CRL_SIGN)),
        world.issuer.key(),
    );
    let leaf = world.issuer.sign(&mint::leaf(WEB)).der;
    for issuers in [[&bad, &world.issuer.der], [&world.issuer.der, &bad]] {
        judge(&[leaf.clone(), issuers[0].clone(), issuers[1].clone()], &world.trust).unwrap();
    }
    assert_eq!(judge(&[leaf, bad], &world.trust).unwrap_err().reason(), "bad_authority");
}

#[test]
fn spec_052_six_intermediates_are_the_most() {
    let world = World::new();
    for (count, good) in [(6, true), (7, false)] {
        let path = descent(&world.root, count);
        let mut chain = vec![path[count - 1].sign(&mint::leaf(WEB)).der];
        chain.extend(path.iter().rev().map(|signer| signer.der.clone()));
        let verdict = judge(&chain, &world.trust);
        assert_eq!(verdict.is_ok(), good, "{verdict:?}");
        if let Err(error) = verdict {
            assert_eq!(error, VerifyError::TooMuchWork);
        }
    }
}

#[test]
fn spec_052_a_chain_of_eight_certificates_is_looked_at_and_of_nine_not() {
    let world = World::new();
    let mut chain = chain(&[&world.issuer.sign(&mint::leaf(WEB)), &world.issuer]);
    chain.resize(MAX_CHAIN, world.root.der.clone());
    assert_eq!(chain.len(), 8);
    judge(&chain, &world.trust).unwrap();
    chain.push(world.root.der.clone());
    assert_eq!(judge(&chain, &world.trust), Err(VerifyError::ChainTooLong(9)));
}

#[test]
fn spec_052_a_maze_of_intermediates_costs_a_bounded_time() {
    let world = World::new();
    // Seven authorities of the root's own name: each may stand above each, and below the root.
    let mut chain = Vec::new();
    let twins: Vec<Signer> = (0..7).map(|_| mint::root(&authority("root", None))).collect();
    chain.push(twins[0].sign(&mint::leaf(WEB)).der);
    chain.extend(twins.iter().map(|twin| twin.der.clone()));
    let begun = Instant::now();
    assert_eq!(judge(&chain, &world.trust).unwrap_err().reason(), "chain_too_long");
    assert!(begun.elapsed() < Duration::from_secs(5), "100 signatures, twice");
}

#[test]
fn spec_054_only_the_identity_and_instance_of_a_destination_are_admitted() {
    let world = World::new();
    let value = |text: &str| instance_extension_der(&Instance::parse(text).unwrap());
    let form = mint::leaf(WEB).and(INSTANCE_OID, false, value("web-1"));
    let peer = world.judge(&form).unwrap();
    let anonymous = world.judge(&mint::leaf(WEB)).unwrap();
    let ids = |ids: &[&str]| ids.iter().map(|id| SpiffeId::parse(id).unwrap()).collect::<Vec<_>>();
    let expected = |of: &[&str], instance: Option<&str>| Expected {
        ids: ids(of),
        instance: instance.map(|text| Instance::parse(text).unwrap()),
    };
    let ledger = "spiffe://cluster.local/ns/shop/sa/ledger";
    assert!(expected(&[WEB], None).admits(&peer));
    assert!(expected(&[ledger, WEB], Some("web-1")).admits(&peer));
    assert!(!expected(&[ledger], None).admits(&peer));
    assert!(!expected(&[], None).admits(&peer));
    assert!(!expected(&[WEB], Some("web-2")).admits(&peer));
    assert!(!expected(&[WEB], Some("web-1")).admits(&anonymous));
    assert!(expected(&[WEB], None).admits(&anonymous));
}

//! The chain of bundles: who can make a link, and how far an old holder gets.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use mint::{Signer, authority, der};
use postern_identity::bundle::{BundleError, advance, signing_input};
use postern_identity::{SignedBundle, TrustBundle, TrustDomain};
use proptest::prelude::*;
use rcgen::{KeyPair, SigningKey as _};

mod mint;

const DOMAIN: &str = "cluster.local";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn domain() -> TrustDomain {
    TrustDomain::parse(DOMAIN).unwrap()
}

/// A CA: its root, and the intermediate that signs bundles.
struct Ca {
    root: Signer,
    issuer: Signer,
}

impl Ca {
    fn new(name: &str) -> Self {
        let root = mint::root(&authority(name, None));
        let issuer = root.sign(&authority(&format!("{name} issuer"), Some(0)));
        Self { root, issuer }
    }
    fn link(&self, sequence: u64, roots: &[&Signer]) -> SignedBundle {
        self.link_by(&[&self.issuer], sequence, roots)
    }
    /// Signed by the first of the chain.
    fn link_by(&self, chain: &[&Signer], sequence: u64, roots: &[&Signer]) -> SignedBundle {
        let document = mint::bundle(DOMAIN, sequence, roots).to_document();
        SignedBundle {
            signature: chain[0].key().sign(&signing_input(&domain(), &document)).unwrap(),
            document,
            signer_chain: chain.iter().map(|signer| signer.der.clone()).collect(),
        }
    }
}

fn unsigned(outcome: Result<TrustBundle, BundleError>) -> &'static str {
    match outcome {
        Err(BundleError::Unsigned { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

/// A walk of one link from `ca`'s first bundle.
fn walk(ca: &Ca, link: SignedBundle) -> Result<TrustBundle, BundleError> {
    advance(&mint::bundle(DOMAIN, 1, &[&ca.root]), &[link], mint::now())
}

#[test]
fn a_holder_of_an_old_root_walks_to_the_newest() {
    let [a, b, c] = ["a", "b", "c"].map(Ca::new);
    let links = [
        a.link(2, &[&a.root, &b.root]),
        b.link(3, &[&b.root]),
        b.link(5, &[&b.root, &c.root]),
        c.link(6, &[&c.root]),
    ];
    let first = mint::bundle(DOMAIN, 1, &[&a.root]);
    let last = advance(&first, &links, mint::now()).unwrap();
    assert_eq!((last.sequence(), last.roots()), (6, &[c.root.der.clone()][..]));
    // In pieces, it comes to the same.
    let middle = advance(&first, &links[..2], mint::now()).unwrap();
    assert_eq!(
        advance(&middle, &links, mint::now()).unwrap().to_document(),
        last.to_document()
    );
    assert_eq!(
        advance(&last, &links, mint::now()).unwrap().to_document(),
        last.to_document()
    );
    assert_eq!(
        advance(&first, &[], mint::now()).unwrap().to_document(),
        first.to_document()
    );
}

#[test]
fn a_link_cannot_be_left_out_where_the_roots_changed() {
    let [a, b, c] = ["a", "b", "c"].map(Ca::new);
    let first = mint::bundle(DOMAIN, 1, &[&a.root]);
    let links = [b.link(3, &[&b.root]), b.link(4, &[&c.root])];
    assert_eq!(
        unsigned(advance(&first, &links, mint::now())),
        "the signer's chain does not reach a root"
    );
    // And where they did not, no link is missed.
    let links = [a.link(2, &[&a.root]), a.link(9, &[&a.root, &b.root])];
    assert_eq!(advance(&first, &links[1..], mint::now()).unwrap().sequence(), 9);
}

#[test]
fn spec_065_an_older_or_equal_sequence_changes_nothing() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let current = mint::bundle(DOMAIN, 5, &[&ours.root]);
    for sequence in [0, 4, 5] {
        // Neither one that is signed by us, nor a forgery.
        for link in [
            ours.link(sequence, &[&theirs.root]),
            theirs.link(sequence, &[&theirs.root]),
        ] {
            let after = advance(&current, &[link], mint::now()).unwrap();
            assert_eq!(after.to_document(), current.to_document());
        }
    }
    assert_eq!(
        advance(&current, &[ours.link(6, &[])], mint::now()).unwrap().sequence(),
        6
    );
}

#[test]
fn of_a_chain_with_one_bad_link_nothing_is_taken() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let current = mint::bundle(DOMAIN, 1, &[&ours.root]);
    let links = [
        ours.link(2, &[&ours.root]),
        theirs.link(3, &[&theirs.root]),
        ours.link(4, &[&ours.root]),
    ];
    match advance(&current, &links, mint::now()) {
        Err(BundleError::Unsigned {
            sequence: 3,
            previous: 2,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let mut links = links.to_vec();
    links[1].document = b"{}".to_vec();
    assert!(matches!(
        advance(&current, &links, mint::now()),
        Err(BundleError::Document(_))
    ));
}

#[test]
fn a_link_that_is_not_signed_or_not_as_it_stands_is_refused() {
    let ca = Ca::new("root");
    let good = ca.link(2, &[&ca.root]);
    walk(&ca, good.clone()).unwrap();
    let mut blank = good.clone();
    blank.signature.clear();
    let mut other = good.clone();
    other.document = mint::bundle(DOMAIN, 3, &[&ca.root]).to_document();
    let mut spaced = good.clone();
    spaced.document.push(b' ');
    // Signed for another trust domain, or as a document and nothing more.
    let mut moved = good.clone();
    let elsewhere = TrustDomain::parse("elsewhere.example").unwrap();
    moved.signature = ca
        .issuer
        .key()
        .sign(&signing_input(&elsewhere, &good.document))
        .unwrap();
    let mut bare = good.clone();
    bare.signature = ca.issuer.key().sign(&good.document).unwrap();
    for link in [blank, other, spaced, moved, bare] {
        assert_eq!(unsigned(walk(&ca, link)), "the signature does not verify");
    }
}

#[test]
fn only_an_authority_under_a_root_signs_a_link() {
    let (ca, theirs) = (Ca::new("root"), Ca::new("root"));
    let roots = [&ca.root];
    let refused = |chain: &[&Signer]| unsigned(walk(&ca, ca.link_by(chain, 2, &roots)));
    // The same names, other keys.
    assert_eq!(refused(&[&theirs.issuer]), "the signer's chain does not reach a root");
    assert_eq!(refused(&[&theirs.issuer, &ca.issuer]), "the signer's chain is broken");
    // A workload, also if it is found under our issuer.
    let workload = ca.issuer.sign(&mint::leaf(WEB).subject("web"));
    assert_eq!(refused(&[&workload, &ca.issuer]), "is not a CA certificate");
    let below = workload.sign(&authority("below", None));
    assert_eq!(refused(&[&below, &workload, &ca.issuer]), "is not a CA certificate");
    let idle = ca
        .root
        .sign(&authority("idle", None).with(mint::USAGE, true, der::usage(mint::CRL_SIGN)));
    assert_eq!(refused(&[&idle]), "may not sign certificates (keyCertSign)");
    // Not now.
    for (from, to) in [(-60, -1), (60, 3_600)] {
        let issuer = ca.root.sign(&authority("issuer", None).valid(from, to));
        assert_eq!(
            refused(&[&issuer]),
            "a certificate of the signer's chain is not valid now"
        );
    }
    let mut link = ca.link(2, &roots);
    link.signer_chain.clear();
    assert_eq!(unsigned(walk(&ca, link)), "the signer's chain is empty");
    let mut link = ca.link(2, &roots);
    link.signer_chain[0] = b"garbage".as_slice().into();
    assert_eq!(unsigned(walk(&ca, link)), "a certificate is malformed");
}

#[test]
fn a_signers_chain_of_three_is_the_longest() {
    let ca = Ca::new("root");
    let first = ca.root.sign(&authority("first", None));
    let second = first.sign(&authority("second", None));
    let third = second.sign(&authority("third", None));
    let fourth = third.sign(&authority("fourth", None));
    walk(&ca, ca.link_by(&[&third, &second, &first], 2, &[&ca.root])).unwrap();
    let link = ca.link_by(&[&fourth, &third, &second, &first], 2, &[&ca.root]);
    assert_eq!(unsigned(walk(&ca, link)), "the signer's chain is too long");
}

#[test]
fn spec_045_an_expired_root_vouches_for_no_link() {
    let root = mint::root(&authority("root", None).valid(-60, 10));
    let issuer = root.sign(&authority("issuer", None));
    let ca = Ca { root, issuer };
    let current = mint::bundle(DOMAIN, 1, &[&ca.root]);
    let link = [ca.link(2, &[&ca.root])];
    advance(&current, &link, mint::at(10)).unwrap();
    let outcome = advance(&current, &link, mint::at(11));
    assert_eq!(unsigned(outcome), "the signer's chain does not reach a root");
}

#[test]
fn signers_of_both_curves_and_of_rsa_are_understood_and_no_others() {
    let of = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let rsa = || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    for (key, good) in [
        (of(&rcgen::PKCS_ECDSA_P256_SHA256), true),
        (of(&rcgen::PKCS_ECDSA_P384_SHA384), true),
        (rsa(), true),
        (of(&rcgen::PKCS_ED25519), false),
    ] {
        // A root that signs links itself, as its own intermediate.
        let root = mint::root_with(&authority("root", None), key);
        let ca = Ca::new("other");
        let link = ca.link_by(&[&root], 2, &[&root]);
        let outcome = advance(&mint::bundle(DOMAIN, 1, &[&root]), &[link], mint::now());
        if good {
            outcome.unwrap();
        } else {
            assert_eq!(unsigned(outcome), "the signer's key is neither P-256, P-384 nor RSA");
        }
    }
}

proptest! {
    // Each case signs.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_link_of_any_bytes_is_never_followed(signature in any::<Vec<u8>>(), der in any::<Vec<u8>>()) {
        let ca = Ca::new("root");
        let mut link = ca.link(2, &[&ca.root]);
        link.signature = signature;
        prop_assert!(walk(&ca, link.clone()).is_err());
        link.signer_chain = vec![der.into()];
        prop_assert!(walk(&ca, link).is_err());
    }
}

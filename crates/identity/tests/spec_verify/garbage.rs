//! Whatever bytes a peer sends, it gets a verdict.

use postern_identity::bundle::TrustBundle;
use postern_identity::{TrustDomain, leaf};
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use super::{WEB, World, chain, judge};
use crate::mint::{self, SAN};

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let world = World::new();
    let good = world.issuer.sign(&mint::leaf(WEB)).der.to_vec();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8);
    edits.prop_map(move |edits| {
        let mut bytes = good.clone();
        for (index, byte) in edits {
            let i = index.index(bytes.len());
            bytes[i] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn a_leaf_of_any_bytes_is_judged_without_a_panic(bytes in prop_oneof![any::<Vec<u8>>(), mutated()]) {
        let _ = leaf::inspect(&CertificateDer::from(bytes));
    }

    #[test]
    fn a_bundle_of_any_bytes_is_read_without_a_panic(json in any::<Vec<u8>>(), root in mutated()) {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let _ = TrustBundle::from_document(domain.clone(), &json, mint::now());
        let _ = TrustBundle::new(domain, 1, vec![root.into(), json.into()], mint::now());
    }
}

proptest! {
    // Each case signs.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_san_of_any_bytes_never_names_anybody(value in any::<Vec<u8>>()) {
        let world = World::new();
        let leaf = world.issuer.sign(&mint::leaf(WEB).with(SAN, true, value));
        prop_assert!(judge(&chain(&[&leaf, &world.issuer]), &world.trust).is_err());
    }
}

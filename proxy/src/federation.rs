//! Bundles of other trust domains, by control's word: each for peers of its own name alone, and never one for our own name, for
//! which only the CA speaks.

use std::collections::BTreeMap;

use postern_api::control::v1 as wire;
use postern_identity::{Trust, TrustBundle, TrustDomain, federation};
use rustls::pki_types::UnixTime;

use crate::snapshot::Shared;
use crate::status::error_chain;

/// Trust domains of one message; control takes as many relationships.
const MAX_TRUST_DOMAINS: usize = 32;

/// The relationship that each bundle in force came by, as control names it.
pub(crate) type Relationships = BTreeMap<TrustDomain, String>;

/// Puts what control says in force: all of it or, with an error, nothing.
pub(crate) fn take(
    shared: &Shared,
    own: &TrustDomain,
    relationships: &mut Relationships,
    said: &wire::Federation,
    now: UnixTime,
) -> Result<(), String> {
    let mut named = Relationships::new();
    let mut bundles: Vec<(TrustBundle, bool)> = Vec::new();
    if said.trust_domains.len() > MAX_TRUST_DOMAINS {
        return Err(format!("more than {MAX_TRUST_DOMAINS} other trust domains"));
    }
    for entry in &said.trust_domains {
        let name = TrustDomain::parse(&entry.trust_domain).map_err(|error| error_chain(&error))?;
        if name == *own {
            return Err(format!(
                "a bundle for our own trust domain `{own}`, for which the CA alone speaks"
            ));
        }
        if named.insert(name.clone(), entry.relationship.clone()).is_some() {
            return Err(format!("two bundles for trust domain `{name}`"));
        }
        if !entry.document.is_empty() {
            let document = federation::parse_document(&entry.document)
                .map_err(|error| format!("the bundle of trust domain `{name}`: {}", error_chain(&error)))?;
            bundles.push((document.into_bundle(name, now), entry.bootstrap));
        }
    }
    shared.change_trust(|trust| {
        // What is held by another relationship is not this one's, whatever control has to put in its place.
        let same = |name: &TrustDomain| named.contains_key(name) && named.get(name) == relationships.get(name);
        let mut next = trust.bundles.clone().only(|name| name == own || same(name));
        for (bundle, bootstrap) in &bundles {
            let held = next.get(bundle.trust_domain().as_str());
            // Older ones are of a replica of control that looked longer ago. Of one that has fetched nothing yet the sequence
            // says nothing: it may be 0 for ever.
            if held.is_none_or(|held| !bootstrap && held.sequence() <= bundle.sequence()) {
                next = next.with(bundle.clone());
            }
        }
        Some(Trust {
            bundles: next,
            ..trust.clone()
        })
    });
    *relationships = named;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use postern_identity::BundleSet;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
    use rustls::pki_types::CertificateDer;
    use tokio::sync::mpsc;

    use super::*;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn root() -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn bundle(name: &str, sequence: u64) -> TrustBundle {
        TrustBundle::new(domain(name), sequence, vec![root()], UnixTime::now())
    }

    fn entry(name: &str, document: Vec<u8>, relationship: &str) -> wire::FederatedTrustDomain {
        wire::FederatedTrustDomain {
            trust_domain: name.to_owned(),
            document,
            relationship: relationship.to_owned(),
            bootstrap: false,
        }
    }

    fn bootstrap(entry: wire::FederatedTrustDomain) -> wire::FederatedTrustDomain {
        wire::FederatedTrustDomain {
            bootstrap: true,
            ..entry
        }
    }

    /// A proxy's trust, and what it remembers of relationships.
    struct Held {
        shared: Shared,
        relationships: Relationships,
    }

    impl Held {
        fn new() -> Self {
            let shared = Shared::new(mpsc::channel(1).0);
            shared.trust.store(Arc::new(Trust {
                bundles: BundleSet::default().with(bundle("ours", 3)),
                ..Trust::default()
            }));
            Self {
                shared,
                relationships: Relationships::new(),
            }
        }

        fn take(&mut self, trust_domains: Vec<wire::FederatedTrustDomain>) -> Result<(), String> {
            let said = wire::Federation {
                version: 1,
                trust_domains,
            };
            take(
                &self.shared,
                &domain("ours"),
                &mut self.relationships,
                &said,
                UnixTime::now(),
            )
        }

        /// The sequence of each bundle that is held.
        fn sequences(&self) -> Vec<(String, u64)> {
            let trust = self.shared.trust.load();
            let of = |bundle: &Arc<TrustBundle>| (bundle.trust_domain().to_string(), bundle.sequence());
            trust.bundles.iter().map(of).collect()
        }
    }

    fn sequences(of: &[(&str, u64)]) -> Vec<(String, u64)> {
        of.iter()
            .map(|(name, sequence)| ((*name).to_owned(), *sequence))
            .collect()
    }

    #[test]
    fn bundles_come_and_go_with_their_relationships_and_ours_stays() {
        let mut held = Held::new();
        let of = |name: &str, sequence| entry(name, bundle(name, sequence).to_document(), "r");
        held.take(vec![of("a", 1), of("b", 7)]).unwrap();
        assert_eq!(held.sequences(), sequences(&[("a", 1), ("b", 7), ("ours", 3)]));
        let before = held.shared.trust.load().revision;
        held.take(vec![of("b", 8)]).unwrap();
        assert_eq!(held.sequences(), sequences(&[("b", 8), ("ours", 3)]));
        assert!(
            held.shared.trust.load().revision > before,
            "live connections look again"
        );
        held.take(Vec::new()).unwrap();
        assert_eq!(held.sequences(), sequences(&[("ours", 3)]));
    }

    #[test]
    fn spec_065_within_a_relationship_an_older_bundle_or_none_changes_nothing() {
        let mut held = Held::new();
        let of = |sequence, relationship: &str| entry("a", bundle("a", sequence).to_document(), relationship);
        held.take(vec![of(7, "one")]).unwrap();
        held.take(vec![of(6, "one")]).unwrap();
        assert_eq!(held.sequences(), sequences(&[("a", 7), ("ours", 3)]));
        held.take(vec![entry("a", Vec::new(), "one")]).unwrap();
        assert_eq!(held.sequences(), sequences(&[("a", 7), ("ours", 3)]));
        // The operator has configured it anew: the trust domain was founded again.
        held.take(vec![of(1, "two")]).unwrap();
        assert_eq!(held.sequences(), sequences(&[("a", 1), ("ours", 3)]));
        held.take(vec![entry("a", Vec::new(), "three")]).unwrap();
        assert_eq!(held.sequences(), sequences(&[("ours", 3)]));
    }

    #[test]
    fn a_bundle_to_begin_with_is_taken_in_place_of_none_and_of_another_relationships() {
        let mut held = Held::new();
        let of = |relationship: &str| {
            let bundle = bundle("a", 0);
            (bundle.roots().to_vec(), entry("a", bundle.to_document(), relationship))
        };
        let roots = |held: &Held| held.shared.trust.load().bundles.get("a").unwrap().roots().to_vec();
        let (given, to_begin_with) = of("one");
        held.take(vec![bootstrap(to_begin_with.clone())]).unwrap();
        assert_eq!(roots(&held), given);
        let (fetched, after) = of("one");
        held.take(vec![after]).unwrap();
        assert_eq!(roots(&held), fetched);
        // Of a control that has just started: both have the sequence 0.
        held.take(vec![bootstrap(to_begin_with.clone())]).unwrap();
        assert_eq!(roots(&held), fetched);
        // It has fetched the same.
        held.take(vec![to_begin_with]).unwrap();
        assert_eq!(roots(&held), given);
        let (other, of_other) = of("two");
        held.take(vec![bootstrap(of_other)]).unwrap();
        assert_eq!(roots(&held), other);
    }

    #[test]
    fn a_bundle_for_our_own_name_and_whatever_does_not_hold_changes_nothing() {
        let mut held = Held::new();
        let good = entry("a", bundle("a", 1).to_document(), "r");
        held.take(vec![good.clone()]).unwrap();
        for bad in [
            entry("ours", bundle("ours", 9).to_document(), "r"),
            entry("ours", Vec::new(), "r"),
            entry("A", bundle("a", 9).to_document(), "r"),
            entry("b", b"{\"keys\":1}".to_vec(), "r"),
            entry("b", b"{\"keys\":[],\"keys\":[]}".to_vec(), "r"),
            entry("a", bundle("a", 9).to_document(), "r"),
        ] {
            held.take(vec![good.clone(), bad]).unwrap_err();
            assert_eq!(held.sequences(), sequences(&[("a", 1), ("ours", 3)]));
        }
        let many = |count: usize| (0..count).map(|n| entry(&format!("d{n}"), Vec::new(), "r")).collect();
        held.take(many(MAX_TRUST_DOMAINS + 1)).unwrap_err();
        assert_eq!(held.sequences(), sequences(&[("a", 1), ("ours", 3)]));
        held.take(many(MAX_TRUST_DOMAINS)).unwrap();
    }
}

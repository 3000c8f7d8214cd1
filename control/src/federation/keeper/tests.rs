#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;

use postern_identity::quarantine::Subject;
use postern_identity::{QuarantineSet, SharedTrust, TrustDomain};

use super::*;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::quarantine::Quarantine;

#[test]
fn whoever_is_cut_off_proves_no_endpoint() {
    let mesh = Mesh::named(TrustDomain::parse("ours.example").unwrap());
    let hub = Arc::new(Hub::new(mesh, SharedTrust::default(), Metrics::default()));
    let id = SpiffeId::parse("spiffe://ours.example/ns/mesh/sa/server").unwrap();
    let text = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: b}}\nspec: {{trustDomain: b.example, \
         bundleEndpointURL: 'https://b.example/', bundleEndpointProfile: {{type: https_spiffe, endpointSPIFFEID: '{id}'}}}}\n"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("federation.yaml");
    std::fs::write(&path, text).unwrap();
    let found = super::super::relationship::look(&path, &hub.mesh, None).unwrap().found;
    let keeper = Keeper {
        hub: Arc::clone(&hub),
        fetcher: Arc::new(Fetcher::new(None).unwrap()),
        cache: Cache::at(None),
        longest_poll: DEFAULT_REFRESH,
        relationship: found.unwrap().into_values().next().unwrap(),
    };
    let cut_off = |keeper: &Keeper| keeper.trust_for(&id, None).check_quarantine(&id, None, &[]).is_err();
    assert!(!cut_off(&keeper));
    let set = QuarantineSet::new(1, BTreeSet::from([Subject::Id(id.clone())]));
    hub.publish_quarantine(Quarantine::new(
        &set,
        postern_api::ca::v1::SignedQuarantine::default(),
        Vec::new(),
    ));
    assert!(cut_off(&keeper));
}

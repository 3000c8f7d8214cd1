#![allow(clippy::unwrap_used)]
use super::*;
use crate::mesh::Mesh;

fn relationship(directory: &Path) -> Relationship {
    let path = directory.join("federation.yaml");
    let text = "apiVersion: postern.dev/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {name: b}\nspec: {trustDomain: b.example, \
                bundleEndpointURL: 'https://b.example/', bundleEndpointProfile: {type: https_web}}\n";
    std::fs::write(&path, text).unwrap();
    let mesh = Mesh::named(TrustDomain::parse("ours.example").unwrap());
    let found = super::super::relationship::look(&path, &mesh, None).unwrap().found;
    found.unwrap().into_values().next().unwrap()
}

#[test]
fn replicas_that_share_a_volume_leave_one_whole_bundle_and_nothing_beside_it() {
    let (files, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let relationship = relationship(files.path());
    let directory = kept.path().join("federation");
    let cache = || Cache::at(Some(directory.clone()));
    let bundle = |sequence| TrustBundle::new(relationship.trust_domain.clone(), sequence, Vec::new(), UnixTime::now());
    cache().store(&relationship, &bundle(1));
    std::thread::scope(|scope| {
        for replica in 0..4 {
            let (cache, relationship, bundle) = (cache(), &relationship, &bundle);
            scope.spawn(move || (1..50).for_each(|n| cache.store(relationship, &bundle(replica * 100 + n))));
        }
        // Whoever starts meanwhile finds one of them.
        for _ in 0..200 {
            assert!(cache().load(&relationship).is_some());
        }
    });
    let last = cache().load(&relationship).unwrap().sequence();
    assert_eq!(last % 100, 49, "what a replica wrote last stays");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}

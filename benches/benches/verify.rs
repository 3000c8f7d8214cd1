//! What a handshake pays for belief: chain (leaf, intermediate, root) and leaf rules, through the one verifier.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use postern_benches::certificates::Authority;
use postern_identity::verify::verify_peer;
use postern_identity::{BundleSet, Role, Trust, TrustBundle, TrustDomain, leaf};

const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn verify(criterion: &mut Criterion) {
    let trust_domain = TrustDomain::parse("cluster.local").unwrap();
    let authority = Authority::new(&trust_domain).unwrap();
    let now = authority.now();
    let bundle = TrustBundle::new(trust_domain.clone(), 1, vec![authority.root()], now);
    let trust = Trust {
        bundles: BundleSet::default().with(bundle),
        ..Trust::default()
    };
    let chain = authority.leaf(ID, None).unwrap().chain();
    // A root of the same name that did not sign: the whole path is walked before it is refused.
    let stranger = Authority::new(&trust_domain).unwrap().leaf(ID, None).unwrap().chain();

    let mut group = criterion.benchmark_group("verify");
    assert_eq!(
        verify_peer(&chain, Role::Client, &trust, now).unwrap().id().as_str(),
        ID
    );
    group.bench_function("svid", |bench| {
        bench.iter(|| verify_peer(black_box(&chain), Role::Client, &trust, now).unwrap());
    });
    group.bench_function("leaf_rules_only", |bench| {
        bench.iter(|| leaf::inspect(black_box(&chain[0])).unwrap());
    });
    assert!(verify_peer(&stranger, Role::Client, &trust, now).is_err());
    group.bench_function("refused_unknown_issuer", |bench| {
        bench.iter(|| verify_peer(black_box(&stranger), Role::Client, &trust, now).unwrap_err());
    });
    let peer = verify_peer(&chain, Role::Client, &trust, now).unwrap();
    group.bench_function("still_holds", |bench| {
        bench.iter(|| black_box(&peer).still_holds(&trust, now).unwrap());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = verify
}
criterion_main!(benches);

//! What each request pays to have its path in one form: nothing is copied when it is canonical as it came.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use postern_policy::canonical::{CanonicalPathRef, split_target};
use postern_policy::{CanonicalError, CanonicalHost, CanonicalPath};

const CANONICAL: &str = "/api/v1/carts/7f3a9c/items/42";
const DOTS: &str = "/api/v1/../v1/./carts//7f3a9c/items/../items/%34%32";
const REFUSED: &str = "/api/v1/carts/7f3a9c/items%2F..%2fadmin";

fn canonical(criterion: &mut Criterion) {
    assert!(CanonicalPathRef::check(CANONICAL).unwrap().is_some());
    assert_eq!(CanonicalPath::parse(DOTS).unwrap().as_str(), CANONICAL);
    assert_eq!(CanonicalPathRef::check(REFUSED), Err(CanonicalError::EncodedSlash));
    let mut group = criterion.benchmark_group("canonical");
    group.bench_function("path_as_it_is", |bench| {
        bench.iter(|| CanonicalPathRef::check(black_box(CANONICAL)).unwrap().is_some());
    });
    group.bench_function("path_with_dot_segments", |bench| {
        // As the proxy does it: looked at first, copied only when it has to be.
        bench.iter(|| {
            let raw = black_box(DOTS);
            CanonicalPathRef::check(raw).unwrap().map_or_else(
                || CanonicalPath::parse(raw).unwrap().as_str().len(),
                |p| p.as_str().len(),
            )
        });
    });
    group.bench_function("path_refused", |bench| {
        bench.iter(|| CanonicalPathRef::check(black_box(REFUSED)).unwrap_err());
    });
    group.bench_function("split_query", |bench| {
        bench.iter(|| split_target(black_box("/api/v1/items?page=2&sort=name")).unwrap());
    });
    group.bench_function("host", |bench| {
        bench.iter(|| CanonicalHost::parse(black_box("Cart.Shop.svc.cluster.local:8080")).unwrap());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .sample_size(50);
    targets = canonical
}
criterion_main!(benches);

#![allow(clippy::unwrap_used)]
use futures_util::FutureExt as _;
use prometheus_client::registry::Registry;

use super::*;
use crate::init::{InitConfig, init};
use crate::seal::KekConfig;
use crate::store::Seals;

const PATIENCE: Duration = Duration::from_secs(20);

fn ca(dir: &tempfile::TempDir) -> Arc<Ca> {
    ca_by(dir, Arc::new(UnixTime::now))
}

fn ca_by(dir: &tempfile::TempDir, clock: Clock) -> Arc<Ca> {
    let config = InitConfig {
        store: dir.path().join("ca"),
        trust_domain: "cluster.local".to_owned(),
        root_life: Duration::from_secs(10 * 365 * 24 * 3600),
        issuer_life: Duration::from_secs(30 * 24 * 3600),
    };
    init(&config, UnixTime::now()).unwrap();
    let KekConfig::File(keys) = KekConfig::beside(&config.store) else {
        panic!()
    };
    let seals = Seals::Sealed(Arc::new(Sealer::by_file(&keys).unwrap()));
    let store = Store::open(&config.store, seals).unwrap();
    // A file is not waited for.
    store.learn().now_or_never().unwrap().unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let life = Duration::from_secs(3600);
    Arc::new(
        Ca::load(
            store,
            (life, crate::authority::RootPace::PATIENT),
            &LedgerConfig::default(),
            clock,
            metrics,
        )
        .unwrap(),
    )
}

/// The issuer that a CA that starts now would sign with.
fn epoch_on_disk(ca: &Ca) -> u64 {
    let store = match &ca.keeping {
        Keeping::Directory(store) => store,
        #[cfg(feature = "kubernetes")]
        Keeping::Secret(_) => unreachable!(),
    };
    load_authority(store, ca.now()).unwrap().issuer_epoch()
}

#[tokio::test]
async fn a_bundle_is_published_anew_once_the_clock_was_set_and_not_again_for_that() {
    let dir = tempfile::tempdir().unwrap();
    let ahead = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let by = Arc::clone(&ahead);
    let ca = ca_by(
        &dir,
        Arc::new(move || {
            let by = by.load(Ordering::SeqCst);
            crate::clock::later(UnixTime::now(), Duration::from_secs(by))
        }),
    );
    let number = || ca.authority().bundle().sequence();
    ca.keep_numbers_growing().await;
    let begun = number();
    ahead.store(30, Ordering::SeqCst);
    ca.keep_numbers_growing().await;
    assert_eq!(number(), begun, "a clock may run a little faster");
    ahead.store(24 * 3600, Ordering::SeqCst);
    let set = ca.now().as_secs();
    ca.keep_numbers_growing().await;
    let after = number();
    assert!(after >= set, "{after} is of before {set}");
    ca.keep_numbers_growing().await;
    assert_eq!(number(), after);
    // Put right again: numbers go on from where they are.
    ahead.store(0, Ordering::SeqCst);
    ca.keep_numbers_growing().await;
    assert_eq!(number(), after);
}

#[tokio::test]
async fn a_rotation_that_is_dropped_half_way_leaves_disk_and_memory_alike() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(&dir);
    let mut told = ca.watch();
    assert!(ca.rotate(Why::Asked).now_or_never().is_none(), "it is not done at once");
    let on_disk = async {
        while epoch_on_disk(&ca) == 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, on_disk).await.unwrap();
    let _ended = ca.rotating.lock().await;
    assert_eq!((epoch_on_disk(&ca), ca.authority().issuer_epoch()), (2, 2));
    assert!(told.has_changed().unwrap());
    assert_eq!(told.borrow_and_update().issuer_epoch(), 2);
}

#[tokio::test]
async fn a_rotation_after_one_that_was_dropped_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(&dir);
    assert!(ca.rotate(Why::Asked).now_or_never().is_none(), "it is not done at once");
    let next = ca.rotate(Why::Asked).await.unwrap();
    assert_eq!(next.issuer_epoch(), 3);
    assert_eq!((epoch_on_disk(&ca), ca.authority().issuer_epoch()), (3, 3));
}

#![allow(clippy::unwrap_used)]

use postern_identity::Instance;
use prometheus_client::registry::Registry;
use rustls_pki_types::UnixTime;
use tokio::time::timeout;

use super::*;
use crate::authority::RootPace;
use crate::init::{InitConfig, init};
use crate::ledger::LedgerConfig;
use crate::metrics::Metrics;
use crate::seal::{KekConfig, make_kek_file};
use crate::store::{Kind, Seals, Store, StoreError};

const PACE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(20);

/// A CA over a store that `init` made, its file of keys, and what seals.
async fn ca(dir: &std::path::Path) -> (Arc<Ca>, std::path::PathBuf, Arc<Sealer>) {
    let config = InitConfig {
        store: dir.join("ca"),
        trust_domain: "cluster.local".to_owned(),
        root_life: Duration::from_secs(365 * 24 * 3600),
        issuer_life: Duration::from_secs(3600),
    };
    init(&config, UnixTime::now()).unwrap();
    let KekConfig::File(keys) = KekConfig::beside(&config.store) else {
        panic!()
    };
    let sealer = Arc::new(Sealer::by_file(&keys).unwrap());
    let store = Store::open(&config.store, Seals::Sealed(Arc::clone(&sealer))).unwrap();
    store.learn().await.unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let ca = Ca::load(
        store,
        (Duration::from_secs(600), RootPace::PATIENT),
        &LedgerConfig::default(),
        crate::clock::system(),
        metrics,
    )
    .unwrap();
    (Arc::new(ca), keys, sealer)
}

fn put_before(keys: &std::path::Path) {
    let new = keys.with_extension("new");
    make_kek_file(&new).unwrap();
    let text = std::fs::read_to_string(&new).unwrap() + &std::fs::read_to_string(keys).unwrap();
    std::fs::write(keys, text).unwrap();
    std::fs::remove_file(new).unwrap();
}

#[tokio::test]
async fn records_follow_the_key_that_wraps_while_tokens_are_made_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, keys, sealer) = ca(dir.path()).await;
    let book = Arc::clone(ca.tokens().unwrap());
    let id = postern_identity::SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let following = tokio::spawn(follow(Arc::clone(&ca), Arc::clone(&sealer), PACE));
    let mut made = Vec::new();
    for round in 0..5 {
        put_before(&keys);
        for n in 0..4 {
            let instance = Instance::parse(&format!("web-{round}-{n}")).unwrap();
            let life = Duration::from_secs(60);
            let (token, _) = book
                .create(&id, &instance, life, [0; 32], UnixTime::now())
                .await
                .unwrap();
            made.push(token.id().to_owned());
        }
        let newest = Sealer::by_file(&keys).unwrap().kek_shown();
        let is_followed = async || {
            let first = std::fs::read_to_string(dir.path().join("ca").join(Kind::Root.file())).unwrap();
            sealer.kek_shown() == newest && sealer.is_current(first.as_bytes())
        };
        let followed = async {
            while !is_followed().await {
                sleep(PACE).await;
            }
        };
        timeout(PATIENCE, followed).await.expect("the newest key seals");
    }
    // The file of keys is away for a moment: nothing is lost by it.
    let held = std::fs::read(&keys).unwrap();
    std::fs::remove_file(&keys).unwrap();
    let instance = Instance::parse("late").unwrap();
    let (token, _) = book
        .create(&id, &instance, Duration::from_secs(60), [0; 32], UnixTime::now())
        .await
        .unwrap();
    made.push(token.id().to_owned());
    std::fs::write(&keys, held).unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    following.abort();
    let _ = following.await;
    drop((ca, book));
    // With the newest key alone: everything was sealed under it by the next look.
    let (again, _, _) = reopened(dir.path(), &keys).await;
    let behind = again.rewrap().await.unwrap();
    assert!(behind.is_empty(), "{behind:?}");
    let known: Vec<String> = again
        .tokens()
        .unwrap()
        .list(UnixTime::now())
        .into_iter()
        .map(|entry| entry.id)
        .collect();
    for id in made {
        assert!(known.contains(&id), "{id}");
    }
}

async fn reopened(dir: &std::path::Path, keys: &std::path::Path) -> (Arc<Ca>, std::path::PathBuf, Arc<Sealer>) {
    let text = std::fs::read_to_string(keys).unwrap();
    std::fs::write(keys, text.lines().next().unwrap()).unwrap();
    let sealer = Arc::new(Sealer::by_file(keys).unwrap());
    // A write that its last owner began goes on to its end.
    let given_up = async {
        loop {
            match Store::open(&dir.join("ca"), Seals::Sealed(Arc::clone(&sealer))) {
                Err(StoreError::Locked { .. }) => sleep(PACE).await,
                opened => return opened.unwrap(),
            }
        }
    };
    let store = timeout(PATIENCE, given_up).await.expect("the store is given up");
    store.learn().await.unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let ca = Ca::load(
        store,
        (Duration::from_secs(600), RootPace::PATIENT),
        &LedgerConfig::default(),
        crate::clock::system(),
        metrics,
    )
    .unwrap();
    (Arc::new(ca), keys.to_owned(), sealer)
}

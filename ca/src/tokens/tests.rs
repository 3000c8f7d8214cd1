#![allow(clippy::unwrap_used)]
use std::pin::pin;

use futures_util::FutureExt as _;

use super::*;
use crate::store::{NewStore, Seals};

/// So many that a write takes a while.
const MANY: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(20);

struct Place {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    book: TokenBook,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        let new = NewStore::begin(&path, Seals::Clear).unwrap();
        new.write(Kind::Authority, &()).unwrap();
        new.finish().unwrap();
        let store = Arc::new(Store::open(&path, Seals::Clear).unwrap());
        let book = TokenBook::load(Arc::clone(&store)).unwrap();
        Self { _dir: dir, store, book }
    }

    async fn token(&self) -> String {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
        let instance = Instance::parse("web-1").unwrap();
        let (token, _) = self
            .book
            .create(&id, &instance, DEFAULT_LIFE, [0; 32], UnixTime::now())
            .await
            .unwrap();
        token.id().to_owned()
    }

    /// What a CA that starts now would read.
    fn on_disk(&self, id: &str) -> Option<Entry> {
        let again = TokenBook::load(Arc::clone(&self.store)).unwrap();
        again.lock().entries.get(id).cloned()
    }

    async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !reached(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }
}

#[tokio::test]
async fn a_redeemed_token_stays_redeemed_when_the_call_before_was_dropped_while_writing() {
    let place = Place::new();
    let pattern_id = place.token().await;
    let pattern = place.on_disk(&pattern_id).unwrap();
    for number in 0..MANY {
        let id = format!("other-{number}");
        let entry = Entry {
            id: id.clone(),
            ..pattern.clone()
        };
        place.book.lock().entries.insert(id, entry);
    }
    let temporary = place.store.path(Kind::Tokens).with_file_name(".tokens.json.tmp");
    for round in 0..16 {
        let mut dropped = Vec::new();
        for _ in 0..4 {
            dropped.push(place.token().await);
        }
        let kept = place.token().await;
        for id in &dropped {
            let mut redeeming = pin!(place.book.redeem(id, UnixTime::now()));
            let mut pending = redeeming.as_mut().now_or_never().is_none();
            // Every other round, only when bytes are on their way.
            while round % 2 == 1 && pending && !temporary.exists() {
                std::thread::yield_now();
                pending = redeeming.as_mut().now_or_never().is_none();
            }
        }
        place.book.redeem(&kept, UnixTime::now()).await.unwrap();
        // Twice: now, and after whatever a dropped call may still be writing.
        assert!(place.on_disk(&kept).unwrap().redeemed);
        place.until(|_| !temporary.exists()).await;
        assert!(place.on_disk(&kept).unwrap().redeemed);
        assert!(dropped.iter().all(|id| place.on_disk(id).unwrap().redeemed));
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_waits_for_a_write_still_reaches_the_disk() {
    let place = Place::new();
    let (revoked, redeemed) = (place.token().await, place.token().await);
    {
        let _another_writes = place.book.shared.written.lock().unwrap();
        assert!(place.book.revoke(&revoked).now_or_never().is_none());
        let redeeming = place.book.redeem(&redeemed, UnixTime::now());
        assert!(redeeming.now_or_never().is_none());
    }
    place
        .until(|place| place.on_disk(&revoked).is_none() && place.on_disk(&redeemed).unwrap().redeemed)
        .await;
}

#[tokio::test]
async fn a_dropped_call_whose_write_fails_is_taken_back() {
    let place = Place::new();
    let (revoked, redeemed) = (place.token().await, place.token().await);
    let temporary = place.store.path(Kind::Tokens).with_file_name(".tokens.json.tmp");
    std::fs::create_dir(&temporary).unwrap();
    {
        let _another_writes = place.book.shared.written.lock().unwrap();
        assert!(place.book.revoke(&revoked).now_or_never().is_none());
        let redeeming = place.book.redeem(&redeemed, UnixTime::now());
        assert!(redeeming.now_or_never().is_none());
    }
    let in_memory = |place: &Place, id: &str| place.book.lock().entries.get(id).cloned();
    place
        .until(|place| {
            [&revoked, &redeemed]
                .iter()
                .all(|id| in_memory(place, id) == place.on_disk(id))
        })
        .await;
    std::fs::remove_dir(&temporary).unwrap();
    place.book.redeem(&redeemed, UnixTime::now()).await.unwrap();
    place.book.revoke(&revoked).await.unwrap();
    assert!(place.on_disk(&redeemed).unwrap().redeemed);
    assert!(place.on_disk(&revoked).is_none());
}

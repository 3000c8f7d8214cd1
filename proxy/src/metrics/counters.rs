//! Counters by key, where keys are few and come up over time: reading and adding takes no lock.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::{Equivalent, HashMap};

/// Copy on write: a new key copies the map (rare, bounded), an old one is an atomic add.
#[derive(Debug)]
pub(super) struct Counters<K> {
    by_key: ArcSwap<HashMap<K, Arc<AtomicU64>>>,
    /// Held while a key is put in.
    growing: Mutex<()>,
    most: usize,
}

impl<K: Eq + Hash + Clone + Ord> Counters<K> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            by_key: ArcSwap::default(),
            growing: Mutex::new(()),
            most,
        }
    }

    /// Counts one; false if the key is new and there is no room for it.
    pub(super) fn add<Q>(&self, key: &Q) -> bool
    where
        Q: Hash + Equivalent<K>,
        K: for<'a> From<&'a Q>,
    {
        self.add_within(key, self.most)
    }

    /// Counts one under a key that may go past the bound (`other`: itself of a closed set).
    pub(super) fn add_past_bound<Q>(&self, key: &Q)
    where
        Q: Hash + Equivalent<K>,
        K: for<'a> From<&'a Q>,
    {
        self.add_within(key, usize::MAX);
    }

    fn add_within<Q>(&self, key: &Q, most: usize) -> bool
    where
        Q: Hash + Equivalent<K>,
        K: for<'a> From<&'a Q>,
    {
        if let Some(counter) = self.by_key.load().get(key) {
            counter.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.by_key.load_full();
        if let Some(counter) = known.get(key) {
            counter.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        if known.len() >= most {
            return false;
        }
        let mut grown = (*known).clone();
        grown.insert(K::from(key), Arc::new(AtomicU64::new(1)));
        self.by_key.store(Arc::new(grown));
        true
    }

    /// Everything, in the order of the keys.
    pub(super) fn read(&self) -> Vec<(K, u64)> {
        let known = self.by_key.load();
        let mut all: Vec<(K, u64)> = known
            .iter()
            .map(|(key, counter)| (key.clone(), counter.load(Ordering::Relaxed)))
            .collect();
        all.sort();
        all
    }
}

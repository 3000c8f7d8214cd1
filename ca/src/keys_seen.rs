//! Keys that were certified lately: none is certified twice, for whomever.
//!
//! In memory, bounded, oldest forgotten first: this catches a shared or copied key, it is no ledger.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use postern_api::refusal::RefusalReason;

use crate::csr::KeyFingerprint;
use crate::refusal::Refusal;

/// At 5,000 workloads and 4 h certificates a day and more; under 8 MiB.
const MAX_KEYS: usize = 65_536;

#[derive(Default)]
pub(crate) struct KeysSeen {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    known: HashSet<KeyFingerprint>,
    order: VecDeque<KeyFingerprint>,
}

/// A key put aside for one request; free again unless [`Reserved::keep`] is called.
pub(crate) struct Reserved<'a> {
    seen: &'a KeysSeen,
    key: KeyFingerprint,
    kept: bool,
}

impl KeysSeen {
    pub(crate) fn reserve(&self, key: KeyFingerprint) -> Result<Reserved<'_>, Refusal> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.known.insert(key) {
            let message = "the CSR's key has been certified before; each certificate has a fresh one";
            return Err(Refusal::new(RefusalReason::CsrKeyReused, message));
        }
        Ok(Reserved {
            seen: self,
            key,
            kept: false,
        })
    }
}

impl Reserved<'_> {
    /// The key is certified now.
    pub(crate) fn keep(mut self) {
        self.kept = true;
        let mut inner = self.seen.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.order.push_back(self.key);
        if inner.order.len() > MAX_KEYS
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.known.remove(&oldest);
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.seen
                .inner
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .known
                .remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_is_taken_once_and_free_again_if_nothing_was_issued() {
        let seen = KeysSeen::default();
        drop(seen.reserve([1; 32]).unwrap());
        seen.reserve([1; 32]).unwrap().keep();
        assert!(seen.reserve([1; 32]).is_err());
    }

    #[test]
    fn the_oldest_key_is_forgotten_when_the_memory_is_full() {
        let seen = KeysSeen::default();
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            key
        };
        for n in 0..=MAX_KEYS {
            seen.reserve(key(n)).unwrap().keep();
        }
        assert!(seen.reserve(key(1)).is_err());
        assert!(seen.reserve(key(0)).is_ok());
    }
}

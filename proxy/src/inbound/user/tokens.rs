//! What one worker remembers of tokens: those that it verified, those whose key is nowhere, and how many wait for one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;
use postern_token::{Authenticator, Refusal, Token, Verified};
// The system's monotonic clock, which tests may move.
use tokio::time::Instant;

use crate::inbound::authorize::unix_seconds;
use crate::limits::{KNOWN_ABSENT, MAX_ABSENT_KEYS, MAX_VERIFIED_BYTES, MAX_VERIFIED_TOKENS, MAX_WAITING_FOR_KEYS};

/// Tokens that one worker knows.
#[derive(Debug, Default)]
pub struct Tokens {
    verified: RefCell<Remembered>,
    /// Tokens whose key control has just looked for in vain.
    absent: RefCell<HashMap<[u8; 32], Instant>>,
    waiting: Rc<Cell<usize>>,
}

/// Verified under one authenticator.
#[derive(Debug, Default)]
struct Remembered {
    authenticator: Option<Arc<Authenticator>>,
    tokens: HashMap<[u8; 32], Rc<Verified>>,
    /// The oldest first, with the length of each.
    order: VecDeque<([u8; 32], usize)>,
    bytes: usize,
}

/// Counts one request that waits.
#[derive(Debug)]
pub(super) struct Waiting(Rc<Cell<usize>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Tokens {
    /// Verifies a token, or remembers that it was.
    pub(super) fn verify(
        &self,
        authenticator: &Arc<Authenticator>,
        token: &Token,
        fingerprint: [u8; 32],
    ) -> Result<Rc<Verified>, Refusal> {
        let now = unix_seconds();
        let mut remembered = self.verified.borrow_mut();
        if !remembered
            .authenticator
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, authenticator))
        {
            *remembered = Remembered {
                authenticator: Some(Arc::clone(authenticator)),
                ..Remembered::default()
            };
        }
        if let Some(known) = remembered.tokens.get(&fingerprint)
            && now < known.until()
        {
            return Ok(Rc::clone(known));
        }
        let verified = Rc::new(authenticator.verify(token, now)?);
        remembered.keep(fingerprint, token.text().len(), &verified);
        Ok(verified)
    }

    pub(super) fn is_absent(&self, fingerprint: &[u8; 32]) -> bool {
        let absent = self.absent.borrow();
        absent
            .get(fingerprint)
            .is_some_and(|since| since.elapsed() < KNOWN_ABSENT)
    }

    pub(super) fn remember_absent(&self, fingerprint: [u8; 32]) {
        let mut absent = self.absent.borrow_mut();
        if absent.len() >= MAX_ABSENT_KEYS {
            absent.retain(|_, since| since.elapsed() < KNOWN_ABSENT);
        }
        // Past the bound its bearers wait each time.
        if absent.len() < MAX_ABSENT_KEYS {
            absent.insert(fingerprint, Instant::now());
        }
    }

    /// Requests that wait for keys now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    pub(super) fn wait(&self) -> Option<Waiting> {
        if self.waiting.get() >= MAX_WAITING_FOR_KEYS {
            return None;
        }
        self.waiting.set(self.waiting.get() + 1);
        Some(Waiting(Rc::clone(&self.waiting)))
    }
}

impl Remembered {
    /// The oldest make room.
    fn keep(&mut self, fingerprint: [u8; 32], length: usize, verified: &Rc<Verified>) {
        if self.tokens.insert(fingerprint, Rc::clone(verified)).is_none() {
            self.order.push_back((fingerprint, length));
            self.bytes += length;
        }
        while self.order.len() > MAX_VERIFIED_TOKENS || self.bytes > MAX_VERIFIED_BYTES {
            let Some((oldest, length)) = self.order.pop_front() else {
                return;
            };
            self.tokens.remove(&oldest);
            self.bytes -= length;
        }
    }
}

#[cfg(test)]
mod tests;

//! The book of join tokens: each bound to one identity and instance, good once, for a while.
//!
//! Memory leads, disk follows before anybody is answered: a redemption is first marked here (so that of two at once one
//! wins), then written and synced, and only then does the caller get its certificate. Writers that meet are served by
//! one write. If the write fails the mark is taken back: nobody has got a certificate for it.
//!
//! A caller may go away at any await (a deadline, a reset stream). What it began goes on without it, to disk or back:
//! snapshot, write and taking back are one step on a blocking thread, and those steps come one after another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::{constant_time, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_api::ca_client::JoinToken;
use postern_api::refusal::RefusalReason;
use postern_identity::{Instance, SpiffeId};
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::authority::sha256;
use crate::clock::{later, shown};
use crate::refusal::Refusal;
use crate::store::{Kind, Store, StoreError};

#[cfg(test)]
mod tests;

/// Outstanding tokens: enough for a large machine park coming up at once; the file stays under 4 MiB.
pub(crate) const MAX_TOKENS: usize = 10_000;
/// A token waits for one process to start.
pub(crate) const DEFAULT_LIFE: Duration = Duration::from_secs(600);
/// Longer is a standing secret, which is what join tokens are not.
pub(crate) const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long an expired token is remembered, so that a late caller hears why.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// One token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Public part.
    pub id: String,
    /// Hex.
    secret_sha256: String,
    /// Whom it makes.
    pub spiffe_id: String,
    /// Which instance of it.
    pub instance: String,
    /// Last second at which it is good.
    pub expires_unix: u64,
    /// Used.
    pub redeemed: bool,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Record {
    tokens: Vec<Entry>,
}

#[derive(Default)]
struct Book {
    entries: BTreeMap<String, Entry>,
    /// Counts changes; a write of generation n holds all changes up to n.
    generation: u64,
}

/// The book, shared by the admin socket and the attestor.
pub(crate) struct TokenBook {
    shared: Arc<Shared>,
}

/// What a write keeps when its caller has gone.
struct Shared {
    book: Mutex<Book>,
    store: Arc<Store>,
    /// The last generation that is on disk; held, on blocking threads only, from snapshot to rename.
    written: Mutex<u64>,
}

/// Whom a token makes.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) token_id: String,
    pub(crate) id: SpiffeId,
    pub(crate) instance: Instance,
}

impl TokenBook {
    /// Reads the book; a missing file is an empty one (every token unknown, none good twice).
    pub(crate) fn load(store: Arc<Store>) -> Result<Self, StoreError> {
        let record: Record = store.read(Kind::Tokens)?.unwrap_or_default();
        let entries = record
            .tokens
            .into_iter()
            .map(|entry| (entry.id.clone(), entry))
            .collect();
        Ok(Self {
            shared: Arc::new(Shared {
                book: Mutex::new(Book { entries, generation: 0 }),
                store,
                written: Mutex::new(0),
            }),
        })
    }

    /// Makes a token. It is on disk when this returns.
    pub(crate) async fn create(
        &self,
        id: &SpiffeId,
        instance: &Instance,
        life: Duration,
        root_sha256: [u8; 32],
        now: UnixTime,
    ) -> Result<(JoinToken, UnixTime), Refusal> {
        let mut token_id = [0; 16];
        let mut secret = Zeroizing::new([0; 32]);
        rand::fill(&mut token_id)
            .and_then(|()| rand::fill(&mut *secret))
            .map_err(|_| Refusal::new(RefusalReason::Internal, "the system gives no random numbers"))?;
        let token = JoinToken::assemble(token_id, &secret, root_sha256);
        let expires = later(now, life);
        let generation = {
            let mut book = self.lock();
            book.forget_old(now);
            if book.outstanding(now) >= MAX_TOKENS || book.entries.len() >= 2 * MAX_TOKENS {
                let message = format!("{MAX_TOKENS} join tokens are outstanding; revoke some or wait");
                return Err(Refusal::new(RefusalReason::Busy, message));
            }
            book.entries.insert(
                token.id().to_owned(),
                Entry {
                    id: token.id().to_owned(),
                    secret_sha256: hex(&sha256(token.secret())),
                    spiffe_id: id.to_string(),
                    instance: instance.to_string(),
                    expires_unix: expires.as_secs(),
                    redeemed: false,
                },
            );
            book.changed()
        };
        let made = token.id().to_owned();
        self.persist(generation, move |book| drop(book.entries.remove(&made)))
            .await?;
        Ok((token, expires))
    }

    /// Looks a token up without using it.
    pub(crate) fn check(&self, token: &JoinToken, now: UnixTime) -> Result<Grant, Refusal> {
        let book = self.lock();
        let unknown = || {
            let message = format!(
                "join token {} is not known here (revoked, long expired, or of another CA)",
                token.id()
            );
            Refusal::new(RefusalReason::TokenUnknown, message)
        };
        let entry = book.entries.get(token.id()).ok_or_else(unknown)?;
        // Hashes of equal length are compared: the time taken says nothing about the secret.
        let presented = hex(&sha256(token.secret()));
        constant_time::verify_slices_are_equal(presented.as_bytes(), entry.secret_sha256.as_bytes())
            .map_err(|_| unknown())?;
        entry.usable(now)?;
        let broken = |error: postern_identity::IdError| Refusal::new(RefusalReason::Internal, error.to_string());
        Ok(Grant {
            token_id: entry.id.clone(),
            id: SpiffeId::parse(&entry.spiffe_id).map_err(broken)?,
            instance: Instance::parse(&entry.instance).map_err(broken)?,
        })
    }

    /// Uses a checked token up, durably. Of two callers one gets `Ok`.
    pub(crate) async fn redeem(&self, token_id: &str, now: UnixTime) -> Result<(), Refusal> {
        let generation = {
            let mut book = self.lock();
            let entry = book.entries.get_mut(token_id).ok_or_else(|| {
                Refusal::new(
                    RefusalReason::TokenUnknown,
                    format!("join token {token_id} was revoked just now"),
                )
            })?;
            entry.usable(now)?;
            entry.redeemed = true;
            book.changed()
        };
        let used = token_id.to_owned();
        self.persist(generation, move |book| {
            if let Some(entry) = book.entries.get_mut(&used) {
                entry.redeemed = false;
            }
        })
        .await
        // A stranger is told no paths.
        .map_err(|refusal| match refusal.reason() {
            RefusalReason::Store => {
                Refusal::new(RefusalReason::Store, "the CA cannot write its store; its log says why")
            }
            _ => refusal,
        })
    }

    /// Voids a token.
    pub(crate) async fn revoke(&self, token_id: &str) -> Result<(), Refusal> {
        let (entry, generation) = {
            let mut book = self.lock();
            let entry = book.entries.remove(token_id).ok_or_else(|| {
                Refusal::new(
                    RefusalReason::TokenUnknown,
                    format!("there is no join token {token_id}"),
                )
            })?;
            (entry, book.changed())
        };
        self.persist(generation, move |book| {
            book.entries.insert(entry.id.clone(), entry);
        })
        .await
    }

    /// All that are remembered.
    pub(crate) fn list(&self, now: UnixTime) -> Vec<Entry> {
        let mut book = self.lock();
        book.forget_old(now);
        book.entries.values().cloned().collect()
    }

    /// How many could still be redeemed.
    pub(crate) fn outstanding(&self, now: UnixTime) -> usize {
        self.lock().outstanding(now)
    }

    /// Returns when everything up to `generation` is on disk, or taken back; a failure's message is for the operator. There is no await before the work is
    /// handed over, and work handed over is not cancelled: a caller that is dropped leaves nothing half done.
    async fn persist(&self, generation: u64, undo: impl FnOnce(&mut Book) + Send + 'static) -> Result<(), Refusal> {
        let shared = Arc::clone(&self.shared);
        let outcome = tokio::task::spawn_blocking(move || shared.write(generation, undo)).await;
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Refusal::new(RefusalReason::Store, crate::error_chain(&error))),
            Err(_) => Err(Refusal::new(RefusalReason::Internal, "writing the store was cut short")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.shared.lock()
    }
}

impl Shared {
    /// Blocks. Whoever waits here while another writes is mostly served by the next write.
    fn write(&self, generation: u64, undo: impl FnOnce(&mut Book)) -> Result<(), StoreError> {
        // A write that panics has not counted itself.
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written >= generation {
            return Ok(());
        }
        let (snapshot, holds) = {
            let book = self.lock();
            (
                Record {
                    tokens: book.entries.values().cloned().collect(),
                },
                book.generation,
            )
        };
        self.store.write(Kind::Tokens, &snapshot).inspect_err(|error| {
            tracing::error!(reason = "store", error = %crate::error_chain(error), "the token book was not written");
            undo(&mut self.lock());
        })?;
        *written = holds;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // No code that holds the lock panics between two changes that belong together.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn usable(&self, now: UnixTime) -> Result<(), Refusal> {
        if self.redeemed {
            let message = format!("join token {} has been used; each is good once", self.id);
            return Err(Refusal::new(RefusalReason::TokenRedeemed, message));
        }
        if now.as_secs() > self.expires_unix {
            let expired = UnixTime::since_unix_epoch(Duration::from_secs(self.expires_unix));
            let message = format!("join token {} expired at {}", self.id, shown(expired));
            return Err(Refusal::new(RefusalReason::TokenExpired, message));
        }
        Ok(())
    }
}

impl Book {
    fn changed(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }
    fn forget_old(&mut self, now: UnixTime) {
        self.entries
            .retain(|_, entry| now.as_secs() <= entry.expires_unix.saturating_add(REMEMBERED.as_secs()));
    }
    fn outstanding(&self, now: UnixTime) -> usize {
        self.entries.values().filter(|entry| entry.usable(now).is_ok()).count()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Shape of a token id, to refuse nonsense early.
pub(crate) fn is_token_id(text: &str) -> bool {
    URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 16)
}

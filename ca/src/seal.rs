//! Encryption at rest: nothing that the CA keeps is readable without a key-encryption key (KEK) that is kept elsewhere.
//!
//! ```text
//! seed (32 random bytes, one per process) --wrapped by the KEK--> stands beside each record
//! seed, 32 random bytes of the record     --HKDF-SHA256--------> AES-256-GCM key and nonce of that record, used once
//! ```
//!
//! So the KEK is asked once when a process starts, and once for each seed that a record was sealed under, never while
//! somebody waits for a certificate. Another KEK (a new line in its file, a KMS that says another `key_id`) means another
//! seed, and records are written again under it, one by one: each stands for itself, so that may stop anywhere.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

mod file;
mod kms;
mod kms_v2;
#[cfg(test)]
mod tests;

use file::KekFile;
pub(crate) use file::make as make_kek_file;
use kms::Kms;

use crate::base64_bytes::Base64;

/// A seed, and a KEK of a file.
pub(crate) const KEY_LEN: usize = 32;
/// Random bytes of each record, from which its key comes.
pub(crate) const SALT_LEN: usize = 32;
/// Seeds that are remembered: one for each process whose records are still there, and those of its replicas.
const MAX_SEEDS: usize = 64;

/// Where the key-encryption key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KekConfig {
    /// In a file of one key per line: the first wraps, all unwrap.
    File(PathBuf),
    /// Behind a KMS plugin of Kubernetes (KMS v2), on this Unix socket.
    Kms(PathBuf),
}

/// Why a KEK is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KekError {
    /// The file of keys.
    #[error("{0}")]
    File(String),
    /// The plugin does not answer, or is not well. Waiting may help.
    #[error("the KMS at {} is away: {why}", socket.display())]
    Away {
        /// Its socket.
        socket: PathBuf,
        /// In its words, or in ours.
        why: String,
    },
    /// The plugin says what KMS v2 does not allow.
    #[error("the KMS at {} does not keep to KMS v2: {why}", socket.display())]
    Protocol {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is another key's.
    #[error("it is sealed under key {key_id} of a {found}, and the key that is given is a {given}")]
    OtherProvider {
        /// Which key.
        key_id: String,
        /// `file` or `kms-v2`.
        found: String,
        /// Likewise.
        given: &'static str,
    },
    /// The right kind of key, and not this one.
    #[error("it is sealed under key {key_id}, which {place} does not have; give it that key as well")]
    OtherKey {
        /// Which key.
        key_id: String,
        /// Where it was looked for.
        place: String,
    },
    /// The key is there, and what it should unwrap was changed.
    #[error("the seed that key {0} wraps was changed")]
    Changed(String),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl KekError {
    /// Waiting may help.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
}

/// A seed as its KEK wrapped it; not secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Wrapped {
    provider: String,
    pub(crate) key_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    annotations: Vec<(String, Base64)>,
    seed: Base64,
}

/// What follows a sealed record's first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    algorithm: String,
    kek: Wrapped,
    salt: Base64,
    ciphertext: Base64,
}

const ALGORITHM: &str = "HKDF-SHA256+AES-256-GCM";

struct Seed {
    wrapped: Wrapped,
    key: Zeroizing<[u8; KEY_LEN]>,
}

enum Kek {
    File(KekFile),
    Kms(Kms),
}

/// Seals records, and opens those whose seeds it knows.
pub struct Sealer {
    kek: tokio::sync::Mutex<Kek>,
    current: Mutex<Arc<Seed>>,
    known: Mutex<HashMap<Wrapped, Arc<Seed>>>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("kek", &self.kek_shown())
            .finish_non_exhaustive()
    }
}

impl Kek {
    fn provider(&self) -> &'static str {
        match self {
            Self::File(_) => file::PROVIDER,
            Self::Kms(_) => kms::PROVIDER,
        }
    }

    /// The key that wraps from now on; the file is read again.
    async fn key_id(&mut self) -> Result<String, KekError> {
        match self {
            Self::File(file) => {
                file.read_again()?;
                Ok(file.key_id().to_owned())
            }
            Self::Kms(kms) => kms.key_id().await,
        }
    }

    async fn wrap(&self, key: &[u8; KEY_LEN]) -> Result<Wrapped, KekError> {
        match self {
            Self::File(file) => file.wrap(key),
            Self::Kms(kms) => kms.wrap(key).await,
        }
    }

    async fn unwrap(&mut self, wrapped: &Wrapped) -> Result<Zeroizing<[u8; KEY_LEN]>, KekError> {
        if wrapped.provider != self.provider() {
            return Err(KekError::OtherProvider {
                key_id: wrapped.key_id.clone(),
                found: wrapped.provider.clone(),
                given: self.provider(),
            });
        }
        match self {
            Self::File(file) => file.unwrap(wrapped),
            Self::Kms(kms) => kms.unwrap(wrapped).await,
        }
    }
}

impl KekConfig {
    /// Where the KEK of a store is, unless somebody says another place: a file beside it, and not in it, so that who gets
    /// the store alone (a backup, a volume) can read nothing.
    #[must_use]
    pub fn beside(store: &Path) -> Self {
        // Of its components: what ends with a slash would be a place within the store.
        let mut name = store.components().collect::<PathBuf>().into_os_string();
        name.push(".kek");
        Self::File(name.into())
    }
}

impl Sealer {
    /// Asks the KEK for a first seed.
    pub async fn unseal(config: &KekConfig) -> Result<Self, KekError> {
        match config {
            KekConfig::File(path) => Self::by_file(path),
            KekConfig::Kms(socket) => {
                let kms = Kms::at(socket);
                let said = kms.key_id().await?;
                let key = new_key()?;
                let wrapped = kms.wrap(&key).await?;
                kms.wraps_as_it_says(&said, &wrapped)?;
                Ok(Self::with(Kek::Kms(kms), Arc::new(Seed { wrapped, key })))
            }
        }
    }

    /// With the keys of a file.
    pub fn by_file(path: &Path) -> Result<Self, KekError> {
        let file = KekFile::read(path)?;
        let key = new_key()?;
        let wrapped = file.wrap(&key)?;
        Ok(Self::with(Kek::File(file), Arc::new(Seed { wrapped, key })))
    }

    fn with(kek: Kek, seed: Arc<Seed>) -> Self {
        Self {
            kek: tokio::sync::Mutex::new(kek),
            known: Mutex::new(HashMap::from([(seed.wrapped.clone(), Arc::clone(&seed))])),
            current: Mutex::new(seed),
        }
    }

    /// Which KEK wraps now: provider and key.
    pub(crate) fn kek_shown(&self) -> (String, String) {
        let wrapped = &lock(&self.current).wrapped;
        (wrapped.provider.clone(), wrapped.key_id.clone())
    }

    /// Looks whether another key wraps now; true if so, and what is sealed from now on is sealed under it.
    pub(crate) async fn follow_kek(&self) -> Result<bool, KekError> {
        let mut kek = self.kek.lock().await;
        let key_id = kek.key_id().await?;
        let (provider, before) = self.kek_shown();
        if provider == kek.provider() && before == key_id {
            return Ok(false);
        }
        let key = new_key()?;
        let wrapped = kek.wrap(&key).await?;
        if let Kek::Kms(kms) = &*kek {
            kms.wraps_as_it_says(&key_id, &wrapped)?;
        }
        let seed = Arc::new(Seed { wrapped, key });
        self.remember(&seed);
        *lock(&self.current) = seed;
        Ok(true)
    }

    /// Gets what is needed to open these records. (One that is in clear, or is none, needs nothing.)
    pub(crate) async fn learn(&self, records: &[&[u8]]) -> Result<(), KekError> {
        for record in records {
            let Some(wrapped) = wrapped_of(record) else { continue };
            if lock(&self.known).contains_key(&wrapped) {
                continue;
            }
            let key = self.kek.lock().await.unwrap(&wrapped).await?;
            self.remember(&Arc::new(Seed { wrapped, key }));
        }
        Ok(())
    }

    fn remember(&self, seed: &Arc<Seed>) {
        let mut known = lock(&self.known);
        if known.len() >= MAX_SEEDS {
            // What is needed of the others is asked for again, before anything is opened.
            let current = Arc::clone(&lock(&self.current));
            known.clear();
            known.insert(current.wrapped.clone(), current);
        }
        known.insert(seed.wrapped.clone(), Arc::clone(seed));
    }

    /// Is this body sealed as one would be now?
    pub(crate) fn is_current(&self, body: &[u8]) -> bool {
        let of = |wrapped: &Wrapped| (wrapped.provider.clone(), wrapped.key_id.clone());
        wrapped_of(body).is_some_and(|wrapped| of(&wrapped) == self.kek_shown())
    }

    /// `head` is bound to it: a record that is put under another head does not open.
    pub(crate) fn seal(&self, head: &str, body: &[u8]) -> Result<Vec<u8>, KekError> {
        let seed = Arc::clone(&lock(&self.current));
        let (salt, bytes) = seal_under(&seed.key, head, body)?;
        let envelope = Envelope {
            algorithm: ALGORITHM.to_owned(),
            kek: seed.wrapped.clone(),
            salt: Base64::of(&salt),
            ciphertext: Base64::of(&bytes),
        };
        #[allow(clippy::expect_used)] // An empty record would be worse than no CA.
        let mut text = serde_json::to_vec_pretty(&envelope).expect("text always becomes JSON");
        text.push(b'\n');
        Ok(text)
    }

    /// The body of what [`Self::seal`] made.
    pub(crate) fn open(&self, head: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        let envelope: Envelope =
            serde_json::from_slice(sealed).map_err(|error| format!("its envelope is not readable: {error}"))?;
        if envelope.algorithm != ALGORITHM {
            return Err(format!(
                "it is sealed with {}, and this version knows {ALGORITHM}",
                envelope.algorithm
            ));
        }
        let seed = lock(&self.known).get(&envelope.kek).map(Arc::clone);
        let seed = seed.ok_or_else(|| format!("its key {} was not asked for", envelope.kek.key_id))?;
        open_under(&seed.key, head, envelope.salt.bytes(), envelope.ciphertext.bytes())
            .ok_or_else(|| "it was changed, or is another record".to_owned())
    }
}

/// Seals under a seed: the record's random bytes, and its ciphertext.
pub(crate) fn seal_under(
    seed: &[u8; KEY_LEN],
    head: &str,
    body: &[u8],
) -> Result<([u8; SALT_LEN], Zeroizing<Vec<u8>>), KekError> {
    let mut salt = [0; SALT_LEN];
    rand::fill(&mut salt).map_err(|_| KekError::Random)?;
    let (key, nonce) = key_of(seed, &salt, head);
    // With room for the tag: a vector that grows leaves its old bytes behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() + AES_256_GCM.tag_len()));
    bytes.extend_from_slice(body);
    // It fails for bodies of 64 GiB.
    let sealed = key.seal_in_place_append_tag(nonce, Aad::from(head.as_bytes()), &mut *bytes);
    sealed.map_err(|_| KekError::Random)?;
    Ok((salt, bytes))
}

/// The body of what [`seal_under`] made; `None`: it was changed, or is another record.
pub(crate) fn open_under(
    seed: &[u8; KEY_LEN],
    head: &str,
    salt: &[u8],
    ciphertext: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (key, nonce) = key_of(seed, salt, head);
    let mut bytes = Zeroizing::new(ciphertext.to_vec());
    let length = key
        .open_in_place(nonce, Aad::from(head.as_bytes()), &mut bytes)
        .ok()?
        .len();
    bytes.truncate(length);
    Some(bytes)
}

pub(crate) fn new_key() -> Result<Zeroizing<[u8; KEY_LEN]>, KekError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    rand::fill(&mut *key).map_err(|_| KekError::Random)?;
    Ok(key)
}

/// Which key a record is sealed under; `None` if it is none that is sealed.
fn wrapped_of(record: &[u8]) -> Option<Wrapped> {
    let begin = record.iter().position(|byte| *byte == b'{')?;
    let envelope: Envelope = serde_json::from_slice(record.get(begin..)?).ok()?;
    Some(envelope.kek)
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// The key and the nonce of one record.
fn key_of(seed: &[u8; KEY_LEN], salt: &[u8], head: &str) -> (LessSafeKey, Nonce) {
    let mut made = Zeroizing::new([0; KEY_LEN + NONCE_LEN]);
    let pseudo_random = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(seed);
    let info = [head.as_bytes()];
    #[allow(clippy::expect_used)] // A key of zeros would be worse than no CA.
    pseudo_random
        .expand(&info, Length(KEY_LEN + NONCE_LEN))
        .and_then(|output| output.fill(&mut *made))
        .expect("44 bytes are far from HKDF's limit of 255 blocks");
    let (key, nonce) = made.split_at(KEY_LEN);
    aead(key, nonce)
}

/// AES-256-GCM under 32 bytes, with a nonce of 12.
fn aead(key: &[u8], nonce: &[u8]) -> (LessSafeKey, Nonce) {
    let mut bytes = [0; NONCE_LEN];
    bytes.copy_from_slice(nonce);
    #[allow(clippy::expect_used)] // All callers give the one length that there is.
    let key = UnboundKey::new(&AES_256_GCM, key).expect("32 bytes");
    (LessSafeKey::new(key), Nonce::assume_unique_for_key(bytes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wrapped {
    fn annotations(&self) -> impl Iterator<Item = (String, Vec<u8>)> {
        self.annotations
            .iter()
            .map(|(name, value)| (name.clone(), value.bytes().to_vec()))
    }
}

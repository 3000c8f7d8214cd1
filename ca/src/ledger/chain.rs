//! One chain of sealed records: what each is bound to, and how it is written in a line.
//!
//! ```text
//! head   "postern-ca-ledger 1 <chain> <number> <hash of the one before>"   what the seal is bound to
//! hash   SHA-256(head, salt, ciphertext)                                   needs no key: order and completeness
//! ```
//!
//! So nobody who has the records and not the key can change, drop, swap or put in one; what can be taken away unseen is
//! the newest end, which only a head that was noted elsewhere tells.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::entry::Entry;
use crate::base64_bytes::Base64;
use crate::seal::{KEY_LEN, KekError, SALT_LEN, new_key, open_under, seal_under};
use crate::tokens::hex;

pub(crate) type Hash = [u8; 32];

/// Before the first record.
pub(crate) const NOTHING: Hash = [0; 32];
/// The longest name of a replica; Kubernetes allows pods as many.
const MAX_REPLICA: usize = 253;

/// The key of a ledger, and how far one in a directory had come when somebody last looked. Kept as a record of the store,
/// so that it is sealed under the KEK, and anew under another one; the ledger itself is not touched by that.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyRecord {
    key: Base64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mark: Option<Mark>,
}

/// A record that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    pub(crate) number: u64,
    /// Hex.
    pub(crate) hash: String,
}

impl KeyRecord {
    pub(crate) fn create() -> Result<Self, KekError> {
        Ok(Self {
            key: Base64::of(&*new_key()?),
            mark: None,
        })
    }

    pub(crate) fn key(&self) -> Result<Key, String> {
        let bytes: &[u8; KEY_LEN] = self.key.bytes().try_into().map_err(|_| "its key is not 32 bytes")?;
        Ok(Key(zeroize::Zeroizing::new(*bytes)))
    }
}

/// Seals and opens records.
#[derive(Clone)]
pub(crate) struct Key(zeroize::Zeroizing<[u8; KEY_LEN]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

impl Key {
    /// A name that tells nothing of it.
    pub(crate) fn id(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"postern-ca ledger key id");
        context.update(&*self.0);
        hex(context.finish().as_ref().get(..8).unwrap_or_default())
    }
}

/// Which chain: of which authority, of which replica, and which of its.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chain {
    /// The first 16 hex digits of the root's SHA-256.
    pub(crate) authority: String,
    pub(crate) replica: String,
    /// Random.
    id: String,
    /// [`Key::id`].
    pub(crate) key: String,
}

impl Chain {
    pub(crate) fn begin(root_sha256: [u8; 32], replica: &str, key: &Key) -> Result<Self, KekError> {
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| KekError::Random)?;
        Ok(Self {
            authority: authority_name(root_sha256),
            replica: replica_name(replica),
            id: hex(&id),
            key: key.id(),
        })
    }

    fn head(&self, number: u64, before: &Hash) -> String {
        format!("postern-ca-ledger 1 {self} {number} {}\n", hex(before))
    }

    pub(crate) fn seal(&self, key: &Key, number: u64, before: &Hash, entry: &Entry) -> Result<Sealed, KekError> {
        #[allow(clippy::expect_used)] // An empty record would be worse than no CA.
        let body = serde_json::to_vec(entry).expect("text always becomes JSON");
        self.seal_body(key, number, before, &body)
    }

    fn seal_body(&self, key: &Key, number: u64, before: &Hash, body: &[u8]) -> Result<Sealed, KekError> {
        let (salt, ciphertext) = seal_under(&key.0, &self.head(number, before), body)?;
        let mut sealed = Sealed {
            salt,
            ciphertext: ciphertext.to_vec(),
            hash: NOTHING,
        };
        sealed.hash = self.hash(number, before, &sealed);
        Ok(sealed)
    }

    /// What this record's hash has to be.
    pub(crate) fn hash(&self, number: u64, before: &Hash, sealed: &Sealed) -> Hash {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.head(number, before).as_bytes());
        context.update(&sealed.salt);
        context.update(&sealed.ciphertext);
        let mut hash = NOTHING;
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }

    /// What it says; an error: it was changed, or stands in another's place.
    pub(crate) fn open(&self, key: &Key, number: u64, before: &Hash, sealed: &Sealed) -> Result<Entry, String> {
        let head = self.head(number, before);
        let body = open_under(&key.0, &head, &sealed.salt, &sealed.ciphertext)
            .ok_or("it was not sealed under this ledger's key in this place")?;
        serde_json::from_slice(&body).map_err(|error| format!("its content is not readable: {error}"))
    }

    /// The word of the key's holder that records up to `number`, whose hash this was, were taken out.
    pub(crate) fn seal_anchor(&self, key: &Key, number: u64, hash: &Hash) -> Result<Anchor, KekError> {
        let (salt, ciphertext) = seal_under(&key.0, &self.anchor_head(number, hash), b"")?;
        Ok(Anchor {
            number,
            hash: Hex(*hash),
            salt: Base64::of(&salt),
            seal: Base64::of(&ciphertext),
        })
    }

    pub(crate) fn anchor_holds(&self, key: &Key, anchor: &Anchor) -> bool {
        let head = self.anchor_head(anchor.number, &anchor.hash.0);
        open_under(&key.0, &head, anchor.salt.bytes(), anchor.seal.bytes()).is_some()
    }

    fn anchor_head(&self, number: u64, hash: &Hash) -> String {
        format!("postern-ca-ledger-anchor 1 {self} {number} {}\n", hex(hash))
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.authority, self.replica, self.id)
    }
}

pub(crate) fn authority_name(root_sha256: [u8; 32]) -> String {
    hex(root_sha256.get(..8).unwrap_or_default())
}

/// Only what cannot be mistaken in a head line.
fn replica_name(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let name: String = text
        .chars()
        .take(MAX_REPLICA)
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// A record as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) hash: Hash,
    salt: [u8; SALT_LEN],
    ciphertext: Vec<u8>,
}

impl Sealed {
    /// In the ledger's file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [&self.hash[..], &self.salt, &self.ciphertext].concat()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (hash, rest) = bytes.split_first_chunk::<32>()?;
        let (salt, ciphertext) = rest.split_first_chunk::<SALT_LEN>()?;
        Some(Self {
            hash: *hash,
            salt: *salt,
            ciphertext: ciphertext.to_vec(),
        })
    }
}

/// Where a chain begins whose oldest records were taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Anchor {
    pub(crate) number: u64,
    pub(crate) hash: Hex,
    salt: Base64,
    seal: Base64,
}

/// A hash in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) Hash);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_hash(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a hash is not 64 hex digits"))
    }
}

/// A hash as it is shown.
pub(crate) fn parse_hash(text: &str) -> Option<Hash> {
    let mut hash = NOTHING;
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// A record or an anchor as a line, where there is no file of ours.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    /// The format; what tells such a line from a log's.
    postern_ledger: u32,
    pub(crate) chain: Chain,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<LineRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) anchor: Option<Anchor>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LineRecord {
    pub(crate) number: u64,
    pub(crate) hash: Hex,
    /// Base64.
    salt: String,
    /// Base64.
    sealed: String,
}

const LINE_FORMAT: u32 = 1;
/// What every line of ours begins with.
pub(crate) const LINE_BEGINS: &str = "{\"postern_ledger\":";

impl Line {
    pub(crate) fn of(chain: &Chain, number: u64, sealed: &Sealed) -> Self {
        Self {
            postern_ledger: LINE_FORMAT,
            chain: chain.clone(),
            record: Some(LineRecord {
                number,
                hash: Hex(sealed.hash),
                salt: STANDARD.encode(sealed.salt),
                sealed: STANDARD.encode(&sealed.ciphertext),
            }),
            anchor: None,
        }
    }

    pub(crate) fn anchored(chain: &Chain, anchor: &Anchor) -> Self {
        Self {
            postern_ledger: LINE_FORMAT,
            chain: chain.clone(),
            record: None,
            anchor: Some(anchor.clone()),
        }
    }

    pub(crate) fn text(&self) -> String {
        #[allow(clippy::expect_used)] // A record that is not written must not be counted as one.
        serde_json::to_string(self).expect("text always becomes JSON")
    }

    /// An error: it begins like one of ours and is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let line: Self = serde_json::from_str(text).map_err(|error| format!("it is no whole record: {error}"))?;
        if line.postern_ledger != LINE_FORMAT {
            return Err(format!(
                "it is of format {}, and this version reads {LINE_FORMAT}",
                line.postern_ledger
            ));
        }
        Ok(line)
    }
}

impl LineRecord {
    pub(crate) fn sealed(&self) -> Result<Sealed, String> {
        let bytes = |text: &str| STANDARD.decode(text).map_err(|_| "a value is not base64".to_owned());
        Ok(Sealed {
            hash: self.hash.0,
            salt: bytes(&self.salt)?.try_into().map_err(|_| "its salt is not 32 bytes")?,
            ciphertext: bytes(&self.sealed)?,
        })
    }
}

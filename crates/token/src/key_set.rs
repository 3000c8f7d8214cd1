//! Key sets (JWKS, RFC 7517): the keys with which an issuer's tokens may be verified, and why others are left out.

use postern_policy::RequestAuthentication;
use postern_policy::authentication::{Algorithm, KeySource};
use postern_policy::document::DocumentError;
use serde_json::{Map, Value};

use crate::json;

mod key;

pub(crate) use key::Key;

/// Large sets hold a dozen keys with certificate chains; this is twenty times as much.
pub const MAX_SET: usize = 256 * 1_024;
/// Issuers publish two or three keys, the largest about ten.
pub const MAX_KEYS: usize = 64;
/// No issuer's key names are longer (thumbprints have 43 characters, UUIDs 36).
const MAX_NAME: usize = 256;

/// The usable keys of an issuer.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    left_out: Vec<LeftOut>,
}

/// A key that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its `kid`, or its position.
    pub key: String,
    /// Why.
    pub why: &'static str,
}

/// A text that is no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Past [`MAX_SET`].
    #[error("the key set is longer than {MAX_SET} bytes")]
    TooLong,
    /// No JSON, or a name stands twice in an object.
    #[error("the key set is no JSON object with each name once")]
    NoJson,
    /// `keys` is missing.
    #[error("the key set has no list `keys`")]
    NoKeys,
    /// Past [`MAX_KEYS`].
    #[error("the key set has more than {MAX_KEYS} keys")]
    TooMany,
}

/// What is wrong with the key sets that stand in a document, beyond what the policy crate sees.
#[must_use]
pub fn errors_of(document: &RequestAuthentication) -> Vec<DocumentError> {
    let wrong = document.rules().iter().filter_map(|rule| {
        let KeySource::Inline(text) = &rule.keys else {
            return None;
        };
        let what = match KeySet::parse(text.as_bytes()) {
            Ok(set) if !set.is_empty() => return None,
            Ok(set) => {
                let left_out = set.left_out().first();
                let why = left_out.map_or_else(String::new, |first| {
                    format!(": {} is left out: {}", first.key, first.why)
                });
                format!("no key of the set can be used{why}")
            }
            Err(error) => error.to_string(),
        };
        Some(DocumentError {
            place: rule.place.clone(),
            path: "jwks".to_owned(),
            what: format!("`jwks` of issuer {}: {what}", rule.issuer),
            nearest: None,
        })
    });
    wrong.collect()
}

/// [`errors_of`], and files: beside the objects of a cluster there are none.
#[must_use]
pub fn errors_in_cluster(document: &RequestAuthentication) -> Vec<DocumentError> {
    let mut errors = errors_of(document);
    for rule in document.rules() {
        if let KeySource::File(_) = rule.keys {
            errors.push(DocumentError {
                place: rule.place.clone(),
                path: "jwksFile".to_owned(),
                what: "is for documents in a directory: in a cluster the keys stand in `jwks`, or behind `jwksUri`"
                    .to_owned(),
                nearest: None,
            });
        }
    }
    errors
}

impl KeySet {
    /// Reads a set. Keys that must not verify anything are left out, each with its reason; a set may be left without any.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        if text.len() > MAX_SET {
            return Err(KeySetError::TooLong);
        }
        let set = json::object(text).ok_or(KeySetError::NoJson)?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::NoKeys)?;
        if keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let mut read = Self::default();
        for (position, key) in keys.iter().enumerate() {
            let fields = key.as_object().ok_or("it is no object");
            match fields.and_then(|fields| read.usable(fields)) {
                Ok(key) => read.keys.push(key),
                Err(why) => read.left_out.push(LeftOut {
                    key: key.get("kid").and_then(Value::as_str).map_or_else(
                        || format!("keys[{position}]"),
                        |name| name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect(),
                    ),
                    why,
                }),
            }
        }
        Ok(read)
    }

    fn usable(&self, fields: &Map<String, Value>) -> Result<Key, &'static str> {
        let key = Key::read(fields)?;
        let twin = |other: &Key| other.id == key.id && Algorithm::ALL.iter().any(|&a| other.takes(a) && key.takes(a));
        if self.keys.iter().any(twin) {
            return Err("another key of its kind has the same `kid`");
        }
        Ok(key)
    }

    /// The one key for a token. A token without `kid` is verified only if the choice is no guess: one key fits its algorithm.
    pub(crate) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let mut fitting = self.keys.iter().filter(|key| key.takes(algorithm));
        match id {
            Some(id) => fitting.find(|key| key.id.as_deref() == Some(id)),
            None => {
                let only = fitting.next()?;
                fitting.next().is_none().then_some(only)
            }
        }
    }

    /// How many keys can be used.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// No token can be verified with it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys that are not used.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }
}

//! Keys of JWT-SVIDs: one signs, the next is published a whole issuer ahead, those before stay published until the last
//! token of theirs has ended.
//!
//! ```text
//! issuer 1: signs A, published A B      issuer 2: signs B, published A B C      issuer 3: signs C, published B C D
//! ```

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::UnparsedPublicKey;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_identity::SpiffeId;
use postern_identity::bundle::JwtKey;
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Authority, AuthorityError};
use crate::base64_bytes::Base64;
use crate::clock::later;
use crate::refusal::Refusal;
use postern_api::refusal::RefusalReason;

/// SPIRE's and istiod's default. Nothing takes a token back, so it is short.
pub(crate) const JWT_LIFE: Duration = Duration::from_secs(300);
/// A key that signs no more is published for this much longer: a token's life, and clocks that are behind.
const RETIRED_FOR: Duration = Duration::from_secs(600);
/// Keys that were replaced in quick succession; past it the oldest goes before its time.
const MAX_RETIRED: usize = 8;

/// See the module.
#[derive(Clone)]
pub(super) struct JwtKeys {
    signing: Arc<Signer>,
    next: Arc<Signer>,
    retired: Vec<Retired>,
}

struct Signer {
    key: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

/// Its private half is gone.
#[derive(Clone)]
struct Retired {
    point: Vec<u8>,
    until: UnixTime,
}

/// A signed token.
pub(crate) struct SignedJwt {
    /// Secret: whoever has it is the workload, to its audiences.
    pub(crate) token: Zeroizing<String>,
    pub(crate) expires: UnixTime,
    pub(crate) key_id: String,
}

impl JwtKeys {
    pub(super) fn create() -> Result<Self, AuthorityError> {
        Ok(Self {
            signing: Arc::new(Signer::create()?),
            next: Arc::new(Signer::create()?),
            retired: Vec::new(),
        })
    }

    /// Others, beside what a bundle has published: tokens of those may live, though their keys are lost.
    pub(super) fn beside(published: &[JwtKey], now: UnixTime) -> Result<Self, AuthorityError> {
        let until = later(now, RETIRED_FOR);
        let over = published.len().saturating_sub(MAX_RETIRED);
        let points = published.iter().skip(over).filter_map(point_of);
        Ok(Self {
            retired: points.map(|point| Retired { point, until }).collect(),
            ..Self::create()?
        })
    }

    /// The one that was published ahead signs from now on.
    pub(super) fn rotated(&self, now: UnixTime) -> Result<Self, AuthorityError> {
        let mut retired: Vec<Retired> = self.retired.iter().filter(|key| now <= key.until).cloned().collect();
        retired.push(Retired {
            point: self.signing.point().to_vec(),
            until: later(now, RETIRED_FOR),
        });
        let over = retired.len().saturating_sub(MAX_RETIRED);
        retired.drain(..over);
        Ok(Self {
            signing: Arc::clone(&self.next),
            next: Arc::new(Signer::create()?),
            retired,
        })
    }

    /// What the bundle has of them, oldest first.
    pub(super) fn published(&self) -> Vec<JwtKey> {
        let retired = self.retired.iter().map(|key| key.point.as_slice());
        let points = retired.chain([self.signing.point(), self.next.point()]);
        points.filter_map(|point| JwtKey::es256(&id_of(point), point)).collect()
    }

    /// A token of the key that signs verifies under what is published.
    pub(super) fn test(&self, published: &[JwtKey]) -> Result<(), AuthorityError> {
        let failed = |what: &str| Err(AuthorityError::SelfTest(what.to_owned()));
        if published != self.published() {
            return failed("its bundle has not its JWT keys");
        }
        let message = b"self-test";
        let signature = self.signing.sign(message)?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.signing.point());
        key.verify(message, &signature)
            .or_else(|_| failed("its JWT key does not verify what it signs"))
    }

    /// Are they those that follow what is published? A kill came before the bundle that says so; whoever has the one before it knows
    /// the key that signs.
    pub(super) fn are_next_after(&self, published: &[JwtKey]) -> bool {
        let newest = published.last();
        newest.is_some_and(|newest| newest.id() == id_of(self.signing.point()))
    }

    fn sign(&self, claims: &serde_json::Value) -> Result<(Zeroizing<String>, String), AuthorityError> {
        let key_id = id_of(self.signing.point());
        let header = serde_json::json!({"alg": "ES256", "kid": key_id, "typ": "JWT"});
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(&header), part(claims));
        let signature = self.signing.sign(input.as_bytes())?;
        let token = Zeroizing::new(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)));
        Ok((token, key_id))
    }
}

impl Signer {
    fn create() -> Result<Self, AuthorityError> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|_| AuthorityError::Unusable("no JWT key could be made".to_owned()))?;
        Self::load(pkcs8.as_ref())
    }

    fn load(pkcs8: &[u8]) -> Result<Self, AuthorityError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .map_err(|_| AuthorityError::Unusable("a JWT key cannot be read".to_owned()))?;
        Ok(Self {
            key,
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
        })
    }

    fn point(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        let signature = self.key.sign(&SystemRandom::new(), message);
        signature
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| AuthorityError::Unusable("a JWT key does not sign".to_owned()))
    }
}

/// Two keys never have the same name, and a key has one on every replica.
fn id_of(point: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, point))
}

/// `None`: it is none of a CA's own.
fn point_of(key: &JwtKey) -> Option<Vec<u8>> {
    let part = |name| URL_SAFE_NO_PAD.decode(key.jwk().get(name)?.as_str()?).ok();
    let point = [vec![4], part("x")?, part("y")?].concat();
    (JwtKey::es256(&id_of(&point), &point)? == *key).then_some(point)
}

impl Authority {
    /// Signs a JWT-SVID for an identity that has been proven by an SVID that ends at `not_after`, which no token outlives.
    pub(crate) fn sign_jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        not_after: UnixTime,
        now: UnixTime,
    ) -> Result<SignedJwt, Refusal> {
        let keys = self.jwt.as_ref().ok_or_else(|| {
            Refusal::new(
                RefusalReason::JwtUnavailable,
                "this CA has no keys of JWT-SVIDs yet, and makes them with its next bundle: its log says why that is not there",
            )
        })?;
        self.ready(now)?;
        let expires = later(now, JWT_LIFE).min(not_after);
        let claims = serde_json::json!({
            "sub": id.as_str(), "aud": audience, "iat": now.as_secs(), "exp": expires.as_secs(),
        });
        let (token, key_id) = keys.sign(&claims).map_err(|error| {
            tracing::error!(reason = "internal", error = %error, "signing failed");
            Refusal::new(RefusalReason::Internal, "the token could not be signed")
        })?;
        Ok(SignedJwt { token, expires, key_id })
    }
}

/// `jwt.json`: sealed like the issuing key, and a record of its own, so that a version without JWT-SVIDs still reads the others.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JwtKeysRecord {
    signing: Base64,
    next: Base64,
    retired: Vec<RetiredRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetiredRecord {
    point: Base64,
    until_unix: u64,
}

impl JwtKeysRecord {
    pub(super) fn of(keys: &JwtKeys) -> Self {
        let retired = keys.retired.iter().map(|key| RetiredRecord {
            point: Base64::of(&key.point),
            until_unix: key.until.as_secs(),
        });
        Self {
            signing: Base64::of(&keys.signing.pkcs8),
            next: Base64::of(&keys.next.pkcs8),
            retired: retired.collect(),
        }
    }

    pub(super) fn load(self) -> Result<JwtKeys, AuthorityError> {
        let retired = self.retired.into_iter().map(|key| Retired {
            point: key.point.bytes().to_vec(),
            until: UnixTime::since_unix_epoch(Duration::from_secs(key.until_unix)),
        });
        Ok(JwtKeys {
            signing: Arc::new(Signer::load(self.signing.bytes())?),
            next: Arc::new(Signer::load(self.next.bytes())?),
            retired: retired.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn ids(keys: &JwtKeys) -> Vec<String> {
        keys.published().iter().map(|key| key.id().to_owned()).collect()
    }

    #[test]
    fn a_jwt_key_is_published_before_it_signs_and_after_it_has_signed() {
        let first = JwtKeys::create().unwrap();
        let second = first.rotated(at(1_000)).unwrap();
        assert_eq!(
            id_of(second.signing.point()),
            ids(&first)[1],
            "published one issuer ahead"
        );
        assert_eq!(ids(&second)[..2], ids(&first)[..]);
        // In quick succession: tokens of the first may live.
        let third = second.rotated(at(1_100)).unwrap();
        assert_eq!(ids(&third)[..3], ids(&second)[..]);
        let later = third.rotated(at(1_000 + RETIRED_FOR.as_secs() + 1)).unwrap();
        assert!(!ids(&later).contains(&ids(&first)[0]), "its last token has ended");
        assert!(ids(&later).contains(&ids(&first)[1]));
        for keys in [&first, &second, &third, &later] {
            keys.test(&keys.published()).unwrap();
            assert!(keys.test(&keys.published()[1..]).is_err());
        }
    }

    #[test]
    fn keys_that_are_made_anew_leave_those_before_them_published_for_as_long_as_their_tokens_live() {
        let lost = JwtKeys::create().unwrap().rotated(at(1_000)).unwrap();
        let anew = JwtKeys::beside(&lost.published(), at(2_000)).unwrap();
        assert_eq!(ids(&anew)[..3], ids(&lost)[..]);
        assert_eq!(ids(&anew).len(), 5);
        anew.test(&anew.published()).unwrap();
        let later = anew.rotated(at(2_001 + RETIRED_FOR.as_secs())).unwrap();
        assert!(ids(&lost).iter().all(|id| !ids(&later).contains(id)));

        let ahead = lost.rotated(at(1_500)).unwrap();
        assert!(ahead.are_next_after(&lost.published()));
        assert!(!lost.are_next_after(&ahead.published()) && !anew.are_next_after(&lost.published()));
        assert!(!lost.are_next_after(&[]));
    }

    #[test]
    fn retired_keys_are_bounded_and_all_survive_the_store_without_their_private_halves() {
        let mut keys = JwtKeys::create().unwrap();
        for n in 0..20 {
            keys = keys.rotated(at(1_000 + n)).unwrap();
        }
        assert_eq!(ids(&keys).len(), MAX_RETIRED + 2);
        let text = serde_json::to_string(&JwtKeysRecord::of(&keys)).unwrap();
        let again: JwtKeysRecord = serde_json::from_str(&text).unwrap();
        let again = again.load().unwrap();
        assert_eq!(ids(&again), ids(&keys));
        again.test(&keys.published()).unwrap();
    }
}

//! JWT-SVIDs: workloads' tokens, by the letter of the SPIFFE JWT-SVID standard. What it takes away from a JWT is refused: other
//! header fields, other types, keys of another trust domain, keys that are for certificates.

use postern_identity::{BundleSet, IdError, SpiffeId, TrustBundle};
use postern_policy::authentication::Algorithm;
use serde_json::{Map, Value};

use crate::compact::{Compact, Named};
use crate::verify::claims;
use crate::{KeySet, Refusal, json};

/// Clocks that are behind or ahead, in seconds.
const LEEWAY: u64 = 10;

/// A token that was verified for one audience. Debug shows no claim.
pub struct JwtSvid {
    /// Whose.
    pub id: SpiffeId,
    /// All of it.
    pub claims: Map<String, Value>,
}

/// Why a token is no JWT-SVID for this audience.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidRefusal {
    /// As a JWT.
    #[error(transparent)]
    Token(#[from] Refusal),
    /// `sub` is missing or no workload's SPIFFE ID.
    #[error("its `sub` is no SPIFFE ID of a workload")]
    Subject(#[source] Option<IdError>),
    /// No bundle of the subject's trust domain.
    #[error("trust domain `{0}` is not known here")]
    TrustDomain(String),
}

/// Verifies a JWT-SVID at `now` (seconds since 1970) for `audience`, under the bundle of its own subject's trust domain.
pub fn verify(token: &str, audience: &str, bundles: &BundleSet, now: u64) -> Result<JwtSvid, SvidRefusal> {
    let compact = Compact::read_with(token, read_header)?;
    let algorithm = Algorithm::parse(&compact.algorithm)
        .filter(|algorithm| *algorithm != Algorithm::EdDsa)
        .ok_or(Refusal::Unsupported("`alg` is none of RS, PS and ES"))?;
    let subject = compact
        .claims
        .get("sub")
        .and_then(Value::as_str)
        .ok_or(SvidRefusal::Subject(None))?;
    let id = SpiffeId::parse(subject).map_err(|error| SvidRefusal::Subject(Some(error)))?;
    let bundle = bundles
        .get(id.trust_domain())
        .ok_or_else(|| SvidRefusal::TrustDomain(id.trust_domain().to_owned()))?;
    let keys = keys_of(bundle);
    let key = keys
        .find(compact.key.as_deref(), algorithm)
        .ok_or(Refusal::UnknownKey { provider: None })?;
    if !key.verifies(algorithm, compact.signed, &compact.signature) {
        return Err(Refusal::Signature.into());
    }
    // When it was made (`iat`) is no condition of the standard, and clocks differ.
    let times = ["exp", "nbf"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), compact.claims.get(name)?.clone())));
    claims::times(&times.collect(), now, LEEWAY)?;
    is_for(audience, &compact.claims)?;
    Ok(JwtSvid {
        id,
        claims: compact.claims,
    })
}

/// Only what the standard lists (section 2), and a key by name: it allows to leave `kid` out, other implementations do not.
fn read_header(header: &Map<String, Value>) -> Result<Named, Refusal> {
    if header
        .keys()
        .any(|name| !["alg", "kid", "typ"].contains(&name.as_str()))
    {
        return Err(Refusal::Unsupported("a header field besides `alg`, `kid` and `typ`"));
    }
    if header.get("typ").is_some_and(|kind| kind != "JWT" && kind != "JOSE") {
        return Err(Refusal::Unsupported("`typ` is neither JWT nor JOSE"));
    }
    let text = |name, missing| {
        header
            .get(name)
            .and_then(Value::as_str)
            .ok_or(Refusal::Malformed(missing))
    };
    let algorithm = text("alg", "its header has no `alg`")?;
    let key = text("kid", "its header has no `kid`")?;
    Ok((algorithm.to_owned(), Some(key.to_owned())))
}

/// Those for JWT-SVIDs: roots are never among them.
fn keys_of(bundle: &TrustBundle) -> KeySet {
    let mut set = json::object(&bundle.jwks()).unwrap_or_default();
    for key in set.get_mut("keys").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(fields) = key.as_object_mut() {
            // A bundle's own word, which is no JWK's.
            fields.remove("use");
        }
    }
    KeySet::parse(Value::Object(set).to_string().as_bytes()).unwrap_or_default()
}

/// `aud` must be there, and hold ours (section 3.2).
fn is_for(audience: &str, claims: &Map<String, Value>) -> Result<(), Refusal> {
    let ours = |one: &Value| one.as_str() == Some(audience);
    let is_for = match claims.get("aud") {
        Some(Value::Array(several)) => several.iter().all(Value::is_string) && several.iter().any(ours),
        Some(one @ Value::String(_)) => ours(one),
        Some(_) | None => return Err(Refusal::Malformed("its `aud` is missing or no text")),
    };
    if is_for { Ok(()) } else { Err(Refusal::Audience) }
}

impl std::fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtSvid").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

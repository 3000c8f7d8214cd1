//! Single claims of a token whose signature was verified. A claim of the wrong kind refuses the token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::Refusal;

type Claims = Map<String, Value>;

/// Checks `exp` (which must be there), `nbf`, `iat` and `auth_time`. Returns the second from which on the token has expired.
pub(crate) fn times(claims: &Claims, now: u64, skew: u64) -> Result<u64, Refusal> {
    let expires = seconds(claims, "exp", "`exp` is no whole number of seconds")?
        .ok_or(Refusal::Malformed("it has no `exp`: it would be good for ever"))?;
    let until = expires.saturating_add(skew);
    if now >= until {
        return Err(Refusal::Expired);
    }
    let begins = [
        ("nbf", "`nbf` is no whole number of seconds", "`nbf`"),
        ("iat", "`iat` is no whole number of seconds", "`iat` is in the future"),
        (
            "auth_time",
            "`auth_time` is no whole number of seconds",
            "`auth_time` is in the future",
        ),
    ];
    for (name, malformed, early) in begins {
        if seconds(claims, name, malformed)?.is_some_and(|at| at > now.saturating_add(skew)) {
            return Err(Refusal::NotYet(early));
        }
    }
    Ok(until)
}

/// RFC 7519 allows fractions; nobody issues them, and readers cut them differently.
fn seconds(claims: &Claims, name: &str, malformed: &'static str) -> Result<Option<u64>, Refusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(at) => at.as_u64().map(Some).ok_or(Refusal::Malformed(malformed)),
    }
}

/// Whom it was issued to: `azp` (OpenID Connect) or `client_id` (RFC 9068 section 2.2).
pub(super) fn client(claims: &Claims) -> Result<Option<Box<str>>, Refusal> {
    let text = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(Value::String(client)) => Ok(Some(client.as_str())),
        Some(_) => Err(Refusal::Malformed("its client is no text")),
    };
    match (text("azp")?, text("client_id")?) {
        (Some(azp), Some(id)) if azp != id => Err(Refusal::Malformed("`azp` and `client_id` differ")),
        (Some(client), _) | (None, Some(client)) => Ok(Some(client.into())),
        (None, None) => Ok(None),
    }
}

/// The certificate that a token is bound to, if it is bound (RFC 8705 section 3.1). A token that is bound in another way, to
/// a DPoP key say, must not pass for one that anybody may bring (RFC 9449 section 7.2).
pub(super) fn certificate(claims: &Claims) -> Result<Option<[u8; 32]>, Refusal> {
    const ELSEWHERE: Refusal = Refusal::Unsupported("`cnf`: bound to something else than a certificate");
    let bound = match claims.get("cnf") {
        None => return Ok(None),
        Some(Value::Object(bound)) if bound.len() == 1 => bound,
        Some(_) => return Err(ELSEWHERE),
    };
    let thumbprint = bound.get("x5t#S256").and_then(Value::as_str).ok_or(ELSEWHERE)?;
    let bytes = URL_SAFE_NO_PAD
        .decode(thumbprint)
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(Some)
        .ok_or(Refusal::Malformed("`cnf` holds no SHA-256 of a certificate"))
}

/// The claims, where those of `names` that are text have become lists of words.
pub(super) fn with_words_apart(claims: &Claims, names: &[String]) -> Claims {
    let mut claims = claims.clone();
    for name in names {
        if let Some(Value::String(words)) = claims.get(name) {
            let words = words
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(Value::from)
                .collect();
            claims.insert(name.clone(), Value::Array(words));
        }
    }
    claims
}

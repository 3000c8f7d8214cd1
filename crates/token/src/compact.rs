//! A JWT in compact form (RFC 7515 section 7.1), taken apart. Nothing in it is believed yet.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::{Refusal, json};

/// A longer token is refused before anything is made of it. Servers take heads of 8 to 16 KiB, and tokens stand in them.
pub const MAX_TOKEN: usize = 16 * 1_024;
/// Two dots, three parts.
const PARTS: usize = 3;
/// The types that are access or ID tokens (RFC 9068 section 2.1; RFC 8725 section 3.11): a logout token, a DPoP proof or a
/// security event of the same issuer is none. Compared without case (RFC 7515 section 4.1.9).
const TYPES: [&str; 4] = ["jwt", "at+jwt", "application/at+jwt", "application/jwt"];

/// `alg` and `kid`.
pub(crate) type Named = (String, Option<String>);

/// A token's parts.
pub(crate) struct Compact<'t> {
    pub(crate) algorithm: String,
    pub(crate) key: Option<String>,
    pub(crate) claims: Map<String, Value>,
    /// The claims as they stand in the token.
    pub(crate) payload: &'t str,
    pub(crate) signed: &'t [u8],
    pub(crate) signature: Vec<u8>,
}

impl<'t> Compact<'t> {
    /// An end user's token.
    pub(crate) fn read(token: &'t str) -> Result<Self, Refusal> {
        Self::read_with(token, read_header)
    }

    /// `header_of` gives algorithm and key, or says what is wrong.
    pub(crate) fn read_with(
        token: &'t str,
        header_of: fn(&Map<String, Value>) -> Result<Named, Refusal>,
    ) -> Result<Self, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::TooLong);
        }
        let mut parts = token.splitn(PARTS + 1, '.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            // Five parts are an encrypted token (RFC 7516).
            return Err(Refusal::Malformed("it has not three parts"));
        };
        let signed = token
            .as_bytes()
            .get(..header.len() + 1 + payload.len())
            .unwrap_or_default();
        let header = json::object(&decoded(header)?).ok_or(Refusal::Malformed("its header is no JSON object"))?;
        let (algorithm, key) = header_of(&header)?;
        let signature = decoded(signature)?;
        let claims = json::object(&decoded(payload)?).ok_or(Refusal::Malformed("its payload is no JSON object"))?;
        Ok(Self {
            algorithm,
            key,
            claims,
            payload,
            signed,
            signature,
        })
    }
}

/// Only what is in here is looked at. `jku`, `jwk`, `x5u`, `x5c`: a token does not say which key is to be believed.
fn read_header(header: &Map<String, Value>) -> Result<Named, Refusal> {
    for (name, why) in [
        ("crit", "`crit`: nothing is critical here"),
        ("b64", "`b64`: an unencoded payload"),
        ("zip", "`zip`: compression"),
        ("enc", "`enc`: encryption"),
    ] {
        if header.contains_key(name) {
            return Err(Refusal::Unsupported(why));
        }
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(kind)) if TYPES.iter().any(|known| kind.eq_ignore_ascii_case(known)) => {}
        Some(_) => return Err(Refusal::Unsupported("`typ`: another kind of token")),
    }
    // `cty` says that the payload is a token again (RFC 7519 section 5.2).
    if header.contains_key("cty") {
        return Err(Refusal::Unsupported("`cty`: a nested token"));
    }
    let algorithm = match header.get("alg") {
        Some(Value::String(algorithm)) => algorithm.clone(),
        Some(_) | None => return Err(Refusal::Malformed("its header has no `alg`")),
    };
    let key = match header.get("kid") {
        None => None,
        Some(Value::String(key)) => Some(key.clone()),
        Some(_) => return Err(Refusal::Malformed("its `kid` is no text")),
    };
    Ok((algorithm, key))
}

/// Without padding, without bits that mean nothing: one text per value.
fn decoded(part: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Refusal::Malformed("a part of it is no base64url"))
}

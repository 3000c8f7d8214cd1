//! `io.jwt.*`: tokens read and verified as OPA does, with two things stricter: the header's algorithm must be the one
//! asked for, and an unsigned token is never valid.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use regorus::Value;

use super::hash::hex;
use super::jws::{self, Keys};
use super::{or_undefined, text};

/// A token on its own; heads of requests are smaller.
const MAX_TOKEN: usize = 64 * 1024;

/// The three parts of a signed token.
struct Token<'t> {
    header: Value,
    payload: Value,
    signature: Vec<u8>,
    signed: &'t str,
}

impl<'t> Token<'t> {
    fn read(token: &'t str) -> Option<Self> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.').filter(|(_, payload)| !payload.contains('.'))?;
        let object = |part: &str| {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).ok()?;
            let value: Value = serde_json::from_slice(&bytes).ok()?;
            matches!(value, Value::Object(_)).then_some(value)
        };
        Some(Self {
            header: object(header)?,
            payload: object(payload)?,
            signature: BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?,
            signed,
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        string(&self.header, name)
    }

    /// By the algorithm that its header names.
    fn is_signed_by(&self, keys: &Keys) -> bool {
        // An extension that must be understood is not.
        if member(&self.header, "crit").is_some() {
            return false;
        }
        let Some(algorithm) = self.header("alg") else {
            return false;
        };
        jws::verifies(
            algorithm,
            self.header("kid"),
            keys,
            self.signed.as_bytes(),
            &self.signature,
        )
    }
}

/// Header, payload and the signature in hexadecimal, unverified.
pub(super) fn decode(args: &[Value]) -> Value {
    let token = text(args, 0).and_then(Token::read);
    or_undefined(token.map(|token| Value::from(vec![token.header, token.payload, hex(&token.signature)])))
}

/// Signed by a key, with one algorithm?
pub(super) fn verify(algorithm: &str, args: &[Value]) -> Value {
    let Some((token, key)) = text(args, 0).and_then(Token::read).zip(text(args, 1)) else {
        return Value::Undefined;
    };
    let keys = if algorithm.starts_with("HS") {
        Some(Keys::secret(key))
    } else {
        Keys::read(key)
    };
    or_undefined(keys.map(|keys| (token.header("alg") == Some(algorithm) && token.is_signed_by(&keys)).into()))
}

/// `[valid, header, payload]`; what is not valid shows nothing of the token.
pub(super) fn decode_verify(args: &[Value], now: i64) -> Value {
    let Some((token, constraints)) = text(args, 0)
        .and_then(Token::read)
        .zip(Constraints::read(args.get(1), now))
    else {
        return Value::Undefined;
    };
    let valid = constraints.admit(&token);
    let shown = |value: Value| if valid { value } else { Value::new_object() };
    Value::from(vec![valid.into(), shown(token.header), shown(token.payload)])
}

struct Constraints {
    keys: Keys,
    algorithm: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    /// Nanoseconds.
    time: i128,
}

impl Constraints {
    /// `None`: an unknown constraint, one of a wrong type, or no key.
    fn read(given: Option<&Value>, now: i64) -> Option<Self> {
        let fields: BTreeMap<&str, &Value> = given?
            .as_object()
            .ok()?
            .iter()
            .map(|(name, value)| Some((name.as_string().ok()?.as_ref(), value)))
            .collect::<Option<_>>()?;
        let known = ["cert", "secret", "alg", "iss", "aud", "time"];
        if fields.keys().any(|name| !known.contains(name)) {
            return None;
        }
        let string = |name: &str| match fields.get(name) {
            None => Some(None),
            Some(Value::String(text)) => Some(Some(text.to_string())),
            Some(_) => None,
        };
        let keys = match (string("cert")?, string("secret")?) {
            (Some(cert), None) => Keys::read(&cert)?,
            (None, Some(secret)) => Keys::secret(&secret),
            _ => return None,
        };
        let time = match fields.get("time") {
            None => now.into(),
            Some(time) => nanoseconds(time, 1)?,
        };
        Some(Self {
            keys,
            algorithm: string("alg")?,
            issuer: string("iss")?,
            audience: string("aud")?,
            time,
        })
    }

    fn admit(&self, token: &Token<'_>) -> bool {
        let algorithm = token.header("alg");
        if self
            .algorithm
            .as_deref()
            .is_some_and(|wanted| algorithm != Some(wanted))
            || !token.is_signed_by(&self.keys)
        {
            return false;
        }
        let claim = |name| member(&token.payload, name);
        if self
            .issuer
            .as_deref()
            .is_some_and(|issuer| string(&token.payload, "iss") != Some(issuer))
        {
            return false;
        }
        // A token for somebody is for nobody who does not say who he is.
        let for_us = match claim("aud") {
            None => self.audience.is_none(),
            Some(Value::String(audience)) => self.audience.as_deref() == Some(audience.as_ref()),
            Some(Value::Array(audiences)) => audiences
                .iter()
                .any(|one| matches!(one, Value::String(one) if self.audience.as_deref() == Some(one.as_ref()))),
            Some(_) => false,
        };
        let seconds = |name| claim(name).map(|value| nanoseconds(value, 1_000_000_000));
        let expired = match seconds("exp") {
            None => false,
            Some(at) => at.is_none_or(|at| self.time >= at),
        };
        let early = match seconds("nbf") {
            None => false,
            Some(at) => at.is_none_or(|at| self.time < at),
        };
        for_us && !expired && !early
    }
}

/// A number in some unit; exact as long as it is whole.
#[allow(
    clippy::cast_possible_truncation,
    reason = "what is beyond the range of either is far future or past"
)]
fn nanoseconds(value: &Value, unit: i64) -> Option<i128> {
    match value.as_i64() {
        Ok(whole) => Some(i128::from(whole) * i128::from(unit)),
        Err(_) => value.as_f64().ok().map(|number| (number * unit as f64) as i128),
    }
}

fn member<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    object.as_object().ok()?.get(&Value::from(name))
}

fn string<'v>(object: &'v Value, name: &str) -> Option<&'v str> {
    match member(object, name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

//! The end user of a request: the claims of a token that was verified elsewhere.

use serde_json::{Map, Value};

/// Claims nest this deep at most in a policy's key; Istio's own documents go two levels.
pub const MAX_CLAIM_DEPTH: usize = 8;
/// Claims whose text is a list, by RFC 8693 section 4.2 and by Istio.
const SPACE_SEPARATED: [&str; 2] = ["scope", "permission"];

/// Claims of a verified token (RFC 7519), read once.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    issuer: Box<str>,
    subject: Box<str>,
    audiences: Vec<Box<str>>,
    expires: Option<u64>,
    claims: Map<String, Value>,
}

/// Why claims name nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// `iss` is missing or no text.
    #[error("the token has no `iss`")]
    Issuer,
    /// `sub` is missing or no text.
    #[error("the token has no `sub`")]
    Subject,
    /// `aud` is neither text nor a list of it.
    #[error("the token's `aud` is neither text nor a list of text")]
    Audience,
    /// `exp` is no whole number of seconds.
    #[error("the token's `exp` is no whole number of seconds")]
    Expiry,
}

/// What a claim says about a text that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// One of its values is it.
    Yes,
    /// None is, or there is no such claim.
    No,
    /// It is of a kind that cannot be compared.
    Unclear,
}

impl User {
    /// From the claims of a token whose signature, issuer, audience and times were verified.
    pub fn of_verified(claims: Map<String, Value>) -> Result<Self, UserError> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let issuer = text("iss").ok_or(UserError::Issuer)?.into();
        let subject = text("sub").ok_or(UserError::Subject)?.into();
        let audiences = match claims.get("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.as_str().into()],
            Some(Value::Array(several)) => {
                let texts = several.iter().map(|one| one.as_str().map(Into::into));
                texts.collect::<Option<_>>().ok_or(UserError::Audience)?
            }
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                return Err(UserError::Audience);
            }
        };
        let expires = match claims.get("exp") {
            None => None,
            Some(at) => Some(at.as_u64().ok_or(UserError::Expiry)?),
        };
        Ok(Self {
            issuer,
            subject,
            audiences,
            expires,
            claims,
        })
    }

    /// `iss`.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `sub`.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// `iss/sub`, as logs and `request.auth.principal` write it.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("{}/{}", self.issuer, self.subject)
    }

    /// `aud`.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.audiences.iter().map(|audience| &**audience)
    }

    /// `azp`: the client that the token was issued to (OpenID Connect Core section 2).
    #[must_use]
    pub fn presenter(&self) -> Option<&str> {
        self.claims.get("azp").and_then(Value::as_str)
    }

    /// `exp`, seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// All of them.
    #[must_use]
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// When they logged in: `auth_time`, seconds since 1970 (OpenID Connect Core section 2).
    pub(crate) fn logged_in(&self) -> Option<u64> {
        self.claims.get("auth_time").and_then(Value::as_u64)
    }

    /// Asks the values of a claim one by one. Text, whole numbers and truth values are compared as text, lists by their
    /// items, `scope` and `permission` word by word.
    pub(crate) fn claim_says(&self, path: &[String], is_it: impl Fn(&str) -> bool) -> Said {
        let Some((first, inner)) = path.split_first() else {
            return Said::No;
        };
        let mut at = self.claims.get(first.as_str());
        for name in inner {
            at = at.and_then(|claim| claim.get(name.as_str()));
        }
        let one = |value: &Value| match value {
            Value::String(text) => said(is_it(text)),
            Value::Bool(true) => said(is_it("true")),
            Value::Bool(false) => said(is_it("false")),
            Value::Number(number) => number
                .as_u64()
                .map_or(Said::Unclear, |number| said(is_it(Decimal::of(number).as_str()))),
            Value::Null | Value::Array(_) | Value::Object(_) => Said::Unclear,
        };
        match at {
            None => Said::No,
            Some(Value::String(words)) if inner.is_empty() && SPACE_SEPARATED.contains(&first.as_str()) => {
                said(words.split(' ').any(&is_it))
            }
            Some(Value::Array(items)) => items.iter().map(one).fold(Said::No, |all, item| match (all, item) {
                (Said::Yes, _) | (_, Said::Yes) => Said::Yes,
                (Said::Unclear, _) | (_, Said::Unclear) => Said::Unclear,
                (Said::No, Said::No) => Said::No,
            }),
            Some(value) => one(value),
        }
    }
}

fn said(it: bool) -> Said {
    if it { Said::Yes } else { Said::No }
}

/// A whole number as text, without the heap.
struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    fn of(mut number: u64) -> Self {
        let mut decimal = Self {
            digits: [b'0'; 20],
            start: 20,
        };
        // A u64 has at most 20 digits.
        for digit in decimal.digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
            decimal.start -= 1;
            if number == 0 {
                break;
            }
        }
        decimal
    }

    fn as_str(&self) -> &str {
        let digits = self.digits.get(self.start..).unwrap_or_default();
        std::str::from_utf8(digits).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn user(claims: Value) -> Result<User, UserError> {
        let Value::Object(claims) = claims else { unreachable!() };
        User::of_verified(claims)
    }

    #[test]
    fn a_token_that_names_nobody_is_nobodys() {
        for (claims, error) in [
            (json!({"sub": "alice"}), UserError::Issuer),
            (json!({"iss": "", "sub": "alice"}), UserError::Issuer),
            (json!({"iss": "https://sso"}), UserError::Subject),
            (json!({"iss": "https://sso", "sub": 7}), UserError::Subject),
            (json!({"iss": "https://sso", "sub": "a", "aud": 7}), UserError::Audience),
            (
                json!({"iss": "https://sso", "sub": "a", "aud": ["b", 7]}),
                UserError::Audience,
            ),
            (json!({"iss": "https://sso", "sub": "a", "exp": 1.5}), UserError::Expiry),
            (json!({"iss": "https://sso", "sub": "a", "exp": -1}), UserError::Expiry),
            (json!({"iss": "https://sso", "sub": "a", "exp": "1"}), UserError::Expiry),
        ] {
            assert_eq!(user(claims.clone()).unwrap_err(), error, "{claims}");
        }
        let alice = user(json!({"iss": "https://sso", "sub": "alice", "aud": "shop", "azp": "web", "exp": 9})).unwrap();
        assert_eq!(alice.principal(), "https://sso/alice");
        assert_eq!(alice.audiences().collect::<Vec<_>>(), ["shop"]);
        assert_eq!((alice.presenter(), alice.expires()), (Some("web"), Some(9)));
    }

    #[test]
    fn claims_are_compared_by_their_values() {
        let alice = user(json!({
            "iss": "https://sso", "sub": "alice", "amr": ["pwd", "otp"], "acr": 2, "admin": true, "scope": "read write",
            "realm": {"roles": ["clinician"], "scope": "a b"}, "odd": [1.5], "mixed": ["a", {}], "none": null,
        }))
        .unwrap();
        let says = |path: &[&str], text: &str| {
            let path: Vec<String> = path.iter().map(|&name| name.to_owned()).collect();
            alice.claim_says(&path, |value| value == text)
        };
        assert_eq!(says(&["amr"], "otp"), Said::Yes);
        assert_eq!(says(&["amr"], "hwk"), Said::No);
        assert_eq!(says(&["acr"], "2"), Said::Yes);
        assert_eq!(says(&["admin"], "true"), Said::Yes);
        assert_eq!(says(&["scope"], "write"), Said::Yes);
        assert_eq!(says(&["scope"], "read write"), Said::No);
        assert_eq!(says(&["realm", "roles"], "clinician"), Said::Yes);
        assert_eq!(
            says(&["realm", "scope"], "a"),
            Said::No,
            "only the top level's is a list"
        );
        assert_eq!(says(&["realm"], "roles"), Said::Unclear);
        assert_eq!(says(&["odd"], "1.5"), Said::Unclear);
        assert_eq!(says(&["mixed"], "a"), Said::Yes);
        assert_eq!(says(&["mixed"], "b"), Said::Unclear);
        assert_eq!(says(&["none"], ""), Said::Unclear);
        assert_eq!(says(&["missing"], ""), Said::No);
        assert_eq!(says(&["sub", "x"], "alice"), Said::No);
        assert_eq!(says(&[], ""), Said::No);
        for number in [0, 7, 10, u64::MAX] {
            assert_eq!(Decimal::of(number).as_str(), number.to_string());
        }
    }
}

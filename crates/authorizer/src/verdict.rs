//! The answer, checked: what an authorizer may do to a request and say to its client.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::Failure;
use crate::target;

/// Fields that one answer may set, append, remove or add: more than any known authorizer uses, and little to go through.
pub const MAX_FIELDS: usize = 64;
/// One field's value; what the whole head of a request may have is larger.
pub const MAX_VALUE: usize = 8 * 1024;
/// A denial's body: a page that explains, not a download.
pub const MAX_BODY: usize = 32 * 1024;

/// Yes or no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Ask the other policies, with these edits.
    Allow(Edits),
    /// Refuse, in the authorizer's words.
    Deny(Refusal),
}

/// What an allowing answer changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Fields of the request, in order.
    pub request: Vec<(HeaderName, HeaderValue, Append)>,
    /// Fields that the request loses, before the others are set.
    pub remove: Vec<HeaderName>,
    /// Fields of the client's answer.
    pub answer: Vec<(HeaderName, HeaderValue, Append)>,
    /// Parameters of the query that are set, not escaped yet.
    pub set_query: Vec<(String, String)>,
    /// Parameters that go, before others are set.
    pub remove_query: Vec<String>,
}

/// How a field meets those of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Append {
    /// Takes their place.
    Overwrite,
    /// Stands beside them.
    Append,
    /// Only where there is none.
    IfAbsent,
    /// Only in the place of one.
    IfPresent,
}

/// A denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 200 to 599: an authorizer may redirect, or show a login page.
    pub status: StatusCode,
    /// Fields of the answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
}

impl Refusal {
    /// A bare denial.
    #[must_use]
    pub fn bare() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// Checks status, fields and body.
    pub(crate) fn of(status: u64, headers: Vec<(HeaderName, HeaderValue)>, body: String) -> Result<Self, Failure> {
        let status = u16::try_from(status)
            .ok()
            .filter(|status| (200..600).contains(status))
            .and_then(|status| StatusCode::from_u16(status).ok())
            .filter(|status| status.canonical_reason().is_some())
            .ok_or(Failure::Nonsense("no such HTTP status"))?;
        if headers.len() > MAX_FIELDS {
            return Err(Failure::TooLarge("fields"));
        }
        if body.len() > MAX_BODY {
            return Err(Failure::TooLarge("body"));
        }
        Ok(Self {
            status,
            headers,
            body: body.into(),
        })
    }
}

impl Edits {
    /// Is there nothing to change?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A query without the parameters that go and with those that are set; `None`: there is none.
    #[must_use]
    pub fn edited_query(&self, query: Option<&str>) -> Option<String> {
        let goes = |pair: &&str| {
            let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
            // What nobody can read stays as it is.
            let name = target::unescape(name, true).unwrap_or_default();
            self.remove_query.contains(&name) || self.set_query.iter().any(|(set, _)| *set == name)
        };
        let kept = query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter(|pair| !goes(pair));
        let set = self
            .set_query
            .iter()
            .map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
        let pairs: Vec<String> = kept.map(str::to_owned).chain(set).collect();
        (query.is_some() || !pairs.is_empty())
            .then(|| pairs.join("&"))
            .filter(|query| !query.is_empty())
    }

    pub(crate) fn bounded(self) -> Result<Self, Failure> {
        let fields = self.request.len() + self.remove.len() + self.answer.len();
        if fields + self.set_query.len() + self.remove_query.len() > MAX_FIELDS {
            return Err(Failure::TooLarge("fields"));
        }
        let long = |text: &String| text.len() > MAX_VALUE;
        if self.set_query.iter().any(|(k, v)| long(k) || long(v)) || self.remove_query.iter().any(long) {
            return Err(Failure::TooLarge("query parameter"));
        }
        Ok(self)
    }
}

/// RFC 3986: unreserved characters stay.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A field that an answer may touch.
pub(crate) fn name(name: &str) -> Result<HeaderName, Failure> {
    let refused = || Failure::Field(shown(name));
    if name.len() > 256 || is_guarded(&name.to_ascii_lowercase()) {
        return Err(refused());
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())
}

/// A field and its value.
pub(crate) fn field(key: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), Failure> {
    let name = name(key)?;
    if value.len() > MAX_VALUE {
        return Err(Failure::TooLarge("value"));
    }
    let value = HeaderValue::from_bytes(value).map_err(|_| Failure::Field(shown(key)))?;
    Ok((name, value))
}

/// Enough of a name to find it, and nothing that upsets a log.
fn shown(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}

/// What routes or frames a message, belongs to one hop, or is said by the mesh alone; aliases by `_` and `.` too, which
/// some application servers take for `-`. `name` is lower case.
fn is_guarded(name: &str) -> bool {
    let folded = name.replace(['_', '.'], "-");
    let framing = [
        header::HOST.as_str(),
        header::CONTENT_LENGTH.as_str(),
        header::TRANSFER_ENCODING.as_str(),
        header::CONNECTION.as_str(),
        header::TE.as_str(),
        header::TRAILER.as_str(),
        header::UPGRADE.as_str(),
        header::EXPECT.as_str(),
        header::PROXY_AUTHENTICATE.as_str(),
        header::PROXY_AUTHORIZATION.as_str(),
        "keep-alive",
        "proxy-connection",
        "http2-settings",
        "x-forwarded-client-cert",
    ];
    folded.starts_with(':') || folded.starts_with("x-postern-") || framing.contains(&folded.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_routes_frames_or_vouches_is_not_an_authorizers_to_touch() {
        for guarded in [
            ":path",
            ":status",
            "Host",
            "host",
            "h_o_s_t:",
            "Content-Length",
            "content_length",
            "Transfer-Encoding",
            "TE",
            "Connection",
            "keep-alive",
            "upgrade",
            "x-postern-source",
            "X_Postern.Source",
            "x-postern-decision-id",
            "x-forwarded-client-cert",
            "X-Forwarded_Client-Cert",
            "",
            "a b",
            "x\r\ny",
            "é",
        ] {
            assert!(name(guarded).is_err(), "{guarded:?}");
        }
        for free in [
            "x-user",
            "Authorization",
            "cookie",
            "x-forwarded-for",
            "location",
            "set-cookie",
            "x_y",
        ] {
            assert!(name(free).is_ok(), "{free}");
        }
        assert!(field("x-user", b"a\r\nb").is_err());
        assert!(field("x-user", &[b'a'; MAX_VALUE]).is_ok());
        assert_eq!(field("x-user", &[b'a'; MAX_VALUE + 1]), Err(Failure::TooLarge("value")));
    }

    #[test]
    fn a_query_loses_and_gains_parameters_and_keeps_the_others_byte_for_byte() {
        let edits = |set: &[(&str, &str)], remove: &[&str]| Edits {
            set_query: set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            remove_query: remove.iter().map(|name| (*name).to_owned()).collect(),
            ..Edits::default()
        };
        for (query, set, remove, after) in [
            (
                Some("a=1&b=%2f&a=2"),
                &[("a", "x&y=z /é")][..],
                &[][..],
                Some("b=%2f&a=x%26y%3Dz%20%2F%C3%A9"),
            ),
            (Some("a=1&%61=2&b"), &[], &["a"], Some("b")),
            (Some("a=1"), &[], &["a"], None),
            (None, &[("a", "")], &[], Some("a=")),
            (None, &[], &["a"], None),
            (Some("%zz=1&c"), &[], &["c"], Some("%zz=1")),
        ] {
            let edited = edits(set, remove).edited_query(query);
            assert_eq!(edited.as_deref(), after, "{query:?}");
        }
    }

    #[test]
    fn a_refusal_has_a_status_that_exists_and_a_bounded_body() {
        for status in [200, 302, 401, 403, 429, 503] {
            assert!(Refusal::of(status, Vec::new(), String::new()).is_ok(), "{status}");
        }
        for status in [0, 99, 100, 101, 199, 299, 600, 999, 70_000, u64::MAX] {
            assert!(Refusal::of(status, Vec::new(), String::new()).is_err(), "{status}");
        }
        assert!(Refusal::of(403, Vec::new(), "x".repeat(MAX_BODY)).is_ok());
        assert_eq!(
            Refusal::of(403, Vec::new(), "x".repeat(MAX_BODY + 1)),
            Err(Failure::TooLarge("body"))
        );
    }
}

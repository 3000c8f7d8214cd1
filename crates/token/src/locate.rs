//! Where tokens stand in a request. One that the app may read and we may not, or two of which it may take the other, is
//! an error.

use std::fmt;
use std::str;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use postern_policy::Headers;
use postern_policy::authentication::{JwtRule, Location};
use zeroize::Zeroizing;

use crate::Refusal;

/// A token as it was found; nothing of it is believed yet.
pub struct Token {
    text: Zeroizing<String>,
    spot: Spot,
    /// What stood before it in a header.
    prefix: Arc<str>,
    /// The rules that look there.
    pub(crate) rules: Arc<[usize]>,
}

/// Where it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spot {
    /// In this header (lower case; any of its spellings).
    Header(Arc<str>),
    /// In this parameter of the query.
    Param(Arc<str>),
    /// In this cookie.
    Cookie(Arc<str>),
}

/// All places that the rules of one workload look at.
#[derive(Debug, Default)]
pub(crate) struct Places {
    headers: Vec<HeaderPlace>,
    params: Vec<(Arc<str>, Arc<[usize]>)>,
    cookies: Vec<(Arc<str>, Arc<[usize]>)>,
}

/// A header, and the prefixes that are looked for in it, the longest first.
#[derive(Debug)]
struct HeaderPlace {
    name: Arc<str>,
    prefixes: Vec<(Arc<str>, Arc<[usize]>)>,
}

impl Places {
    /// Of rules, by their position. `usual`: also where tokens usually stand, for nobody's rule.
    pub(crate) fn new<'r>(rules: impl Iterator<Item = &'r JwtRule>, usual: bool) -> Self {
        let mut all: Vec<(Location, Vec<usize>)> = Vec::new();
        if usual {
            all.extend(Location::usual().into_iter().map(|location| (location, Vec::new())));
        }
        for (position, rule) in rules.enumerate() {
            for location in &rule.locations {
                match all.iter_mut().find(|(known, _)| known == location) {
                    Some((_, rules)) => rules.push(position),
                    None => all.push((location.clone(), vec![position])),
                }
            }
        }
        let mut places = Self::default();
        for (location, rules) in all {
            let rules: Arc<[usize]> = rules.into();
            match location {
                Location::Param(name) => places.params.push((name.into(), rules)),
                Location::Cookie(name) => places.cookies.push((name.into(), rules)),
                Location::Header { name, prefix } => {
                    let same = |place: &&mut HeaderPlace| postern_policy::request::is_same_field(&place.name, &name);
                    match places.headers.iter_mut().find(same) {
                        Some(place) => place.prefixes.push((prefix.into(), rules)),
                        None => places.headers.push(HeaderPlace {
                            name: name.as_str().into(),
                            prefixes: vec![(prefix.into(), rules)],
                        }),
                    }
                }
            }
        }
        for place in &mut places.headers {
            place.prefixes.sort_by_key(|(prefix, _)| usize::MAX - prefix.len());
        }
        places
    }

    /// The one token of a request, if there is one.
    pub(crate) fn find(&self, headers: &dyn Headers, query: Option<&str>) -> Result<Option<Token>, Refusal> {
        let mut found = Found(Ok(None));
        for place in &self.headers {
            place.look(headers, &mut found);
        }
        if let Some(query) = query {
            for (name, rules) in &self.params {
                for (_, value) in params(query).filter(|(given, _)| is_param(given, name)) {
                    found.add(
                        value.as_bytes(),
                        || (Spot::Param(Arc::clone(name)), Arc::default()),
                        rules,
                    );
                }
            }
        }
        if !self.cookies.is_empty() {
            let whole = headers.each("cookie", &mut |line| {
                for (given, value) in cookies(line) {
                    for (name, rules) in self.cookies.iter().filter(|(name, _)| given == name.as_bytes()) {
                        found.add(value, || (Spot::Cookie(Arc::clone(name)), Arc::default()), rules);
                    }
                }
            });
            found.all_of(whole);
        }
        found.0
    }
}

impl HeaderPlace {
    fn look(&self, headers: &dyn Headers, found: &mut Found) {
        let (mut lines, mut tokens) = (0_usize, 0_usize);
        let whole = headers.each(&self.name, &mut |value| {
            lines += 1;
            let prefixed = self
                .prefixes
                .iter()
                .find_map(|(prefix, rules)| Some((behind(value, prefix)?, prefix, rules)));
            if let Some((token, prefix, rules)) = prefixed {
                tokens += 1;
                let spot = || (Spot::Header(Arc::clone(&self.name)), Arc::clone(prefix));
                found.add(token, spot, rules);
            }
        });
        found.all_of(whole);
        // Of two credentials the app may read the other one.
        if tokens > 0 && lines > 1 {
            found.0 = Err(Refusal::Several);
        }
    }
}

/// At most one.
struct Found(Result<Option<Token>, Refusal>);

impl Found {
    /// What nobody can tell might be a token.
    fn all_of(&mut self, whole: bool) {
        if !whole {
            self.0 = Err(Refusal::Malformed("where it would stand cannot be read"));
        }
    }

    fn add(&mut self, text: &[u8], spot: impl FnOnce() -> (Spot, Arc<str>), rules: &Arc<[usize]>) {
        if !matches!(self.0, Ok(None)) {
            self.0 = Err(Refusal::Several);
            return;
        }
        self.0 = if text.len() > crate::MAX_TOKEN {
            Err(Refusal::TooLong)
        } else {
            match str::from_utf8(text) {
                Ok(text) => {
                    let (spot, prefix) = spot();
                    Ok(Some(Token {
                        text: Zeroizing::new(text.to_owned()),
                        spot,
                        prefix,
                        rules: Arc::clone(rules),
                    }))
                }
                Err(_) => Err(Refusal::Malformed("it is no text")),
            }
        };
    }
}

/// What stands behind a prefix. Case does not count: a scheme has none (RFC 9110 section 11.1). A prefix alone has an empty
/// token behind it.
fn behind<'v>(value: &'v [u8], prefix: &str) -> Option<&'v [u8]> {
    let scheme = prefix.trim_end().as_bytes();
    if value.len() == scheme.len() && !scheme.is_empty() && value.eq_ignore_ascii_case(scheme) {
        return Some(&[]);
    }
    let (start, rest) = value.split_at_checked(prefix.len())?;
    start
        .eq_ignore_ascii_case(prefix.as_bytes())
        .then_some(rest.trim_ascii())
}

/// Servers decode a name before they compare it: `access%5Ftoken` is `access_token`.
fn is_param(given: &str, name: &str) -> bool {
    let mut rest = given.as_bytes();
    let decoded = std::iter::from_fn(|| {
        let (first, after) = rest.split_first()?;
        let hex = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let encoded = hex(0).zip(hex(1)).filter(|_| *first == b'%');
        let (byte, left) = match encoded.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => (byte, after.get(2..).unwrap_or_default()),
            None if *first == b'+' => (b' ', after),
            None => (*first, after),
        };
        rest = left;
        Some(byte)
    });
    decoded.eq(name.bytes())
}

/// Names and values as they stand in a query; no value is decoded: a token needs no `%`.
fn params(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// Names and values of a `Cookie` line (RFC 6265 section 4.2.1).
fn cookies(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    line.split(|b| *b == b';').filter_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|b| *b == b'=')?;
        let (name, value) = (pair.get(..at)?, pair.get(at + 1..)?);
        Some((name.trim_ascii(), value.trim_ascii()))
    })
}

/// A query without a parameter; `None` if nothing is left of it.
#[must_use]
pub fn without_param(query: &str, name: &str) -> Option<String> {
    let left: Vec<&str> = query
        .split('&')
        .filter(|part| !is_param(part.split_once('=').map_or(*part, |(given, _)| given), name))
        .collect();
    if left.is_empty() { None } else { Some(left.join("&")) }
}

/// A `Cookie` line without a cookie; `None` if nothing is left of it.
#[must_use]
pub fn without_cookie(line: &[u8], name: &str) -> Option<Vec<u8>> {
    let is_it = |pair: &[u8]| cookies(pair).any(|(given, _)| given == name.as_bytes());
    let left: Vec<&[u8]> = line
        .split(|b| *b == b';')
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && !is_it(pair))
        .collect();
    if left.is_empty() {
        None
    } else {
        Some(left.join(&b"; "[..]))
    }
}

impl Token {
    /// The token's text. A secret: never to be logged.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where it stood.
    #[must_use]
    pub fn spot(&self) -> &Spot {
        &self.spot
    }

    /// SHA-256 of what a verification depends on besides the documents, the keys and the time: the token, and the rules that
    /// look where it stood.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Context::new(&SHA256);
        digest.update(&self.rules.len().to_be_bytes());
        for rule in &*self.rules {
            digest.update(&rule.to_be_bytes());
        }
        digest.update(self.text.as_bytes());
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest.finish().as_ref());
        fingerprint
    }

    /// The same, found under other rules.
    pub(crate) fn found_by(&self, rules: Arc<[usize]>) -> Self {
        Self {
            text: self.text.clone(),
            spot: self.spot.clone(),
            prefix: Arc::clone(&self.prefix),
            rules,
        }
    }

    /// Does a rule that looks there look where it stood?
    pub(crate) fn stands_at(&self, location: &Location) -> bool {
        match (location, &self.spot) {
            (Location::Header { name, prefix }, Spot::Header(spot)) => {
                postern_policy::request::is_same_field(name, spot) && **prefix == *self.prefix
            }
            (Location::Param(name), Spot::Param(spot)) | (Location::Cookie(name), Spot::Cookie(spot)) => {
                **name == **spot
            }
            (Location::Header { .. } | Location::Param(_) | Location::Cookie(_), _) => false,
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("spot", &self.spot)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_leaves_the_rest_as_it_was() {
        for (query, left) in [
            ("access_token=x", None),
            ("a=1&access_token=x&b=2", Some("a=1&b=2")),
            ("access_token=x&access_token", None),
            ("access_tokens=x&a", Some("access_tokens=x&a")),
            ("a=access_token", Some("a=access_token")),
        ] {
            assert_eq!(without_param(query, "access_token").as_deref(), left, "{query}");
        }
        for (line, left) in [
            ("t=x", None),
            ("a=1; t=x; b=2", Some("a=1; b=2")),
            ("a=1;t=x;t=y", Some("a=1")),
            ("a=t=1; T=2", Some("a=t=1; T=2")),
        ] {
            assert_eq!(
                without_cookie(line.as_bytes(), "t").as_deref(),
                left.map(str::as_bytes),
                "{line}"
            );
        }
    }

    #[test]
    fn a_scheme_has_no_case_and_ends_where_it_ends() {
        for (value, token) in [
            ("Bearer x", Some("x")),
            ("bearer   x ", Some("x")),
            ("BEARER", Some("")),
            ("Bearerx", None),
            ("Basic x", None),
            ("", None),
        ] {
            assert_eq!(behind(value.as_bytes(), "Bearer "), token.map(str::as_bytes), "{value}");
        }
        assert_eq!(behind(b"x", ""), Some(&b"x"[..]));
        assert_eq!(behind(b"", ""), Some(&b""[..]));
    }
}

//! `requestPrincipals`: issuer and subject of an end user, each compared on its own.
//!
//! Compared as one text, `https://a/b` + `c` and `https://a` + `b/c` would be the same user.

use std::fmt;

use super::StringMatch;
use super::text::Form;
use crate::User;

/// Who is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserMatch {
    /// `iss`.
    pub issuer: StringMatch,
    /// `sub`.
    pub subject: StringMatch,
}

impl UserMatch {
    /// Reads `issuer/subject`, divided at the last slash, with a star at one end: Istio's eight forms.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let part = |text: &str| StringMatch::read(text, Form::Plain).map_err(str::to_owned);
        let (issuer, subject) = match text.rsplit_once('/') {
            None => match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(""), _) => (StringMatch::Present, StringMatch::Present),
                (Some(_), Some(_)) => return Err("has a star at both ends".to_owned()),
                // `*foo`: any issuer.
                (Some(_), None) => (StringMatch::Present, part(text)?),
                // `foo*`: any subject of such an issuer.
                (None, Some(_)) => (part(text)?, StringMatch::Present),
                (None, None) => return Err("is no `issuer/subject`".to_owned()),
            },
            // What stands before a scheme's slashes is no issuer, so `https://sso*` would never match.
            Some((issuer, _)) if issuer.ends_with('/') || issuer.ends_with(':') => {
                return Err(format!(
                    "is divided at its last slash, and `{issuer}` is no issuer: write `issuer/*`"
                ));
            }
            Some((issuer, subject)) => {
                if issuer.starts_with('*') && issuer.len() > 1 && subject.ends_with('*') && subject.len() > 1 {
                    return Err("has a star at both ends".to_owned());
                }
                (part(issuer)?, part(subject)?)
            }
        };
        Ok(Self { issuer, subject })
    }

    /// Is it them?
    #[must_use]
    pub fn matches(&self, user: &User) -> bool {
        self.issuer.matches(user.issuer()) && self.subject.matches(user.subject())
    }
}

impl fmt::Display for UserMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.issuer, self.subject)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn user(issuer: &str, subject: &str) -> User {
        let serde_json::Value::Object(claims) = json!({"iss": issuer, "sub": subject}) else {
            unreachable!()
        };
        User::of_verified(claims).unwrap()
    }

    #[test]
    fn the_eight_forms_have_an_issuer_and_a_subject_each() {
        for (pattern, met, missed) in [
            ("foo*", [("foox", "s"), ("foo", "s")], [("xfoo", "foo"), ("f", "oo")]),
            ("foo/*", [("foo", "s"), ("foo", "t")], [("foox", "s"), ("x", "foo")]),
            (
                "foo/bar*",
                [("foo", "bar"), ("foo", "barx")],
                [("foo", "xbar"), ("x", "bar")],
            ),
            ("*foo", [("i", "foo"), ("i", "xfoo")], [("foo", "s"), ("i", "foox")]),
            ("*/foo", [("i", "foo"), ("j", "foo")], [("i", "xfoo"), ("foo", "s")]),
            (
                "*bar/foo",
                [("bar", "foo"), ("xbar", "foo")],
                [("barx", "foo"), ("bar", "x")],
            ),
            (
                "foo/bar",
                [("foo", "bar"), ("foo", "bar")],
                [("foo", "barx"), ("foo/bar", "x")],
            ),
            ("*", [("i", "s"), ("https://a/b", "c/d")], [("", ""), ("", "")]),
        ] {
            let pattern_read = UserMatch::read(pattern).unwrap();
            for (issuer, subject) in met {
                assert!(
                    pattern_read.matches(&user(issuer, subject)),
                    "{pattern} {issuer} {subject}"
                );
            }
            for (issuer, subject) in missed.into_iter().filter(|(issuer, _)| !issuer.is_empty()) {
                assert!(
                    !pattern_read.matches(&user(issuer, subject)),
                    "{pattern} {issuer} {subject}"
                );
            }
        }
    }

    #[test]
    fn a_slash_in_a_subject_does_not_make_another_issuer() {
        let pattern = UserMatch::read("https://a/b/c").unwrap();
        assert!(pattern.matches(&user("https://a/b", "c")));
        assert!(!pattern.matches(&user("https://a", "b/c")));
    }

    #[test]
    fn what_can_match_nobody_is_refused() {
        for text in ["", "foo", "*foo*", "https://sso*", "https://sso", "/x", "foo/", "*a/b*"] {
            assert!(UserMatch::read(text).is_err(), "{text}");
        }
    }
}

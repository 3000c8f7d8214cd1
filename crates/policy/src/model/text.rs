//! How a value is compared: Istio's string matching (exact, `abc*`, `*abc`, `*`), wildcards and path templates.

use std::fmt;

use super::StringMatch;

/// Which forms a field's values take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A star elsewhere than at one end is a literal.
    Plain,
    /// `*` means any characters, anywhere (namespaces, service accounts).
    Wildcard,
    /// Plain, or a template with `{*}` and `{**}`.
    Path,
}

impl StringMatch {
    pub(crate) fn holds_comma(&self) -> bool {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) | Self::Template(text) => text.contains(','),
            Self::Wildcard(pieces) => pieces.iter().any(|piece| piece.contains(',')),
            Self::Present => false,
        }
    }

    /// Reads a value as its field writes it.
    pub(super) fn read(text: &str, form: Form) -> Result<Self, &'static str> {
        match text {
            "" => return Err("must not be empty"),
            "*" => return Ok(Self::Present),
            _ => {}
        }
        match form {
            Form::Path if text.contains('{') || text.contains('}') => template(text),
            Form::Wildcard if text.contains('*') => Ok(Self::Wildcard(text.split('*').map(str::to_owned).collect())),
            Form::Plain | Form::Wildcard | Form::Path => Ok(plain(text)),
        }
    }

    /// Does `value` match? Byte by byte; the caller has brought both to one case where case does not count.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == text,
            Self::Prefix(text) => value.starts_with(text.as_str()),
            Self::Suffix(text) => value.ends_with(text.as_str()),
            Self::Present => !value.is_empty(),
            Self::Wildcard(pieces) => wildcard(pieces, value),
            Self::Template(text) => matches_template(text, value),
        }
    }
}

/// As documents write it.
impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) | Self::Template(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
            Self::Wildcard(pieces) => f.write_str(&pieces.join("*")),
        }
    }
}

fn plain(text: &str) -> StringMatch {
    if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.to_owned())
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.to_owned())
    } else {
        StringMatch::Exact(text.to_owned())
    }
}

fn wildcard(pieces: &[String], value: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return false;
    };
    let Some(mut rest) = value.strip_prefix(first.as_str()) else {
        return false;
    };
    for piece in middle {
        let Some(at) = rest.find(piece.as_str()) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last.as_str())
}

/// `{*}` is exactly one segment, not empty; `{**}` any number, only as the last operator; no other `{`, `}` or `*`.
fn template(text: &str) -> Result<StringMatch, &'static str> {
    let segments = text.strip_prefix('/').ok_or("a path template begins with `/`")?;
    let mut ended = false;
    for segment in segments.split('/') {
        if ended && segment.contains('{') {
            return Err("no `{*}` or `{**}` may follow `{**}`");
        }
        match segment {
            "{**}" => ended = true,
            "{*}" => {}
            _ if segment.contains(['{', '}', '*']) => {
                return Err("in a path template only whole segments `{*}` and `{**}` are allowed");
            }
            _ => {}
        }
    }
    Ok(StringMatch::Template(text.to_owned()))
}

fn matches_template(template: &str, value: &str) -> bool {
    let Some((head, tail)) = template.split_once("{**}") else {
        return same_segments(template, value);
    };
    // head ends in `/`; tail is empty or begins with `/`.
    let segments = head.matches('/').count();
    let Some(cut) = value.match_indices('/').nth(segments - 1).map(|(at, _)| at + 1) else {
        // `/a/{**}` takes zero segments as well: `/a` has no second slash.
        return tail.is_empty() && head.strip_suffix('/').is_some_and(|head| same_segments(head, value));
    };
    let tail_segments = tail.matches('/').count();
    let (start, rest) = value.split_at(cut);
    if !same_segments(head, start) {
        return false;
    }
    if tail_segments == 0 {
        return tail.is_empty();
    }
    // The rest, seen from its slash, must end in the tail's segments.
    let rest = &value[cut - 1..cut + rest.len()];
    match rest.rmatch_indices('/').nth(tail_segments - 1) {
        Some((at, _)) => same_segments(tail, &rest[at..]),
        None => false,
    }
}

/// Segment by segment, `{*}` for any one that is not empty.
fn same_segments(template: &str, value: &str) -> bool {
    let (mut wanted, mut given) = (template.split('/'), value.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some("{*}"), Some(segment)) if !segment.is_empty() => {}
            (Some(literal), Some(segment)) if literal != "{*}" && literal == segment => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stars_mean_what_they_mean_in_istio() {
        let matches = |pattern: &str, form, value: &str| StringMatch::read(pattern, form).unwrap().matches(value);
        assert!(matches("abc*", Form::Plain, "abcdef"));
        assert!(matches("*def", Form::Plain, "abcdef"));
        assert!(matches("*", Form::Plain, "x"));
        assert!(!matches("*", Form::Plain, ""));
        assert!(matches("a*c", Form::Plain, "a*c"), "a star inside is a literal");
        assert!(!matches("a*c", Form::Plain, "abc"));
        assert!(matches("prod-*-eu", Form::Wildcard, "prod-1-eu"));
        assert!(!matches("prod-*-eu", Form::Wildcard, "prod-eu"));
        assert!(matches("*a*b*", Form::Wildcard, "xaybz"));
        assert!(
            !matches("ab*ba", Form::Wildcard, "aba"),
            "prefix and suffix may not overlap"
        );
        assert!(!matches("a.c", Form::Wildcard, "abc"), "z_05: a dot is a dot");
    }

    #[test]
    fn templates_match_whole_segments() {
        let matches = |pattern: &str, value: &str| StringMatch::read(pattern, Form::Path).unwrap().matches(value);
        assert!(matches("/a/{*}/c", "/a/b/c"));
        assert!(!matches("/a/{*}/c", "/a//c"));
        assert!(!matches("/a/{*}", "/a/b/c"));
        for value in ["/a", "/a/", "/a/b", "/a/b/c"] {
            assert!(matches("/a/{**}", value), "{value}");
        }
        assert!(!matches("/a/{**}", "/ab"));
        assert!(matches("/{**}/z", "/z") && matches("/{**}/z", "/x/y/z") && !matches("/{**}/z", "/x/zz"));
        assert!(
            matches("/a/{**}/y/z", "/a/b/y/z") && matches("/a/{**}/y/z", "/a/y/z") && !matches("/a/{**}/y/z", "/a/z")
        );
        assert!(
            matches("/{*}/b/{**}", "/a*;v=1/b/c"),
            "2025-46821: every pchar counts in a segment"
        );
        for bad in ["a/{*}", "/a{*}", "/{**}/{*}", "/{a}", "/{*}/*"] {
            assert!(StringMatch::read(bad, Form::Path).is_err(), "{bad}");
        }
    }
}

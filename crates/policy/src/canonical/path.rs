//! Paths.

use super::CanonicalError;

/// An absolute path in canonical form: dot segments resolved, slashes merged, unreserved characters decoded,
/// percent-encodings upper-case; without query. A fixed point of [`CanonicalPath::parse`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CanonicalPath(Box<str>);

/// A borrowed canonical path. Made by [`CanonicalPathRef::check`] (no copy) or from a [`CanonicalPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CanonicalPathRef<'a>(&'a str);

/// Splits a request target in path and query. The query passes as it is; what would break a request line is refused.
pub fn split_target(target: &str) -> Result<(&str, Option<&str>), CanonicalError> {
    match target.split_once('?') {
        None => Ok((target, None)),
        Some((_, query)) if query.bytes().any(|b| b <= b' ' || b >= 0x7f || b == b'#') => Err(CanonicalError::Byte),
        Some((path, query)) => Ok((path, Some(query))),
    }
}

impl CanonicalPath {
    /// From the raw path of a request target (no query).
    pub fn parse(raw: &str) -> Result<Self, CanonicalError> {
        let segments = raw.strip_prefix('/').ok_or(CanonicalError::NoSlash)?;
        let mut out = String::with_capacity(raw.len());
        let mut decoded = Vec::new();
        let mut pieces = segments.split('/').peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            let start = out.len();
            out.push('/');
            let encoded_dot = canonical_segment(piece, &mut out, &mut decoded)?;
            let segment = &out[start + 1..];
            // `%3B` is looked at as `;`: some servers decode before they cut parameters.
            let name_end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
            if let Some(end) = name_end
                && matches!(&segment[..end], "." | "..")
            {
                return Err(CanonicalError::DotParameters);
            }
            match segment {
                "" if !last => out.truncate(start),
                "." | ".." if encoded_dot => return Err(CanonicalError::EncodedDots),
                "." => {
                    out.truncate(start);
                    if last {
                        out.push('/');
                    }
                }
                ".." => {
                    out.truncate(start);
                    let parent = out.rfind('/').ok_or(CanonicalError::AboveRoot)?;
                    out.truncate(parent);
                    if last {
                        out.push('/');
                    }
                }
                _ => {}
            }
        }
        Ok(Self(out.into_boxed_str()))
    }

    /// The bytes, as they are forwarded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The borrowed form that decisions take.
    #[must_use]
    pub fn as_ref(&self) -> CanonicalPathRef<'_> {
        CanonicalPathRef(&self.0)
    }
}

/// Appends a segment's canonical form; says whether a dot in it was encoded.
fn canonical_segment(piece: &str, out: &mut String, decoded: &mut Vec<u8>) -> Result<bool, CanonicalError> {
    let bytes = piece.as_bytes();
    let mut encoded_dot = false;
    decoded.clear();
    let mut high = false;
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        if byte != b'%' {
            if !is_pchar(byte) {
                return Err(if byte == b'\\' {
                    CanonicalError::Backslash
                } else {
                    CanonicalError::Byte
                });
            }
            out.push(char::from(byte));
            decoded.push(byte);
            i += 1;
            continue;
        }
        let value = hex(bytes.get(i + 1))
            .zip(hex(bytes.get(i + 2)))
            .map(|(h, l)| h << 4 | l);
        let value = value.ok_or(CanonicalError::Percent)?;
        match value {
            b'/' | b'\\' => return Err(CanonicalError::EncodedSlash),
            0..=0x1f | 0x7f => return Err(CanonicalError::EncodedControl),
            _ if is_unreserved(value) => {
                encoded_dot |= value == b'.';
                out.push(char::from(value));
            }
            _ => {
                high |= value >= 0x80;
                out.push('%');
                for digit in [value >> 4, value & 0xf] {
                    out.push(char::from(if digit < 10 { b'0' + digit } else { b'A' + digit - 10 }));
                }
            }
        }
        decoded.push(value);
        i += 3;
    }
    if high && std::str::from_utf8(decoded).is_err() {
        return Err(CanonicalError::Utf8);
    }
    Ok(encoded_dot)
}

impl<'a> CanonicalPathRef<'a> {
    /// `Ok(Some)` if `raw` is canonical as it stands (the common case: no copy); `Ok(None)` if it needs
    /// [`CanonicalPath::parse`]; `Err` if it is refused.
    pub fn check(raw: &'a str) -> Result<Option<Self>, CanonicalError> {
        let bytes = raw.as_bytes();
        if bytes.first() != Some(&b'/') {
            return Err(CanonicalError::NoSlash);
        }
        // Plain pchars, no percent, no `//`, no segment that begins with a dot: nothing to resolve, nothing to refuse.
        let mut previous = 0;
        for &byte in bytes {
            let plain = byte == b'/' || is_pchar(byte);
            if !plain || (previous == b'/' && matches!(byte, b'/' | b'.')) {
                let canonical = CanonicalPath::parse(raw)?;
                return Ok((canonical.as_str() == raw).then_some(Self(raw)));
            }
            previous = byte;
        }
        Ok(Some(Self(raw)))
    }

    /// The target of a server-wide `OPTIONS` (RFC 9110 section 7.1); the caller has checked the method.
    #[must_use]
    pub fn asterisk() -> CanonicalPathRef<'static> {
        CanonicalPathRef("*")
    }

    /// The bytes, as they are forwarded.
    #[must_use]
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

/// RFC 3986 section 3.3, without `%`.
fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        )
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    char::from(*digit?)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn canonical(raw: &str) -> Result<String, CanonicalError> {
        CanonicalPath::parse(raw).map(|path| path.as_str().to_owned())
    }

    #[test]
    fn z_02_what_has_one_meaning_gets_one_form() {
        for (raw, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a/b"),
            ("//", "/"),
            ("/a/./b/", "/a/b/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/%61dmin", "/admin"),
            ("/%7euser", "/~user"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a*b/...", "/a*b/..."),
            ("/a%2eb", "/a.b"),
        ] {
            assert_eq!(canonical(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn z_02_what_servers_read_differently_is_refused() {
        for (raw, expected) in [
            ("/a%2fb", CanonicalError::EncodedSlash),
            ("/a%5Cb", CanonicalError::EncodedSlash),
            ("/a\\b", CanonicalError::Backslash),
            ("/a%00", CanonicalError::EncodedControl),
            ("/a%0d%0a", CanonicalError::EncodedControl),
            ("/%2e%2e/a", CanonicalError::EncodedDots),
            ("/x/.%2e/a", CanonicalError::EncodedDots),
            ("/..;/a", CanonicalError::DotParameters),
            ("/x/..%3Bv/a", CanonicalError::DotParameters),
            ("/.;x", CanonicalError::DotParameters),
            ("/..", CanonicalError::AboveRoot),
            ("/a/../../b", CanonicalError::AboveRoot),
            ("/%", CanonicalError::Percent),
            ("/%4", CanonicalError::Percent),
            ("/%zz", CanonicalError::Percent),
            ("/%c0%af", CanonicalError::Utf8),
            ("/%e0%80%af", CanonicalError::Utf8),
            ("/a#b", CanonicalError::Byte),
            ("/a b", CanonicalError::Byte),
            ("/\u{e9}", CanonicalError::Byte),
            ("a", CanonicalError::NoSlash),
            ("", CanonicalError::NoSlash),
        ] {
            assert_eq!(canonical(raw), Err(expected), "{raw}");
        }
    }

    #[test]
    fn z_01_every_single_percent_encoding_of_a_protected_path_is_refused_or_decided_as_what_it_is() {
        for byte in 0..=255u8 {
            for text in [format!("/adm%{byte:02x}n"), format!("/admin%{byte:02X}")] {
                if let Ok(path) = canonical(&text) {
                    assert_eq!(
                        canonical(&path).as_deref(),
                        Ok(path.as_str()),
                        "{text} is a fixed point"
                    );
                }
            }
        }
    }

    #[test]
    fn queries_pass_as_they_are_and_may_not_break_the_request_line() {
        assert_eq!(split_target("/a?b=%2F&c=?"), Ok(("/a", Some("b=%2F&c=?"))));
        assert_eq!(split_target("/a"), Ok(("/a", None)));
        assert_eq!(split_target("/a?b#c"), Err(CanonicalError::Byte));
        assert_eq!(split_target("/a?b\r\n"), Err(CanonicalError::Byte));
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_a_fixed_point_without_anything_to_resolve(raw in "/([a-c./%;\\\\#*~ ]|%2[eEfF]|%5c|%3b|%6[0-9a-f]|%c3%a9|%[0-9a-f]{2}){0,12}") {
            if let Ok(path) = canonical(&raw) {
                prop_assert_eq!(canonical(&path), Ok(path.clone()));
                prop_assert!(!path.contains("//"));
                prop_assert!(path.split('/').all(|s| s != "." && s != ".."));
                prop_assert_eq!(CanonicalPathRef::check(&path).unwrap().map(|p| p.as_str()), Some(path.as_str()));
            }
            match CanonicalPathRef::check(&raw) {
                Ok(Some(path)) => prop_assert_eq!(canonical(&raw), Ok(path.as_str().to_owned())),
                Ok(None) => prop_assert_ne!(canonical(&raw), Ok(raw)),
                Err(error) => prop_assert_eq!(canonical(&raw), Err(error)),
            }
        }
    }
}

//! The canonical request: one form, matched and forwarded.

/// An absolute path in canonical form: dot segments resolved, slashes merged, unreserved characters decoded,
/// percent-encodings upper-case; without query. A fixed point of [`CanonicalPath::parse`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CanonicalPath(Box<str>);

/// A host in canonical form: lower case, no trailing dot, no userinfo; the port kept apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CanonicalHost {
    name: Box<str>,
    port: Option<u16>,
}

/// Why a target or host is refused with 400. `reason()` gives a closed set of `snake_case` words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CanonicalError {
    /// `%2F` or `%5C`.
    #[error("the path holds an encoded slash or backslash")]
    EncodedSlash,
}

impl CanonicalError {
    /// For metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        todo!()
    }
}

impl CanonicalPath {
    /// From the raw path of a request target (no query). Borrows nothing; an already canonical input is the common case and cheap.
    pub fn parse(raw: &str) -> Result<Self, CanonicalError> {
        let _ = raw;
        todo!()
    }
    /// Is `raw` already canonical? Then it can be forwarded as it stands, and [`CanonicalPathRef`] wraps it without a copy.
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

/// A borrowed canonical path. Made by [`CanonicalPathRef::check`] (no copy) or from a [`CanonicalPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CanonicalPathRef<'a>(&'a str);

impl<'a> CanonicalPathRef<'a> {
    /// `Ok(Some)` if `raw` is canonical as it stands; `Ok(None)` if it needs [`CanonicalPath::parse`]; `Err` if it is refused.
    pub fn check(raw: &'a str) -> Result<Option<Self>, CanonicalError> {
        let _ = raw;
        todo!()
    }
    /// The bytes, as they are forwarded.
    #[must_use]
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl CanonicalHost {
    /// From a `Host` or `:authority` value.
    pub fn parse(raw: &str) -> Result<Self, CanonicalError> {
        let _ = raw;
        todo!()
    }
    /// Lower-case name or bracketed address, no port.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The explicit port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

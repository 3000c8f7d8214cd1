//! The canonical request: one form, matched and forwarded.
//!
//! What servers behind us read differently from one another is refused with 400 rather than guessed: encoded slashes,
//! backslashes and controls, encoded dot segments, `..;` segments, overlong UTF-8, fragments. What has one meaning is
//! brought to one form: dot segments resolved, slashes merged, unreserved characters decoded (RFC 3986 section 6.2.2),
//! percent-encodings in upper case. No second decoding: `%252e` stays what it is.

mod host;
mod path;

pub use host::CanonicalHost;
pub use path::{CanonicalPath, CanonicalPathRef, split_target};

/// Why a target or host is refused with 400. `reason()` gives a closed set of `snake_case` words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CanonicalError {
    /// `%2F` or `%5C`.
    #[error("the path holds an encoded slash or backslash")]
    EncodedSlash,
    /// `\`.
    #[error("the path holds a backslash")]
    Backslash,
    /// `%00` to `%1F`, `%7F`.
    #[error("the path holds an encoded control character")]
    EncodedControl,
    /// `%2E` in a dot segment.
    #[error("the path holds an encoded dot segment")]
    EncodedDots,
    /// `/..;x/` and the like.
    #[error("the path holds a dot segment with parameters")]
    DotParameters,
    /// `/..` at the top.
    #[error("the path leads above the root")]
    AboveRoot,
    /// `%` without two hexadecimal digits.
    #[error("the path holds a malformed percent-encoding")]
    Percent,
    /// Encoded bytes that are not UTF-8, overlong forms included.
    #[error("the path's encoded bytes are not UTF-8")]
    Utf8,
    /// A byte that RFC 3986 does not allow there, `#` included.
    #[error("the target holds a byte that is not allowed in it")]
    Byte,
    /// Does not begin with `/`.
    #[error("the path does not begin with a slash")]
    NoSlash,
    /// The authority is not `host` or `host:port`.
    #[error("the host is malformed")]
    Host,
}

impl CanonicalError {
    /// For metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EncodedSlash => "path_encoded_slash",
            Self::Backslash => "path_backslash",
            Self::EncodedControl => "path_encoded_control",
            Self::EncodedDots => "path_encoded_dots",
            Self::DotParameters => "path_dot_parameters",
            Self::AboveRoot => "path_above_root",
            Self::Percent => "path_percent",
            Self::Utf8 => "path_utf8",
            Self::Byte => "path_byte",
            Self::NoSlash => "path_no_slash",
            Self::Host => "bad_host",
        }
    }
}

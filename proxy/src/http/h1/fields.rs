//! What each field of an HTTP/1 head is to a proxy, whatever the case of its name.

use std::io::Write as _;

use smallvec::SmallVec;

use crate::http::headers::{self, Kind};
use crate::limits::MAX_NOMINATED;

/// A field's part in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// End to end, the receiver's business.
    #[default]
    Plain,
    /// `host`.
    Host,
    /// `content-length`.
    ContentLength,
    /// `transfer-encoding`.
    TransferEncoding,
    /// `connection`.
    Connection,
    /// `upgrade`.
    Upgrade,
    /// `te`.
    Te,
    /// `expect`.
    Expect,
    /// `content-type`.
    ContentType,
    /// `trailer`: never taken away by `Connection`.
    Trailer,
    /// Of one hop.
    HopByHop,
    /// Only we may set it; another's copy is removed.
    Ours,
    /// Looks like a framing field and is none: refused.
    FramingAlias,
}

/// Names up to this long are folded on the stack; hardly any is longer.
const FOLDED: usize = 64;

impl Class {
    /// Of a field's name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let bytes = name.as_bytes();
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // What begins otherwise is nothing that we look for.
        match bytes.first().map(u8::to_ascii_lowercase) {
            Some(b'c') if is("content-length") => Self::ContentLength,
            Some(b'c') if is("connection") => Self::Connection,
            Some(b'c') if is("content-type") => Self::ContentType,
            Some(b'e') if is("expect") => Self::Expect,
            Some(b'h') if is("host") => Self::Host,
            Some(b'h') if is("http2-settings") => Self::HopByHop,
            Some(b'k') if is("keep-alive") => Self::HopByHop,
            Some(b'p') if is("proxy-connection") || is("proxy-authenticate") || is("proxy-authorization") => {
                Self::HopByHop
            }
            Some(b't') if is("te") => Self::Te,
            Some(b't') if is("transfer-encoding") => Self::TransferEncoding,
            Some(b't') if is("trailer") => Self::Trailer,
            Some(b'u') if is("upgrade") => Self::Upgrade,
            Some(b'c' | b'h' | b't' | b'x') => Self::of_guarded(bytes),
            _ => Self::Plain,
        }
    }

    fn of_guarded(name: &[u8]) -> Self {
        let folded: SmallVec<[u8; FOLDED]> = name.iter().map(u8::to_ascii_lowercase).collect();
        match std::str::from_utf8(&folded).map(headers::kind_of) {
            Ok(Kind::Plain) | Err(_) => Self::Plain,
            Ok(Kind::Ours) => Self::Ours,
            Ok(Kind::FramingAlias) => Self::FramingAlias,
        }
    }
}

/// What `Connection` says.
#[derive(Debug, Default)]
pub struct Connection<'a> {
    /// `close` is among its options.
    pub close: bool,
    /// `keep-alive` is: HTTP/1.0's word.
    pub keep_alive: bool,
    /// `upgrade` is.
    pub upgrade: bool,
    /// Fields that belong to this hop.
    nominated: SmallVec<[&'a [u8]; 2]>,
}

impl<'a> Connection<'a> {
    /// Reads one `Connection` field; false past [`MAX_NOMINATED`].
    #[must_use]
    pub fn read(&mut self, value: &'a [u8]) -> bool {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !option.is_empty() {
                self.nominated.push(option);
            }
        }
        self.nominated.len() <= MAX_NOMINATED
    }

    /// Is a field of this name one of them?
    #[must_use]
    pub fn takes_away(&self, name: &str) -> bool {
        self.nominated
            .iter()
            .any(|nominated| nominated.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// The fields that go on as they came. `Host` and framing are their writer's, as they were understood.
pub fn end_to_end<'f, 'b>(
    fields: &'f [httparse::Header<'b>],
    classes: &'f [Class],
    connection: &'f Connection<'b>,
) -> impl Iterator<Item = &'f httparse::Header<'b>> {
    let goes_on = |(field, class): &(&httparse::Header<'b>, &Class)| match class {
        Class::Plain => !connection.takes_away(field.name),
        Class::ContentType | Class::Trailer | Class::Expect => true,
        Class::Host
        | Class::ContentLength
        | Class::TransferEncoding
        | Class::Connection
        | Class::Upgrade
        | Class::Te
        | Class::HopByHop
        | Class::Ours
        | Class::FramingAlias => false,
    };
    fields.iter().zip(classes).filter(goes_on).map(|(field, _)| field)
}

/// Writes the end-to-end fields as they came.
pub fn write_end_to_end<'b>(
    out: &mut Vec<u8>,
    fields: &[httparse::Header<'b>],
    classes: &[Class],
    connection: &Connection<'b>,
) {
    for field in end_to_end(fields, classes, connection) {
        write(out, field.name.as_bytes(), field.value);
    }
}

/// One field.
pub fn write(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A number without an allocation.
pub fn write_number(out: &mut Vec<u8>, number: u64) {
    // Writing into memory does not fail.
    let _ = write!(out, "{number}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified_whatever_their_case() {
        for (name, class) in [
            ("Host", Class::Host),
            ("CONTENT-LENGTH", Class::ContentLength),
            ("Transfer-Encoding", Class::TransferEncoding),
            ("Proxy-Connection", Class::HopByHop),
            ("X-Forwarded-Client-Cert", Class::Ours),
            ("X_Postern_Source", Class::Ours),
            ("x.postern.anything-at-all-however-long-it-may-be", Class::Ours),
            ("X_Forwarded_For", Class::Ours),
            ("Content_Length", Class::FramingAlias),
            ("Transfer.Encoding", Class::FramingAlias),
            ("HTTP2-Settings", Class::HopByHop),
            (
                "X-Forwarded-Some-Rather-Long-Name-That-A-Gateway-Might-Set_For",
                Class::Ours,
            ),
            ("X-Forwarded-For", Class::Plain),
            ("Accept", Class::Plain),
            ("Cookie", Class::Plain),
        ] {
            assert_eq!(Class::of(name), class, "{name}");
        }
    }

    #[test]
    fn z_10_connection_takes_plain_fields_away_and_no_others() {
        let mut connection = Connection::default();
        assert!(connection.read(b"close, X-Secret ,, host"));
        let names = ["X-Secret", "Host", "x-other"];
        let fields = names.map(|name| httparse::Header { name, value: b"1" });
        let classes = names.map(Class::of);
        let mut out = Vec::new();
        write_end_to_end(&mut out, &fields, &classes, &connection);
        assert_eq!(out, b"x-other: 1\r\n");
        assert!(connection.close && !connection.upgrade);
    }

    #[test]
    fn connection_names_max_nominated_fields_and_not_one_more() {
        let names = |n: usize| vec!["x"; n].join(",");
        let (most, past) = (names(MAX_NOMINATED), names(MAX_NOMINATED + 1));
        assert!(Connection::default().read(most.as_bytes()));
        assert!(!Connection::default().read(past.as_bytes()));
    }
}

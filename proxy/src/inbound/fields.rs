//! The fields of a request's head as policy sees them: those that the app will see, and those of framing and of the hop as
//! they were sent. Not what `Connection` takes away, and no forgery of ours. Both readers of heads show the same.

use http::{HeaderMap, header};
use postern_policy::Headers;
use postern_policy::request::is_same_field;

use crate::http::h1::fields::Class;
use crate::http::h1::head::RequestHead;
use crate::http::headers::{self, Kind};

/// Of a head that hyper read.
#[derive(Debug)]
pub(super) struct OfMap<'a>(pub(super) &'a HeaderMap);

/// Of a head that the relay read.
#[derive(Debug)]
pub(super) struct OfRelayed<'a, 'h, 'b>(pub(super) &'a RequestHead<'h, 'b>);

/// What is kept of a head for as long as its request goes on, so that it can be decided again: the fields that the policy of
/// its beginning looked at. A later policy that looks at others cannot be told what they held.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<KeptField>);

/// A field's name, and its values.
type KeptField = (Box<str>, Vec<Box<[u8]>>);

impl Headers for OfMap<'_> {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        let shown = self.0.iter().filter(|(given, _)| {
            is_same_field(given.as_str(), name)
                && headers::kind_of(given.as_str()) != Kind::Ours
                && !nominated(self.0, given.as_str())
        });
        tell(name, shown.map(|(_, value)| value.as_bytes()), found);
        true
    }
}

/// Does `Connection` take it away?
fn nominated(fields: &HeaderMap, name: &str) -> bool {
    if !headers::can_be_nominated(name) {
        return false;
    }
    let named = fields.get_all(header::CONNECTION).iter();
    let mut tokens = named.flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

impl Headers for OfRelayed<'_, '_, '_> {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        let head = self.0;
        let shown = head.fields.iter().zip(&head.classes).filter(|(field, class)| {
            let goes_on = match class {
                Class::Plain | Class::HopByHop => !head.connection.takes_away(field.name),
                Class::Host
                | Class::ContentLength
                | Class::TransferEncoding
                | Class::Connection
                | Class::Upgrade
                | Class::Te
                | Class::Expect
                | Class::ContentType
                | Class::Trailer => true,
                Class::Ours | Class::FramingAlias => false,
            };
            goes_on && is_same_field(field.name, name)
        });
        tell(name, shown.map(|(field, _)| field.value), found);
        true
    }
}

/// Each value; of a cookie in pieces also the whole, as an app reads it (RFC 9113 section 8.2.3).
fn tell<'v>(name: &str, values: impl Iterator<Item = &'v [u8]>, found: &mut dyn FnMut(&[u8])) {
    let mut crumbs = Vec::new();
    for value in values.map(<[u8]>::trim_ascii) {
        if name == header::COOKIE.as_str() {
            crumbs.push(value);
        }
        found(value);
    }
    if crumbs.len() > 1 {
        found(&crumbs.join(&b"; "[..]));
    }
}

impl Kept {
    pub(super) fn of(names: &[Box<str>], head: &dyn Headers) -> Self {
        let kept = names.iter().map(|name| {
            let mut values = Vec::new();
            head.each(name, &mut |value| values.push(value.into()));
            (name.clone(), values)
        });
        Self(kept.collect())
    }

    /// Was nothing looked at?
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Headers for Kept {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        let Some((_, values)) = self.0.iter().find(|(kept, _)| **kept == *name) else {
            return false;
        };
        values.iter().for_each(|value| found(value));
        true
    }
}

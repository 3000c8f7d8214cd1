//! The fields of a request's head as policy sees them: those that the app will see, and no others.

use http::{HeaderMap, header};
use postern_policy::Headers;
use postern_policy::request::is_same_field;

use crate::http::h1::fields;
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
        for (given, value) in self.0 {
            if is_same_field(given.as_str(), name)
                && headers::kind_of(given.as_str()) != Kind::Ours
                && !nominated(self.0, given.as_str())
            {
                found(value.as_bytes().trim_ascii());
            }
        }
        true
    }
}

/// Does `Connection` take it away?
fn nominated(fields: &HeaderMap, name: &str) -> bool {
    let named = fields.get_all(header::CONNECTION).iter();
    let mut tokens = named.flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

impl Headers for OfRelayed<'_, '_, '_> {
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool {
        let end_to_end = fields::end_to_end(self.0.fields, &self.0.classes, &self.0.connection);
        for field in end_to_end.filter(|field| is_same_field(field.name, name)) {
            found(field.value.trim_ascii());
        }
        true
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

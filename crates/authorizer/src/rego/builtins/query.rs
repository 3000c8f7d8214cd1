//! `urlquery.*`, without the tables of international domain names that regorus' own bring along.

use std::collections::BTreeMap;

use regorus::Value;

use super::{or_undefined, text};
use crate::target;

pub(super) fn encode(args: &[Value]) -> Value {
    or_undefined(text(args, 0).map(|text| escape(text).into()))
}

pub(super) fn decode(args: &[Value]) -> Value {
    or_undefined(
        text(args, 0)
            .and_then(|text| target::unescape(text, true))
            .map(Value::from),
    )
}

pub(super) fn decode_object(args: &[Value]) -> Value {
    let pairs = text(args, 0).map(target::pairs).filter(|(_, all)| *all);
    or_undefined(pairs.map(|(pairs, _)| {
        let list = |values: Vec<String>| Value::from(values.into_iter().map(Value::from).collect::<Vec<_>>());
        let fields = pairs.into_iter().map(|(name, values)| (name.into(), list(values)));
        Value::from(fields.collect::<BTreeMap<Value, Value>>())
    }))
}

pub(super) fn encode_object(args: &[Value]) -> Value {
    or_undefined(args.first().and_then(pairs_of))
}

fn pairs_of(object: &Value) -> Option<Value> {
    let mut pairs = Vec::new();
    for (name, value) in object.as_object().ok()?.iter_sorted() {
        let name = escape(name.as_string().ok()?);
        let values: Vec<&Value> = match value {
            Value::String(_) => vec![value],
            Value::Array(values) => values.iter().collect(),
            Value::Set(values) => values.iter_sorted().collect(),
            _ => return None,
        };
        for value in values {
            pairs.push(format!("{name}={}", escape(value.as_string().ok()?)));
        }
    }
    Some(pairs.join("&").into())
}

/// As Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

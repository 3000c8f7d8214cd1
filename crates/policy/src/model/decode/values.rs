//! Lists of values, each checked by what its field can be.

use crate::document::{Fields, Value};
use crate::model::text::Form;
use crate::model::value::Checked;
use crate::{IpBlock, StringMatch, UserMatch};

/// Text.
pub(super) fn values(
    fields: &mut Fields<'_>,
    name: &'static str,
    form: Form,
    checked: impl Fn(&str) -> Checked,
) -> Vec<StringMatch> {
    each(fields, name, |text| {
        checked(text).and_then(|text| StringMatch::read(&text, form).map_err(str::to_owned))
    })
}

/// End users.
pub(super) fn users(fields: &mut Fields<'_>, name: &'static str) -> Vec<UserMatch> {
    each(fields, name, UserMatch::read)
}

/// Addresses.
pub(super) fn blocks(fields: &mut Fields<'_>, name: &'static str) -> Vec<IpBlock> {
    each(fields, name, IpBlock::parse)
}

/// Whole numbers of seconds: `15m`.
pub(super) fn durations(fields: &mut Fields<'_>, name: &'static str) -> Vec<u64> {
    each(fields, name, |text| {
        let (digits, unit) = text.split_at(text.len().saturating_sub(1));
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            _ => 0,
        };
        let number = digits
            .parse::<u32>()
            .ok()
            .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        match number.map(|number| u64::from(number) * seconds) {
            Some(length) if length > 0 => Ok(length),
            Some(_) | None => Err("is no time such as 90s, 15m, 8h or 1d".to_owned()),
        }
    })
}

fn each<T>(fields: &mut Fields<'_>, name: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    let Some(texts) = fields.texts(name) else {
        return Vec::new();
    };
    if texts.is_empty() {
        let place = fields.place().clone();
        fields.error(&place, name, "must not be an empty list");
    }
    let mut values = Vec::new();
    for (place, text) in texts {
        match read(&text) {
            Ok(value) => values.push(value),
            Err(why) => fields.error(place, name, format!("`{text}` {why}")),
        }
    }
    values
}

/// Istio writes ports as text; plain numbers are taken as well.
pub(super) fn ports(fields: &mut Fields<'_>, name: &'static str) -> Vec<u16> {
    let Some(items) = fields.list(name) else {
        return Vec::new();
    };
    if items.is_empty() {
        let place = fields.place().clone();
        fields.error(&place, name, "must not be an empty list");
    }
    let mut ports = Vec::new();
    for (_, item) in items {
        let port = match &item.value {
            Value::Int(number) => u16::try_from(*number).ok(),
            Value::Text(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse::<u16>().ok(),
            Value::Null | Value::Bool(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => None,
        };
        match port.filter(|port| *port > 0) {
            Some(port) => ports.push(port),
            None => fields.error(&item.place, name, "must be a port, \"1\" to \"65535\""),
        }
    }
    ports
}

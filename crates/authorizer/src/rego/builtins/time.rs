//! `time.*`, of UTC only: zones would bring their tables, and a policy's day should not depend on them.

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;
use anyhow::{Result, bail};
use regorus::Value;

use super::{or_undefined, text};

pub(super) fn parse_rfc3339(args: &[Value]) -> Value {
    let parsed = text(args, 0).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    or_undefined(
        parsed
            .and_then(|time| i64::try_from(time.unix_timestamp_nanos()).ok())
            .map(Value::from),
    )
}

pub(super) fn clock(args: &[Value]) -> Result<Value> {
    Ok(or_undefined(moment(args)?.map(|at| {
        Value::from(vec![
            u64::from(at.hour()).into(),
            u64::from(at.minute()).into(),
            u64::from(at.second()).into(),
        ])
    })))
}

pub(super) fn date(args: &[Value]) -> Result<Value> {
    Ok(or_undefined(moment(args)?.map(|at| {
        let month = u64::from(u8::from(at.month()));
        Value::from(vec![
            i64::from(at.year()).into(),
            month.into(),
            u64::from(at.day()).into(),
        ])
    })))
}

pub(super) fn weekday(args: &[Value]) -> Result<Value> {
    Ok(or_undefined(moment(args)?.map(|at| at.weekday().to_string().into())))
}

/// Nanoseconds, or a list of them and a zone.
fn moment(args: &[Value]) -> Result<Option<OffsetDateTime>> {
    let nanoseconds = match args.first() {
        Some(Value::Array(pair)) => {
            match pair.get(1) {
                Some(Value::String(zone)) if matches!(zone.as_ref(), "" | "UTC") => {}
                _ => bail!("time zones other than UTC are not known here"),
            }
            pair.get(0).and_then(|value| value.as_i64().ok())
        }
        Some(value) => value.as_i64().ok(),
        None => None,
    };
    Ok(nanoseconds.and_then(|at| OffsetDateTime::from_unix_timestamp_nanos(at.into()).ok()))
}

/// As Go's `time.ParseDuration`: `1h15m30.5s`, signs included.
pub(super) fn parse_duration(args: &[Value]) -> Value {
    or_undefined(text(args, 0).and_then(duration).map(Value::from))
}

fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0i64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut part = unit;
        for digit in fraction.bytes() {
            part /= 10;
            total = total.checked_add(i64::from(digit - b'0').checked_mul(part)?)?;
        }
        rest = tail;
    }
    Some(if negative { -total } else { total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("1h15m30.5s", Some(4_530_500_000_000)),
            ("-1.5h", Some(-5_400_000_000_000)),
            ("100ms", Some(100_000_000)),
            ("0", Some(0)),
            (".5s", Some(500_000_000)),
            ("1", None),
            ("", None),
            ("-", None),
            ("s", None),
            (".s", None),
            ("1d", None),
            ("99999999999h", None),
        ];
        for (text, nanoseconds) in cases {
            assert_eq!(duration(text), nanoseconds, "{text}");
        }
    }

    #[test]
    fn days_and_hours_are_those_of_utc_and_other_zones_end_the_evaluation() {
        let at = Value::from(1_700_000_000_000_000_000i64);
        let list = |numbers: [u64; 3]| Value::from(numbers.map(Value::from).to_vec());
        assert_eq!(date(std::slice::from_ref(&at)).expect("a date"), list([2023, 11, 14]));
        assert_eq!(clock(std::slice::from_ref(&at)).expect("a time"), list([22, 13, 20]));
        assert_eq!(
            weekday(std::slice::from_ref(&at)).expect("a day"),
            Value::from("Tuesday")
        );
        assert!(date(&[Value::from(vec![at, "Europe/Berlin".into()])]).is_err());
        assert_eq!(
            parse_rfc3339(&["2023-11-14T22:13:20Z".into()]),
            Value::from(1_700_000_000_000_000_000i64)
        );
    }
}

//! Spans of time as Istio's documents write them: `5s`, `1m30s`, `1.5h`, `500ms`.

use std::time::Duration;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Each unit, and how many nanoseconds it has. The longer name first where one begins like another.
const UNITS: [(&str, u64); 6] = [
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
    ("h", 3_600 * NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("s", NANOS_PER_SECOND),
];

/// Numbers with units, one after the other; each unit once at most is not asked for, as Go does not.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let (unit, nanos) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        total = total.checked_add(times(number, nanos)?)?;
        rest = after.get(unit.len()..)?;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(total))
}

/// `1.5` times a unit, cut to whole nanoseconds.
fn times(number: &str, nanos: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.contains('.') || part.len() > 9 {
        return None;
    }
    let read = |digits: &str| {
        if digits.is_empty() {
            Some(0)
        } else {
            digits.parse::<u64>().ok()
        }
    };
    let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let part = u128::from(read(part)?) * u128::from(nanos) / u128::from(scale);
    read(whole)?.checked_mul(nanos)?.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_with_units() {
        for (text, millis) in [
            ("5s", 5_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("500ms", 500),
            ("0s", 0),
            (".5s", 500),
            ("1s1s", 2_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "5 s",
            "1.2.3s",
            "1d",
            "99999999999h",
            "5S",
            ".s",
            "1e3s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

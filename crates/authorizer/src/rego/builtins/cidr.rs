//! `net.cidr_*`: address ranges.

use std::collections::BTreeSet;
use std::net::IpAddr;

use regorus::Value;

use super::{or_undefined, text};

/// Ranges that are merged at once.
const MAX_RANGES: usize = 1_024;

/// An address range: its first address as a number, the length of its prefix, and the family's width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    width: u8,
    first: u128,
    prefix: u8,
}

impl Range {
    fn of(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let canonical = !prefix.is_empty()
            && prefix.bytes().all(|b| b.is_ascii_digit())
            && (prefix == "0" || !prefix.starts_with('0'));
        let prefix: u8 = canonical.then_some(prefix)?.parse().ok()?;
        let (width, number) = number(address)?;
        (prefix <= width).then_some(())?;
        Some(Self {
            width,
            first: number & !rest(width, prefix),
            prefix,
        })
    }

    /// A range, or an address as a range of one.
    fn of_either(text: &str) -> Option<Self> {
        Self::of(text).or_else(|| {
            number(text).map(|(width, first)| Self {
                width,
                first,
                prefix: width,
            })
        })
    }

    fn last(self) -> u128 {
        self.first | rest(self.width, self.prefix)
    }

    fn contains(self, other: Self) -> bool {
        self.width == other.width && self.first <= other.first && other.last() <= self.last()
    }

    fn intersects(self, other: Self) -> bool {
        self.width == other.width && self.first <= other.last() && other.first <= self.last()
    }

    fn shown(self) -> String {
        let address = if self.width == 32 {
            IpAddr::V4(u32::try_from(self.first).unwrap_or(0).into())
        } else {
            IpAddr::V6(self.first.into())
        };
        format!("{address}/{}", self.prefix)
    }
}

fn number(address: &str) -> Option<(u8, u128)> {
    match address.parse().ok()? {
        IpAddr::V4(address) => Some((32, u32::from(address).into())),
        IpAddr::V6(address) => Some((128, address.into())),
    }
}

/// The bits behind a prefix.
fn rest(width: u8, prefix: u8) -> u128 {
    match width - prefix {
        128 => u128::MAX,
        bits => (1u128 << bits) - 1,
    }
}

pub(super) fn contains(args: &[Value]) -> Value {
    let range = text(args, 0).and_then(Range::of);
    let other = text(args, 1).and_then(Range::of_either);
    or_undefined(range.zip(other).map(|(range, other)| range.contains(other).into()))
}

pub(super) fn intersects(args: &[Value]) -> Value {
    let ranges = text(args, 0).and_then(Range::of).zip(text(args, 1).and_then(Range::of));
    or_undefined(ranges.map(|(a, b)| a.intersects(b).into()))
}

pub(super) fn is_valid(args: &[Value]) -> Value {
    or_undefined(text(args, 0).map(|text| Range::of(text).is_some().into()))
}

/// The fewest ranges that hold the same addresses.
pub(super) fn merge(args: &[Value]) -> Value {
    let items: Vec<&Value> = match args.first() {
        Some(Value::Array(items)) => items.iter().collect(),
        Some(Value::Set(items)) => items.iter_sorted().collect(),
        _ => return Value::Undefined,
    };
    let ranges: Option<Vec<Range>> = items
        .iter()
        .map(|item| Range::of_either(item.as_string().ok()?))
        .collect();
    let Some(mut ranges) = ranges.filter(|ranges| ranges.len() <= MAX_RANGES) else {
        return Value::Undefined;
    };
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        if merged.last().is_some_and(|last| last.contains(range)) {
            continue;
        }
        merged.push(range);
        while let [.., low, high] = merged.as_slice()
            && let Some(both) = joined(*low, *high)
        {
            merged.truncate(merged.len() - 2);
            merged.push(both);
        }
    }
    let shown: BTreeSet<Value> = merged.into_iter().map(|range| range.shown().into()).collect();
    shown.into()
}

/// Two halves of one range.
fn joined(low: Range, high: Range) -> Option<Range> {
    let whole = Range {
        prefix: low.prefix.checked_sub(1)?,
        ..low
    };
    let halves = low.width == high.width && low.prefix == high.prefix && low.last().checked_add(1) == Some(high.first);
    (halves && low.first & rest(low.width, whole.prefix) == 0).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_and_intersect() {
        let two = |f: fn(&[Value]) -> Value, a: &str, b: &str| f(&[a.into(), b.into()]);
        assert_eq!(two(contains, "10.0.0.0/8", "10.1.2.3"), true.into());
        assert_eq!(two(contains, "10.0.0.0/8", "10.1.0.0/16"), true.into());
        assert_eq!(two(contains, "10.1.0.0/16", "10.0.0.0/8"), false.into());
        assert_eq!(two(contains, "::/0", "10.1.2.3"), false.into());
        assert_eq!(two(contains, "0.0.0.0/0", "255.255.255.255"), true.into());
        assert_eq!(two(intersects, "10.1.0.0/16", "10.0.0.0/8"), true.into());
        assert_eq!(two(intersects, "10.1.0.0/16", "10.2.0.0/16"), false.into());
        for bad in ["10.0.0.0/33", "10.0.0/8", "10.0.0.0", "::1/129", "10.0.0.0/08", "a"] {
            assert_eq!(two(intersects, bad, "10.0.0.0/8"), Value::Undefined, "{bad}");
        }
    }

    #[test]
    fn merging_loses_no_address_and_finds_the_fewest_ranges() {
        let merged = |items: &[&str]| {
            let items: Vec<Value> = items.iter().map(|item| Value::from(*item)).collect();
            match merge(&[items.into()]) {
                Value::Set(set) => set
                    .iter_sorted()
                    .map(|v| v.as_string().expect("text").to_string())
                    .collect(),
                _ => Vec::new(),
            }
        };
        assert_eq!(merged(&["192.0.128.0/24", "192.0.129.0/24"]), ["192.0.128.0/23"]);
        assert_eq!(
            merged(&["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24", "10.0.0.7"]),
            ["10.0.0.0/23"]
        );
        assert_eq!(merged(&["10.0.1.0/24", "10.0.2.0/24"]), ["10.0.1.0/24", "10.0.2.0/24"]);
        assert_eq!(merged(&["0.0.0.0/1", "128.0.0.0/1", "::1"]), ["0.0.0.0/0", "::1/128"]);
    }
}

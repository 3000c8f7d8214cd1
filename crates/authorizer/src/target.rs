//! The parts of a target, read as Go's `net/url` reads them, because OPA-Envoy does.

use std::collections::BTreeMap;

use crate::Failure;

/// Every value of each name.
pub(crate) type Pairs = BTreeMap<String, Vec<String>>;

/// Splits a target into its path, escapes decoded first and split afterwards (so that `%2F` separates), and its query.
/// A path whose escapes make no text is refused.
pub(crate) fn split(target: &str) -> Result<(Vec<String>, Pairs), Failure> {
    let target = target.split_once('#').map_or(target, |(before, _)| before);
    if target.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err(Failure::Unaskable("control character in the path"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = unescape(path, false).ok_or(Failure::Unaskable("escapes in the path"))?;
    let segments = path.trim_start_matches('/').split('/').map(str::to_owned).collect();
    Ok((segments, pairs(query).0))
}

/// A query or a form; pairs that Go refuses are left out, and told by the second value.
pub(crate) fn pairs(text: &str) -> (Pairs, bool) {
    let mut pairs = Pairs::new();
    let mut all = true;
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // Go refuses `;`, which some servers take for a separator (CVE-2021-44716's kin).
        match (pair.contains(';'), unescape(key, true), unescape(value, true)) {
            (false, Some(key), Some(value)) => pairs.entry(key).or_default().push(value),
            _ => all = false,
        }
    }
    (pairs, all)
}

/// `None`: a broken escape, or bytes that are not UTF-8.
pub(crate) fn unescape(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_go_reads_them() {
        let cases: [(&str, &[&str]); 6] = [
            ("/", &[""]),
            ("/orders/42", &["orders", "42"]),
            ("/orders/42%2F7", &["orders", "42", "7"]),
            ("//orders/", &["orders", ""]),
            ("/a+b%20c", &["a+b c"]),
            ("/a#b/c", &["a"]),
        ];
        for (target, segments) in cases {
            assert_eq!(
                split(target).map(|(path, _)| path),
                Ok(segments.iter().map(|s| (*s).to_owned()).collect()),
                "{target}"
            );
        }
        for bad in ["/%", "/%2", "/%zz", "/%ff", "/a\u{1}"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queries_keep_every_value_and_lose_what_go_refuses() {
        let (_, query) = split("/a?x=1&x=2&y&=z&a+b=%63&bad=%zz&c;d=1&&e=1=2").expect("a path");
        let shown: Vec<_> = query.iter().map(|(k, v)| format!("{k}:{}", v.join("|"))).collect();
        assert_eq!(shown, [":z", "a b:c", "e:1=2", "x:1|2", "y:"]);
        assert!(!pairs("a=%zz").1);
        assert!(pairs("a=1").1);
    }
}

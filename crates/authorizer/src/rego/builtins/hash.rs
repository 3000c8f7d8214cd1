//! `crypto.*`: hexadecimal text of digests.

use aws_lc_rs::{constant_time, digest, hmac};
use regorus::Value;

use super::{or_undefined, text};

pub(super) fn digest(algorithm: &'static digest::Algorithm, args: &[Value]) -> Value {
    or_undefined(text(args, 0).map(|text| hex(digest::digest(algorithm, text.as_bytes()).as_ref())))
}

/// Of a message under a key.
pub(super) fn hmac(algorithm: hmac::Algorithm, args: &[Value]) -> Value {
    let tag = text(args, 0).zip(text(args, 1)).map(|(message, key)| {
        let key = hmac::Key::new(algorithm, key.as_bytes());
        hex(hmac::sign(&key, message.as_bytes()).as_ref())
    });
    or_undefined(tag)
}

pub(super) fn equal(args: &[Value]) -> Value {
    let equal = text(args, 0).zip(text(args, 1)).map(|(a, b)| {
        constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes())
            .is_ok()
            .into()
    });
    or_undefined(equal)
}

pub(super) fn hex(bytes: &[u8]) -> Value {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let text: String = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
    text.into()
}

//! Built-ins that policies for Envoy use and regorus lacks, or has with a clock, an unbounded result or large tables of
//! its own. Each means what it means in OPA; where OPA's fails, the result is undefined, as there.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Result, bail};
use regorus::{Engine, Value};

mod cidr;
mod hash;
mod jws;
mod jwt;
mod query;
mod time;

/// Arguments and the evaluation's time in nanoseconds since 1970.
type Builtin = fn(&[Value], i64) -> Result<Value>;

/// Longest list that `numbers.range` makes.
const MAX_RANGE: i64 = 10_000;

const OWN: [(&str, u8, Builtin); 42] = [
    ("time.now_ns", 0, |_, now| Ok(now.into())),
    ("time.parse_rfc3339_ns", 1, |args, _| Ok(time::parse_rfc3339(args))),
    ("time.parse_duration_ns", 1, |args, _| Ok(time::parse_duration(args))),
    ("time.clock", 1, |args, _| time::clock(args)),
    ("time.date", 1, |args, _| time::date(args)),
    ("time.weekday", 1, |args, _| time::weekday(args)),
    ("numbers.range", 2, |args, _| range(args)),
    ("io.jwt.decode", 1, |args, _| Ok(jwt::decode(args))),
    ("io.jwt.decode_verify", 2, |args, now| Ok(jwt::decode_verify(args, now))),
    ("io.jwt.verify_hs256", 2, |args, _| Ok(jwt::verify("HS256", args))),
    ("io.jwt.verify_hs384", 2, |args, _| Ok(jwt::verify("HS384", args))),
    ("io.jwt.verify_hs512", 2, |args, _| Ok(jwt::verify("HS512", args))),
    ("io.jwt.verify_rs256", 2, |args, _| Ok(jwt::verify("RS256", args))),
    ("io.jwt.verify_rs384", 2, |args, _| Ok(jwt::verify("RS384", args))),
    ("io.jwt.verify_rs512", 2, |args, _| Ok(jwt::verify("RS512", args))),
    ("io.jwt.verify_ps256", 2, |args, _| Ok(jwt::verify("PS256", args))),
    ("io.jwt.verify_ps384", 2, |args, _| Ok(jwt::verify("PS384", args))),
    ("io.jwt.verify_ps512", 2, |args, _| Ok(jwt::verify("PS512", args))),
    ("io.jwt.verify_es256", 2, |args, _| Ok(jwt::verify("ES256", args))),
    ("io.jwt.verify_es384", 2, |args, _| Ok(jwt::verify("ES384", args))),
    ("io.jwt.verify_es512", 2, |args, _| Ok(jwt::verify("ES512", args))),
    ("io.jwt.verify_eddsa", 2, |args, _| Ok(jwt::verify("EdDSA", args))),
    ("net.cidr_contains", 2, |args, _| Ok(cidr::contains(args))),
    ("net.cidr_intersects", 2, |args, _| Ok(cidr::intersects(args))),
    ("net.cidr_overlap", 2, |args, _| Ok(cidr::contains(args))),
    ("net.cidr_merge", 1, |args, _| Ok(cidr::merge(args))),
    ("net.cidr_is_valid", 1, |args, _| Ok(cidr::is_valid(args))),
    ("urlquery.encode", 1, |args, _| Ok(query::encode(args))),
    ("urlquery.decode", 1, |args, _| Ok(query::decode(args))),
    ("urlquery.encode_object", 1, |args, _| Ok(query::encode_object(args))),
    ("urlquery.decode_object", 1, |args, _| Ok(query::decode_object(args))),
    ("crypto.sha1", 1, |args, _| {
        Ok(hash::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, args))
    }),
    ("crypto.sha256", 1, |args, _| {
        Ok(hash::digest(&aws_lc_rs::digest::SHA256, args))
    }),
    ("crypto.hmac.sha1", 2, |args, _| {
        Ok(hash::hmac(aws_lc_rs::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, args))
    }),
    ("crypto.hmac.sha256", 2, |args, _| {
        Ok(hash::hmac(aws_lc_rs::hmac::HMAC_SHA256, args))
    }),
    ("crypto.hmac.sha512", 2, |args, _| {
        Ok(hash::hmac(aws_lc_rs::hmac::HMAC_SHA512, args))
    }),
    ("crypto.hmac.equal", 2, |args, _| Ok(hash::equal(args))),
    // Refused by name, so that neither a mistake in the look nor regorus' own can run.
    ("http.send", 1, |_, _| refused("http.send")),
    ("opa.runtime", 0, |_, _| refused("opa.runtime")),
    ("rand.intn", 2, |_, _| refused("rand.intn")),
    ("net.cidr_expand", 1, |_, _| refused("net.cidr_expand")),
    ("bits.lsh", 2, |_, _| refused("bits.lsh")),
];

/// How many arguments one of ours takes.
pub(super) fn arity(name: &str) -> Option<u8> {
    OWN.iter().find(|(own, _, _)| *own == name).map(|(_, arity, _)| *arity)
}

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OWN.iter().map(|(name, _, _)| *name)
}

/// Puts ours in front of regorus' own.
pub(super) fn add(engine: &mut Engine, now: &Arc<AtomicI64>) {
    for (name, arity, builtin) in OWN {
        let now = Arc::clone(now);
        let call = move |args: Vec<Value>| builtin(&args, now.load(Ordering::Relaxed));
        engine
            .add_extension(name.to_owned(), arity, Box::new(call))
            .expect("each name stands once in the table");
    }
}

fn refused(name: &str) -> Result<Value> {
    bail!("`{name}` is not allowed")
}

/// The text of an argument.
fn text(args: &[Value], at: usize) -> Option<&str> {
    match args.get(at) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn or_undefined(value: Option<Value>) -> Value {
    value.unwrap_or(Value::Undefined)
}

/// Both ends included, downwards too.
fn range(args: &[Value]) -> Result<Value> {
    let end = |at: usize| args.get(at).and_then(|value: &Value| value.as_i64().ok());
    let (Some(from), Some(to)) = (end(0), end(1)) else {
        return Ok(Value::Undefined);
    };
    if from.abs_diff(to) >= MAX_RANGE.unsigned_abs() {
        bail!("`numbers.range` makes at most {MAX_RANGE} numbers");
    }
    let numbers: Vec<Value> = if from <= to {
        (from..=to).map(Value::from).collect()
    } else {
        (to..=from).rev().map(Value::from).collect()
    };
    Ok(numbers.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_ours_stands_once_and_ranges_are_bounded() {
        let mut names: Vec<_> = names().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OWN.len());
        let of = |from: i64, to: i64| range(&[from.into(), to.into()]);
        assert_eq!(
            of(3, 1).expect("small"),
            Value::from(vec![3.into(), 2.into(), 1.into()])
        );
        assert!(of(1, MAX_RANGE).is_ok() && of(0, MAX_RANGE).is_err());
        assert!(of(i64::MIN, i64::MAX).is_err());
    }
}

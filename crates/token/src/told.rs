//! What a verified token tells the app, as header values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_policy::authentication::JwtRule;
use serde_json::{Map, Value};

/// A longer value is not told; an app's server would refuse the head.
const MAX_VALUE: usize = 4 * 1_024;

/// Names and values. A claim that is not there, or that no header can hold, is not told.
pub(crate) fn headers(rule: &JwtRule, claims: &Map<String, Value>, payload: &str) -> Vec<(Box<str>, Box<str>)> {
    let claim = |path: &[String]| {
        let (first, inner) = path.split_first()?;
        inner.iter().try_fold(claims.get(first)?, |claim, name| claim.get(name))
    };
    let told = rule.claim_headers.iter().filter_map(|told| {
        let text = value(claim(&told.claim)?)?;
        Some((told.header.as_str().into(), text.into()))
    });
    let payload = rule.payload_header.as_deref().map(|name| (name.into(), payload.into()));
    told.chain(payload).collect()
}

/// Text, numbers and truth values as they are, lists and objects as base64 of their JSON: as Envoy does.
fn value(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => claim.to_string(),
        Value::Array(_) | Value::Object(_) => STANDARD.encode(claim.to_string()),
    };
    // A line break would begin a header of its own.
    (text.len() <= MAX_VALUE && !text.chars().any(char::is_control)).then_some(text)
}

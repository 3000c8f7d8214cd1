//! Conditions, word by word.

use postern_policy::{Action, AddressKey, Condition, Labels, Request, StringMatch, TextKey, Values};
use serde_json::Value;

use super::{addresses, glob, inside, plain, users};
use crate::random::{NOW, text_of};

/// What nobody can tell is never good enough to allow, and always to deny.
fn doubt(action: Action) -> bool {
    action != Action::Allow
}

pub(super) fn holds(condition: &Condition, request: &Request<'_>, action: Action) -> bool {
    match condition {
        Condition::Address(key, Values { any, none }) => {
            let ip = match key {
                AddressKey::Source => request.source_ip,
                AddressKey::Remote => request.remote_ip,
                AddressKey::Destination => request.destination_ip,
            };
            let _ = inside;
            addresses(any, none, ip, action)
        }
        Condition::Port(Values { any, none }) => {
            (any.is_empty() || any.contains(&request.port)) && !none.contains(&request.port)
        }
        Condition::User(Values { any, none }) => users(any, none, request, action),
        Condition::Age(Values { any, none }) => {
            let Some(http) = request.http else { return doubt(action) };
            let Some(user) = http.user else {
                return any.is_empty() && doubt(action);
            };
            match user.claims().get("auth_time").and_then(Value::as_u64) {
                Some(login) if login <= NOW + 60 => {
                    let young = |limit: &u64| login + limit >= NOW;
                    (any.is_empty() || any.iter().any(young)) && !none.iter().any(young)
                }
                _ => doubt(action),
            }
        }
        Condition::Text(key, values) => text(key, values, request, action),
    }
}

fn text(key: &TextKey, Values { any, none }: &Values<StringMatch>, request: &Request<'_>, action: Action) -> bool {
    let matches = |value: &StringMatch, text: &str| plain(&text_of(value), text);
    // Something that is there, or is not: then nothing matches, and the negation of an identity is in doubt.
    let of_identity = |text: Option<String>, matches: &dyn Fn(&StringMatch, &str) -> bool| match text {
        None => any.is_empty() && doubt(action),
        Some(text) => {
            (any.is_empty() || any.iter().any(|m| matches(m, &text))) && !none.iter().any(|m| matches(m, &text))
        }
    };
    let id = request.peer.map(|id| id.as_str().replacen("spiffe://", "", 1));
    let parts: Vec<String> = id.iter().flat_map(|id| id.split('/').map(str::to_owned)).collect();
    let shaped = parts.len() == 5 && parts[1] == "ns" && parts[3] == "sa";
    let globs = |value: &StringMatch, text: &str| {
        let pattern = text_of(value);
        glob(pattern.as_bytes(), text.as_bytes()) && (pattern != "*" || !text.is_empty())
    };
    let label = |labels: Labels<'_>, name: &str| match labels {
        _ if request.peer.is_none() && !matches!(labels, Labels::Known(_)) => any.is_empty() && doubt(action),
        Labels::Unknown => doubt(action),
        Labels::None => any.is_empty() && doubt(action),
        Labels::Known(labels) => {
            let is = |m: &StringMatch| labels.get(name).is_some_and(|value| matches(m, value));
            (any.is_empty() || any.iter().any(is)) && !none.iter().any(is)
        }
    };
    match key {
        TextKey::SourcePrincipal => of_identity(id, &matches),
        TextKey::SourceTrustDomain => of_identity(parts.first().cloned(), &matches),
        TextKey::SourceNamespace => of_identity(shaped.then(|| parts[2].clone()), &globs),
        TextKey::SourceServiceAccount => {
            of_identity(shaped.then(|| format!("{}/{}", parts[2], parts[4])), &|m, text| {
                let (pattern, (n, a)) = (text_of(m), text.split_once('/').unwrap());
                match pattern.split_once('/') {
                    None => pattern == "*",
                    Some((pn, pa)) => glob(pn.as_bytes(), n.as_bytes()) && glob(pa.as_bytes(), a.as_bytes()),
                }
            })
        }
        TextKey::SourceLabel(name) => label(request.peer_labels, name),
        TextKey::SourceNamespaceLabel(name) => label(request.peer_namespace_labels, name),
        TextKey::DestinationLabel(_) | TextKey::DestinationNamespaceLabel(_) => doubt(action),
        TextKey::Sni => {
            let is = |m: &StringMatch| request.sni.is_some_and(|name| matches(m, name));
            (any.is_empty() || any.iter().any(is)) && !none.iter().any(is)
        }
        TextKey::Header(name) => header(name, any, none, request, action),
        TextKey::UserAudiences | TextKey::UserPresenter | TextKey::UserClaim(_) => {
            let Some(http) = request.http else { return doubt(action) };
            let Some(user) = http.user else {
                return any.is_empty() && doubt(action);
            };
            let claims = Value::Object(user.claims().clone());
            let pointer = match key {
                TextKey::UserAudiences => "/aud".to_owned(),
                TextKey::UserPresenter => "/azp".to_owned(),
                TextKey::UserClaim(path) => path.iter().map(|name| format!("/{name}")).collect(),
                _ => unreachable!(),
            };
            let (texts, clear) = values_of(claims.pointer(&pointer), pointer == "/scope");
            // Some value is it; or none is, and all can be compared; or who knows.
            let hit = |list: &[StringMatch]| {
                let found = list.iter().any(|m| texts.iter().any(|text| matches(m, text)));
                if found || clear { found } else { doubt(action) }
            };
            let clean = |list: &[StringMatch]| {
                let found = list.iter().any(|m| texts.iter().any(|text| matches(m, text)));
                if found || clear { !found } else { doubt(action) }
            };
            (any.is_empty() || hit(any)) && (none.is_empty() || clean(none))
        }
    }
}

/// The texts of a claim, and whether all of it can be compared.
fn values_of(claim: Option<&Value>, words: bool) -> (Vec<String>, bool) {
    match claim {
        None => (Vec::new(), true),
        Some(Value::String(text)) if words => (text.split(' ').map(str::to_owned).collect(), true),
        Some(Value::Array(items)) => {
            let texts: Vec<Option<String>> = items.iter().map(scalar).collect();
            let clear = texts.iter().all(Option::is_some);
            (texts.into_iter().flatten().collect(), clear)
        }
        Some(value) => (scalar(value).into_iter().collect(), scalar(value).is_some()),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) => number.as_u64().map(|number| number.to_string()),
        _ => None,
    }
}

/// A rule that denies is met by any value, or any part of a list; one that allows only if all of them agree.
fn header(name: &str, any: &[StringMatch], none: &[StringMatch], request: &Request<'_>, action: Action) -> bool {
    let Some(http) = request.http else { return doubt(action) };
    let mut values: Vec<Vec<u8>> = Vec::new();
    let told = http.headers.each(name, &mut |value| values.push(value.to_vec()));
    if !told
        || values
            .iter()
            .flatten()
            .any(|&b| b != b'\t' && !(0x20..0x7f).contains(&b))
    {
        return doubt(action);
    }
    let values: Vec<String> = values
        .into_iter()
        .map(|value| String::from_utf8(value).unwrap())
        .collect();
    let has_comma = any.iter().chain(none).any(|m| text_of(m).contains(','));
    if values.len() > 1 && has_comma {
        return doubt(action);
    }
    let is = |list: &[StringMatch], text: &str| list.iter().any(|m| plain(&text_of(m), text));
    let parts = |value: &str| -> Vec<String> {
        let mut all = vec![value.to_owned()];
        if value.contains(',') {
            all.extend(value.split(',').map(|part| part.trim().to_owned()));
        }
        all
    };
    let some = |list: &[StringMatch]| {
        values
            .iter()
            .any(|value| parts(value).iter().any(|part| is(list, part)))
    };
    let every = |list: &[StringMatch]| {
        let named = |value: &str| {
            list.iter()
                .any(|m| matches!(m, StringMatch::Exact(text) if text == value))
        };
        !values.is_empty()
            && values
                .iter()
                .all(|value| named(value) || parts(value).iter().all(|part| is(list, part)))
    };
    if action == Action::Allow {
        (any.is_empty() || every(any)) && (none.is_empty() || !some(none))
    } else {
        (any.is_empty() || some(any)) && (none.is_empty() || !every(none))
    }
}

//! One of `jwtRules`.

use std::time::Duration;

use crate::document::{DocumentError, Fields, Node, Place};
use crate::model::StringMatch;
use crate::model::authentication::{
    Algorithm, Audiences, Binding, ClaimHeader, JwtRule, KeySource, Location, MAX_VALUES, span, value,
};
use crate::model::{decode::item, text::Form, value::principal};

/// Fields that Istio's document does not have.
const OUR_FIELDS: [&str; 5] = ["jwksFile", "algorithms", "clockSkew", "bindToWorkload", "maxStale"];
/// Clocks of machines that are looked after differ by less (RFC 7519 section 4.1.4: "no more than a few minutes").
const DEFAULT_CLOCK_SKEW: Duration = Duration::from_secs(60);
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Istio's.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// An issuer that needs longer is not there.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// An issuer may be away for a day before its users are locked out.
const DEFAULT_MAX_STALE: Duration = Duration::from_secs(24 * 3_600);
const MAX_MAX_STALE: Duration = Duration::from_secs(7 * 24 * 3_600);

pub(super) fn read(mut fields: Fields<'_>, ours: bool, errors: &mut Vec<DocumentError>) -> JwtRule {
    let place = fields.place();
    if !ours {
        for name in OUR_FIELDS {
            if let Some(node) = fields.take(name) {
                fields.error(&node.place, name, "is read under postern.dev/v1alpha1 only");
            }
        }
    }
    let issuer = required(&mut fields, "issuer", value::text).unwrap_or_default();
    let rule = JwtRule {
        audiences: audiences(&mut fields, ours),
        keys: keys(&mut fields, ours, &issuer),
        locations: locations(&mut fields, errors),
        forward: fields.bool("forwardOriginalToken").unwrap_or(false),
        payload_header: optional(&mut fields, "outputPayloadToHeader", value::told_header),
        claim_headers: claim_headers(&mut fields, errors),
        space_delimited: texts(&mut fields, "spaceDelimitedClaims", value::text),
        algorithms: algorithms(&mut fields, ours),
        clock_skew: time(
            &mut fields,
            ours.then_some("clockSkew"),
            DEFAULT_CLOCK_SKEW,
            Duration::ZERO,
            MAX_CLOCK_SKEW,
        ),
        bindings: bindings(&mut fields, ours, errors),
        max_stale: time(
            &mut fields,
            ours.then_some("maxStale"),
            DEFAULT_MAX_STALE,
            DEFAULT_TIMEOUT,
            MAX_MAX_STALE,
        ),
        timeout: time(
            &mut fields,
            Some("timeout"),
            DEFAULT_TIMEOUT,
            Duration::from_millis(1),
            MAX_TIMEOUT,
        ),
        place: place.clone(),
        issuer,
    };
    let mut told: Vec<&str> = rule.told_headers().collect();
    told.sort_unstable();
    if told.windows(2).any(|pair| pair.first() == pair.last()) {
        fields.error(place, "outputClaimToHeaders", "tells two things under one header");
    }
    fields.finish(errors);
    rule
}

fn audiences(fields: &mut Fields<'_>, ours: bool) -> Audiences {
    let place = fields.place();
    if !fields.has("audiences") {
        // So that a misspelled one is told its name.
        fields.take("audiences");
        if ours {
            let what = "is missing: whom a token must be for (`[\"*\"]` takes tokens for anybody)";
            fields.error(place, "audiences", what);
        }
        return Audiences::Any;
    }
    let wanted = texts(fields, "audiences", value::text);
    if ours && wanted.iter().any(|audience| audience == "*") {
        if wanted.len() > 1 {
            fields.error(place, "audiences", "`*` takes tokens for anybody: it stands alone");
        }
        return Audiences::Any;
    }
    Audiences::OneOf(wanted)
}

fn keys(fields: &mut Fields<'_>, ours: bool, issuer: &str) -> KeySource {
    let place = fields.place();
    let mut sources = Vec::new();
    // Istio's schema has this one under both names.
    let names: &[&'static str] = if ours { &["jwksUri"] } else { &["jwksUri", "jwks_uri"] };
    for name in names {
        sources.extend(optional(fields, name, value::uri).map(KeySource::Uri));
    }
    if let Some(set) = fields.text("jwks") {
        if let Err(what) = key_set(&set) {
            fields.error(place, "jwks", what);
        }
        sources.push(KeySource::Inline(set));
    }
    if ours {
        sources.extend(optional(fields, "jwksFile", value::file).map(KeySource::File));
    }
    if sources.len() > 1 {
        let names = if ours {
            "jwksUri, jwks and jwksFile"
        } else {
            "jwksUri and jwks"
        };
        fields.error(place, "jwksUri", format!("only one of {names} can be given"));
    }
    let source = sources.pop().unwrap_or(KeySource::Discovered);
    if source == KeySource::Discovered
        && !issuer.is_empty()
        && let Err(why) = value::uri(issuer)
    {
        let what = format!("there is neither jwksUri nor jwks, and the issuer, where keys would be looked up, {why}");
        fields.error(place, "issuer", what);
    }
    source
}

/// At least the outside of a key set (RFC 7517 section 5); what holds its keys says the rest.
fn key_set(text: &str) -> Result<(), String> {
    match serde_json::from_str::<serde_json::Value>(text) {
        Err(error) => Err(format!("is no JSON: {error}")),
        Ok(set) if set.get("keys").is_some_and(serde_json::Value::is_array) => Ok(()),
        Ok(_) => Err("is no key set: `{\"keys\": [...]}`".to_owned()),
    }
}

fn locations(fields: &mut Fields<'_>, errors: &mut Vec<DocumentError>) -> Vec<Location> {
    let mut locations = Vec::new();
    for (path, node) in maps(fields, "fromHeaders") {
        let mut header = match item(node, &path) {
            Ok(header) => header,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let name = required(&mut header, "name", value::token_header);
        let prefix = optional(&mut header, "prefix", value::prefix).unwrap_or_default();
        header.finish(errors);
        locations.extend(name.map(|name| Location::Header { name, prefix }));
    }
    locations.extend(
        texts(fields, "fromParams", value::param)
            .into_iter()
            .map(Location::Param),
    );
    locations.extend(
        texts(fields, "fromCookies", value::cookie)
            .into_iter()
            .map(Location::Cookie),
    );
    if locations.is_empty() {
        Location::usual()
    } else {
        locations
    }
}

fn claim_headers(fields: &mut Fields<'_>, errors: &mut Vec<DocumentError>) -> Vec<ClaimHeader> {
    let mut told = Vec::new();
    for (path, node) in maps(fields, "outputClaimToHeaders") {
        let mut entry = match item(node, &path) {
            Ok(entry) => entry,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let header = required(&mut entry, "header", value::told_header);
        let claim = required(&mut entry, "claim", value::claim);
        entry.finish(errors);
        told.extend(header.zip(claim).map(|(header, claim)| ClaimHeader { header, claim }));
    }
    told
}

fn algorithms(fields: &mut Fields<'_>, ours: bool) -> Vec<Algorithm> {
    let place = fields.place();
    let Some(named) = ours.then(|| fields.texts("algorithms")).flatten() else {
        return Algorithm::ALL.to_vec();
    };
    if named.is_empty() {
        fields.error(place, "algorithms", "must not be an empty list");
    }
    let mut algorithms = Vec::new();
    for (place, name) in named {
        match Algorithm::parse(&name) {
            Some(algorithm) => algorithms.push(algorithm),
            None if name.starts_with("HS") || name.eq_ignore_ascii_case("none") => {
                let what = format!("`{name}` is never believed: whoever can verify it could have made it");
                fields.error(place, "algorithms", what);
            }
            None => fields.unknown_value(place, "algorithms", &name, &Algorithm::ALL.map(Algorithm::as_str)),
        }
    }
    algorithms
}

fn bindings(fields: &mut Fields<'_>, ours: bool, errors: &mut Vec<DocumentError>) -> Vec<Binding> {
    let mut bindings = Vec::new();
    for (path, node) in if ours {
        maps(fields, "bindToWorkload")
    } else {
        Vec::new()
    } {
        let mut entry = match item(node, &path) {
            Ok(entry) => entry,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let client = required(&mut entry, "clientId", value::text);
        let place = &node.place;
        let named = entry.texts("principals");
        if named.as_ref().is_none_or(Vec::is_empty) {
            entry.error(
                place,
                "principals",
                "names nobody: the workloads that may bring this client's tokens",
            );
        }
        let mut principals = Vec::new();
        for (place, text) in named.unwrap_or_default() {
            let read = principal(&text).and_then(|text| StringMatch::read(&text, Form::Plain).map_err(str::to_owned));
            match read {
                Ok(principal) => principals.push(principal),
                Err(why) => entry.error(place, "principals", format!("`{text}` {why}")),
            }
        }
        entry.finish(errors);
        bindings.extend(client.map(|client| Binding { client, principals }));
    }
    bindings
}

/// A span of time within bounds, or its default.
fn time(
    fields: &mut Fields<'_>,
    name: Option<&'static str>,
    default: Duration,
    least: Duration,
    most: Duration,
) -> Duration {
    let Some((name, text)) = name.and_then(|name| Some((name, fields.text(name)?))) else {
        return default;
    };
    let place = fields.place();
    match span::parse(&text) {
        Some(span) if (least..=most).contains(&span) => return span,
        Some(_) => fields.error(place, name, format!("`{text}` is not within {least:?} and {most:?}")),
        None => fields.error(
            place,
            name,
            format!("`{text}` is no span of time, such as `5s` or `1m30s`"),
        ),
    }
    default
}

/// The items of a list of maps, as many as are allowed.
fn maps<'a>(fields: &mut Fields<'a>, name: &'static str) -> Vec<(String, &'a Node)> {
    let place = fields.place();
    let Some(items) = fields.list(name) else {
        return Vec::new();
    };
    few(fields, place, name, items.len());
    items
}

/// A list of text, each checked.
fn texts(fields: &mut Fields<'_>, name: &'static str, check: impl Fn(&str) -> Result<String, String>) -> Vec<String> {
    let place = fields.place();
    let Some(texts) = fields.texts(name) else {
        return Vec::new();
    };
    few(fields, place, name, texts.len());
    let mut values = Vec::new();
    for (place, text) in texts {
        values.extend(checked(fields, place, name, &text, &check));
    }
    values
}

fn few(fields: &mut Fields<'_>, place: &Place, name: &str, count: usize) {
    match count {
        0 => fields.error(
            place,
            name,
            "must not be an empty list; leave it out if nothing is meant",
        ),
        _ if count > MAX_VALUES => fields.error(place, name, format!("at most {MAX_VALUES} are allowed")),
        _ => {}
    }
}

/// Text that may be left out, and then is not empty.
fn optional<T>(fields: &mut Fields<'_>, name: &'static str, check: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    let place = fields.place();
    let text = fields.text(name)?;
    checked(fields, place, name, &text, check)
}

fn required<T>(fields: &mut Fields<'_>, name: &'static str, check: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    let place = fields.place();
    let text = fields.required_text(name)?;
    checked(fields, place, name, &text, check)
}

fn checked<T>(
    fields: &mut Fields<'_>,
    place: &Place,
    name: &str,
    text: &str,
    check: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let value = if text.is_empty() {
        Err("must not be empty".to_owned())
    } else {
        check(text)
    };
    match value {
        Ok(value) => Some(value),
        Err(why) => {
            fields.error(place, name, format!("`{text}` {why}"));
            None
        }
    }
}

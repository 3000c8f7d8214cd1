//! A `CheckResponse` and what it means. Stricter than Envoy in one thing above all: a reply without a status is no OK.

use crate::Failure;
use crate::envoy::config::core::v3::HeaderValueOption;
use crate::envoy::service::auth::v3::check_response::HttpResponse;
use crate::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use crate::verdict::{self, Append, Edits, Refusal, Verdict};

/// A whole reply on the wire.
pub const MAX_REPLY: usize = 128 * 1024;

/// Reads the bytes of a reply.
pub fn read(bytes: &[u8]) -> Result<Verdict, Failure> {
    if bytes.len() > MAX_REPLY {
        return Err(Failure::TooLarge("reply"));
    }
    let reply = prost::Message::decode(bytes).map_err(|_| Failure::Nonsense("no CheckResponse"))?;
    decide(reply)
}

/// What a reply says.
pub fn decide(reply: CheckResponse) -> Result<Verdict, Failure> {
    let status = reply.status.ok_or(Failure::NoStatus)?;
    match (status.code, reply.http_response) {
        (_, Some(HttpResponse::ErrorResponse(_))) => Err(Failure::ErrorResponse),
        (0, None) => Ok(Verdict::Allow(Edits::default())),
        (0, Some(HttpResponse::OkResponse(ok))) => edits(ok).map(Verdict::Allow),
        (0, Some(HttpResponse::DeniedResponse(_))) => Err(Failure::Nonsense("status OK with a denial")),
        (_, Some(HttpResponse::DeniedResponse(denied))) => refusal(denied).map(Verdict::Deny),
        // As Envoy: a status that is not OK denies, whatever stands beside it.
        (_, None | Some(HttpResponse::OkResponse(_))) => Ok(Verdict::Deny(Refusal::bare())),
    }
}

fn edits(ok: OkHttpResponse) -> Result<Edits, Failure> {
    let count = ok.headers.len() + ok.response_headers_to_add.len() + ok.headers_to_remove.len();
    if count > verdict::MAX_FIELDS {
        return Err(Failure::TooLarge("fields"));
    }
    let mut edits = Edits::default();
    for option in &ok.headers {
        // Envoy's default for requests: it takes the place of what the client sent.
        edits.request.push(field(option, Append::Overwrite)?);
    }
    for option in &ok.response_headers_to_add {
        edits.answer.push(field(option, Append::Append)?);
    }
    for name in &ok.headers_to_remove {
        edits.remove.push(verdict::name(name)?);
    }
    edits.set_query = ok
        .query_parameters_to_set
        .into_iter()
        .map(|pair| (pair.key, pair.value))
        .collect();
    edits.remove_query = ok.query_parameters_to_remove;
    edits.bounded()
}

fn refusal(denied: DeniedHttpResponse) -> Result<Refusal, Failure> {
    if denied.headers.len() > verdict::MAX_FIELDS {
        return Err(Failure::TooLarge("fields"));
    }
    let headers = denied
        .headers
        .iter()
        .map(|option| field(option, Append::Overwrite).map(|(name, value, _)| (name, value)))
        .collect::<Result<_, _>>()?;
    let status = match denied.status.map_or(0, |status| status.code) {
        0 => 403,
        code => u64::try_from(code).unwrap_or(0),
    };
    Refusal::of(status, headers, denied.body)
}

/// The old flag `append` decides where it stands; else the action does, whose zero is `otherwise`.
fn field(
    option: &HeaderValueOption,
    otherwise: Append,
) -> Result<(http::HeaderName, http::HeaderValue, Append), Failure> {
    let pair = option
        .header
        .as_ref()
        .ok_or(Failure::Nonsense("a field without name and value"))?;
    let value = match (pair.value.as_bytes(), pair.raw_value.as_slice()) {
        (value, []) => value,
        ([], raw) => raw,
        _ => return Err(Failure::Nonsense("a field with two values")),
    };
    let (name, value) = verdict::field(&pair.key, value)?;
    let append = match (option.append, option.append_action) {
        (Some(true), _) => Append::Append,
        (Some(false), 0) => Append::Overwrite,
        (_, 0) => otherwise,
        (_, 1) => Append::IfAbsent,
        (_, 2) => Append::Overwrite,
        (_, 3) => Append::IfPresent,
        _ => return Err(Failure::Nonsense("unknown append action")),
    };
    Ok((name, value, append))
}

//! What those whom CUSTOM policies ask change of a request and its answer. The fields were checked when the verdict was
//! read (`postern_authorizer::verdict`): none of them frames a message, belongs to a hop, or is ours to say.

use http::HeaderMap;
use http::request::Parts;
use http::uri::PathAndQuery;
use postern_authorizer::{Append, Edits};

use crate::limits::{MAX_HEAD_BYTES, MAX_HEADERS};
use crate::outcome::{BadRequest, Failure};

/// Edits a request that is about to be forwarded. Path, host and method stay what was decided on.
pub(super) fn request(parts: &mut Parts, edits: &Edits) -> Result<(), Failure> {
    for name in &edits.remove {
        parts.headers.remove(name);
    }
    set(&mut parts.headers, &edits.request);
    if !edits.set_query.is_empty() || !edits.remove_query.is_empty() {
        query(parts, edits)?;
    }
    let bytes: usize = parts
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    // What no client may send the app need not take from us.
    if parts.headers.len() > MAX_HEADERS + postern_authorizer::verdict::MAX_FIELDS || bytes > 2 * MAX_HEAD_BYTES {
        return Err(Failure::CustomError);
    }
    Ok(())
}

/// Adds to an answer.
pub(super) fn answer(fields: &mut HeaderMap, edits: &Edits) {
    set(fields, &edits.answer);
}

fn set(fields: &mut HeaderMap, edits: &[(http::HeaderName, http::HeaderValue, Append)]) {
    for (name, value, append) in edits {
        let there = fields.contains_key(name);
        match append {
            Append::Append => {
                fields.append(name, value.clone());
            }
            Append::Overwrite => {
                fields.insert(name, value.clone());
            }
            Append::IfAbsent if !there => {
                fields.insert(name, value.clone());
            }
            Append::IfPresent if there => {
                fields.insert(name, value.clone());
            }
            Append::IfAbsent | Append::IfPresent => {}
        }
    }
}

fn query(parts: &mut Parts, edits: &Edits) -> Result<(), Failure> {
    let bad = Failure::BadRequest(BadRequest::Target);
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    let before = uri.path_and_query.take();
    let (path, query) = before.as_ref().map_or(("/", None), |both| (both.path(), both.query()));
    let target = match edits.edited_query(query) {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    uri.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| bad)?);
    parts.uri = http::Uri::from_parts(uri).map_err(|_| bad)?;
    Ok(())
}

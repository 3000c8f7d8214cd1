//! A request's target in the form that the next hop's protocol wants.

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, Scheme, Uri};

use super::Version;
use crate::outcome::{BadRequest, Failure};

/// Origin-form with `Host` for HTTP/1; absolute for HTTP/2, whose authority then replaces `Host`.
pub fn retarget(uri: &mut Uri, fields: &mut HeaderMap, to: Version) -> Result<(), Failure> {
    let bad = Failure::BadRequest(BadRequest::Target);
    match to {
        Version::H1 => {
            if uri.authority().is_some() || uri.scheme().is_some() {
                let from = std::mem::take(uri).into_parts();
                if let Some(authority) = from.authority.filter(|_| !fields.contains_key(header::HOST)) {
                    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad)?;
                    fields.insert(header::HOST, host);
                }
                let mut parts = http::uri::Parts::default();
                parts.path_and_query = from.path_and_query;
                *uri = Uri::from_parts(parts).map_err(|_| bad)?;
                join_cookies(fields).map_err(|_| bad)?;
            }
        }
        Version::H2 => {
            let mut parts = std::mem::take(uri).into_parts();
            parts.scheme = Some(Scheme::HTTP);
            let host = fields.remove(header::HOST);
            if parts.authority.is_none() {
                let host = host.ok_or(Failure::BadRequest(BadRequest::Host))?;
                let authority = Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(host.as_bytes()));
                parts.authority = Some(authority.map_err(|_| Failure::BadRequest(BadRequest::Host))?);
            }
            *uri = Uri::from_parts(parts).map_err(|_| bad)?;
        }
    }
    Ok(())
}

/// HTTP/2 may split `Cookie`; elsewhere it stands once (RFC 9113 section 8.2.3).
fn join_cookies(fields: &mut HeaderMap) -> Result<(), header::InvalidHeaderValue> {
    let mut crumbs = fields.get_all(header::COOKIE).iter();
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let mut joined = first.as_bytes().to_vec();
        for crumb in std::iter::once(second).chain(crumbs) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(crumb.as_bytes());
        }
        fields.insert(header::COOKIE, HeaderValue::from_bytes(&joined)?);
    }
    Ok(())
}

//! A request's head before anything is decided: one host, one canonical path, one framing. What is ambiguous is
//! refused with 400, never guessed; what passes is forwarded byte for byte as it was decided.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use http::header;
use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Method, Version, request};
use postern_policy::canonical::{CanonicalHost, CanonicalPath, CanonicalPathRef};

use crate::http::h1::head::RequestHead;
use crate::http::headers;
use crate::limits::MAX_HEADERS;
use crate::outcome::{BadRequest, Failure};

/// The last host of a connection: the next request nearly always names the same.
#[derive(Debug, Default)]
pub struct HostCache(RefCell<Option<(Box<str>, Host)>>);

/// The one effective authority.
#[derive(Debug, Clone)]
pub struct Host {
    /// As policy sees it.
    pub canonical: Rc<CanonicalHost>,
    /// As the log shows it.
    pub shown: Rc<str>,
}

/// Checks a head and brings its target to the canonical form: afterwards the URI is what is decided on and forwarded
/// (origin-form for HTTP/1, with scheme and authority for HTTP/2), and `Host` stands exactly once.
pub fn check(parts: &mut request::Parts, hosts: &HostCache) -> Result<Host, Failure> {
    if parts.method == Method::CONNECT {
        return Err(Failure::BadRequest(BadRequest::Target));
    }
    check_framing(parts)?;
    if headers::has_framing_alias(&parts.headers) {
        return Err(Failure::BadRequest(BadRequest::Field));
    }
    let host = effective_host(parts, hosts)?;
    // hyper counts HTTP/1's; HTTP/2 knows only a size.
    if parts.headers.len() > MAX_HEADERS {
        return Err(Failure::BadRequest(BadRequest::Field));
    }
    canonical_target(&mut parts.uri)?;
    Ok(host)
}

/// hyper has refused what contradicts itself; what it merely normalised is looked at here.
fn check_framing(parts: &mut request::Parts) -> Result<(), Failure> {
    let bad = Err(Failure::BadRequest(BadRequest::Framing));
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !chunked || codings.next().is_some() || parts.version != Version::HTTP_11 {
            return bad;
        }
        if parts.headers.contains_key(header::CONTENT_LENGTH) {
            return bad;
        }
    }
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return bad;
    }
    if let Some(expect) = parts.headers.get(header::EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return bad;
    }
    Ok(())
}

fn effective_host(parts: &mut request::Parts, hosts: &HostCache) -> Result<Host, Failure> {
    let bad = Failure::BadRequest(BadRequest::Host);
    let mut named = parts.headers.get_all(header::HOST).iter();
    let (field, second) = (named.next(), named.next());
    if second.is_some() {
        return Err(bad);
    }
    if let Some(scheme) = parts.uri.scheme()
        && *scheme != Scheme::HTTP
        && *scheme != Scheme::HTTPS
    {
        return Err(Failure::BadRequest(BadRequest::Target));
    }
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = match (field, authority) {
        // RFC 9112 section 3.2: HTTP/1.1 without Host is refused, absolute-form or not.
        (None, Some(authority)) if parts.version == Version::HTTP_2 => hosts.host_of(authority)?,
        (None, _) => return Err(bad),
        (Some(field), None) => hosts.host_of(field.to_str().map_err(|_| bad)?)?,
        (Some(field), Some(authority)) => {
            let host = hosts.host_of(field.to_str().map_err(|_| bad)?)?;
            let other = CanonicalHost::parse(authority).map_err(|_| bad)?;
            if other != *host.canonical {
                return Err(bad);
            }
            host
        }
    };
    forward_as_decided(parts, &host)?;
    Ok(host)
}

/// The host that is forwarded is the host that was decided on, in its one form.
fn forward_as_decided(parts: &mut request::Parts, host: &Host) -> Result<(), Failure> {
    let bad = Failure::BadRequest(BadRequest::Host);
    let decided = &*host.shown;
    if parts
        .headers
        .get(header::HOST)
        .is_none_or(|field| field.as_bytes() != decided.as_bytes())
    {
        let value = HeaderValue::from_str(decided).map_err(|_| bad)?;
        parts.headers.insert(header::HOST, value);
    }
    if parts
        .uri
        .authority()
        .is_some_and(|authority| authority.as_str() != decided)
    {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.authority = Some(decided.parse().map_err(|_| bad)?);
        parts.uri = Uri::from_parts(uri).map_err(|_| bad)?;
    }
    Ok(())
}

impl HostCache {
    /// The authority that `text` names.
    fn host_of(&self, text: &str) -> Result<Host, Failure> {
        if let Some((known, host)) = &*self.0.borrow()
            && **known == *text
        {
            return Ok(host.clone());
        }
        let canonical = CanonicalHost::parse(text).map_err(|_| Failure::BadRequest(BadRequest::Host))?;
        let shown = match canonical.port() {
            Some(port) => Cow::Owned(format!("{}:{port}", canonical.name())),
            None => Cow::Borrowed(canonical.name()),
        };
        let host = Host {
            shown: shown.as_ref().into(),
            canonical: Rc::new(canonical),
        };
        *self.0.borrow_mut() = Some((text.into(), host.clone()));
        Ok(host)
    }
}

/// A head of the relay: its one host, and the path that is decided on and forwarded. Framing was settled by the parser.
pub(super) fn check_relayed<'a>(
    head: &RequestHead<'_, 'a>,
    hosts: &HostCache,
) -> Result<(Host, Cow<'a, str>), Failure> {
    let host = hosts.host_of(head.host.ok_or(Failure::BadRequest(BadRequest::Host))?)?;
    // Fragments never go over the wire (RFC 9112 section 3.2); whoever sends one wants two readers to disagree.
    if head.query().contains('#') {
        return Err(Failure::BadRequest(BadRequest::Target));
    }
    let path = match CanonicalPathRef::check(head.path()) {
        Ok(Some(_)) => Cow::Borrowed(head.path()),
        Ok(None) => {
            let canonical = CanonicalPath::parse(head.path()).map_err(Failure::BadPath)?;
            Cow::Owned(canonical.as_str().to_owned())
        }
        Err(error) => return Err(Failure::BadPath(error)),
    };
    Ok((host, path))
}

/// Rebuilds the target only if its path is not canonical yet.
fn canonical_target(uri: &mut Uri) -> Result<(), Failure> {
    let canonical = match CanonicalPathRef::check(uri.path()) {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => CanonicalPath::parse(uri.path()).map_err(Failure::BadPath)?,
        Err(error) => return Err(Failure::BadPath(error)),
    };
    let target = match uri.query() {
        Some(query) => format!("{}?{query}", canonical.as_str()),
        None => canonical.as_str().to_owned(),
    };
    let bad = |_| Failure::BadRequest(BadRequest::Target);
    let path_and_query = PathAndQuery::from_maybe_shared(bytes::Bytes::from(target)).map_err(bad)?;
    // What the `http` crate makes of it must be what was decided.
    if path_and_query.path() != canonical.as_str() {
        return Err(Failure::BadRequest(BadRequest::Target));
    }
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(path_and_query);
    *uri = Uri::from_parts(parts).map_err(|_| Failure::BadRequest(BadRequest::Target))?;
    Ok(())
}

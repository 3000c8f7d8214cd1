//! What the values of each field may look like.
//!
//! A value that no peer and no request can have is refused: a DENY rule with it would never fire, and nobody would notice.
//! What has one meaning gets the form that requests get ([`crate::canonical`]).

use postern_identity::SpiffeId;

use crate::{CanonicalHost, CanonicalPath};

/// The value to match, or why it is refused.
pub(super) type Checked = Result<String, String>;

/// A value by its star.
enum Shape<'t> {
    Any,
    Whole(&'t str),
    Prefix(&'t str),
    Suffix(&'t str),
}

/// `cluster.local/ns/shop/sa/web`; at least the trust domain, if not a suffix.
pub(super) fn principal(text: &str) -> Checked {
    if text.starts_with("spiffe://") {
        return Err("is written without `spiffe://` here, such as cluster.local/ns/shop/sa/web".to_owned());
    }
    // What a star stands for may hold a slash or not.
    let candidates = match shape(text)? {
        Shape::Any => return Ok(text.to_owned()),
        Shape::Whole(id) => [id.to_owned(), id.to_owned()],
        Shape::Prefix(start) => [format!("{start}x/x"), format!("{start}x")],
        Shape::Suffix(end) => [format!("x/x{end}"), format!("x{end}")],
    };
    let [first, second] = candidates.map(|id| SpiffeId::parse(&format!("spiffe://{id}")));
    match first.or(second) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("is no identity's: {}", error.why)),
    }
}

/// One segment of an identity, with stars.
pub(super) fn namespace(text: &str) -> Checked {
    segment(text).map(|()| text.to_owned())
}

/// `namespace/name`; a bare `name` belongs to the policy's own namespace.
pub(super) fn account(text: &str, namespace: &str) -> Checked {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if name.contains('/') {
        return Err("is neither `name` nor `namespace/name`".to_owned());
    }
    segment(namespace)?;
    segment(name)?;
    Ok(format!("{namespace}/{name}"))
}

/// A trust domain (SPIFFE ID section 2.1), with a star at one end.
pub(super) fn trust_domain(text: &str) -> Checked {
    let possible = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._*".contains(&b);
    shape(text)?;
    if text.bytes().all(possible) {
        Ok(text.to_owned())
    } else {
        Err("holds a character that no trust domain has".to_owned())
    }
}

/// The value of a label (Kubernetes: letters, digits, `-`, `_` and `.`), with a star at one end.
pub(super) fn label(text: &str) -> Checked {
    let possible = |b: u8| b.is_ascii_alphanumeric() || b"-._*".contains(&b);
    shape(text)?;
    if text.bytes().all(possible) {
        Ok(text.to_owned())
    } else {
        Err("holds a character that no label has".to_owned())
    }
}

/// What a field's value can be (RFC 9110 section 5.5) in visible ASCII, without white space at its ends.
pub(super) fn field_value(text: &str) -> Checked {
    shape(text)?;
    if !text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t')) {
        Err("holds a byte that is compared with no field".to_owned())
    } else if text.trim_matches([' ', '\t']) != text {
        Err("begins or ends with white space, which fields do not".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// A name of the TLS handshake: letters in lower case.
pub(super) fn server_name(text: &str) -> Checked {
    shape(text)?;
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._*".contains(&b)) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("holds a character that no server name has".to_owned())
    }
}

/// Any text, with a star at one end.
pub(super) fn any(text: &str) -> Checked {
    shape(text).map(|_| text.to_owned())
}

/// A token (RFC 9110 section 5.6.2; a star is one).
pub(super) fn method(text: &str) -> Checked {
    shape(text)?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.bytes().all(token) {
        Ok(text.to_owned())
    } else {
        Err("is no method".to_owned())
    }
}

/// `name` or `name:port`.
pub(super) fn host(text: &str) -> Checked {
    let canonical = |host: &str| CanonicalHost::parse(host);
    let possible = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    match shape(text)? {
        Shape::Any => Ok(text.to_owned()),
        Shape::Whole(host) => match canonical(host) {
            Ok(host) => Ok(host.as_str().to_owned()),
            Err(_) => Err("is no host: a name or address, and a port if that is meant".to_owned()),
        },
        Shape::Prefix(part) | Shape::Suffix(part) if !part.bytes().all(possible) => {
            Err("holds a character that no host has".to_owned())
        }
        // `name:*`, any port of a name.
        Shape::Prefix(start) => match start.strip_suffix(':').map(canonical) {
            Some(Ok(host)) if host.port().is_none() => Ok(format!("{}:*", host.name())),
            Some(_) | None => Ok(text.to_ascii_lowercase()),
        },
        Shape::Suffix(_) => Ok(text.to_ascii_lowercase()),
    }
}

/// A path, a prefix, a suffix, or a template.
pub(super) fn path(text: &str) -> Checked {
    let canonical = |path: &str| match CanonicalPath::parse(path) {
        Ok(path) => Ok(path.as_str().to_owned()),
        Err(error) => Err(format!("is no request's: {error}")),
    };
    if text.contains(['{', '}']) {
        return template(text, canonical);
    }
    match shape(text)? {
        Shape::Any => Ok(text.to_owned()),
        Shape::Whole(path) => canonical(path),
        // The `x` stands for what the star does: it keeps the last segment from being resolved before it is whole.
        Shape::Prefix(start) => {
            let path = canonical(&format!("{start}x"))?;
            Ok(format!("{}*", path.strip_suffix('x').unwrap_or(&path)))
        }
        Shape::Suffix(end) if end.split('/').any(|segment| segment == "..") => {
            Err("leads above what its star stands for".to_owned())
        }
        Shape::Suffix(end) => {
            let path = canonical(&format!("/x{end}"))?;
            Ok(format!("*{}", path.strip_prefix("/x").unwrap_or(&path)))
        }
    }
}

/// The form of a template is checked where it is read; its other segments must stand as requests have them.
fn template(text: &str, canonical: impl Fn(&str) -> Checked) -> Checked {
    let filled = text.replace("{**}", "x").replace("{*}", "x");
    if filled.contains(['{', '}']) || canonical(&filled)? == filled {
        Ok(text.to_owned())
    } else {
        Err("is no request's: a path template is written in canonical form".to_owned())
    }
}

fn shape(text: &str) -> Result<Shape<'_>, String> {
    match (text, text.strip_prefix('*'), text.strip_suffix('*')) {
        ("", _, _) => Err("must not be empty".to_owned()),
        ("*", _, _) => Ok(Shape::Any),
        (_, Some(_), Some(_)) => Err("has a star at both ends: only a prefix or a suffix can be matched".to_owned()),
        (_, None, Some(start)) => Ok(Shape::Prefix(start)),
        (_, Some(end), None) => Ok(Shape::Suffix(end)),
        (whole, None, None) => Ok(Shape::Whole(whole)),
    }
}

/// A segment of a SPIFFE ID, with stars.
fn segment(text: &str) -> Result<(), String> {
    let possible = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*');
    if text.is_empty() {
        Err("must not be empty".to_owned())
    } else if text.bytes().all(possible) {
        Ok(())
    } else {
        Err("holds a character that no namespace and no service account has".to_owned())
    }
}

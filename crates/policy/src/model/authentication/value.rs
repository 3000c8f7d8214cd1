//! What the values of each field may look like. A value that can never match, or that would let a rule change what
//! carries the request, is refused.

/// The value, or why it is refused.
type Checked = Result<String, String>;

/// No header name, claim, parameter or prefix needs more.
const MAX_NAME: usize = 128;
/// An issuer, an audience, a client or an address: generous.
const MAX_TEXT: usize = 2_048;
/// Headers that carry the request or its peer: nobody's to set or to look for tokens in.
const CARRIERS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];
/// Headers that mean something to the app already: a claim told under such a name would be taken for it.
const MEANT: [&str; 12] = [
    "accept",
    "accept-encoding",
    "authorization",
    "content-encoding",
    "content-type",
    "cookie",
    "forwarded",
    "origin",
    "range",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];

/// A header where a token stands, in lower case.
pub(super) fn token_header(text: &str) -> Checked {
    let name = field_name(text)?;
    if name == "cookie" {
        return Err("is where cookies stand: use `fromCookies`".to_owned());
    }
    if is_one_of(&name, &CARRIERS) {
        return Err("carries the request itself".to_owned());
    }
    Ok(name)
}

/// A header that tells the app something, in lower case.
pub(super) fn told_header(text: &str) -> Checked {
    let name = field_name(text)?;
    if is_one_of(&name, &CARRIERS) {
        return Err("carries the request itself".to_owned());
    }
    if is_one_of(&name, &MEANT) {
        return Err("has a meaning of its own for the app".to_owned());
    }
    Ok(name)
}

/// What stands before a token in a header.
pub(super) fn prefix(text: &str) -> Checked {
    if text.len() > MAX_NAME || !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Err("holds what no header does".to_owned());
    }
    Ok(text.to_owned())
}

/// The name of a query parameter, as it stands in the query.
pub(super) fn param(text: &str) -> Checked {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~[]:@!$'()*,;/?".contains(&b);
    if text.len() > MAX_NAME || !text.bytes().all(plain) {
        return Err("is no parameter's name: letters, digits and what needs no `%` in a query".to_owned());
    }
    Ok(text.to_owned())
}

/// A cookie's name: a token (RFC 6265 section 4.1.1). Case counts.
pub(super) fn cookie(text: &str) -> Checked {
    if text.len() > MAX_NAME || !text.bytes().all(is_token) {
        return Err("is no cookie's name".to_owned());
    }
    Ok(text.to_owned())
}

/// An issuer, an audience, or a client: compared byte for byte.
pub(super) fn text(text: &str) -> Checked {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(format!("is longer than {MAX_TEXT} bytes, or holds control characters"));
    }
    Ok(text.to_owned())
}

/// A claim by its names, joined by dots.
pub(super) fn claim(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split('.').map(ToOwned::to_owned).collect();
    if text.len() > MAX_NAME || names.iter().any(String::is_empty) || names.len() > crate::user::MAX_CLAIM_DEPTH {
        return Err("is no claim: names joined by dots".to_owned());
    }
    Ok(names)
}

/// Where a key set is fetched: an absolute `http` or `https` URI without user, query secrets or fragment.
pub(super) fn uri(text: &str) -> Checked {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err("does not begin with `https://` or `http://`".to_owned());
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || text.len() > MAX_TEXT || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("is no URI".to_owned());
    }
    if authority.contains('@') {
        return Err("holds a user: keys are public".to_owned());
    }
    if text.contains('#') {
        return Err("holds a fragment, which is never sent".to_owned());
    }
    Ok(text.to_owned())
}

/// A file under the folder of documents: plain names joined by `/`.
pub(super) fn file(text: &str) -> Checked {
    let plain = |name: &str| {
        !name.is_empty()
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    if text.len() > MAX_TEXT || !text.split('/').all(plain) {
        return Err(
            "is no file beside the documents: names of letters, digits, `-`, `_` and `.`, joined by `/`".to_owned(),
        );
    }
    if text.ends_with(".yaml") || text.ends_with(".yml") {
        return Err("would be read as a document: name it `.json`".to_owned());
    }
    Ok(text.to_owned())
}

fn field_name(text: &str) -> Checked {
    if text.len() > MAX_NAME || !text.bytes().all(is_token) {
        return Err("is no header's name".to_owned());
    }
    let name = text.to_ascii_lowercase();
    let ours = |prefix: &str| {
        name.get(..prefix.len())
            .is_some_and(|start| is_one_of(start, &[prefix]))
    };
    if ours("x-postern-") || ours("x-envoy-") {
        return Err("is one that only the proxy sets".to_owned());
    }
    Ok(name)
}

/// Also in the spellings that many servers take for the same.
fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| crate::request::is_same_field(name, known))
}

/// RFC 9110 section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

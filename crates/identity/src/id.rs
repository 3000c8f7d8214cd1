//! SPIFFE IDs, trust domains and instances: parsed once, strictly; never handled as raw text afterwards.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

/// The longest SPIFFE ID that we generate or accept, in bytes (SPIFFE-ID section 2.3).
pub const MAX_ID_LEN: usize = 2048;
/// The longest trust domain name, in bytes (SPIFFE-ID section 2.1).
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;
/// The longest instance (a pod UID or a workload name), in bytes: a DNS subdomain's limit.
pub const MAX_INSTANCE_LEN: usize = 253;

/// A trust domain name: lower-case letters, digits, `.`, `-`, `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// `spiffe://<trust-domain>/<path>`, path not empty. Cheap to clone, compared byte by byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: u16,
    /// Where `/sa/` begins, if the path is a workload's; asked at each decision.
    account_at: Option<NonZeroU16>,
}

/// Tells pods of one service account apart: the pod UID, or the workload's name. From attestation only.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance(Arc<str>);

/// Why a text is not what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?}: {why}")]
pub struct IdError {
    /// What was parsed: `"SPIFFE ID"`, `"trust domain"`, `"instance"`.
    pub what: &'static str,
    /// The text, cut to 128 characters.
    pub text: String,
    /// Which rule it breaks.
    pub why: &'static str,
}

impl TrustDomain {
    /// Parses a bare trust domain name, such as `cluster.local`.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        check_trust_domain(text).map_err(|why| IdError::new("trust domain", text, why))?;
        Ok(Self(text.into()))
    }
    /// The name, without scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// Parses a workload's SPIFFE ID (with a path).
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let path_at = check_id(text).map_err(|why| IdError::new("SPIFFE ID", text, why))?;
        Ok(Self {
            text: text.into(),
            path_at,
            account_at: account_at(text, path_at),
        })
    }
    /// `spiffe://<td>/ns/<namespace>/sa/<service_account>`.
    pub fn for_workload(td: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdError> {
        Self::parse(&format!("spiffe://{td}/ns/{namespace}/sa/{service_account}"))
    }
    /// The whole ID, with `spiffe://`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// The trust domain's name.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text["spiffe://".len()..usize::from(self.path_at)]
    }
    /// The path, with its leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path_at)..]
    }
    /// Namespace and service account, if the path is exactly `/ns/<ns>/sa/<sa>`.
    #[must_use]
    pub fn workload(&self) -> Option<(&str, &str)> {
        let at = usize::from(self.account_at?.get());
        let namespace = self.text.get(usize::from(self.path_at) + "/ns/".len()..at)?;
        Some((namespace, self.text.get(at + "/sa/".len()..)?))
    }
}

impl Instance {
    /// 1 to 253 bytes of ASCII letters, digits, `.`, `-`, `_`.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let why = match text.len() {
            0 => Some("is empty"),
            1..=MAX_INSTANCE_LEN if text.bytes().all(is_segment_byte) => None,
            1..=MAX_INSTANCE_LEN => Some("only A-Z, a-z, 0-9, `.`, `-` and `_` are allowed"),
            _ => Some("is longer than 253 bytes"),
        };
        match why {
            Some(why) => Err(IdError::new("instance", text, why)),
            None => Ok(Self(text.into())),
        }
    }
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl IdError {
    fn new(what: &'static str, text: &str, why: &'static str) -> Self {
        Self {
            what,
            text: text.chars().take(128).collect(),
            why,
        }
    }
}

fn account_at(text: &str, path_at: u16) -> Option<NonZeroU16> {
    let path = text.get(usize::from(path_at)..)?;
    let (namespace, account) = path.strip_prefix("/ns/")?.split_once("/sa/")?;
    if namespace.contains('/') || account.contains('/') {
        return None;
    }
    let at = usize::from(path_at) + "/ns/".len() + namespace.len();
    u16::try_from(at).ok().and_then(NonZeroU16::new)
}

/// SPIFFE-ID section 2.1: no DNS or IP rules apply, only a character set and a length.
fn check_trust_domain(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the trust domain is empty");
    }
    if name.len() > MAX_TRUST_DOMAIN_LEN {
        return Err("the trust domain is longer than 255 bytes");
    }
    let offender = name
        .bytes()
        .find(|b| !matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
    match offender {
        None => Ok(()),
        Some(b'A'..=b'Z') => Err("the trust domain must be lower case"),
        Some(b'@') => Err("userinfo is not allowed"),
        Some(b':') => Err("a port is not allowed"),
        Some(b'?') => Err("a query is not allowed"),
        Some(b'#') => Err("a fragment is not allowed"),
        Some(b'%') => Err("percent-encoding is not allowed"),
        Some(_) => Err("the trust domain may hold only a-z, 0-9, `.`, `-` and `_`"),
    }
}

/// SPIFFE-ID section 2: gives where the path begins.
fn check_id(text: &str) -> Result<u16, &'static str> {
    if text.len() > MAX_ID_LEN {
        return Err("is longer than 2048 bytes");
    }
    let rest = match text.strip_prefix("spiffe://") {
        Some(rest) => rest,
        None if text
            .get(..9)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe://")) =>
        {
            return Err("the scheme must be lower case");
        }
        None => return Err("does not begin with spiffe://"),
    };
    let (trust_domain, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    check_trust_domain(trust_domain)?;
    let Some(segments) = path.strip_prefix('/') else {
        return Err("has no path: it names a trust domain, not a workload");
    };
    for segment in segments.split('/') {
        match segment {
            "" => return Err("a path segment is empty, or the path ends in a slash"),
            "." | ".." => return Err("dot segments are not allowed"),
            _ => {}
        }
        match segment.bytes().find(|b| !is_segment_byte(*b)) {
            None => {}
            Some(b'?') => return Err("a query is not allowed"),
            Some(b'#') => return Err("a fragment is not allowed"),
            Some(b'%') => return Err("percent-encoding is not allowed"),
            Some(_) => return Err("a path segment may hold only A-Z, a-z, 0-9, `.`, `-` and `_`"),
        }
    }
    // The length check above keeps this in range.
    u16::try_from(text.len() - path.len()).map_err(|_| "is longer than 2048 bytes")
}

fn is_segment_byte(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')
}

macro_rules! shown_as_text {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
    )*};
}
shown_as_text!(TrustDomain, SpiffeId, Instance);

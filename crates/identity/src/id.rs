//! SPIFFE IDs, trust domains and instances: parsed once, strictly; never handled as raw text afterwards.

use std::fmt;
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
        let _ = text;
        todo!()
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
        let _ = text;
        todo!()
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
        let (ns, sa) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!ns.contains('/') && !sa.contains('/')).then_some((ns, sa))
    }
}

impl Instance {
    /// 1 to 253 bytes of ASCII letters, digits, `.`, `-`, `_`.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let _ = text;
        todo!()
    }
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
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

//! Who asks: the API server's front proxy says so in headers, and its client certificate is what makes that believable.
//! Both the CA of that certificate and the names of the headers come from the cluster's own ConfigMap.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use k8s_openapi::api::core::v1::ConfigMap;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Where the ConfigMap is.
pub(crate) const NAMESPACE: &str = "kube-system";
/// Its name.
pub(crate) const CONFIG_MAP: &str = "extension-apiserver-authentication";

/// Roots that the ConfigMap may hold: one, and others while it is rotated.
const MAX_ROOTS: usize = 32;
/// Groups of one user; an identity provider with more is one whose tokens do not fit into a request either.
const MAX_GROUPS: usize = 512;
/// Values of extra fields, all together.
const MAX_EXTRA: usize = 256;
/// Longest user, group, or value of an extra field.
const MAX_VALUE: usize = 4096;

/// What makes a front proxy believable, as the ConfigMap says it now.
#[derive(Clone)]
pub(crate) struct FrontProxy {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Empty: any.
    allowed_names: Vec<String>,
    user: Vec<HeaderName>,
    uid: Vec<HeaderName>,
    group: Vec<HeaderName>,
    /// Lower case.
    extra_prefix: Vec<String>,
}

/// Why the ConfigMap does not say who the front proxy is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrontProxyError {
    #[error(
        "ConfigMap {NAMESPACE}/{CONFIG_MAP} has no `{0}`; the API server runs without --requestheader-client-ca-file"
    )]
    Missing(&'static str),
    #[error("`requestheader-client-ca-file` of ConfigMap {NAMESPACE}/{CONFIG_MAP} holds no usable CA certificate")]
    Roots,
    #[error("`{key}` of ConfigMap {NAMESPACE}/{CONFIG_MAP} is not a list of names")]
    List { key: &'static str },
}

/// The user that the front proxy speaks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

/// Why a caller is nobody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unauthenticated {
    #[error("this API is for the API server's front proxy, and no client certificate was shown")]
    NoCertificate,
    #[error("the client certificate is not the front proxy's")]
    Untrusted,
    #[error("the client certificate's common name is not one that the front proxy may have")]
    Name,
    #[error("the front proxy names no user")]
    NoUser,
    #[error("the front proxy's headers are ambiguous or too long")]
    Headers,
}

impl FrontProxy {
    pub(crate) fn from_config_map(config: &ConfigMap) -> Result<Self, FrontProxyError> {
        let data = config.data.clone().unwrap_or_default();
        let list = |key: &'static str, default: &[&str]| match data.get(key) {
            None => Ok(default.iter().map(|name| (*name).to_owned()).collect()),
            Some(text) => serde_json::from_str::<Vec<String>>(text).map_err(|_| FrontProxyError::List { key }),
        };
        let headers = |key: &'static str, default: &[&str]| {
            let names = list(key, default)?.into_iter();
            let parsed = names.map(|name| HeaderName::from_bytes(name.as_bytes()));
            parsed
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| FrontProxyError::List { key })
        };
        let ca = "requestheader-client-ca-file";
        let pem = data.get(ca).ok_or(FrontProxyError::Missing(ca))?;
        let roots = CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_ROOTS);
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.filter_map(Result::ok));
        let provider = postern_identity::tls::provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build();
        Ok(Self {
            verifier: verifier.map_err(|_| FrontProxyError::Roots)?,
            allowed_names: list("requestheader-allowed-names", &[])?,
            user: headers("requestheader-username-headers", &["x-remote-user"])?,
            uid: headers("requestheader-uid-headers", &[])?,
            group: headers("requestheader-group-headers", &["x-remote-group"])?,
            extra_prefix: list("requestheader-extra-headers-prefix", &["x-remote-extra-"])?
                .into_iter()
                .map(|prefix| prefix.to_ascii_lowercase())
                .collect(),
        })
    }

    /// The user, if whoever holds the key of `chain` is the front proxy. Without that, no header is looked at.
    pub(crate) fn user(
        &self,
        chain: &[CertificateDer<'static>],
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<User, Unauthenticated> {
        let (leaf, others) = chain.split_first().ok_or(Unauthenticated::NoCertificate)?;
        self.verifier
            .verify_client_cert(leaf, others, now)
            .map_err(|_| Unauthenticated::Untrusted)?;
        if !self.allowed_names.is_empty() {
            let name = common_name(leaf).ok_or(Unauthenticated::Name)?;
            if !self.allowed_names.contains(&name) {
                return Err(Unauthenticated::Name);
            }
        }
        Ok(User {
            name: single(headers, &self.user)?.ok_or(Unauthenticated::NoUser)?,
            uid: single(headers, &self.uid)?,
            groups: self.groups(headers)?,
            extra: self.extra(headers)?,
        })
    }

    fn groups(&self, headers: &HeaderMap) -> Result<Vec<String>, Unauthenticated> {
        let mut groups = Vec::new();
        for value in self.group.iter().flat_map(|name| headers.get_all(name)) {
            groups.push(text(value)?);
            if groups.len() > MAX_GROUPS {
                return Err(Unauthenticated::Headers);
            }
        }
        Ok(groups)
    }

    fn extra(&self, headers: &HeaderMap) -> Result<BTreeMap<String, Vec<String>>, Unauthenticated> {
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut kept = 0;
        for (name, value) in headers {
            let key = self
                .extra_prefix
                .iter()
                .find_map(|prefix| name.as_str().strip_prefix(prefix));
            let Some(key) = key.filter(|key| !key.is_empty()) else {
                continue;
            };
            kept += 1;
            if kept > MAX_EXTRA {
                return Err(Unauthenticated::Headers);
            }
            let key = percent_decoded(key).ok_or(Unauthenticated::Headers)?;
            extra.entry(key).or_default().push(text(value)?);
        }
        Ok(extra)
    }
}

impl fmt::Debug for FrontProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontProxy")
            .field("allowed_names", &self.allowed_names)
            .finish_non_exhaustive()
    }
}

/// The value of the first of `names` that is there; several values under one name are nobody's.
fn single(headers: &HeaderMap, names: &[HeaderName]) -> Result<Option<String>, Unauthenticated> {
    for name in names {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => {}
            (Some(_), Some(_)) => return Err(Unauthenticated::Headers),
            (Some(value), None) if value.is_empty() => {}
            (Some(value), None) => return text(value).map(Some),
        }
    }
    Ok(None)
}

fn text(value: &http::HeaderValue) -> Result<String, Unauthenticated> {
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Unauthenticated::Headers)?;
    if text.len() > MAX_VALUE || text.contains(char::is_control) {
        return Err(Unauthenticated::Headers);
    }
    Ok(text.to_owned())
}

/// The API server escapes what cannot stand in a header's name.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The one common name. Several would be read by some as the first, by others as the last.
fn common_name(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests;

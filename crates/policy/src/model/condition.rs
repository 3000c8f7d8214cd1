//! `when`: what else must hold, as key and values.

use std::fmt;

use super::{IpBlock, StringMatch, UserMatch};

/// A condition of a rule. It holds if one of `any` is met (or there are none) and none of `none` is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Text.
    Text(TextKey, Values<StringMatch>),
    /// Addresses.
    Address(AddressKey, Values<IpBlock>),
    /// `destination.port`.
    Port(Values<u16>),
    /// `request.auth.principal`.
    User(Values<UserMatch>),
    /// `request.auth.age`: seconds since the login of the end user, at most.
    Age(Values<u64>),
}

/// `values` and `notValues`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Values<T> {
    /// One of these.
    pub any: Vec<T>,
    /// None of these.
    pub none: Vec<T>,
}

/// What text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TextKey {
    /// `request.headers[name]`, in lower case.
    Header(String),
    /// `source.principal`, without `spiffe://`.
    SourcePrincipal,
    /// `source.namespace`.
    SourceNamespace,
    /// `source.serviceAccount`, as `namespace/name`.
    SourceServiceAccount,
    /// `source.trustDomain`.
    SourceTrustDomain,
    /// `source.labels[name]`: of the peer's workload.
    SourceLabel(String),
    /// `source.namespace.labels[name]`: of the peer's namespace.
    SourceNamespaceLabel(String),
    /// `destination.labels[name]`: of the workload that is called. Control settles it: no proxy is sent one.
    DestinationLabel(String),
    /// `destination.namespace.labels[name]`: likewise.
    DestinationNamespaceLabel(String),
    /// `connection.sni`, in lower case.
    Sni,
    /// `request.auth.audiences`.
    UserAudiences,
    /// `request.auth.presenter`.
    UserPresenter,
    /// `request.auth.claims[a][b]`.
    UserClaim(Vec<String>),
}

/// Which address is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressKey {
    /// `source.ip`.
    Source,
    /// `remote.ip`.
    Remote,
    /// `destination.ip`.
    Destination,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self {
            any: Vec::new(),
            none: Vec::new(),
        }
    }
}

impl<T> Values<T> {
    /// Neither.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

impl Condition {
    /// Does it look at what only HTTP has?
    #[must_use]
    pub fn is_of_http(&self) -> bool {
        match self {
            Self::Text(TextKey::Header(_), _) => true,
            Self::Text(..) | Self::User(_) | Self::Age(_) => self.is_of_user(),
            Self::Address(..) | Self::Port(_) => false,
        }
    }

    /// Does it look at labels of the workload that is called, or of its namespace?
    #[must_use]
    pub fn is_of_destination(&self) -> bool {
        match self {
            Self::Text(key, _) => matches!(
                key,
                TextKey::DestinationLabel(_) | TextKey::DestinationNamespaceLabel(_)
            ),
            Self::Address(..) | Self::Port(_) | Self::User(_) | Self::Age(_) => false,
        }
    }

    /// Does it look at the end user?
    #[must_use]
    pub fn is_of_user(&self) -> bool {
        match self {
            Self::Text(key, _) => key.is_of_user(),
            Self::User(_) | Self::Age(_) => true,
            Self::Address(..) | Self::Port(_) => false,
        }
    }

    /// Has it values to match (rather than only such that must not)?
    #[must_use]
    pub fn has_positive(&self) -> bool {
        match self {
            Self::Text(_, values) => !values.any.is_empty(),
            Self::Address(_, values) => !values.any.is_empty(),
            Self::Port(values) => !values.any.is_empty(),
            Self::User(values) => !values.any.is_empty(),
            Self::Age(values) => !values.any.is_empty(),
        }
    }
}

impl TextKey {
    pub(crate) fn is_of_user(&self) -> bool {
        match self {
            Self::UserAudiences | Self::UserPresenter | Self::UserClaim(_) => true,
            Self::Header(_)
            | Self::SourcePrincipal
            | Self::SourceNamespace
            | Self::SourceServiceAccount
            | Self::SourceTrustDomain
            | Self::SourceLabel(_)
            | Self::SourceNamespaceLabel(_)
            | Self::DestinationLabel(_)
            | Self::DestinationNamespaceLabel(_)
            | Self::Sni => false,
        }
    }
}

impl fmt::Display for TextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "request.headers[{name}]"),
            Self::SourcePrincipal => f.write_str("source.principal"),
            Self::SourceNamespace => f.write_str("source.namespace"),
            Self::SourceServiceAccount => f.write_str("source.serviceAccount"),
            Self::SourceTrustDomain => f.write_str("source.trustDomain"),
            Self::SourceLabel(name) => write!(f, "source.labels[{name}]"),
            Self::SourceNamespaceLabel(name) => write!(f, "source.namespace.labels[{name}]"),
            Self::DestinationLabel(name) => write!(f, "destination.labels[{name}]"),
            Self::DestinationNamespaceLabel(name) => write!(f, "destination.namespace.labels[{name}]"),
            Self::Sni => f.write_str("connection.sni"),
            Self::UserAudiences => f.write_str("request.auth.audiences"),
            Self::UserPresenter => f.write_str("request.auth.presenter"),
            Self::UserClaim(path) => {
                f.write_str("request.auth.claims")?;
                path.iter().try_for_each(|name| write!(f, "[{name}]"))
            }
        }
    }
}

/// The key, as documents write it.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(key, _) => write!(f, "{key}"),
            Self::Address(AddressKey::Source, _) => f.write_str("source.ip"),
            Self::Address(AddressKey::Remote, _) => f.write_str("remote.ip"),
            Self::Address(AddressKey::Destination, _) => f.write_str("destination.ip"),
            Self::Port(_) => f.write_str("destination.port"),
            Self::User(_) => f.write_str("request.auth.principal"),
            Self::Age(_) => f.write_str("request.auth.age"),
        }
    }
}

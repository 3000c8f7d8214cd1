//! `RequestAuthentication`: whose tokens are believed, where they are looked for, and what becomes of them. Istio's shape;
//! under `postern.dev/v1alpha1` with fields of our own.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_identity::SpiffeId;

use super::StringMatch;
use crate::compile::{names_principal, without_scheme};
use crate::document::{DocumentError, Object, Place};

mod algorithm;
mod decode;
mod span;
mod unreadable;
mod value;

pub use algorithm::Algorithm;

/// More rules in one document are refused: each is asked for a token's issuer in turn.
pub const MAX_RULES: usize = 64;
/// More values in one list of a rule are refused.
pub const MAX_VALUES: usize = 64;

/// Whose tokens are believed, and at which workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Where it was read.
    pub place: Place,
    /// Labels that a workload must have; empty selects all of the namespace.
    pub selector: BTreeMap<String, String>,
    /// It has a `targetRef` or `targetRefs`: it is for a gateway or waypoint, and applies to no sidecar.
    pub foreign_target: bool,
    /// What it says.
    pub content: Content,
}

/// What a document says, if it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A token must satisfy one of these; none at all believes no token, and looks for none.
    Rules(Vec<JwtRule>),
    /// It could not be read: nobody knows whose tokens it would believe, so none is, and every request with one is refused.
    Unreadable {
        /// Every text in it that may name a header, lower case. One of them may be where verified claims are told to the app,
        /// so clients may set none of them.
        headers: Vec<String>,
    },
}

/// Whose tokens are believed, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JwtRule {
    /// Where it was read.
    pub place: Place,
    /// `iss`, byte for byte.
    pub issuer: String,
    /// A token must be for one of these.
    pub audiences: Audiences,
    /// Where the keys are from.
    pub keys: KeySource,
    /// Where a token is looked for; never empty.
    pub locations: Vec<Location>,
    /// Does the app get the token as well?
    pub forward: bool,
    /// The header (lower case) that tells the app the payload, as it stands in the token.
    pub payload_header: Option<String>,
    /// Headers that tell the app single claims.
    pub claim_headers: Vec<ClaimHeader>,
    /// Claims whose text is a list of words, besides `scope` and `permission`.
    pub space_delimited: Vec<String>,
    /// Signatures that are believed; never empty.
    pub algorithms: Vec<Algorithm>,
    /// How far the issuer's clock may be from ours.
    pub clock_skew: Duration,
    /// If not empty: a token is good only from a workload that one of these names beside the token's client.
    pub bindings: Vec<Binding>,
    /// For how long keys that cannot be fetched anew are still believed.
    pub max_stale: Duration,
    /// For one fetch of keys.
    pub timeout: Duration,
}

/// Whom a token must be for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Audiences {
    /// Anybody: Istio's meaning of no `audiences`; ours is written `["*"]`.
    Any,
    /// One of these must be in `aud`.
    OneOf(Vec<String>),
}

/// Where an issuer's keys are from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A key set in the document.
    Inline(String),
    /// A file beside the documents: names of folders and a file, joined by `/`, without a way out.
    File(String),
    /// Fetched from here.
    Uri(String),
    /// Fetched from where the issuer's `/.well-known/openid-configuration` says.
    Discovered,
}

/// Where a token may stand in a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// In a header, behind a prefix.
    Header {
        /// Lower case.
        name: String,
        /// What stands before the token; empty for nothing.
        prefix: String,
    },
    /// In the query, under a name.
    Param(String),
    /// In a cookie.
    Cookie(String),
}

/// A claim told to the app.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClaimHeader {
    /// Lower case.
    pub header: String,
    /// Names of claims, from outside in.
    pub claim: Vec<String>,
}

/// Which workloads may use the tokens of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Binding {
    /// `azp` or `client_id` of the token.
    pub client: String,
    /// The workloads, without `spiffe://`.
    pub principals: Vec<StringMatch>,
}

impl Binding {
    /// Is the caller one of the workloads? One of another trust domain is only where that is named: `*` means ours alone.
    #[must_use]
    pub fn is_of(&self, caller: &SpiffeId, is_foreign: bool) -> bool {
        self.principals.iter().any(|wanted| match is_foreign {
            true => names_principal(wanted, caller),
            false => wanted.matches(without_scheme(caller)),
        })
    }
}

impl RequestAuthentication {
    /// Decodes `kind: RequestAuthentication` under `postern.dev/v1alpha1` or `security.istio.io/v1`.
    pub fn from_object(object: &Object) -> Result<Self, Vec<DocumentError>> {
        decode::document(object)
    }

    /// A stand-in for a document that cannot be decoded: what it selects (its whole namespace, if even the selector cannot be
    /// read) believes no token and refuses every request that brings one.
    #[must_use]
    pub fn refusing_tokens_for(object: &Object, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: object.name.clone(),
            place: object.place.clone(),
            selector: super::decode::selector_of(object),
            foreign_target: super::decode::has_foreign_target(object),
            content: Content::Unreadable {
                headers: unreadable::headers(object),
            },
        }
    }

    /// Does it apply to a workload? Documents of `root_namespace` apply mesh-wide.
    #[must_use]
    pub fn selects(&self, root_namespace: &str, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.foreign_target
            && (self.namespace == namespace || self.namespace == root_namespace)
            && self.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    /// Its rules; none if it could not be read.
    #[must_use]
    pub fn rules(&self) -> &[JwtRule] {
        match &self.content {
            Content::Rules(rules) => rules,
            Content::Unreadable { .. } => &[],
        }
    }
}

impl JwtRule {
    /// Headers that the app reads from us alone: whatever a client sent under these names goes.
    pub fn told_headers(&self) -> impl Iterator<Item = &str> {
        let claims = self.claim_headers.iter().map(|told| told.header.as_str());
        claims.chain(self.payload_header.as_deref())
    }

    /// What names the keys that are fetched for it: equal for rules that share them. `None` if nothing is fetched.
    #[must_use]
    pub fn provider(&self) -> Option<String> {
        match &self.keys {
            KeySource::Inline(_) | KeySource::File(_) => None,
            KeySource::Uri(uri) => Some(uri.clone()),
            // No URI begins like this.
            KeySource::Discovered => Some(format!("discovery:{}", self.issuer)),
        }
    }
}

impl Location {
    /// Where a token stands if a rule says nothing else: RFC 6750 sections 2.1 and 2.3.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        vec![Self::authorization(), Self::Param("access_token".to_owned())]
    }

    /// `Authorization: Bearer`.
    #[must_use]
    pub fn authorization() -> Self {
        Self::Header {
            name: "authorization".to_owned(),
            prefix: "Bearer ".to_owned(),
        }
    }
}

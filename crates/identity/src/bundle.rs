//! Trust bundles: which roots speak for a trust domain, and how that knowledge is renewed.
//!
//! A bundle travels as a [`SignedBundle`]: the SPIFFE bundle document (JWKS with `spiffe_sequence`),
//! signed by an issuing intermediate that chains to a root of the bundle before it. A holder of an old
//! bundle walks the chain forward; nobody but the CA can make a link.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};

use crate::authority::{self, Authority};
use crate::{IdError, TrustDomain};

mod chain;
mod document;
mod jwt_key;

pub use chain::advance;
pub(crate) use chain::verify_signed;
pub(crate) use document::{MAX_DOCUMENT, read as read_document};
pub use jwt_key::JwtKey;

/// The roots of one trust domain, and the keys of its JWT-SVIDs: neither is ever of use for the other. Only CA certificates with keyCertSign that have not expired are ever in it.
#[derive(Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<Anchor>,
    jwt_keys: Vec<JwtKey>,
}

/// A root, parsed once.
#[derive(Clone)]
pub(crate) struct Anchor {
    pub(crate) trust_anchor: TrustAnchor<'static>,
    pub(crate) facts: Authority,
    pub(crate) sha256: [u8; 32],
}

/// Bundles by trust domain; never pooled.
#[derive(Debug, Clone, Default)]
pub struct BundleSet {
    by_domain: BTreeMap<TrustDomain, Arc<TrustBundle>>,
}

/// One link of the chain of bundles, as it travels and as the CA stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBundle {
    /// The SPIFFE bundle document, JSON, byte for byte as signed.
    pub document: Vec<u8>,
    /// Over [`signing_input`], by the signer's key: ECDSA (ASN.1) with P-256 and SHA-256 or P-384 and SHA-384; of an issuer that
    /// was brought also RSA PKCS#1 1.5 with SHA-256.
    pub signature: Vec<u8>,
    /// The signing intermediate first, up to but without the root.
    pub signer_chain: Vec<CertificateDer<'static>>,
}

/// Why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Not a SPIFFE bundle document.
    #[error("not a SPIFFE bundle document: {0}")]
    Document(String),
    /// The trust domain's name is malformed.
    #[error("bundle names a malformed trust domain")]
    TrustDomain(#[from] IdError),
    /// The signature or the signer's chain does not hold under the bundle before it.
    #[error("bundle {sequence} is not signed under a root of bundle {previous}: {why}")]
    Unsigned {
        /// The refused bundle.
        sequence: u64,
        /// The bundle it was checked against.
        previous: u64,
        /// What failed.
        why: &'static str,
    },
}

/// The bytes that a bundle's signature covers: a domain separator, the trust domain and the document.
#[must_use]
pub fn signing_input(trust_domain: &TrustDomain, document: &[u8]) -> Vec<u8> {
    [
        b"postern-bundle-v1\0",
        trust_domain.as_str().as_bytes(),
        b"\0",
        document,
    ]
    .concat()
}

/// SHA-256 of a certificate's DER: how a root is named in join tokens and verdicts.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest(&SHA256, certificate).as_ref());
    sha256
}

impl TrustBundle {
    /// A bundle of these DER roots; those that are not CAs with keyCertSign, have a key that cannot be read, or have expired at
    /// `now`, are left out.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, sequence: u64, roots: Vec<CertificateDer<'static>>, now: UnixTime) -> Self {
        let mut bundle = Self {
            trust_domain,
            sequence,
            roots: Vec::new(),
            anchors: Vec::new(),
            jwt_keys: Vec::new(),
        };
        for root in roots {
            if let Some(anchor) = Anchor::read(&root, now)
                && !bundle.roots.contains(&root)
                // One whose key cannot be read vouches for nobody, and could not be passed on.
                && document::entry(&root).is_some()
            {
                bundle.roots.push(root);
                bundle.anchors.push(anchor);
            }
        }
        bundle
    }

    /// Reads a SPIFFE bundle document of a named trust domain: bad entries are skipped, bad documents refused
    /// (SPIFFE Trust Domain and Bundle section 4).
    pub fn from_document(trust_domain: TrustDomain, json: &[u8], now: UnixTime) -> Result<Self, BundleError> {
        let read = document::read(json)?;
        Ok(Self::new(trust_domain, read.sequence, read.roots, now).with_jwt_keys(read.jwt_keys))
    }

    /// The same with these keys of JWT-SVIDs.
    #[must_use]
    pub fn with_jwt_keys(mut self, jwt_keys: Vec<JwtKey>) -> Self {
        self.jwt_keys = jwt_keys;
        self
    }

    /// The SPIFFE bundle document, deterministic.
    #[must_use]
    pub fn to_document(&self) -> Vec<u8> {
        document::write(self.sequence, &self.roots, &self.jwt_keys)
    }

    /// Whose roots.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Grows with every change.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The roots, DER.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The keys of its JWT-SVIDs.
    #[must_use]
    pub fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// The keys of its JWT-SVIDs, and nothing else, as a JWKS document: what a Workload API gives out as JWT bundle.
    #[must_use]
    pub fn jwks(&self) -> Vec<u8> {
        let keys: Vec<_> = self.jwt_keys.iter().map(JwtKey::jwk).collect();
        serde_json::json!({ "keys": keys }).to_string().into_bytes()
    }

    pub(crate) fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }
}

impl Anchor {
    fn read(root: &CertificateDer<'_>, now: UnixTime) -> Option<Self> {
        let facts = authority::inspect(root).ok().filter(|facts| now <= facts.not_after)?;
        let trust_anchor = webpki::anchor_from_trusted_cert(root).ok()?.to_owned();
        Some(Self {
            trust_anchor,
            facts,
            sha256: fingerprint(root),
        })
    }
}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain)
            .field("sequence", &self.sequence)
            .field("roots", &self.roots.len())
            .finish()
    }
}

impl BundleSet {
    /// Puts a bundle in, replacing the one of the same trust domain.
    #[must_use]
    pub fn with(mut self, bundle: TrustBundle) -> Self {
        self.by_domain.insert(bundle.trust_domain.clone(), Arc::new(bundle));
        self
    }

    /// Only the bundles that are `kept`.
    #[must_use]
    pub fn only(mut self, kept: impl Fn(&TrustDomain) -> bool) -> Self {
        self.by_domain.retain(|trust_domain, _| kept(trust_domain));
        self
    }

    /// All of them, by the names of their trust domains.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.by_domain.values()
    }

    /// The bundle of exactly this trust domain.
    #[must_use]
    pub fn get(&self, trust_domain: &str) -> Option<&Arc<TrustBundle>> {
        self.by_domain
            .iter()
            .find(|(td, _)| td.as_str() == trust_domain)
            .map(|(_, bundle)| bundle)
    }
}

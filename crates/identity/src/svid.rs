//! An X.509-SVID with its private key: what a process proves itself with.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::leaf::{self, Leaf, LeafError};
use crate::{Instance, SpiffeId};

/// A leaf that passed the leaf rules, its intermediates, and the key that matches it. Debug shows no key.
#[derive(Clone)]
pub struct Svid {
    leaf: Leaf,
    certified: Arc<CertifiedKey>,
}

/// Why chain and key do not make an SVID.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// The leaf breaks a rule.
    #[error("the leaf is no X.509-SVID")]
    Leaf(#[from] LeafError),
    /// The key is unusable or does not match the leaf.
    #[error("the private key does not match the leaf")]
    Key(#[source] rustls::Error),
}

impl Svid {
    /// `chain` is leaf first, without the root.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, SvidError> {
        let first = chain.first().ok_or(SvidError::EmptyChain)?;
        let leaf = leaf::inspect(first)?;
        let certified = CertifiedKey::from_der(chain, key, &crate::tls::provider()).map_err(SvidError::Key)?;
        Ok(Self {
            leaf,
            certified: Arc::new(certified),
        })
    }
    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }
    /// See [`crate::VerifiedPeer::is_app`].
    #[must_use]
    pub fn is_of_app(&self) -> bool {
        self.leaf.of_app
    }
    /// Which instance of it.
    #[must_use]
    pub fn instance(&self) -> Option<&Instance> {
        self.leaf.instance.as_ref()
    }
    /// The leaf's facts (serial, validity).
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }
    /// Last instant of validity.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.leaf.not_after
    }
    /// Leaf first, without the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }
    /// For rustls.
    #[must_use]
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

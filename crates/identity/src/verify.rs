//! The one verifier: both directions, one function.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::leaf::LeafError;
use crate::{BundleSet, Instance, SpiffeId};

/// What the peer of a handshake acts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The peer dialled us.
    Client,
    /// We dialled the peer.
    Server,
}

/// Everything a verdict depends on besides the chain and the time: bundles and quarantine, of one revision.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Grows with every change of anything in here.
    pub revision: u64,
    /// Roots per trust domain.
    pub bundles: BundleSet,
    /// Identities that are cut off.
    pub quarantined_ids: HashSet<SpiffeId>,
    /// Instances that are cut off.
    pub quarantined_instances: HashSet<Instance>,
}

/// Trust as the verifiers of live configs read it; swapped whole.
pub type SharedTrust = Arc<ArcSwap<Trust>>;

/// A peer whose chain, leaf and identity held at handshake time. Only [`verify_peer`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    id: SpiffeId,
    instance: Option<Instance>,
    serial: Vec<u8>,
    not_after: UnixTime,
    anchor: [u8; 32],
}

/// Why a peer was not believed. Each has a stable [`VerifyError::reason`] for metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// No certificate at all.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// The leaf breaks a rule.
    #[error("the peer's leaf is no X.509-SVID")]
    Leaf(#[from] LeafError),
}

impl VerifyError {
    /// A closed set of `snake_case` words.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        todo!()
    }
}

impl VerifiedPeer {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
    /// Which instance of it.
    #[must_use]
    pub fn instance(&self) -> Option<&Instance> {
        self.instance.as_ref()
    }
    /// Big-endian serial of its leaf.
    #[must_use]
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }
    /// The earliest end of validity in its chain; the connection must not outlive it.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
    /// SHA-256 of the root it chains to.
    #[must_use]
    pub fn anchor(&self) -> &[u8; 32] {
        &self.anchor
    }
    /// Would the peer still be believed? (Not expired at `now`, its root still in the bundle, not quarantined.)
    /// No signature is checked again.
    pub fn still_holds(&self, trust: &Trust, now: UnixTime) -> Result<(), VerifyError> {
        let _ = (trust, now);
        todo!()
    }
}

/// Chain to the bundle of the leaf's own trust domain at `now`, leaf rules, exactly one URI SAN, not quarantined.
/// `chain` is as presented: leaf first.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    role: Role,
    trust: &Trust,
    now: UnixTime,
) -> Result<VerifiedPeer, VerifyError> {
    let _ = (chain, role, trust, now);
    todo!()
}

/// Whom a client may accept at a destination: one of these IDs, and this instance where control named one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Expected {
    /// Acceptable IDs; empty admits nobody.
    pub ids: Vec<SpiffeId>,
    /// The instance behind the endpoint.
    pub instance: Option<Instance>,
}

impl Expected {
    /// True only for a peer that the destination may have.
    #[must_use]
    pub fn admits(&self, peer: &VerifiedPeer) -> bool {
        self.ids.contains(&peer.id) && (self.instance.is_none() || self.instance == peer.instance)
    }
}

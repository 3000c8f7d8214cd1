//! The one verifier: both directions, one function.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::leaf::{self, LeafError};
use crate::{BundleSet, Instance, SpiffeId, TrustBundle};

mod path;

/// Leaf, webpki's six intermediates, and the root that some servers send along.
pub const MAX_CHAIN: usize = 8;

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
    /// Instances under one ID, and certificates, that are cut off; see [`Trust::with_quarantine`].
    pub quarantined: crate::quarantine::Index,
    /// Of the set that the CA signed; 0: none was heard of.
    pub quarantine_version: u64,
}

/// Trust as the verifiers of live configs read it; swapped whole.
pub type SharedTrust = Arc<ArcSwap<Trust>>;

/// A peer whose chain, leaf and identity held at handshake time. Only [`verify_peer`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    id: SpiffeId,
    instance: Option<Instance>,
    of_app: bool,
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
    /// More certificates than any honest chain has.
    #[error("the peer sent {0} certificates, at most {MAX_CHAIN} are looked at")]
    ChainTooLong(usize),
    /// The leaf breaks a rule.
    #[error("the peer's leaf is no X.509-SVID")]
    Leaf(#[from] LeafError),
    /// Nobody speaks for the leaf's trust domain here.
    #[error("trust domain `{0}` is not in the bundle set")]
    UnknownTrustDomain(String),
    /// The trust domain is known and has no usable root.
    #[error("the bundle of trust domain `{0}` holds no usable root")]
    EmptyBundle(String),
    /// Cut off.
    #[error("{0} is quarantined")]
    Quarantined(String),
    /// Something in the path has expired.
    #[error("the peer's {which} expired at {not_after} (Unix seconds), it is {now}")]
    Expired {
        /// `certificate` (leaf or intermediate) or `root`.
        which: &'static str,
        /// Its end.
        not_after: u64,
        /// Our clock.
        now: u64,
    },
    /// Something in the path is not valid yet.
    #[error("the peer's {which} is valid from {not_before} (Unix seconds), it is {now}")]
    NotYetValid {
        /// `certificate` (leaf or intermediate) or `root`.
        which: &'static str,
        /// Its beginning.
        not_before: u64,
        /// Our clock.
        now: u64,
    },
    /// No path to a root of the trust domain.
    #[error("no path from the peer's leaf to a root of trust domain `{0}`")]
    UnknownIssuer(String),
    /// An intermediate or root may not vouch.
    #[error("a certificate in the peer's chain {0}")]
    Authority(&'static str),
    /// pathLen of the root or an intermediate.
    #[error("the peer's chain is longer than an authority in it allows")]
    PathLength,
    /// Too much work was asked for.
    #[error("the peer's chain asks for too much work")]
    TooMuchWork,
    /// webpki's word on anything else.
    #[error("the peer's chain does not verify: {0}")]
    Chain(webpki::Error),
    /// A pinned or expected identity that the peer does not have.
    #[error("the peer is {got}, expected {expected}")]
    WrongIdentity {
        /// Who it is.
        got: String,
        /// Who it should be.
        expected: String,
    },
    /// The pinned root is not in the presented chain.
    #[error("the peer's chain does not hold the pinned root")]
    NotPinned,
    /// Believed once, but its root has left the bundle.
    #[error("the peer's root is no longer in the bundle")]
    RootWithdrawn,
}

impl VerifyError {
    /// A closed set of `snake_case` words.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::ChainTooLong(_) | Self::PathLength | Self::TooMuchWork => "chain_too_long",
            Self::Leaf(error) => error.reason(),
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::EmptyBundle(_) => "empty_bundle",
            Self::Quarantined(_) => "quarantined",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::Authority(_) => "bad_authority",
            Self::Chain(_) => "bad_chain",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::NotPinned => "not_pinned",
            Self::RootWithdrawn => "root_withdrawn",
        }
    }
}

impl VerifiedPeer {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
    /// Is it the app beside a proxy, and not the proxy? For peers that is one; what is a proxy's alone it does not get.
    #[must_use]
    pub fn is_app(&self) -> bool {
        self.of_app
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
    /// Is it the same workload, to the instance, and of the same kind? Neither key nor certificate is compared: those are new
    /// with each renewal.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.id == other.id && self.instance == other.instance && self.of_app == other.of_app
    }
    /// Would the peer still be believed? (Not expired at `now`, its root still in the bundle, not quarantined.)
    /// No signature is checked again.
    pub fn still_holds(&self, trust: &Trust, now: UnixTime) -> Result<(), VerifyError> {
        if now > self.not_after {
            return Err(VerifyError::Expired {
                which: "certificate",
                not_after: self.not_after.as_secs(),
                now: now.as_secs(),
            });
        }
        let bundle = bundle_of(trust, &self.id)?;
        if !bundle.anchors().iter().any(|anchor| anchor.sha256 == self.anchor) {
            return Err(VerifyError::RootWithdrawn);
        }
        trust.check_quarantine(&self.id, self.instance.as_ref(), &self.serial)
    }
}

impl Trust {
    /// Is whoever shows this certificate cut off?
    pub fn check_quarantine(
        &self,
        id: &SpiffeId,
        instance: Option<&Instance>,
        serial: &[u8],
    ) -> Result<(), VerifyError> {
        if self.quarantined_ids.contains(id) {
            return Err(VerifyError::Quarantined(id.to_string()));
        }
        match instance {
            Some(instance) if self.quarantined_instances.contains(instance) => {
                return Err(VerifyError::Quarantined(instance.to_string()));
            }
            _ => {}
        }
        match self.quarantined.holds(id, instance, serial) {
            Some(what) => Err(VerifyError::Quarantined(what)),
            None => Ok(()),
        }
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
    let (first, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(VerifyError::ChainTooLong(chain.len()));
    }
    let leaf = leaf::inspect(first)?;
    let bundle = bundle_of(trust, &leaf.id)?;
    trust.check_quarantine(&leaf.id, leaf.instance.as_ref(), &leaf.serial)?;
    let path = path::find(first, intermediates, role, bundle, now)?;
    Ok(VerifiedPeer {
        not_after: path.not_after.min(leaf.not_after),
        anchor: path.anchor,
        id: leaf.id,
        instance: leaf.instance,
        of_app: leaf.of_app,
        serial: leaf.serial,
    })
}

/// The bundle is selected by the leaf's own trust domain; roots are never pooled.
fn bundle_of<'a>(trust: &'a Trust, id: &SpiffeId) -> Result<&'a TrustBundle, VerifyError> {
    let name = id.trust_domain();
    let bundle = trust
        .bundles
        .get(name)
        .ok_or_else(|| VerifyError::UnknownTrustDomain(name.to_owned()))?;
    if bundle.anchors().is_empty() {
        return Err(VerifyError::EmptyBundle(name.to_owned()));
    }
    Ok(bundle)
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

//! The power to issue: root, issuing intermediate, bundle chain. One immutable value, replaced whole.
//!
//! ```text
//! found / load / with_new_issuer / rotation.rs (another root) --self_test--> Authority      (no other way to one)
//! brought.rs: an issuer or a root from elsewhere, checked; bringing.rs: it follows the one that signs
//! ```

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use postern_api::ca_client::ca_id;
use postern_api::refusal::RefusalReason;
use postern_identity::bundle::{self, SignedBundle};
use postern_identity::{
    BundleSet, Instance, Role, SignedQuarantine, SpiffeId, Trust, TrustBundle, TrustDomain, verify,
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::clock::{earlier, later, shown};
use crate::profile::{self, BACKDATE, Holder, ProfileError, Validity};
use crate::refusal::Refusal;
use crate::tokens::hex;

mod bringing;
mod brought;
mod issuer;
mod jwt;
mod record;
mod rotation;
#[cfg(test)]
mod tests;

pub(crate) use bringing::Taken;
pub(crate) use brought::{Brought, Found, Parts, is_self_signed, root_alone, root_with_key};
pub use brought::{BroughtError, Fault};
use issuer::Issuer;
pub(crate) use jwt::JwtKeysRecord;

use jwt::JwtKeys;

pub(crate) use record::{AuthorityRecord, RootRecord};
pub use rotation::RootPace;
pub(crate) use rotation::{Rotation, Stage, Step};

/// An issuer is replaced when this share of its life is over.
const ISSUER_SHARE: f64 = 2.0 / 3.0;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A certificate could not be made.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A stored part is not usable.
    #[error("{0}")]
    Unusable(String),
    /// What it would issue does not verify.
    #[error("the self-test failed: {0}")]
    SelfTest(String),
    /// The clock does not allow it.
    #[error("{0}")]
    Clock(String),
}

/// A root with its key; needed only to make an issuer.
pub(crate) struct Root {
    cert: CertificateDer<'static>,
    key: KeyPair,
    validity: Validity,
}

/// Root certificate, issuer and bundle chain that belong together and have passed the self-test.
#[derive(Clone)]
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    own_id: SpiffeId,
    root: CertificateDer<'static>,
    root_validity: Validity,
    issuer: Arc<Issuer>,
    issuer_life: Duration,
    links: Vec<SignedBundle>,
    bundle: TrustBundle,
    /// `None`: a version without them wrote it, or they were lost; the next bundle brings them. After a kill between two records they are
    /// one ahead of the bundle, and the next one brings those.
    jwt: Option<JwtKeys>,
    /// The last replacement of the root.
    rotation: Option<Rotation>,
    /// SHA-256 of issuers that a brought one has followed.
    replaced: Vec<[u8; 32]>,
}

/// A signed leaf with its chain.
#[derive(Debug)]
pub(crate) struct Signed {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Hex.
    pub(crate) serial: String,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) issuer_epoch: u64,
}

impl Root {
    /// The first root of a trust domain.
    pub(crate) fn create(trust_domain: &TrustDomain, life: Duration, now: UnixTime) -> Result<Self, AuthorityError> {
        Self::named(trust_domain, new_key()?, "root", life, now)
    }

    /// One that takes the place of another. It has a name of its own: by one name for both, a verifier that lacks it would speak of a
    /// bad signature.
    fn succeeding(trust_domain: &TrustDomain, life: Duration, now: UnixTime) -> Result<Self, AuthorityError> {
        let key = new_key()?;
        let sum = hex(&sha256(&key.subject_public_key_info()));
        let name = format!("root {}", sum.get(..8).unwrap_or_default());
        Self::named(trust_domain, key, &name, life, now)
    }

    fn named(
        trust_domain: &TrustDomain,
        key: KeyPair,
        name: &str,
        life: Duration,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let validity = Validity {
            not_before: earlier(now, BACKDATE),
            not_after: later(now, life),
        };
        let cert = profile::root(trust_domain, name, &key, validity)?;
        Ok(Self { cert, key, validity })
    }
    /// Its certificate, DER.
    #[must_use]
    pub(crate) fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }
}

impl Authority {
    /// The first authority of a trust domain: issuer 1, bundle 1.
    pub(crate) fn found(
        trust_domain: &TrustDomain,
        root: &Root,
        issuer_life: Duration,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let issuer = Issuer::create(trust_domain, 1, root, issuer_life, now)?;
        Self::under(trust_domain, (&root.cert, root.validity), issuer, issuer_life, now)
    }

    /// The same by an issuer that was brought.
    pub(crate) fn found_by(
        trust_domain: &TrustDomain,
        brought: &Brought,
        issuer_life: Duration,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let root = (&brought.root, brought.root_validity);
        Self::under(trust_domain, root, brought.issuer(1)?, issuer_life, now)
    }

    fn under(
        trust_domain: &TrustDomain,
        (root, root_validity): (&CertificateDer<'static>, Validity),
        issuer: Issuer,
        issuer_life: Duration,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let jwt = JwtKeys::create()?;
        let bundle = TrustBundle::new(trust_domain.clone(), 1, vec![root.clone()], now).with_jwt_keys(jwt.published());
        let links = vec![issuer.sign_bundle(trust_domain, bundle.to_document())?];
        Self {
            own_id: own_id(trust_domain)?,
            trust_domain: trust_domain.clone(),
            root: root.clone(),
            root_validity,
            issuer: Arc::new(issuer),
            issuer_life,
            links,
            bundle,
            jwt: Some(jwt),
            rotation: None,
            replaced: Vec::new(),
        }
        .tested(now)
    }

    /// With its keys of JWT-SVIDs. Keys that its bundle does not publish are left out, until the next bundle brings others: a replica
    /// of a version without them has replaced the issuer. Those that follow what it publishes are taken: the process was killed between
    /// the two records.
    pub(crate) fn with_jwt_keys(mut self, record: Option<JwtKeysRecord>) -> Result<Self, AuthorityError> {
        let Some(keys) = record.map(JwtKeysRecord::load).transpose()? else {
            return Ok(self);
        };
        match keys.test(self.bundle.jwt_keys()) {
            Ok(()) => self.jwt = Some(keys),
            Err(_) if keys.are_next_after(self.bundle.jwt_keys()) => self.jwt = Some(keys),
            Err(error) => tracing::warn!(reason = "jwt_keys", "other keys of JWT-SVIDs are needed: {error}"),
        }
        Ok(self)
    }

    /// What the store keeps of its keys of JWT-SVIDs.
    pub(crate) fn jwt_keys_record(&self) -> Option<JwtKeysRecord> {
        self.jwt.as_ref().map(JwtKeysRecord::of)
    }

    /// The same trust with the next issuer, and the next key of JWT-SVIDs.
    pub(crate) fn with_new_issuer(&self, root: &Root, now: UnixTime) -> Result<Self, AuthorityError> {
        if root.cert != self.root {
            return Err(AuthorityError::Unusable(
                "the root key is not that of this store's root".to_owned(),
            ));
        }
        let issuer = Issuer::create(&self.trust_domain, self.issuer.epoch + 1, root, self.issuer_life, now)?;
        self.with_issuer(issuer, now)
    }

    /// The same root, and this issuer of it.
    fn with_issuer(&self, issuer: Issuer, now: UnixTime) -> Result<Self, AuthorityError> {
        // Links are checked against the clock of whoever walks them, so each is signed anew while that is possible: the
        // old signer will have expired.
        let mut links = Vec::with_capacity(self.links.len());
        let mut previous: Option<TrustBundle> = None;
        for link in &self.links {
            let next = TrustBundle::from_document(self.trust_domain.clone(), &link.document, now)
                .map_err(|error| AuthorityError::Unusable(error.to_string()))?;
            let anchored = previous.as_ref().unwrap_or(&next).roots().contains(&self.root);
            links.push(if anchored {
                issuer.sign_bundle(&self.trust_domain, link.document.clone())?
            } else {
                link.clone()
            });
            previous = Some(next);
        }
        let jwt = match &self.jwt {
            Some(keys) => keys.rotated(now)?,
            None => JwtKeys::beside(self.bundle.jwt_keys(), now)?,
        };
        let roots = self.bundle.roots().to_vec();
        let number = self.next_number(now);
        let bundle = TrustBundle::new(self.trust_domain.clone(), number, roots, now).with_jwt_keys(jwt.published());
        // Whoever holds a bundle of the same roots can take the new one at once.
        if previous.is_some_and(|last| last.roots() == bundle.roots()) {
            links.pop();
        }
        links.push(issuer.sign_bundle(&self.trust_domain, bundle.to_document())?);
        Self {
            trust_domain: self.trust_domain.clone(),
            own_id: self.own_id.clone(),
            root: self.root.clone(),
            root_validity: self.root_validity,
            issuer: Arc::new(issuer),
            issuer_life: self.issuer_life,
            links,
            bundle,
            jwt: Some(jwt),
            rotation: self.rotation_without_cross(),
            replaced: self.replaced.clone(),
        }
        .tested(now)
    }

    /// Of the next bundle. Holders take no lower number than they have: it is at least the time, so that after an older state was
    /// put back it is past every number that they may have from what was lost.
    fn next_number(&self, now: UnixTime) -> u64 {
        self.bundle.sequence().saturating_add(1).max(now.as_secs())
    }

    /// The same roots and keys as a newer bundle, past this number too: what the one that is held says may have been said otherwise
    /// since, by a state that was lost. Keys of JWT-SVIDs are made where there are none. What a stage waits for is this one.
    pub(crate) fn renumbered(&self, past: u64, now: UnixTime) -> Result<Self, AuthorityError> {
        let anew = || JwtKeys::beside(self.bundle.jwt_keys(), now);
        let jwt = self.jwt.clone().map_or_else(anew, Ok)?;
        let number = self.next_number(now).max(past.saturating_add(1));
        let same = TrustBundle::new(self.trust_domain.clone(), number, self.bundle.roots().to_vec(), now);
        let same = same.with_jwt_keys(jwt.published());
        Self {
            jwt: Some(jwt),
            rotation: self.rotation.as_ref().map(|rotation| rotation.renumbered(number)),
            ..self.clone()
        }
        .publishing(same)?
        .tested(now)
    }

    /// Can it sign JWT-SVIDs, and does its bundle have all their keys?
    pub(crate) fn publishes_jwt_keys(&self) -> bool {
        let keys = self.jwt.as_ref();
        keys.is_some_and(|keys| keys.published() == self.bundle.jwt_keys())
    }

    /// Nothing becomes an authority before a leaf of it has passed the verifier that every peer runs.
    fn tested(self, now: UnixTime) -> Result<Self, AuthorityError> {
        let failed = |why: String| AuthorityError::SelfTest(why);
        let pinned = TrustBundle::new(self.trust_domain.clone(), 0, vec![self.root.clone()], now);
        let walked = bundle::advance(&pinned, &self.links, now).map_err(|error| failed(error.to_string()))?;
        if walked.sequence() != self.bundle.sequence() {
            return Err(failed(format!(
                "its bundles lead to {}, not to {}",
                walked.sequence(),
                self.bundle.sequence()
            )));
        }
        if let Some(keys) = &self.jwt {
            keys.test(walked.jwt_keys())?;
        }
        let chain = self.throwaway_leaf(now)?;
        // By today's bundle, and by the root that signs alone: what the bundle has beside it will go.
        for bundle in [&self.bundle, &pinned] {
            let trust = Trust {
                bundles: BundleSet::default().with(bundle.clone()),
                ..Trust::default()
            };
            for role in [Role::Server, Role::Client] {
                let peer = verify::verify_peer(&chain, role, &trust, now).map_err(|error| failed(error.to_string()))?;
                if *peer.id() != self.own_id {
                    return Err(failed(format!("its leaf reads as {}", peer.id())));
                }
            }
        }
        Ok(self.with_what_leads_from_old_root(now))
    }

    /// A leaf that nobody will show, and its issuer.
    fn throwaway_leaf(&self, now: UnixTime) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let failed = |why: String| AuthorityError::SelfTest(why);
        let key = new_key()?;
        let instance = Instance::parse("self-test").map_err(|error| failed(error.to_string()))?;
        let validity = self
            .leaf_validity(BACKDATE, now)
            .map_err(|refusal| failed(refusal.to_string()))?;
        let (leaf, _) = profile::leaf(
            &self.own_id,
            Some(&instance),
            Holder::Proxy,
            &key,
            validity,
            &self.issuer.signer,
        )?;
        Ok(self.chain_of(leaf))
    }

    fn chain_of(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        std::iter::once(leaf).chain(self.issuer.chain()).collect()
    }

    /// Signs an SVID. The identity has been attested and the key proven; the trust domain is checked here once more.
    pub(crate) fn sign(
        &self,
        id: &SpiffeId,
        instance: Option<&Instance>,
        holder: Holder,
        key: &impl PublicKeyData,
        life: Duration,
        now: UnixTime,
    ) -> Result<Signed, Refusal> {
        if id.trust_domain() != self.trust_domain.as_str() {
            let message = format!("{id} is not of trust domain {}", self.trust_domain);
            return Err(Refusal::new(RefusalReason::RenewalIdentity, message));
        }
        let validity = self.leaf_validity(life, now)?;
        let signed = profile::leaf(id, instance, holder, key, validity, &self.issuer.signer);
        let (leaf, serial) = signed.map_err(|error| {
            tracing::error!(reason = "internal", error = %error, "signing failed");
            Refusal::new(RefusalReason::Internal, "the certificate could not be signed")
        })?;
        Ok(Signed {
            chain: self.chain_of(leaf),
            serial: profile::serial_shown(&serial),
            not_before: validity.not_before,
            not_after: validity.not_after,
            issuer_epoch: self.issuer.epoch,
        })
    }

    /// Signs who is cut off, as proxies will read it.
    pub(crate) fn sign_quarantine(&self, document: Vec<u8>) -> Result<SignedQuarantine, AuthorityError> {
        self.issuer.sign_quarantine(&self.trust_domain, document)
    }

    /// Within the issuer's own validity, or a refusal: a clock that was moved must not make certificates.
    fn leaf_validity(&self, life: Duration, now: UnixTime) -> Result<Validity, Refusal> {
        let issuer = self.issuer.validity;
        if !issuer.contains(now) {
            let message = format!(
                "the CA's clock says {}, outside its issuing certificate's validity ({} to {}); set the clock, or, if it \
                 is right, run `postern-ca rotate`",
                shown(now),
                shown(issuer.not_before),
                shown(issuer.not_after)
            );
            return Err(Refusal::new(RefusalReason::Clock, message));
        }
        Ok(Validity {
            not_before: earlier(now, BACKDATE).max(issuer.not_before),
            not_after: later(now, life).min(issuer.not_after),
        })
    }

    /// When the next issuer is due, for leaves of this life: at two thirds of the issuer's life, or earlier where its
    /// leaves would otherwise be cut short, but not before a third.
    #[must_use]
    pub(crate) fn rotation_due(&self, svid_life: Duration) -> UnixTime {
        let Validity { not_before, not_after } = self.issuer.validity;
        let made = later(not_before, BACKDATE).min(not_after);
        let life = Duration::from_secs(not_after.as_secs().saturating_sub(made.as_secs()));
        let by_share = later(made, life.mul_f64(ISSUER_SHARE));
        let by_leaves = earlier(not_after, svid_life).max(later(made, life / 3));
        by_share.min(by_leaves)
    }

    /// Would a new issuer live longer than this one? (Not under a root that ends when this issuer does.)
    pub(crate) fn can_outlive_itself(&self) -> bool {
        self.issuer.validity.not_after < self.root_validity.not_after
    }

    /// Are both one and the same power? (Certificates are over random keys and serials.)
    #[cfg(feature = "kubernetes")]
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.issuer.cert == other.issuer.cert
            && self.root == other.root
            && self.bundle.sequence() == other.bundle.sequence()
            && self.rotation == other.rotation
    }
    /// From the next issuer on they live this long.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn with_issuer_life(mut self, life: Duration) -> Self {
        self.issuer_life = life;
        self
    }

    /// Whom this CA serves.
    #[must_use]
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    /// The CA's own fixed identity.
    #[must_use]
    pub(crate) fn own_id(&self) -> &SpiffeId {
        &self.own_id
    }
    /// The root certificate, DER.
    #[must_use]
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }
    /// What join tokens pin.
    #[must_use]
    pub(crate) fn root_sha256(&self) -> [u8; 32] {
        sha256(&self.root)
    }
    /// Last instant of the root.
    #[must_use]
    pub(crate) fn root_not_after(&self) -> UnixTime {
        self.root_validity.not_after
    }
    /// Counts issuers.
    #[must_use]
    pub(crate) fn issuer_epoch(&self) -> u64 {
        self.issuer.epoch
    }
    /// Last instant of the issuer.
    #[must_use]
    pub(crate) fn issuer_not_after(&self) -> UnixTime {
        self.issuer.validity.not_after
    }
    /// The current bundle.
    #[must_use]
    pub(crate) fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }
    /// What the CA itself believes peers by.
    #[must_use]
    pub(crate) fn trust(&self) -> Trust {
        Trust {
            revision: self.issuer.epoch,
            bundles: BundleSet::default().with(self.bundle.clone()),
            ..Trust::default()
        }
    }
    /// The issuer, and every leaf of it.
    pub(crate) fn has_ended(&self, now: UnixTime) -> bool {
        now > self.issuer.validity.not_after
    }
    /// Is `now` inside the issuer's validity?
    pub(crate) fn ready(&self, now: UnixTime) -> Result<(), Refusal> {
        self.leaf_validity(BACKDATE, now).map(drop)
    }
}

fn new_key() -> Result<KeyPair, ProfileError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn own_id(trust_domain: &TrustDomain) -> Result<SpiffeId, AuthorityError> {
    ca_id(trust_domain).map_err(|error| AuthorityError::Unusable(error.to_string()))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Validity and key of a stored CA certificate, which must be the certificate of `key` (rcgen takes any pair).
fn matching(cert: &CertificateDer<'_>, key: &KeyPair, what: &str) -> Result<Validity, AuthorityError> {
    let unusable = |why: &str| AuthorityError::Unusable(format!("the {what} {why}"));
    let (rest, parsed) = X509Certificate::from_der(cert).map_err(|_| unusable("certificate cannot be read"))?;
    if !rest.is_empty() {
        return Err(unusable("certificate has trailing bytes"));
    }
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(unusable("certificate and key do not belong together"));
    }
    if !parsed.is_ca() {
        return Err(unusable("certificate is not that of a CA"));
    }
    validity_of(&parsed).ok_or_else(|| unusable("certificate's validity lies before 1970"))
}

fn validity_of(cert: &X509Certificate<'_>) -> Option<Validity> {
    let at = |time: x509_parser::time::ASN1Time| {
        u64::try_from(time.timestamp())
            .ok()
            .map(|s| UnixTime::since_unix_epoch(Duration::from_secs(s)))
    };
    Some(Validity {
        not_before: at(cert.validity().not_before)?,
        not_after: at(cert.validity().not_after)?,
    })
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("issuer_epoch", &self.issuer.epoch)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").finish_non_exhaustive()
    }
}

//! The root's replacement: one record, and stages that follow from it and from what signs.
//!
//! ```text
//! prepared --(at once)--> published --acknowledged, or a timeout--> activated --the longest leaf's life--> retired
//!   new root,               bundle: old + new,                         new root signs,                       bundle: new;
//!   tested                  signed under the old                       bundle: old + new                     nothing of the old counts
//!
//! tainted (what is in the store is in wrong hands): a fresh root, activated once acknowledged or seconds after it was published;
//! retired once acknowledged and renewed, or after a timeout
//! ```
//!
//! The record is written before the authority that it announces, so that a kill between the two leaves the stage before.

use std::sync::Arc;
use std::time::Duration;

use postern_identity::bundle::SignedBundle;
use postern_identity::{Trust, TrustBundle, bundle, verify};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::record::{self, IssuerRecord, LinkRecord};
use super::{Authority, AuthorityError, Brought, Issuer, JwtKeys, Root, matching, sha256, validity_of};
use crate::base64_bytes::Base64;
use crate::clock::later;
use crate::profile::{BACKDATE, Validity};

/// After a compromise proxies renew at once, spread over 30 s: the old root leaves only after that, or they could not.
const RENEWALS: Duration = Duration::from_secs(60);

/// After a compromise the new root signs this long after it was published, whoever has heard: a replica looks every 5 s at what
/// another wrote, and control pushes within one.
const NOTICE: Duration = Duration::from_secs(7);

/// How patient a replacement of the root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootPace {
    /// The new root signs when every connected control has reported that its proxies know it, and after this long in any case.
    pub acknowledge: Duration,
    /// The old root leaves the bundle this long after the new one signs.
    pub retire: Duration,
    /// What controls have reported counts once none of them has come or gone for so long.
    pub settle: Duration,
}

impl RootPace {
    /// What is waited for an acknowledgement, unless said otherwise: control pushes a bundle within a second, and a proxy that lost
    /// its control finds another within some.
    pub const ACKNOWLEDGE: Duration = Duration::from_secs(10 * 60);
    /// A control that restarts is away for some seconds, and its proxies with it; so long nobody may have come or gone, before what
    /// those say who are here counts.
    const SETTLE: Duration = Duration::from_secs(30);

    /// In keeping with how long is waited at all, and with how often each control comes anew: at half of its SVID's life.
    pub(crate) fn settling(acknowledge: Duration, svid_life: Duration) -> Duration {
        Self::SETTLE.min(acknowledge / 20).min(svid_life / 8)
    }

    /// For a CA that serves nobody.
    pub(crate) const PATIENT: Self = Self {
        acknowledge: Self::ACKNOWLEDGE,
        retire: Duration::from_secs(48 * 3600),
        settle: Self::SETTLE,
    };
}

/// Where a replacement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Prepared,
    Published,
    Activated,
    Retired,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Publish,
    Activate,
    /// The new root's key takes the place of the old one's; a brought issuer is where the one before it was.
    StoreRoot,
    Retire,
    /// Until then, at the latest.
    Wait(UnixTime),
}

/// When a stage began, and the bundle that it brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    pub(crate) unix: u64,
    pub(crate) sequence: u64,
}

/// `rotation.json`, the last replacement of the root. Versions that know nothing of it leave it alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    /// Of the root that this CA was founded with: its ledger goes by it.
    founding_root_sha256: Base64,
    old_root: Base64,
    new_root: Base64,
    /// PKCS#8; until it is in `root.json`.
    new_root_key: Option<Base64>,
    /// Of a root whose key is elsewhere: the issuer under it, until it signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new_issuer: Option<IssuerRecord>,
    tainted: bool,
    prepared_unix: u64,
    published: Option<Mark>,
    activated: Option<Mark>,
    retired_unix: Option<u64>,
    /// The issuer's key under the old root, for whoever knows only that one.
    cross: Option<Base64>,
    /// The bundle that had both roots first, signed under the old one.
    bridge: Option<LinkRecord>,
}

impl Stage {
    pub(crate) const ALL: [Self; 4] = [Self::Prepared, Self::Published, Self::Activated, Self::Retired];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Activated => "activated",
            Self::Retired => "retired",
        }
    }
}

impl Rotation {
    /// A new root stands ready to follow that of `authority`: its issuer's leaf has passed our verifier.
    pub(crate) fn prepare(authority: &Authority, tainted: bool, now: UnixTime) -> Result<Self, AuthorityError> {
        let life = Duration::from_secs(
            (authority.root_validity.not_after.as_secs()).saturating_sub(authority.root_validity.not_before.as_secs()),
        );
        let root = Root::succeeding(&authority.trust_domain, life, now)?;
        Authority::found(&authority.trust_domain, &root, authority.issuer_life, now)?;
        Ok(Self {
            new_root_key: Some(Base64::of(root.key.serialized_der())),
            tainted,
            ..Self::begun(authority, &root.cert, now)
        })
    }

    /// An issuer under another root stands ready, which was checked.
    pub(super) fn prepare_brought(authority: &Authority, brought: &Brought, now: UnixTime) -> Self {
        Self {
            new_issuer: Some(brought.record.clone()),
            ..Self::begun(authority, &brought.root, now)
        }
    }

    fn begun(authority: &Authority, new_root: &CertificateDer<'_>, now: UnixTime) -> Self {
        Self {
            founding_root_sha256: Base64::of(&authority.founding_root_sha256()),
            old_root: Base64::of(&authority.root),
            new_root: Base64::of(new_root),
            new_root_key: None,
            new_issuer: None,
            tainted: false,
            prepared_unix: now.as_secs(),
            published: None,
            activated: None,
            retired_unix: None,
            cross: None,
            bridge: None,
        }
    }

    /// What the next root needs to sign is here.
    fn is_pending(&self) -> bool {
        self.new_root_key.is_some() || self.new_issuer.is_some()
    }

    /// The issuer that was brought with the new root, as long as it is here; number `epoch`.
    fn pending_issuer(&self, epoch: u64) -> Result<Option<(Issuer, Validity)>, AuthorityError> {
        let Some(record) = &self.new_issuer else {
            return Ok(None);
        };
        let unusable = |why: &str| AuthorityError::Unusable(format!("the next root {why}"));
        let root = self.new_root();
        let (_, parsed) = X509Certificate::from_der(&root).map_err(|_| unusable("cannot be read"))?;
        let validity = validity_of(&parsed).ok_or_else(|| unusable("has a validity before 1970"))?;
        Ok(Some((record.clone().numbered(epoch).load(validity)?, validity)))
    }

    /// The same with another issuer under the new root.
    pub(super) fn with_issuer(&self, brought: &Brought) -> Self {
        Self {
            new_issuer: Some(brought.record.clone()),
            ..self.clone()
        }
    }

    /// The issuer that waits ended before it signed: it never will.
    pub(super) fn is_spent(&self, now: UnixTime) -> bool {
        let waits = self.pending_issuer(0).ok().flatten();
        waits.is_some_and(|(issuer, _)| now > issuer.validity.not_after)
    }

    /// The issuer that signs has ended, and its leaves with it: it can publish nothing, and nobody is left to be told first.
    fn is_all_there_is(&self, authority: &Authority, now: UnixTime) -> bool {
        self.new_issuer.is_some() && authority.has_ended(now) && !self.is_spent(now)
    }

    /// The certificate of the issuer that waits.
    pub(super) fn pending_issuer_cert(&self) -> Option<CertificateDer<'static>> {
        self.new_issuer.as_ref().map(IssuerRecord::cert)
    }

    /// The issuer that waited was let go before it signed: what is left is the name of the founding root.
    fn is_let_go(&self, authority: &Authority) -> bool {
        self.old_root() == authority.root && self.activated.is_none() && !self.is_pending()
    }

    /// The new root with its key, as long as that is here.
    pub(crate) fn pending_root(&self) -> Result<Option<Root>, AuthorityError> {
        let Some(key) = &self.new_root_key else {
            return Ok(None);
        };
        let key = record::key(key, "next root's")?;
        let cert = self.new_root();
        let validity = matching(&cert, &key, "next root")?;
        Ok(Some(Root { cert, key, validity }))
    }

    /// The same, in a hurry.
    pub(super) fn tainting(&self) -> Self {
        Self {
            tainted: true,
            ..self.clone()
        }
    }

    pub(crate) fn old_root(&self) -> CertificateDer<'static> {
        der(&self.old_root)
    }
    pub(crate) fn new_root(&self) -> CertificateDer<'static> {
        der(&self.new_root)
    }
    pub(crate) fn founding_root_sha256(&self) -> Option<[u8; 32]> {
        self.founding_root_sha256.bytes().try_into().ok()
    }
    pub(crate) fn is_tainted(&self) -> bool {
        self.tainted
    }
    pub(crate) fn prepared_unix(&self) -> u64 {
        self.prepared_unix
    }
    pub(crate) fn published(&self) -> Option<Mark> {
        self.published
    }
    pub(crate) fn activated(&self) -> Option<Mark> {
        self.activated
    }
    pub(crate) fn retired_unix(&self) -> Option<u64> {
        self.retired_unix
    }

    /// `None`: it is not about this authority (a backup was put back), and counts for nothing.
    pub(crate) fn stage(&self, authority: &Authority) -> Option<Stage> {
        let (old, new) = (self.old_root(), self.new_root());
        let published = |root| authority.bundle.roots().contains(root);
        if authority.root == new {
            return Some(if published(&old) {
                Stage::Activated
            } else {
                Stage::Retired
            });
        }
        // Without its key it leads nowhere.
        (authority.root == old && self.is_pending()).then(|| {
            if published(&new) {
                Stage::Published
            } else {
                Stage::Prepared
            }
        })
    }

    /// What is due. `began`: since when this process serves; before, nobody could hear or renew. `acknowledged`: `None`: not all who are
    /// connected have this bundle, or a later one; else for how long nobody has come or gone.
    pub(crate) fn step(
        &self,
        authority: &Authority,
        pace: &RootPace,
        began: UnixTime,
        acknowledged: impl Fn(u64) -> Option<Duration>,
        now: UnixTime,
    ) -> Option<Step> {
        let since = |mark: Option<Mark>| mark.map_or(now, |mark| at(mark.unix));
        let served = |mark: Option<Mark>| since(mark).max(began);
        let quiet = |mark: Option<Mark>| mark.and_then(|mark| acknowledged(mark.sequence));
        let known = |mark: Option<Mark>| quiet(mark).is_some_and(|quiet| quiet >= pace.settle);
        let step = match self.stage(authority)? {
            Stage::Prepared | Stage::Published if self.is_all_there_is(authority, now) => Step::Activate,
            Stage::Prepared => Step::Publish,
            // Its root was published for another issuer, so nobody counts since when.
            Stage::Published if self.published.is_none() => Step::Publish,
            Stage::Published if self.tainted => {
                let latest = later(served(self.published), NOTICE.min(pace.acknowledge));
                if quiet(self.published).is_some() || now >= latest {
                    Step::Activate
                } else {
                    Step::Wait(latest)
                }
            }
            Stage::Published => {
                let latest = later(served(self.published), pace.acknowledge);
                if known(self.published) || now >= latest {
                    Step::Activate
                } else {
                    Step::Wait(latest)
                }
            }
            Stage::Activated if self.is_pending() => Step::StoreRoot,
            Stage::Activated if self.tainted => {
                let begun = served(self.activated);
                let latest = later(begun, pace.acknowledge);
                let renewed = later(begun, RENEWALS.min(pace.retire)).min(latest);
                if now >= latest || (known(self.activated) && now >= renewed) {
                    Step::Retire
                } else {
                    Step::Wait(if now < renewed && known(self.activated) {
                        renewed
                    } else {
                        latest
                    })
                }
            }
            Stage::Activated => {
                // By the clock alone: so do leaves end.
                let latest = later(since(self.activated), pace.retire);
                if now >= latest {
                    Step::Retire
                } else {
                    Step::Wait(latest)
                }
            }
            Stage::Retired if self.is_pending() => Step::StoreRoot,
            Stage::Retired => return None,
        };
        Some(step)
    }

    /// The bundle that the next stage waits for.
    pub(crate) fn awaited(&self, stage: Stage) -> Option<u64> {
        match stage {
            Stage::Published => self.published.map(|mark| mark.sequence),
            Stage::Activated if self.tainted => self.activated.map(|mark| mark.sequence),
            Stage::Prepared | Stage::Activated | Stage::Retired => None,
        }
    }
}

/// The way from the root that was replaced.
impl Authority {
    /// The last replacement of the root.
    pub(crate) fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }
    /// With its stage; `None`: there was none.
    pub(crate) fn root_stage(&self) -> Option<(&Rotation, Stage)> {
        let rotation = self.rotation.as_ref()?;
        Some((rotation, rotation.stage(self)?))
    }
    /// Its issuer has ended, and one under another root takes its place.
    pub(crate) fn is_followed(&self, now: UnixTime) -> bool {
        self.root_stage().is_some_and(|(rotation, stage)| {
            matches!(stage, Stage::Prepared | Stage::Published) && rotation.is_all_there_is(self, now)
        })
    }
    /// Of the root that this CA was founded with.
    pub(crate) fn founding_root_sha256(&self) -> [u8; 32] {
        let recorded = self.rotation.as_ref().and_then(Rotation::founding_root_sha256);
        recorded.unwrap_or_else(|| self.root_sha256())
    }

    /// The same with this record beside it.
    pub(crate) fn rotating(&self, rotation: Rotation) -> Self {
        Self {
            rotation: Some(rotation),
            ..self.clone()
        }
    }

    /// With the record that was stored beside it. What of it no longer holds (an issuer that came later, a certificate that has
    /// expired) is left out.
    pub(crate) fn with_rotation(mut self, rotation: Option<Rotation>, now: UnixTime) -> Result<Self, AuthorityError> {
        let Some(mut rotation) = rotation else {
            return Ok(self);
        };
        // A damaged key is known today, and not when it is to sign.
        rotation.pending_root()?;
        rotation.pending_issuer(0)?;
        if rotation.stage(&self).is_none() && !rotation.is_let_go(&self) {
            tracing::warn!(
                reason = "root_rotation",
                "rotation.json is not about the root that signs: it counts for nothing"
            );
            (rotation.new_root_key, rotation.new_issuer) = (None, None);
            (rotation.cross, rotation.bridge) = (None, None);
        }
        self.mark_what_is_reached(&mut rotation);
        self.rotation = Some(rotation);
        // One that is not valid yet issues nothing until the clock is right: that takes nothing away.
        let tested_at = now.max(self.issuer.validity.not_before);
        Ok(self.with_what_leads_from_old_root(tested_at))
    }

    /// An older record was put back beside what followed it. By what does not change from one reading to the next.
    fn mark_what_is_reached(&self, rotation: &mut Rotation) {
        let sequence = self.bundle.sequence();
        let stage = rotation.stage(self);
        if matches!(stage, Some(Stage::Published | Stage::Activated | Stage::Retired)) {
            let unix = rotation.prepared_unix;
            rotation.published.get_or_insert(Mark { unix, sequence });
        }
        if matches!(stage, Some(Stage::Activated | Stage::Retired)) {
            let made = later(self.issuer.validity.not_before, BACKDATE).as_secs();
            let unix = made.max(rotation.prepared_unix);
            rotation.activated.get_or_insert(Mark { unix, sequence });
        }
    }

    /// Without what no longer leads here from the old root: it is for those who were away, ends with what signed it, and must never
    /// hinder those who are here.
    pub(super) fn with_what_leads_from_old_root(mut self, now: UnixTime) -> Self {
        let Err(error) = self.test_way_from_old_root(now) else {
            return self;
        };
        if let Some(rotation) = &mut self.rotation {
            rotation.cross = None;
        }
        if self.test_way_from_old_root(now).is_err()
            && let Some(rotation) = &mut self.rotation
        {
            rotation.bridge = None;
        }
        tracing::info!("who knows only the root before is not led to this one any more: {error}");
        self
    }

    /// Published: the bundle has the next root, too, signed under the one that signs.
    pub(crate) fn publishing_next_root(&self, now: UnixTime) -> Result<Self, AuthorityError> {
        let mut rotation = self.pending()?.clone();
        // One that was published and never signed is no longer wanted: it was replaced by this one.
        let signed = self.bundle.roots().iter().take_while(|root| **root != self.root);
        let mut roots: Vec<_> = signed.cloned().collect();
        roots.extend([self.root.clone(), rotation.new_root()]);
        let mut next = self.with_roots(roots, now)?;
        rotation.published = Some(Mark {
            unix: now.as_secs(),
            sequence: next.bundle.sequence(),
        });
        next.rotation = Some(rotation);
        next.tested(now)
    }

    /// Activated: the next root's issuer signs. `old`: the root that did, if its key is here and is to vouch for the new issuer.
    pub(crate) fn under_next_root(&self, old: Option<&Root>, now: UnixTime) -> Result<Self, AuthorityError> {
        let mut rotation = self.pending()?.clone();
        let epoch = self.issuer.epoch + 1;
        let (issuer, root_validity, brought) = match rotation.pending_issuer(epoch)? {
            Some((issuer, validity)) => (issuer, validity, true),
            None => {
                let root = rotation.pending_root()?.ok_or_else(nothing_pending)?;
                let issuer = Issuer::create(&self.trust_domain, epoch, &root, self.issuer_life, now)?;
                (issuer, root.validity, false)
            }
        };
        let bridge = self.links.last().ok_or_else(nothing_pending)?;
        rotation.bridge = Some(LinkRecord::of(bridge));
        rotation.cross = None;
        if let Some(old) = old.filter(|_| !rotation.tainted && !brought) {
            let cross = issuer.under_another(&self.trust_domain, old)?;
            // As long as that holds, whatever becomes of the issuer before.
            let mut bridge = issuer.sign_bundle(&self.trust_domain, bridge.document.clone())?;
            bridge.signer_chain = vec![cross.clone()];
            rotation.bridge = Some(LinkRecord::of(&bridge));
            rotation.cross = Some(Base64::of(&cross));
        }
        // Who had the old root's key may have had these.
        let jwt = match (&self.jwt, rotation.tainted) {
            (Some(keys), false) => keys.rotated(now)?,
            (_, _) => JwtKeys::create()?,
        };
        let mut roots = self.bundle.roots().to_vec();
        if !roots.contains(&rotation.new_root()) {
            // It takes the place of one that ended.
            roots.push(rotation.new_root());
        }
        let replaced = if brought {
            self.replaced_by(&issuer.cert)
        } else {
            self.replaced.clone()
        };
        let mut next = Self {
            root: rotation.new_root(),
            root_validity,
            issuer: Arc::new(issuer),
            jwt: Some(jwt),
            replaced,
            ..self.clone()
        }
        .with_roots(roots, now)?;
        let mark = Mark {
            unix: now.as_secs(),
            sequence: next.bundle.sequence(),
        };
        rotation.published.get_or_insert(mark);
        rotation.activated = Some(mark);
        next.rotation = Some(rotation);
        next.tested(now)
    }

    /// Retired: the bundle has the root that signs, and no other.
    pub(crate) fn without_old_root(&self, now: UnixTime) -> Result<Self, AuthorityError> {
        let mut next = self.with_roots(vec![self.root.clone()], now)?;
        if let Some(rotation) = &mut next.rotation {
            rotation.retired_unix = Some(now.as_secs());
        }
        next.tested(now)
    }

    /// Is another root on its way, by a brought issuer that signed nothing? Or published still, after a kill at the wrong moment.
    pub(super) fn lets_next_root_go(&self) -> bool {
        self.rotation
            .as_ref()
            .is_some_and(|rotation| match rotation.stage(self) {
                Some(Stage::Prepared | Stage::Published) => rotation.new_issuer.is_some(),
                Some(Stage::Activated | Stage::Retired) => false,
                None => rotation.is_let_go(self) && self.bundle.roots().contains(&rotation.new_root()),
            })
    }

    /// Another root is on its way no more. (Of the record there remains what founded the CA; a kill before the bundle is stored is
    /// made good when the issuer is looked at again.)
    pub(super) fn without_next_root(&self, now: UnixTime) -> Result<Self, AuthorityError> {
        let mut next = if self.bundle.roots() == [self.root.clone()] {
            self.clone()
        } else {
            self.with_roots(vec![self.root.clone()], now)?
        };
        if let Some(rotation) = &mut next.rotation {
            rotation.new_issuer = None;
        }
        next.tested(now)
    }

    /// The next bundle, for whoever holds any that has the root that signs.
    fn with_roots(&self, roots: Vec<CertificateDer<'static>>, now: UnixTime) -> Result<Self, AuthorityError> {
        let keys = self.jwt.as_ref().map(JwtKeys::published).unwrap_or_default();
        let sequence = self.bundle.sequence() + 1;
        let bundle = TrustBundle::new(self.trust_domain.clone(), sequence, roots, now).with_jwt_keys(keys);
        let links = vec![self.issuer.sign_bundle(&self.trust_domain, bundle.to_document())?];
        Ok(Self {
            links,
            bundle,
            ..self.clone()
        })
    }

    fn pending(&self) -> Result<&Rotation, AuthorityError> {
        let pending = self.rotation.as_ref().filter(|rotation| rotation.is_pending());
        pending.ok_or_else(nothing_pending)
    }

    /// What the CA shows behind a leaf and its issuer: the roots, for callers that know only a SHA-256, and between old root
    /// and leaf the issuer once more.
    pub(crate) fn shown_roots(&self) -> Vec<CertificateDer<'static>> {
        match self.old_root_shown() {
            Some((old, cross)) => vec![cross, self.root.clone(), old],
            None => vec![self.root.clone()],
        }
    }

    fn old_root_shown(&self) -> Option<(CertificateDer<'static>, CertificateDer<'static>)> {
        let rotation = self
            .rotation
            .as_ref()
            .filter(|rotation| rotation.new_root() == self.root)?;
        rotation.cross.as_ref().map(|cross| (rotation.old_root(), der(cross)))
    }

    /// What a caller who does not say so has pinned: published roots are tried oldest first.
    pub(crate) fn likely_pin(&self) -> [u8; 32] {
        match self.old_root_shown() {
            Some((old, _)) if self.bundle.roots().contains(&old) => sha256(&old),
            _ => self.root_sha256(),
        }
    }

    /// The links for whoever holds bundle `sequence`, oldest first.
    pub(crate) fn links_after(&self, sequence: u64) -> Vec<SignedBundle> {
        let mut links = self.way_from_old_root();
        links.retain(|link| self.sequence_of(link) > sequence);
        links
    }

    /// The links for whoever holds this root and no bundle.
    pub(crate) fn links_from_root(&self, root_sha256: &[u8; 32]) -> Vec<SignedBundle> {
        if *root_sha256 == self.root_sha256() {
            return self.links.clone();
        }
        self.way_from_old_root()
    }

    /// From the old root, if there is a bridge from it; else from the root that signs.
    fn way_from_old_root(&self) -> Vec<SignedBundle> {
        let rotation = self
            .rotation
            .as_ref()
            .filter(|rotation| rotation.new_root() == self.root);
        let Some(bridge) = rotation.and_then(|rotation| rotation.bridge.clone()) else {
            return self.links.clone();
        };
        let bridge = bridge.load();
        let crossed = self.sequence_of(&bridge);
        let after = self
            .links
            .iter()
            .filter(|link| self.sequence_of(link) > crossed)
            .cloned();
        std::iter::once(bridge).chain(after).collect()
    }

    /// Our own documents read back; should one not, the holder is the better judge.
    fn sequence_of(&self, link: &SignedBundle) -> u64 {
        let epoch = UnixTime::since_unix_epoch(Duration::ZERO);
        let bundle = TrustBundle::from_document(self.trust_domain.clone(), &link.document, epoch);
        bundle.map_or(u64::MAX, |bundle| bundle.sequence())
    }

    /// Who knows the old root alone comes to today's bundle, and believes what the CA shows.
    pub(super) fn test_way_from_old_root(&self, now: UnixTime) -> Result<(), AuthorityError> {
        let failed = |why: String| AuthorityError::SelfTest(format!("from the old root: {why}"));
        let Some(rotation) = self
            .rotation
            .as_ref()
            .filter(|rotation| rotation.new_root() == self.root)
        else {
            return Ok(());
        };
        let pinned = TrustBundle::new(self.trust_domain.clone(), 0, vec![rotation.old_root()], now);
        if rotation.bridge.is_some() {
            let walked = bundle::advance(&pinned, &self.way_from_old_root(), now);
            let walked = walked.map_err(|error| failed(error.to_string()))?;
            if walked.sequence() != self.bundle.sequence() {
                return Err(failed(format!("its bundles lead to {}", walked.sequence())));
            }
        }
        if rotation.cross.is_some() {
            let mut chain = self.throwaway_leaf(now)?;
            chain.extend(self.shown_roots());
            let trust = Trust {
                bundles: postern_identity::BundleSet::default().with(pinned),
                ..Trust::default()
            };
            let verified = verify::verify_peer(&chain, postern_identity::Role::Server, &trust, now);
            verified.map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// The key of the root that signs, if it is not in `root.json` yet.
    pub(crate) fn pending_root_of_own(&self) -> Result<Option<Root>, AuthorityError> {
        match &self.rotation {
            Some(rotation) if rotation.new_root() == self.root => rotation.pending_root(),
            Some(_) | None => Ok(None),
        }
    }
    /// Is something in the record of the replacement that has its own place now?
    pub(crate) fn has_something_to_store(&self) -> bool {
        (self.rotation.as_ref()).is_some_and(|rotation| rotation.new_root() == self.root && rotation.is_pending())
    }
    /// Now it is there.
    pub(crate) fn with_root_stored(&self) -> Self {
        let mut next = self.clone();
        if let Some(rotation) = &mut next.rotation {
            (rotation.new_root_key, rotation.new_issuer) = (None, None);
        }
        next
    }
    /// A newer issuer than that which the old root vouched for.
    pub(super) fn rotation_without_cross(&self) -> Option<Rotation> {
        self.rotation.clone().map(|rotation| Rotation {
            cross: None,
            ..rotation
        })
    }
}

fn nothing_pending() -> AuthorityError {
    AuthorityError::Unusable("no root stands ready".to_owned())
}

fn der(bytes: &Base64) -> CertificateDer<'static> {
    CertificateDer::from(bytes.bytes().to_vec())
}

fn at(unix: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(unix))
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotation")
            .field("tainted", &self.tainted)
            .field("published", &self.published)
            .field("activated", &self.activated)
            .field("retired_unix", &self.retired_unix)
            .finish_non_exhaustive()
    }
}

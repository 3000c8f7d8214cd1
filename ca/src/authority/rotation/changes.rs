//! What a replacement of the root makes of an authority at each stage, and the way that leads on from the root before.

use std::sync::Arc;
use std::time::Duration;

use postern_identity::bundle::SignedBundle;
use postern_identity::{Trust, TrustBundle, bundle, verify};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Mark, Rotation, Stage, der, nothing_pending};
use crate::authority::record::LinkRecord;
use crate::authority::{Authority, AuthorityError, Issuer, JwtKeys, Root, sha256};
use crate::base64_bytes::Base64;
use crate::clock::later;
use crate::profile::BACKDATE;

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
    pub(in crate::authority) fn with_what_leads_from_old_root(mut self, now: UnixTime) -> Self {
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
            (None, false) => JwtKeys::beside(self.bundle.jwt_keys(), now)?,
            (_, true) => JwtKeys::create()?,
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
    pub(in crate::authority) fn lets_next_root_go(&self) -> bool {
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
    pub(in crate::authority) fn without_next_root(&self, now: UnixTime) -> Result<Self, AuthorityError> {
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
        let known = || self.bundle.jwt_keys().to_vec();
        let keys = self.jwt.as_ref().map_or_else(known, JwtKeys::published);
        let bundle = TrustBundle::new(self.trust_domain.clone(), self.next_number(now), roots, now);
        self.publishing(bundle.with_jwt_keys(keys))
    }

    /// This bundle, in one link.
    pub(in crate::authority) fn publishing(&self, bundle: TrustBundle) -> Result<Self, AuthorityError> {
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
    pub(in crate::authority) fn test_way_from_old_root(&self, now: UnixTime) -> Result<(), AuthorityError> {
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
    pub(in crate::authority) fn rotation_without_cross(&self) -> Option<Rotation> {
        self.rotation.clone().map(|rotation| Rotation {
            cross: None,
            ..rotation
        })
    }
}

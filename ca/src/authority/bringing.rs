//! An issuer that was brought follows the one that signs: at once under the same root, else by the root's replacement.

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, AuthorityError, Brought, Rotation, Stage, sha256};

/// Issuers that are known not to come back. A mount is late by minutes, and a backup by an issuer or two.
const REPLACED: usize = 16;

/// What becomes of an issuer that was brought.
pub(crate) enum Taken {
    /// It signs, or will once its root is known.
    Already,
    /// Another root is on its way.
    Later(Stage),
    /// It was followed by another.
    Replaced,
    /// It was made before the one that signs, or waits to under the same root.
    Older,
    /// To be stored.
    Next(Box<Authority>),
}

impl Authority {
    /// What is to be done about this issuer, which was checked.
    pub(crate) fn bringing(&self, brought: &Brought, now: UnixTime) -> Result<Taken, AuthorityError> {
        let stage = self.root_stage().filter(|(rotation, _)| !rotation.is_spent(now));
        let is_hurried = stage.is_some_and(|(rotation, _)| rotation.is_tainted());
        if self.signs_by(brought)? {
            return Ok(match stage {
                // Somebody said that its root is in wrong hands: a mount that is late does not take that back.
                Some((_, stage)) if is_hurried && self.lets_next_root_go() => Taken::Later(stage),
                // Whoever has it back wants no other.
                _ if self.lets_next_root_go() => Taken::Next(Box::new(self.without_next_root(now)?)),
                _ => Taken::Already,
            });
        }
        let cert = brought.cert();
        let is_ours = brought.root == self.root;
        // Nothing signs: nothing is waited for.
        let at_once = is_ours && self.has_ended(now);
        // As well as the very same one, another under this root says that no other root is wanted.
        let brings_back = is_ours && !is_hurried && self.lets_next_root_go();
        let waited_for = stage.filter(|_| !at_once && !brings_back);
        if let Some((rotation, stage @ (Stage::Prepared | Stage::Published))) = waited_for {
            let waits = rotation.pending_issuer_cert();
            return Ok(if waits.as_ref() == Some(&cert) {
                Taken::Already
            } else if rotation.new_root() != brought.root {
                Taken::Later(stage)
            } else if waits.as_ref().is_some_and(|waits| begins(&cert) < begins(waits)) {
                Taken::Older
            } else if waits.is_some() {
                // Its root is on its way already, and another issuer under that is to sign first.
                Taken::Next(Box::new(self.rotating(rotation.with_issuer(brought))))
            } else {
                Taken::Later(stage)
            });
        }
        if self.replaced.contains(&sha256(&cert)) {
            return Ok(Taken::Replaced);
        }
        if is_ours {
            // Whoever mounts late may show one that nobody has seen here.
            if begins(&cert) < begins(&self.issuer.cert) && !at_once {
                return Ok(Taken::Older);
            }
            let issuer = brought.issuer(self.issuer.epoch + 1)?;
            let mut next = self.with_issuer(issuer, now)?;
            next.replaced = self.replaced_by(&cert);
            if next.lets_next_root_go() {
                next = next.without_next_root(now)?;
            }
            return Ok(Taken::Next(Box::new(next)));
        }
        match stage {
            // The root before goes on being published as long as its leaves live, whatever signs.
            Some((_, stage @ Stage::Activated)) if !self.has_ended(now) => Ok(Taken::Later(stage)),
            _ => Ok(Taken::Next(Box::new(
                self.rotating(Rotation::prepare_brought(self, brought, now)),
            ))),
        }
    }

    /// Does this issuer, with the same above it, sign?
    fn signs_by(&self, brought: &Brought) -> Result<bool, AuthorityError> {
        let same = self.issuer.cert == brought.cert() && self.root == brought.root;
        Ok(same && self.issuer.above == brought.issuer(self.issuer.epoch)?.above)
    }

    /// It is to sign, and does not yet: the stage of its root.
    pub(crate) fn holds_back(&self, brought: &Brought) -> Option<Stage> {
        let (rotation, stage) = self.root_stage()?;
        let waits = matches!(stage, Stage::Prepared | Stage::Published)
            && rotation.pending_issuer_cert().as_ref() == Some(&brought.cert());
        waits.then_some(stage)
    }

    /// Is this the key of the issuer that signs, or waits to?
    pub(crate) fn has_key(&self, spki: &[u8]) -> bool {
        let waiting = self.rotation.as_ref().and_then(Rotation::pending_issuer_cert);
        [Some(&self.issuer.cert), waiting.as_ref()]
            .into_iter()
            .flatten()
            .any(|cert| X509Certificate::from_der(cert).is_ok_and(|(_, parsed)| parsed.public_key().raw == spki))
    }

    /// Those before, and the one that signs until this one does: which may be the same, under others.
    pub(super) fn replaced_by(&self, cert: &CertificateDer<'_>) -> Vec<[u8; 32]> {
        let mut replaced = self.replaced.clone();
        if self.issuer.cert != *cert {
            let past = replaced.len().saturating_sub(REPLACED - 1);
            replaced.drain(..past);
            replaced.push(sha256(&self.issuer.cert));
        }
        replaced
    }

    /// Is another root on its way whose issuer was brought, and can sign?
    pub(crate) fn brings_next_root(&self, now: UnixTime) -> bool {
        let rotation = self.rotation.as_ref().filter(|rotation| !rotation.is_spent(now));
        rotation.and_then(Rotation::pending_issuer_cert).is_some()
    }

    /// The root before is in wrong hands: the replacement by a brought issuer is hurried. `None`: none is under way.
    pub(crate) fn hurried(&self, now: UnixTime) -> Option<Self> {
        let (rotation, stage) = self.root_stage().filter(|(rotation, _)| !rotation.is_spent(now))?;
        (stage != Stage::Retired).then(|| self.rotating(rotation.tainting()))
    }
}

/// Of the certificate itself, whatever is above it; unix seconds.
fn begins(cert: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    Some(parsed.validity().not_before.timestamp())
}

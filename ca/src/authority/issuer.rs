//! The issuing intermediate: made under the root, or brought along; signs leaves and bundles.

use std::time::Duration;

use postern_identity::TrustDomain;
use postern_identity::bundle::{self, SignedBundle};
use postern_identity::quarantine::{self, SignedQuarantine};
use rcgen::{KeyPair, SigningKey as _};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{AuthorityError, Root, new_key};
use crate::clock::{earlier, later, shown};
use crate::profile::{self, BACKDATE, ProfileError, Validity};

/// Who signs: certificate and key.
pub(super) struct Issuer {
    pub(super) epoch: u64,
    pub(super) cert: CertificateDer<'static>,
    /// Between it and the root, the lowest first: nothing above an issuer of our own.
    pub(super) above: Vec<CertificateDer<'static>>,
    pub(super) signer: rcgen::Issuer<'static, KeyPair>,
    pub(super) validity: Validity,
}

impl Issuer {
    pub(super) fn create(
        trust_domain: &TrustDomain,
        epoch: u64,
        root: &Root,
        life: Duration,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        if !root.validity.contains(now) {
            return Err(AuthorityError::Clock(format!(
                "the clock says {}, outside the root's validity ({} to {})",
                shown(now),
                shown(root.validity.not_before),
                shown(root.validity.not_after)
            )));
        }
        let validity = Validity {
            not_before: earlier(now, BACKDATE).max(root.validity.not_before),
            not_after: later(now, life).min(root.validity.not_after),
        };
        let key = new_key()?;
        let above = rcgen::Issuer::from_ca_cert_der(&root.cert, &root.key).map_err(ProfileError::from)?;
        let cert = profile::issuer(trust_domain, epoch, &key, validity, &above)?;
        Self::assemble(epoch, cert, Vec::new(), key, validity)
    }

    /// The same issuer (name and key) certified by another root, no longer than by its own.
    pub(super) fn under_another(
        &self,
        trust_domain: &TrustDomain,
        root: &Root,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let validity = Validity {
            not_before: self.validity.not_before.max(root.validity.not_before),
            not_after: self.validity.not_after.min(root.validity.not_after),
        };
        let above = rcgen::Issuer::from_ca_cert_der(&root.cert, &root.key).map_err(ProfileError::from)?;
        Ok(profile::issuer(
            trust_domain,
            self.epoch,
            self.signer.key(),
            validity,
            &above,
        )?)
    }

    pub(super) fn assemble(
        epoch: u64,
        cert: CertificateDer<'static>,
        above: Vec<CertificateDer<'static>>,
        key: KeyPair,
        validity: Validity,
    ) -> Result<Self, AuthorityError> {
        let signer = rcgen::Issuer::from_ca_cert_der(&cert, key).map_err(ProfileError::from)?;
        Ok(Self {
            epoch,
            cert,
            above,
            signer,
            validity,
        })
    }

    /// It, and what is above it, without the root.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.cert).chain(&self.above).cloned().collect()
    }

    pub(super) fn sign_bundle(
        &self,
        trust_domain: &TrustDomain,
        document: Vec<u8>,
    ) -> Result<SignedBundle, AuthorityError> {
        let input = bundle::signing_input(trust_domain, &document);
        let signature = self.signer.key().sign(&input).map_err(ProfileError::from)?;
        Ok(SignedBundle {
            document,
            signature,
            signer_chain: self.chain(),
        })
    }

    pub(super) fn sign_quarantine(
        &self,
        trust_domain: &TrustDomain,
        document: Vec<u8>,
    ) -> Result<SignedQuarantine, AuthorityError> {
        let input = quarantine::signing_input(trust_domain, &document);
        let signature = self.signer.key().sign(&input).map_err(ProfileError::from)?;
        Ok(SignedQuarantine {
            document,
            signature,
            signer_chain: self.chain(),
        })
    }
}

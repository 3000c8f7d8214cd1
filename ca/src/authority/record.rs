//! Authority and root as the store keeps them. Reading one back checks all that founding one promised.

use std::sync::Arc;
use std::time::Duration;

use postern_identity::bundle::SignedBundle;
use postern_identity::{TrustBundle, TrustDomain};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, AuthorityError, Issuer, Root, matching, own_id, validity_of};
use crate::base64_bytes::Base64;
use crate::profile::Validity;

/// `root.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RootRecord {
    certificate: Base64,
    private_key: Base64,
}

/// `authority.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthorityRecord {
    trust_domain: String,
    root_certificate: Base64,
    issuer_life_seconds: u64,
    issuer: IssuerRecord,
    bundles: Vec<LinkRecord>,
    /// SHA-256 of issuers that a brought one has followed. (A version that brings none does not read it.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replaced_issuers: Vec<Base64>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IssuerRecord {
    epoch: u64,
    certificate: Base64,
    private_key: Base64,
    /// Between it and the root; of one that was brought.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    above: Vec<Base64>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkRecord {
    document: Base64,
    signature: Base64,
    signer_chain: Vec<Base64>,
}

impl RootRecord {
    /// A root as it is stored.
    #[must_use]
    pub(crate) fn of(root: &Root) -> Self {
        Self {
            certificate: Base64::of(&root.cert),
            private_key: Base64::of(root.key.serialized_der()),
        }
    }
    /// The stored root, checked.
    pub(crate) fn load(self) -> Result<Root, AuthorityError> {
        let (cert, key) = (cert(&self.certificate), key(&self.private_key, "root")?);
        let validity = matching(&cert, &key, "root")?;
        Ok(Root { cert, key, validity })
    }
}

impl AuthorityRecord {
    /// An authority as it is stored.
    #[must_use]
    pub(crate) fn of(authority: &Authority) -> Self {
        let issuer = &authority.issuer;
        Self {
            trust_domain: authority.trust_domain.to_string(),
            root_certificate: Base64::of(&authority.root),
            issuer_life_seconds: authority.issuer_life.as_secs(),
            issuer: IssuerRecord::brought(&issuer.cert, issuer.above.iter(), issuer.signer.key().serialized_der())
                .numbered(issuer.epoch),
            bundles: authority.links.iter().map(LinkRecord::of).collect(),
            replaced_issuers: authority.replaced.iter().map(|sum| Base64::of(sum)).collect(),
        }
    }

    /// The stored authority. `now` only has to lie within the issuer's validity for the self-test to be meaningful: an
    /// issuer that has expired while nobody served is checked as of its last instant (and then replaced by the caller),
    /// one that is not valid yet as of its first (and then refuses to issue until the clock is right).
    pub(crate) fn load(self, now: UnixTime) -> Result<Authority, AuthorityError> {
        let unusable = |error: &dyn std::fmt::Display| AuthorityError::Unusable(error.to_string());
        let trust_domain = TrustDomain::parse(&self.trust_domain).map_err(|error| unusable(&error))?;
        let root = cert(&self.root_certificate);
        let (_, parsed) = X509Certificate::from_der(&root).map_err(|_| unusable(&"the root cannot be read"))?;
        let root_validity = validity_of(&parsed).ok_or_else(|| unusable(&"the root's validity lies before 1970"))?;
        let issuer = self.issuer.load(root_validity)?;
        let validity = issuer.validity;
        let sum = |sum: &Base64| sum.bytes().try_into().ok();
        let replaced = self.replaced_issuers.iter().filter_map(sum).collect();
        let tested_at = now.clamp(validity.not_before, validity.not_after);
        let links: Vec<SignedBundle> = self.bundles.into_iter().map(LinkRecord::load).collect();
        let last = links.last().ok_or_else(|| unusable(&"it holds no bundle"))?;
        let bundle = TrustBundle::from_document(trust_domain.clone(), &last.document, tested_at)
            .map_err(|error| unusable(&error))?;
        Authority {
            own_id: own_id(&trust_domain)?,
            trust_domain,
            root,
            root_validity,
            issuer: Arc::new(issuer),
            issuer_life: Duration::from_secs(self.issuer_life_seconds),
            links,
            bundle,
            jwt: None,
            rotation: None,
            replaced,
        }
        .tested(tested_at)
    }
}

impl IssuerRecord {
    /// Without a number yet.
    pub(super) fn brought<'c>(
        cert: &CertificateDer<'_>,
        above: impl Iterator<Item = &'c CertificateDer<'static>>,
        key: &[u8],
    ) -> Self {
        Self {
            epoch: 0,
            certificate: Base64::of(cert),
            private_key: Base64::of(key),
            above: above.map(|der| Base64::of(der)).collect(),
        }
    }
    pub(super) fn numbered(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }
    pub(super) fn cert(&self) -> CertificateDer<'static> {
        cert(&self.certificate)
    }
    /// The issuer, under a root of this validity: leaves end with whatever is above them.
    pub(super) fn load(self, root: Validity) -> Result<Issuer, AuthorityError> {
        let (issuer, key) = (cert(&self.certificate), key(&self.private_key, "issuer")?);
        let mut validity = matching(&issuer, &key, "issuer")?.within(root);
        let above: Vec<_> = self.above.iter().map(cert).collect();
        for der in &above {
            let unusable = |why: &str| AuthorityError::Unusable(format!("a certificate above the issuer {why}"));
            let (_, parsed) = X509Certificate::from_der(der).map_err(|_| unusable("cannot be read"))?;
            let span = validity_of(&parsed).ok_or_else(|| unusable("has a validity before 1970"))?;
            validity = validity.within(span);
        }
        if validity.not_before > validity.not_after {
            let why = "the issuer and what is above it are at no time valid together";
            return Err(AuthorityError::Unusable(why.to_owned()));
        }
        Issuer::assemble(self.epoch, issuer, above, key, validity)
    }
}

impl LinkRecord {
    pub(super) fn of(link: &SignedBundle) -> Self {
        Self {
            document: Base64::of(&link.document),
            signature: Base64::of(&link.signature),
            signer_chain: link.signer_chain.iter().map(|der| Base64::of(der)).collect(),
        }
    }
    pub(super) fn load(self) -> SignedBundle {
        SignedBundle {
            document: self.document.bytes().to_vec(),
            signature: self.signature.bytes().to_vec(),
            signer_chain: self.signer_chain.iter().map(cert).collect(),
        }
    }
}

fn cert(der: &Base64) -> CertificateDer<'static> {
    CertificateDer::from(der.bytes().to_vec())
}

pub(super) fn key(der: &Base64, what: &str) -> Result<KeyPair, AuthorityError> {
    // PKCS#8 if we made it; what was brought is kept as it came.
    KeyPair::try_from(der.bytes())
        .map_err(|error| AuthorityError::Unusable(format!("the {what} key cannot be read: {error}")))
}

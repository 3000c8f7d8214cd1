//! What was made elsewhere: a root, or an issuer with what stands above it. Checked whole before any of it is used.
//!
//! ```text
//! parts (PEM, with the place of each) --each certificate by itself--> the chain --name, room, key--> a throwaway leaf,
//!   believed by the verifier that every peer runs --> Brought, or BroughtRoot      (no other way to one)
//! ```

use std::time::Duration;

use postern_identity::authority::{self, Authority as Facts};
use postern_identity::{Instance, TrustDomain};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::record::IssuerRecord;
use super::{Authority, Issuer, Root, new_key, own_id, sha256};
use crate::clock::shown;
use crate::profile::{self, Holder, Validity};
use crate::tokens::hex;

mod fault;

pub use fault::{BroughtError, Fault};

/// Between issuer and root. The chain of a bundle's signer has three certificates at most.
pub(crate) const MAX_ABOVE: usize = 2;
/// For trying what was brought; the issuers of a root with its key live as long as that says.
const TRIED: Duration = Duration::from_secs(3600);

/// A certificate, and where it stood.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) place: String,
    pub(crate) der: CertificateDer<'static>,
}

/// What was read of an issuer.
pub(crate) struct Parts {
    /// The issuer first, then what is above it.
    pub(crate) chain: Vec<Found>,
    pub(crate) key: KeyPair,
    pub(crate) key_place: String,
    pub(crate) roots: Vec<Found>,
    pub(crate) roots_place: String,
}

/// An issuer that was made elsewhere, and would be believed.
pub(crate) struct Brought {
    pub(super) record: IssuerRecord,
    pub(super) root: CertificateDer<'static>,
    pub(super) root_validity: Validity,
    ends: UnixTime,
}

impl Parts {
    /// The chain, and what it lacks of intermediates from where the roots are: some tools put them there. Only what signed itself
    /// is a root.
    fn whole_chain(&self) -> Vec<&Found> {
        let mut chain: Vec<&Found> = self.chain.iter().collect();
        // One too many is said to be.
        while let Some(top) = chain.last().filter(|_| chain.len() <= MAX_ABOVE + 1) {
            let above = |found: &&Found| signed_by(top, found).is_ok();
            if self
                .roots
                .iter()
                .filter(|found| is_self_signed(found))
                .any(|root| above(&root))
            {
                break;
            }
            let new = |found: &&Found| chain.iter().all(|other| other.der != found.der);
            let next = self
                .roots
                .iter()
                .filter(new)
                .filter(above)
                .find(|found| !is_self_signed(found));
            match next {
                Some(next) => chain.push(next),
                None => break,
            }
        }
        chain
    }
}

impl Brought {
    /// Checks it. `preferred`: the root that signs, if the issuer is under that one as well.
    pub(crate) fn check(
        trust_domain: &TrustDomain,
        parts: &Parts,
        preferred: Option<&CertificateDer<'_>>,
        now: UnixTime,
    ) -> Result<Self, BroughtError> {
        let Some(issuer) = parts.chain.first() else {
            return Err(Fault::NoCertificate.at(&parts.key_place));
        };
        let chain = parts.whole_chain();
        if chain.len() > MAX_ABOVE + 1 {
            let (found, most) = (chain.len(), MAX_ABOVE + 1);
            return Err(Fault::TooLong { found, most }.at(&issuer.place));
        }
        let mut facts = Vec::with_capacity(chain.len() + 1);
        for (below, found) in chain.iter().enumerate() {
            facts.push(fit(found, below, trust_domain, now)?);
        }
        let parsed = parse(issuer)?;
        if parsed.subject().as_raw() == parsed.issuer().as_raw() {
            return Err(Fault::SelfSigned.at(&issuer.place));
        }
        signs_here(issuer, &parsed, &parts.key, &parts.key_place)?;
        for pair in chain.windows(2) {
            if let [below, above] = pair {
                signed_by(below, above)?;
            }
        }
        let root = root_above(&chain, parts, preferred)?;
        let root_facts = fit(root, chain.len(), trust_domain, now)?;
        facts.push(root_facts);
        let brought = Self {
            ends: facts.iter().map(|one| one.not_after).min().unwrap_or(now),
            record: IssuerRecord::brought(
                &issuer.der,
                chain.iter().skip(1).map(|found| &found.der),
                parts.key.serialized_der(),
            ),
            root: root.der.clone(),
            root_validity: validity(&root_facts),
        };
        let signer = brought
            .issuer(1)
            .map_err(|error| Fault::Unverified(error.to_string()).at(&issuer.place))?;
        repeats_its_name(issuer, &parsed, &signer, trust_domain, now)?;
        Authority::found_by(trust_domain, &brought, TRIED, now)
            .map_err(|error| Fault::Unverified(crate::error_chain(&error)).at(&issuer.place))?;
        Ok(brought)
    }

    /// Ready to sign, as number `epoch`.
    pub(super) fn issuer(&self, epoch: u64) -> Result<Issuer, super::AuthorityError> {
        self.record.clone().numbered(epoch).load(self.root_validity)
    }

    /// Of the issuer, DER.
    pub(crate) fn cert(&self) -> CertificateDer<'static> {
        self.record.cert()
    }
    /// Believed until then: it, or the first to end of those above it.
    pub(crate) fn ends(&self) -> UnixTime {
        self.ends
    }
    /// Of the issuer, for people.
    pub(crate) fn subject(&self) -> String {
        let cert = self.cert();
        X509Certificate::from_der(&cert).map_or_else(|_| String::new(), |(_, parsed)| parsed.subject().to_string())
    }
    /// Hex.
    pub(crate) fn root_sha256(&self) -> String {
        hex(&sha256(&self.root))
    }
    /// The root that it is under, DER.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

/// A root with its key, from elsewhere.
pub(crate) fn root_with_key(
    trust_domain: &TrustDomain,
    cert: &Found,
    key: KeyPair,
    key_place: &str,
    now: UnixTime,
) -> Result<Root, BroughtError> {
    let facts = fit_as_root(cert, trust_domain, now)?;
    let parsed = parse(cert)?;
    signs_here(cert, &parsed, &key, key_place)?;
    let root = Root {
        cert: cert.der.clone(),
        key,
        validity: validity(&facts),
    };
    let unverified = |error: super::AuthorityError| Fault::Unverified(crate::error_chain(&error)).at(&cert.place);
    let below = Issuer::create(trust_domain, 1, &root, TRIED, now).map_err(unverified)?;
    let name =
        X509Certificate::from_der(&below.cert).map(|(_, below)| below.issuer().as_raw() == parsed.subject().as_raw());
    if !name.unwrap_or(false) {
        return Err(Fault::Name.at(&cert.place));
    }
    Authority::found(trust_domain, &root, TRIED, now).map_err(unverified)?;
    Ok(root)
}

/// A root whose key stays elsewhere.
pub(crate) fn root_alone(trust_domain: &TrustDomain, cert: &Found, now: UnixTime) -> Result<(), BroughtError> {
    fit_as_root(cert, trust_domain, now).map(drop)
}

/// An issuer stands below it, and nothing above.
fn fit_as_root(cert: &Found, trust_domain: &TrustDomain, now: UnixTime) -> Result<Facts, BroughtError> {
    let facts = fit(cert, 1, trust_domain, now)?;
    if is_self_signed(cert) {
        return Ok(facts);
    }
    Err(Fault::NotSelfSigned(parse(cert)?.issuer().to_string()).at(&cert.place))
}

/// A root: its name is not enough, which one that was signed by the root's key before (RFC 4210 4.4) has as well.
pub(crate) fn is_self_signed(found: &Found) -> bool {
    signed_by(found, found).is_ok()
}

/// Each CA certificate by itself. `below`: how many intermediates stand under it.
fn fit(found: &Found, below: usize, trust_domain: &TrustDomain, now: UnixTime) -> Result<Facts, BroughtError> {
    let at = |fault: Fault| fault.at(&found.place);
    let facts = authority::inspect(&found.der).map_err(|unfit| at(Fault::Unfit(unfit)))?;
    authority::check_key(&found.der).map_err(|what| at(Fault::Key(what)))?;
    if now < facts.not_before {
        return Err(at(Fault::NotYetValid {
            from: shown(facts.not_before),
            now: shown(now),
        }));
    }
    if now > facts.not_after {
        return Err(at(Fault::Expired {
            until: shown(facts.not_after),
            now: shown(now),
        }));
    }
    if let Some(room) = facts
        .path_len
        .filter(|room| below > usize::try_from(*room).unwrap_or(usize::MAX))
    {
        return Err(at(Fault::NoRoom { room, below }));
    }
    let parsed = parse(found)?;
    names(&parsed, trust_domain).map_err(at)?;
    Ok(facts)
}

/// An ID in a CA certificate is that of the trust domain itself, and the only URI (SPIFFE X.509-SVID 2 and 4.2).
fn names(parsed: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), Fault> {
    let mut uris = Vec::new();
    for extension in parsed.extensions() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() {
            for name in &san.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    // x509-parser hides a URI that it cannot read.
                    GeneralName::Invalid(..) => return Err(Fault::Uris(2)),
                    _ => {}
                }
            }
        }
    }
    match uris.as_slice() {
        [] => Ok(()),
        [uri] if *uri == format!("spiffe://{trust_domain}") => Ok(()),
        // A root's home page is nobody's identity.
        [uri] if !uri.to_ascii_lowercase().starts_with("spiffe:") => Ok(()),
        [uri] => Err(Fault::TrustDomain {
            uri: uri.clone(),
            wanted: format!("spiffe://{trust_domain}"),
        }),
        several => Err(Fault::Uris(several.len())),
    }
}

/// What signs in this process: the key is the certificate's, and its name can be written.
fn signs_here(found: &Found, parsed: &X509Certificate<'_>, key: &KeyPair, key_place: &str) -> Result<(), BroughtError> {
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(Fault::KeyMismatch(found.place.clone()).at(key_place));
    }
    if key.is_compatible(&PKCS_ED25519) {
        return Err(Fault::Key("of Ed25519, by which bundles are not signed here").at(&found.place));
    }
    // rcgen panics at an empty RDN, and writes one attribute in each.
    let mut rdns = parsed.subject().iter().peekable();
    if rdns.peek().is_none() || rdns.any(|rdn| rdn.iter().count() != 1) {
        return Err(Fault::Name.at(&found.place));
    }
    let usage = parsed.key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.critical) {
        return Err(Fault::UsageNotCritical.at(&found.place));
    }
    Ok(())
}

/// rcgen collapses repeated attributes: every leaf would then name an issuer that is nobody's.
fn repeats_its_name(
    found: &Found,
    parsed: &X509Certificate<'_>,
    signer: &Issuer,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<(), BroughtError> {
    let unverified = |error: &dyn std::fmt::Display| Fault::Unverified(error.to_string()).at(&found.place);
    let id = own_id(trust_domain).map_err(|error| unverified(&error))?;
    let instance = Instance::parse("self-test").map_err(|error| unverified(&error))?;
    let key = new_key().map_err(|error| unverified(&error))?;
    let validity = Validity {
        not_before: now,
        not_after: now,
    };
    let (leaf, _) = profile::leaf(&id, Some(&instance), Holder::Proxy, &key, validity, &signer.signer)
        .map_err(|error| unverified(&error))?;
    let same = X509Certificate::from_der(&leaf).map(|(_, leaf)| leaf.issuer().as_raw() == parsed.subject().as_raw());
    if same.unwrap_or(false) {
        Ok(())
    } else {
        Err(Fault::Name.at(&found.place))
    }
}

/// The root that the top of the chain is signed by: that which signs already, if it is one of them.
fn root_above<'p>(
    chain: &[&Found],
    parts: &'p Parts,
    preferred: Option<&CertificateDer<'_>>,
) -> Result<&'p Found, BroughtError> {
    let top = chain.last().ok_or_else(|| Fault::NoCertificate.at(&parts.key_place))?;
    if parts.roots.is_empty() {
        return Err(Fault::NoRoot.at(&parts.roots_place));
    }
    let roots = || parts.roots.iter().filter(|found| is_self_signed(found));
    let signers = || roots().filter(|root| signed_by(top, root).is_ok());
    signers()
        .find(|root| Some(&root.der) == preferred)
        .or_else(|| signers().next())
        .ok_or_else(|| {
            let parsed = parse(top).map(|top| top.issuer().to_string());
            Fault::OtherRoot {
                wanted: parsed.unwrap_or_default(),
                roots: parts.roots_place.clone(),
            }
            .at(&top.place)
        })
}

fn signed_by(below: &Found, above: &Found) -> Result<(), BroughtError> {
    let (parsed, over) = (parse(below)?, parse(above)?);
    let named = parsed.issuer().as_raw() == over.subject().as_raw();
    if named && parsed.verify_signature(Some(over.public_key())).is_ok() {
        return Ok(());
    }
    Err(Fault::Broken(above.place.clone()).at(&below.place))
}

fn parse(found: &Found) -> Result<X509Certificate<'_>, BroughtError> {
    X509Certificate::from_der(&found.der)
        .map(|(_, parsed)| parsed)
        .map_err(|_| Fault::Unfit(authority::Unfit::Malformed).at(&found.place))
}

fn validity(facts: &Facts) -> Validity {
    Validity {
        not_before: facts.not_before,
        not_after: facts.not_after,
    }
}

impl std::fmt::Debug for Brought {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Brought").finish_non_exhaustive()
    }
}

//! Files that a root or an issuer is brought in: PEM, and directories that a kubelet swaps whole.
//!
//! ```text
//! DIR/..data -> ..2026_11_29        the files of one swap; each is read below what `..data` points to, and `..data` must
//!    tls.crt -> ..data/tls.crt      point there still when the last was read. Without `..data`: as they lie there.
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use zeroize::Zeroizing;

use postern_identity::{TrustDomain, authority};

use crate::authority::{Brought, BroughtError, Fault, Found, Parts, is_self_signed};

#[cfg(test)]
mod tests;

/// A chain of a few certificates, or one key.
pub(crate) const MAX_FILE: u64 = 64 * 1024;
/// A swap takes an instant: one that is met thrice in a row is none.
const ATTEMPTS: usize = 3;
const SWAPPED: &str = "..data";

/// What the files of an issuer are called.
struct Names {
    chain: &'static str,
    more: Option<&'static str>,
    key: &'static str,
    roots: &'static str,
}

/// Of a Secret of type kubernetes.io/tls.
const TLS: Names = Names {
    chain: "tls.crt",
    more: None,
    key: "tls.key",
    roots: "ca.crt",
};
/// Of Istio's Secret `cacerts`.
const CACERTS: Names = Names {
    chain: "ca-cert.pem",
    more: Some("cert-chain.pem"),
    key: "ca-key.pem",
    roots: "root-cert.pem",
};

/// Where an issuer is mounted.
#[derive(Debug, Clone)]
pub(crate) struct IssuerDir {
    dir: PathBuf,
}

impl IssuerDir {
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Reads and checks what is there now.
    pub(crate) fn look(
        &self,
        trust_domain: &TrustDomain,
        preferred: Option<&CertificateDer<'_>>,
        now: UnixTime,
    ) -> Result<Brought, BroughtError> {
        Brought::check(trust_domain, &self.read()?, preferred, now)
    }

    fn read(&self) -> Result<Parts, BroughtError> {
        for _ in 0..ATTEMPTS {
            let before = self.swapped();
            let from = before.as_ref().map_or_else(|| self.dir.clone(), |to| self.dir.join(to));
            let parts = self.read_from(&from);
            if self.swapped() == before {
                return parts;
            }
        }
        Err(Fault::Restless.at(&self.dir.display().to_string()))
    }

    /// What `..data` points to.
    fn swapped(&self) -> Option<PathBuf> {
        fs::read_link(self.dir.join(SWAPPED)).ok()
    }

    /// Places are named as the operator knows them, without what `..data` points to.
    fn read_from(&self, from: &Path) -> Result<Parts, BroughtError> {
        let named = |name: &str| self.dir.join(name).display().to_string();
        let there = |name: &str| from.join(name).exists();
        let names = match (there(TLS.chain), there(CACERTS.chain)) {
            (true, true) => {
                return Err(Fault::Ambiguous(TLS.chain, CACERTS.chain).at(&self.dir.display().to_string()));
            }
            (_, false) => TLS,
            (false, true) => CACERTS,
        };
        let read = |name: &str| bytes_of(&from.join(name), &named(name));
        let mut chain = certificates(&read(names.chain)?, &named(names.chain))?;
        let key = key_of(chain.first(), &read(names.key)?, &named(names.key))?;
        let roots = if there(names.roots) {
            certificates(&read(names.roots)?, &named(names.roots))?
        } else {
            Vec::new()
        };
        if let Some(more) = names.more.filter(|more| there(more)) {
            chain.extend(certificates(&read(more)?, &named(more))?);
        }
        Ok(Parts {
            chain: without_repeats(chain, &roots),
            key,
            key_place: named(names.key),
            roots,
            roots_place: named(names.roots),
        })
    }
}

/// Chains often have the issuer twice, and the root at their end.
fn without_repeats(chain: Vec<Found>, roots: &[Found]) -> Vec<Found> {
    let mut kept: Vec<Found> = Vec::with_capacity(chain.len());
    for (n, found) in chain.into_iter().enumerate() {
        let is_root = n > 0 && roots.iter().any(|root| root.der == found.der) && is_self_signed(&found);
        if !is_root && kept.iter().all(|other| other.der != found.der) {
            kept.push(found);
        }
    }
    kept
}

/// What an operator hands in: the issuer, what is above it and, perhaps, a root, in one text; the key is ours.
pub(crate) fn handed_in(
    pem: &str,
    place: &str,
    key: KeyPair,
    known: &CertificateDer<'static>,
) -> Result<Parts, BroughtError> {
    let found = certificates(pem.as_bytes(), place)?;
    // The first is the issuer, whatever it is.
    let is_root = |n: usize, found: &Found| n > 0 && is_self_signed(found);
    let (mut roots, mut chain) = (Vec::new(), Vec::new());
    for (n, found) in found.into_iter().enumerate() {
        if is_root(n, &found) {
            roots.push(found);
        } else {
            chain.push(found);
        }
    }
    let mut roots_place = place.to_owned();
    if roots.is_empty() {
        "the root of this CA".clone_into(&mut roots_place);
        roots.push(Found {
            place: roots_place.clone(),
            der: known.clone(),
        });
    }
    Ok(Parts {
        chain,
        key,
        key_place: "the request".to_owned(),
        roots,
        roots_place,
    })
}

/// The one certificate of a file.
pub(crate) fn one_certificate(path: &Path) -> Result<Found, BroughtError> {
    let place = path.display().to_string();
    let mut found = certificates(&bytes_of(path, &place)?, &place)?;
    if found.len() > 1 {
        return Err(Fault::Several(found.len()).at(&place));
    }
    found.pop().ok_or_else(|| Fault::NoCertificate.at(&place))
}

/// The key of this certificate in a file, and its place.
pub(crate) fn one_key(path: &Path, of: &Found) -> Result<(KeyPair, String), BroughtError> {
    let place = path.display().to_string();
    Ok((key_of(Some(of), &bytes_of(path, &place)?, &place)?, place))
}

/// One that is too weak cannot be read either: the certificate says why.
fn key_of(cert: Option<&Found>, bytes: &[u8], place: &str) -> Result<KeyPair, BroughtError> {
    let key = private_key(bytes, place);
    match (&key, cert) {
        (Err(error), Some(cert)) if matches!(error.fault(), Fault::Key(_)) => match authority::check_key(&cert.der) {
            Err(what) => Err(Fault::Key(what).at(&cert.place)),
            Ok(()) => key,
        },
        _ => key,
    }
}

fn bytes_of(path: &Path, place: &str) -> Result<Zeroizing<Vec<u8>>, BroughtError> {
    let read = || -> io::Result<Zeroizing<Vec<u8>>> {
        // Room for all of it at once: a buffer that grows leaves copies behind.
        let room = usize::try_from(MAX_FILE).unwrap_or(usize::MAX).saturating_add(1);
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| Fault::Unreadable(error.to_string()).at(place))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Fault::TooLarge(MAX_FILE).at(place));
    }
    Ok(bytes)
}

fn certificates(bytes: &[u8], place: &str) -> Result<Vec<Found>, BroughtError> {
    let mut found = Vec::new();
    for (n, der) in CertificateDer::pem_slice_iter(bytes).enumerate() {
        let place = format!("{place}, certificate {}", n + 1);
        let der = der.map_err(|error| Fault::Pem(pem_fault(&error)).at(&place))?;
        found.push(Found { place, der });
    }
    if found.is_empty() {
        return Err(Fault::NoCertificate.at(place));
    }
    Ok(found)
}

fn private_key(bytes: &[u8], place: &str) -> Result<KeyPair, BroughtError> {
    let der = match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(der) => der,
        // PKCS#8 and the older form of openssl.
        Err(_)
            if ["ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
                .iter()
                .any(|it| has(bytes, it)) =>
        {
            return Err(Fault::EncryptedKey.at(place));
        }
        Err(pem::Error::NoItemsFound) => return Err(Fault::NoKey.at(place)),
        Err(error) => return Err(Fault::Pem(pem_fault(&error)).at(place)),
    };
    KeyPair::try_from(&der).map_err(|_| Fault::Key("of a kind that does not sign here, or damaged").at(place))
}

/// Without the bytes that it was met in, which its own words repeat: they may be a key's.
fn pem_fault(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section does not end",
        pem::Error::IllegalSectionStart { .. } => "the line that begins a section has more, or less, in it",
        pem::Error::Base64Decode(_) => "its base64 is damaged",
        pem::Error::NoItemsFound => "there is nothing in it",
        pem::Error::SectionTooLarge => "a section is too long",
        // Theirs may grow; nothing that is read from a slice is left.
        _ => "it cannot be taken apart",
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

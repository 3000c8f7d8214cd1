//! `init`: a root and its first issuer, in a store that did not exist.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_identity::{IdError, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authority::{
    Authority, AuthorityError, AuthorityRecord, Brought, BroughtError, Root, RootRecord, root_alone, root_with_key,
    sha256,
};
use crate::base64_bytes::Base64;
use crate::brought_files::{IssuerDir, handed_in, one_certificate, one_key};
use crate::issuance::bringing::{Founding, Request, csr};
use crate::pem;
use crate::seal::{KekConfig, KekError, Sealer, make_kek_file};
use crate::store::{Kind, NewStore, Seals, Store, StoreError};
use crate::tokens::hex;

/// Shorter and the issuer would be replaced all the time.
const MIN_ISSUER_LIFE: Duration = Duration::from_secs(5);

/// What to make.
#[derive(Debug, Clone)]
pub struct InitConfig {
    /// A directory that does not exist or is empty.
    pub store: PathBuf,
    /// Such as `cluster.local`.
    pub trust_domain: String,
    /// The root's life.
    pub root_life: Duration,
    /// The life of this and every later issuer.
    pub issuer_life: Duration,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// Hex; for comparing by eye.
    pub root_sha256: String,
    /// It waits for its first issuing certificate.
    pub asks: bool,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// A value out of its bounds.
    #[error("{0}")]
    Config(String),
    /// No trust domain.
    #[error(transparent)]
    TrustDomain(#[from] IdError),
    /// What was brought is not used.
    #[error(transparent)]
    Brought(#[from] BroughtError),
    /// Certificates could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The key that seals the store.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// The store could not be made.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Lives that a CA can be founded with.
pub(crate) fn check_lives(root_life: Duration, issuer_life: Duration) -> Result<(), InitError> {
    if issuer_life < MIN_ISSUER_LIFE {
        return Err(InitError::Config(format!(
            "an issuer lives at least {MIN_ISSUER_LIFE:?}"
        )));
    }
    if root_life < issuer_life {
        return Err(InitError::Config(
            "the root must not live shorter than its issuers".to_owned(),
        ));
    }
    Ok(())
}

/// Where the root comes from.
#[derive(Debug, Clone, Default)]
pub enum RootSource {
    /// From here.
    #[default]
    Own,
    /// From these PEM files; without the key the first issuer is asked for (`requested`).
    Files {
        /// Its certificate.
        cert: PathBuf,
        /// Its key.
        key: Option<PathBuf>,
    },
    /// From a directory of an issuer, which later ones come from, too.
    Issuer(PathBuf),
}

/// Makes a CA, sealed under the key of the file beside its store.
pub fn init(config: &InitConfig, now: UnixTime) -> Result<Initialised, InitError> {
    init_from(config, &RootSource::Own, now)
}

/// The same with a root from elsewhere.
pub fn init_from(config: &InitConfig, root: &RootSource, now: UnixTime) -> Result<Initialised, InitError> {
    match KekConfig::beside(&config.store) {
        KekConfig::File(file) => init_by_file(config, root, &file, now),
        KekConfig::Kms(_) => Err(InitError::Config("the KEK beside a store is a file".to_owned())),
    }
}

/// Makes a CA, sealed under the key of a file; one that is not there is made, and stays only if the CA does.
pub(crate) fn init_by_file(
    config: &InitConfig,
    root: &RootSource,
    file: &Path,
    now: UnixTime,
) -> Result<Initialised, InitError> {
    let is_new = make_kek_file(file)?;
    let sealer = Sealer::by_file(file).map_err(InitError::from);
    let made = sealer.and_then(|sealer| init_sealed_from(config, root, sealer, now));
    if made.is_err() && is_new {
        // Nothing is sealed under it.
        let _ = std::fs::remove_file(file);
    }
    made
}

/// Makes a CA. Either all of it is on disk when this returns, or nothing.
pub fn init_sealed(config: &InitConfig, sealer: Sealer, now: UnixTime) -> Result<Initialised, InitError> {
    init_sealed_from(config, &RootSource::Own, sealer, now)
}

/// What a new store begins with.
enum Begun {
    /// It can issue.
    Whole(Box<Authority>, Option<Root>),
    /// It has a root and asks for an issuer.
    Asking(CertificateDer<'static>, Request),
}

pub(crate) fn init_sealed_from(
    config: &InitConfig,
    source: &RootSource,
    sealer: Sealer,
    now: UnixTime,
) -> Result<Initialised, InitError> {
    check_lives(config.root_life, config.issuer_life)?;
    let trust_domain = TrustDomain::parse(&config.trust_domain)?;
    // Before anything is made: what is brought may be refused.
    let begun = begin(&trust_domain, config, source, now)?;
    let store = NewStore::begin(&config.store, Seals::Sealed(Arc::new(sealer)))?;
    let root = match &begun {
        Begun::Whole(authority, root) => {
            if let Some(root) = root {
                store.write(Kind::Root, &RootRecord::of(root))?;
            }
            if let Some(keys) = authority.jwt_keys_record() {
                store.write(Kind::JwtKeys, &keys)?;
            }
            store.write(Kind::Authority, &AuthorityRecord::of(authority))?;
            authority.root()
        }
        Begun::Asking(root, request) => {
            store.write(Kind::Request, request)?;
            root
        }
    };
    store.write_root_pem(&pem::encode("CERTIFICATE", root))?;
    store.finish()?;
    Ok(Initialised {
        root_sha256: hex(&sha256(root)),
        asks: matches!(begun, Begun::Asking(..)),
    })
}

fn begin(
    trust_domain: &TrustDomain,
    config: &InitConfig,
    source: &RootSource,
    now: UnixTime,
) -> Result<Begun, InitError> {
    let root = match source {
        RootSource::Own => Root::create(trust_domain, config.root_life, now)?,
        RootSource::Files { cert, key: Some(key) } => {
            let cert = one_certificate(cert)?;
            let (key, place) = one_key(key, &cert)?;
            root_with_key(trust_domain, &cert, key, &place, now)?
        }
        RootSource::Files { cert, key: None } => {
            let root = one_certificate(cert)?;
            root_alone(trust_domain, &root, now)?;
            let request = Request::create(Some(Founding {
                trust_domain: trust_domain.to_string(),
                root_certificate: Base64::of(&root.der),
                issuer_life_seconds: config.issuer_life.as_secs(),
            }))?;
            return Ok(Begun::Asking(root.der, request));
        }
        RootSource::Issuer(dir) => {
            let brought = IssuerDir::at(dir.clone()).look(trust_domain, None, now)?;
            let authority = Authority::found_by(trust_domain, &brought, config.issuer_life, now)?;
            return Ok(Begun::Whole(Box::new(authority), None));
        }
    };
    let authority = Authority::found(trust_domain, &root, config.issuer_life, now)?;
    Ok(Begun::Whole(Box::new(authority), Some(root)))
}

/// The request of a store that has no issuer yet, PEM; `None`: it has one.
pub(crate) fn requested(store: &Store) -> Result<Option<String>, StoreError> {
    let Some((request, trust_domain)) = founding(store)? else {
        return Ok(None);
    };
    let csr = request.key().and_then(|key| csr(&trust_domain, 1, &key));
    csr.map(Some)
        .map_err(|error| store.damaged(Kind::Request, error.to_string()))
}

/// The first issuer of a store that has none: its number; `None`: it has one.
pub(crate) fn completed(store: &Store, pem: &str, place: &str, now: UnixTime) -> Result<Option<u64>, InitError> {
    let Some((request, trust_domain)) = founding(store)? else {
        return Ok(None);
    };
    let Some(founding) = &request.founding else {
        return Ok(None);
    };
    let root = CertificateDer::from(founding.root_certificate.bytes().to_vec());
    let parts = handed_in(pem, place, request.key()?, &root)?;
    let brought = Brought::check(&trust_domain, &parts, Some(&root), now)?;
    if *brought.root() != root {
        return Err(InitError::Config(format!(
            "{place} is under another root than that of this store, {}; make a new store with that root",
            hex(&sha256(&root))
        )));
    }
    let life = Duration::from_secs(founding.issuer_life_seconds);
    let authority = Authority::found_by(&trust_domain, &brought, life, now)?;
    if let Some(keys) = authority.jwt_keys_record() {
        store.write(Kind::JwtKeys, &keys)?;
    }
    store.write(Kind::Authority, &AuthorityRecord::of(&authority))?;
    store.remove(Kind::Request)?;
    Ok(Some(authority.issuer_epoch()))
}

fn founding(store: &Store) -> Result<Option<(Request, TrustDomain)>, StoreError> {
    if store.path(Kind::Authority).exists() {
        return Ok(None);
    }
    let Some(request) = store.read::<Request>(Kind::Request)? else {
        return Ok(None);
    };
    let Some(founding) = &request.founding else {
        return Ok(None);
    };
    let trust_domain =
        TrustDomain::parse(&founding.trust_domain).map_err(|error| store.damaged(Kind::Request, error.to_string()))?;
    Ok(Some((request, trust_domain)))
}

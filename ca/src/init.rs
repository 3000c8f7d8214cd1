//! `init`: a root and its first issuer, in a store that did not exist.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_identity::{IdError, TrustDomain};
use rustls_pki_types::UnixTime;

use crate::authority::{Authority, AuthorityError, AuthorityRecord, Root, RootRecord};
use crate::pem;
use crate::seal::{KekConfig, KekError, Sealer, make_kek_file};
use crate::store::{Kind, NewStore, Seals, StoreError};
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

/// Makes a CA, sealed under the key of the file beside its store.
pub fn init(config: &InitConfig, now: UnixTime) -> Result<Initialised, InitError> {
    match KekConfig::beside(&config.store) {
        KekConfig::File(file) => init_by_file(config, &file, now),
        KekConfig::Kms(_) => Err(InitError::Config("the KEK beside a store is a file".to_owned())),
    }
}

/// Makes a CA, sealed under the key of a file; one that is not there is made, and stays only if the CA does.
pub(crate) fn init_by_file(config: &InitConfig, file: &Path, now: UnixTime) -> Result<Initialised, InitError> {
    let is_new = make_kek_file(file)?;
    let sealer = Sealer::by_file(file).map_err(InitError::from);
    let made = sealer.and_then(|sealer| init_sealed(config, sealer, now));
    if made.is_err() && is_new {
        // Nothing is sealed under it.
        let _ = std::fs::remove_file(file);
    }
    made
}

/// Makes a CA. Either all of it is on disk when this returns, or nothing.
pub fn init_sealed(config: &InitConfig, sealer: Sealer, now: UnixTime) -> Result<Initialised, InitError> {
    check_lives(config.root_life, config.issuer_life)?;
    let trust_domain = TrustDomain::parse(&config.trust_domain)?;
    let store = NewStore::begin(&config.store, Seals::Sealed(Arc::new(sealer)))?;
    let root = Root::create(&trust_domain, config.root_life, now)?;
    let authority = Authority::found(&trust_domain, &root, config.issuer_life, now)?;
    store.write(Kind::Root, &RootRecord::of(&root))?;
    if let Some(keys) = authority.jwt_keys_record() {
        store.write(Kind::JwtKeys, &keys)?;
    }
    store.write(Kind::Authority, &AuthorityRecord::of(&authority))?;
    store.write_root_pem(&pem::encode("CERTIFICATE", root.cert()))?;
    store.finish()?;
    Ok(Initialised {
        root_sha256: hex(&authority.root_sha256()),
    })
}

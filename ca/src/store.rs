//! The CA's state on disk: small files, each replaced whole, in one directory that one process owns.
//!
//! ```text
//! DIR (0700)/lock              held for as long as a process owns the store
//!            authority.json    root certificate, issuing key, bundle chain      } 0600, each one sealed record,
//!            root.json         root certificate and key; may be kept elsewhere  } written to a temporary file,
//!            rotation.json     the last replacement of the root, and its stage  }
//!            request.json      an issuing key whose certificate is waited for   }
//!            jwt.json          keys of JWT-SVIDs                                }
//!            tokens.json       join tokens (the SHA-256 of their secrets)       } synced, renamed, directory synced
//!            quarantine.json   who is cut off, why, by whom and since when      }
//!            ledger.json       the ledger's key, and how far it had come        }
//!            ledger-jwt.json   the same of the ledger of JWT-SVIDs              }
//!            ledger.redb       what was issued and refused: `ledger.rs`
//!            ledger-jwt.redb   the JWT-SVIDs that were issued
//!            root.pem          the published root certificates, for people and foreign peers
//! ```
//!
//! A file that is not exactly what was written is never guessed at: the error says which one and what to do. In Kubernetes
//! a Secret can hold the same sealed records instead (`secret.rs`).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::seal::{KekError, Sealer};

mod record;
#[cfg(feature = "kubernetes")]
pub(crate) mod secret;
#[cfg(test)]
mod tests;

/// State files are small; a larger one is not ours. (10,000 tokens take under 4 MiB.)
const MAX_FILE: u64 = 16 * 1024 * 1024;
const LOCK: &str = "lock";
/// The published root certificates in PEM; public.
pub const ROOT_PEM: &str = "root.pem";

/// What a file of the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Root certificate, issuing key, bundle chain.
    Authority,
    /// Root key.
    Root,
    /// The last replacement of the root.
    Rotation,
    /// A key whose certificate is waited for.
    Request,
    /// The keys of JWT-SVIDs.
    JwtKeys,
    /// Join tokens.
    Tokens,
    /// Who is cut off.
    Quarantine,
    /// The key of the ledger, and how far it had come.
    Ledger,
    /// The same of the ledger of JWT-SVIDs.
    JwtLedger,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Authority,
        Self::Rotation,
        Self::Request,
        Self::JwtKeys,
        Self::Root,
        Self::Tokens,
        Self::Quarantine,
        Self::Ledger,
        Self::JwtLedger,
    ];

    /// The word in the record's head.
    fn name(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Root => "root",
            Self::Rotation => "rotation",
            Self::Request => "request",
            Self::JwtKeys => "jwt",
            Self::Tokens => "tokens",
            Self::Quarantine => "quarantine",
            Self::Ledger => "ledger",
            Self::JwtLedger => "ledger-jwt",
        }
    }
    /// The file's name in the store.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Authority => "authority.json",
            Self::Root => "root.json",
            Self::Rotation => "rotation.json",
            Self::Request => "request.json",
            Self::JwtKeys => "jwt.json",
            Self::Tokens => "tokens.json",
            Self::Quarantine => "quarantine.json",
            Self::Ledger => "ledger.json",
            Self::JwtLedger => "ledger-jwt.json",
        }
    }
    /// What an operator does about a damaged one.
    fn remedy(self) -> &'static str {
        match self {
            Self::Authority => {
                "put this one file back from a backup of the store; without a backup, make a new store with \
                 `postern-ca init` and give every workload a new join token"
            }
            Self::Root => {
                "put this one file back from a backup; or move it away: the CA then serves with the issuer that it \
                 has, and cannot make another"
            }
            Self::Rotation => {
                "put this one file back from a backup; without a backup, move it away together with ledger.json, ledger.redb, ledger-jwt.json and ledger-jwt.redb: a \
                 replacement of the root that is under way stays where it is until the next one (`postern-ca rotate --root`)"
            }
            Self::Request => {
                "move this one file away and ask anew (`postern-ca issuer request`): what was signed for the request before is of no \
                 use; a store that has no issuer yet is made anew with `postern-ca init`"
            }
            Self::Tokens => {
                "move this one file away and start again: outstanding join tokens are void, make new ones; \
                 certificates and renewals are not touched"
            }
            Self::JwtKeys => {
                "move this one file away and start again: new keys sign JWT-SVIDs from then on, and those before are \
                 believed until the next issuer (`rotate --taint` voids them); certificates are not touched"
            }
            Self::Quarantine => {
                "put this one file back from a backup; without a backup, move it away and start again: who was cut off comes \
                 back from control if that still runs, and `postern quarantine list` shows whether it did"
            }
            Self::Ledger => {
                "put ledger.json and ledger.redb back as they were last; or move both away and start again: a new chain \
                 begins, certificates and tokens are not touched, and what is whole of the old one can still be read with \
                 `postern-ca ledger`"
            }
            Self::JwtLedger => {
                "put ledger-jwt.json and ledger-jwt.redb back as they were last; or move both away and start again: a new chain \
                 begins, certificates and tokens are not touched, and what is whole of the old one can still be read with \
                 `postern-ca ledger`"
            }
        }
    }
}

/// Why the store cannot be used; each says the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No store there.
    #[error("there is no CA store at {}; make one with `postern-ca init --store {} --trust-domain <name>`", dir.display(), dir.display())]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Something is there already.
    #[error("{} exists and is not empty; a CA is never overwritten: name another directory, or remove this one if its certificates may become worthless", dir.display())]
    Exists {
        /// What exists.
        dir: PathBuf,
    },
    /// It has a root, and no issuer yet.
    #[error("the CA in {} has no issuing certificate yet: have the request of `postern-ca issuer request --store {}` signed under its root, and hand the certificate in with `postern-ca issuer import`", dir.display(), dir.display())]
    NoIssuer {
        /// The store.
        dir: PathBuf,
    },
    /// It makes its issuers itself.
    #[error("{} is the root's key, so this CA makes its issuing certificates itself; take that file away, to a safe place, for those of --issuer-dir to follow its own", .0.display())]
    OwnRoot(PathBuf),
    /// Another process owns it.
    #[error("the store {} is owned by another postern-ca process; stop that one first", dir.display())]
    Locked {
        /// The store.
        dir: PathBuf,
    },
    /// Others may read it.
    #[error("{} is open to other users (mode {mode:03o}); run `chmod {wanted:03o} {}`, and if somebody may have read it, make a new store", path.display(), path.display())]
    Open {
        /// Which file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it has to be.
        wanted: u32,
    },
    /// Not what was written.
    #[error("{} is damaged ({why}); {}", path.display(), kind.remedy())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What it holds.
        kind: Kind,
        /// What is wrong.
        why: String,
    },
    /// Its key.
    #[error("{} cannot be opened or sealed", path.display())]
    Kek {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KekError,
    },
    /// The process is ending.
    #[error("writing {0} was cut short")]
    Cut(&'static str),
    /// The operating system refuses.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// `read`, `write`, ...
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How records are kept.
#[derive(Debug, Clone)]
pub enum Seals {
    /// As they are: only in a Secret, whose cluster may encrypt it.
    Clear,
    /// Sealed; one in clear is refused.
    Sealed(Arc<Sealer>),
    /// Sealed; one in clear is read, too.
    Migrating(Arc<Sealer>),
}

impl Seals {
    pub(crate) fn by(sealer: Sealer, migrate: bool) -> Self {
        let sealer = Arc::new(sealer);
        match migrate {
            true => Self::Migrating(sealer),
            false => Self::Sealed(sealer),
        }
    }

    pub(crate) fn sealer(&self) -> Option<&Arc<Sealer>> {
        match self {
            Self::Clear => None,
            Self::Sealed(sealer) | Self::Migrating(sealer) => Some(sealer),
        }
    }

    /// Gets what is needed to open these records.
    pub(crate) async fn learn(&self, records: &[&[u8]]) -> Result<(), KekError> {
        match self.sealer() {
            Some(sealer) => sealer.learn(records).await,
            None => Ok(()),
        }
    }

    /// Is this record as it would be written now?
    pub(crate) fn is_current(&self, record: &[u8]) -> bool {
        self.sealer().is_none_or(|sealer| sealer.is_current(record))
    }
}

/// An owned store.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    seals: Seals,
    /// One write at a time: two would share a temporary file.
    writing: Mutex<()>,
    /// Released by the kernel when the process ends, however it ends.
    _lock: File,
}

impl Store {
    /// Is there a store? Said before anybody is asked for a key.
    pub fn exists(dir: &Path) -> Result<(), StoreError> {
        let has = |name: &str| dir.join(name).exists();
        if ![Kind::Authority.file(), Kind::Request.file(), LOCK]
            .into_iter()
            .any(has)
        {
            return Err(StoreError::Missing { dir: dir.to_owned() });
        }
        Ok(())
    }

    /// Which record is in clear, and whether any is sealed; read before anybody has a key.
    pub(crate) fn found(dir: &Path) -> Result<(Option<Kind>, bool), StoreError> {
        let (mut clear, mut sealed) = (None, false);
        for kind in Kind::ALL {
            match bytes_in(dir, kind)? {
                Some(bytes) if record::is_clear(&bytes) => clear = clear.or(Some(kind)),
                Some(_) => sealed = true,
                None => {}
            }
        }
        Ok((clear, sealed))
    }

    /// Takes ownership of an existing store. Nothing is read before [`Self::learn`].
    pub fn open(dir: &Path, seals: Seals) -> Result<Self, StoreError> {
        Self::exists(dir)?;
        private(dir, 0o700)?;
        let path = dir.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Locked { dir: dir.to_owned() }),
            Err(fs::TryLockError::Error(source)) => {
                return Err(StoreError::Io {
                    what: "lock",
                    path,
                    source,
                });
            }
        }
        // What a write that was cut short left behind. The lock is ours: nobody is writing now.
        for kind in Kind::ALL {
            let left = dir.join(temporary(kind));
            if left.exists() {
                fs::remove_file(&left).map_err(io_error("remove", &left))?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            seals,
            writing: Mutex::new(()),
            _lock: lock,
        })
    }

    /// Reads a file; `None` if it is not there.
    pub fn read<T: DeserializeOwned>(&self, kind: Kind) -> Result<Option<T>, StoreError> {
        let Some(bytes) = bytes_in(&self.dir, kind)? else {
            return Ok(None);
        };
        unsealed(&self.seals, kind, &bytes)
            .map(Some)
            .map_err(|why| self.damaged(kind, why))
    }

    /// Replaces a file: when this returns, a crash finds the new one; before, the old one; never a mixture.
    pub fn write<T: Serialize>(&self, kind: Kind, value: &T) -> Result<(), StoreError> {
        // A write that panicked left at most its temporary file, which the next one truncates.
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write_in(&self.dir, &self.seals, kind, value)
    }

    /// Takes a file away for good.
    pub(crate) fn remove(&self, kind: Kind) -> Result<(), StoreError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path(kind);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io_error("remove", &path)(source)),
        }
    }

    /// The public root certificates, as they stand there.
    pub(crate) fn root_pem(&self) -> Option<String> {
        fs::read_to_string(self.dir.join(ROOT_PEM)).ok()
    }

    /// Replaces the public root certificates, for people and foreign peers.
    pub(crate) fn write_root_pem(&self, pem: &str) -> Result<(), StoreError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, temporary) = (self.dir.join(ROOT_PEM), self.dir.join(format!(".{ROOT_PEM}.tmp")));
        write_synced(&temporary, pem.as_bytes(), 0o644)?;
        fs::rename(&temporary, &path).map_err(io_error("replace", &path))?;
        sync_dir(&self.dir)
    }

    /// Asks for the keys of the records that are there.
    pub async fn learn(&self) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            if let Some(bytes) = bytes_in(&self.dir, kind)? {
                let learned = self.seals.learn(&[&bytes]).await;
                learned.map_err(|source| StoreError::Kek {
                    path: self.path(kind),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Records that are not sealed as they would be now.
    pub fn behind(&self) -> Result<Vec<Kind>, StoreError> {
        let mut behind = Vec::new();
        for kind in Kind::ALL {
            if bytes_in(&self.dir, kind)?.is_some_and(|bytes| !self.seals.is_current(&bytes)) {
                behind.push(kind);
            }
        }
        Ok(behind)
    }

    /// Seals a record anew, as it stands. What was begun and not finished is begun again: each record stands for itself.
    pub fn rewrap(&self, kind: Kind) -> Result<(), StoreError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bytes) = bytes_in(&self.dir, kind)? else {
            return Ok(());
        };
        let body = record::open(&self.seals, kind, &bytes).map_err(|why| self.damaged(kind, why))?;
        write_body(&self.dir, &self.seals, kind, &body)
    }

    /// How its records are sealed.
    pub(crate) fn seals(&self) -> &Seals {
        &self.seals
    }

    pub(crate) fn in_clear(dir: &Path, kind: Kind) -> StoreError {
        StoreError::Damaged {
            path: dir.join(kind.file()),
            kind,
            why: record::IN_CLEAR.to_owned(),
        }
    }

    /// Where something lies that is not one small record.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// For messages: where a file lies.
    #[must_use]
    pub fn path(&self, kind: Kind) -> PathBuf {
        self.dir.join(kind.file())
    }

    /// An error for a file that reads well but makes no sense.
    #[must_use]
    pub fn damaged(&self, kind: Kind, why: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            path: self.path(kind),
            kind,
            why: why.into(),
        }
    }
}

/// A store being made: complete under a temporary name, then renamed into place. A crash leaves nothing at `dir`.
#[derive(Debug)]
pub struct NewStore {
    dir: PathBuf,
    building: PathBuf,
    seals: Seals,
}

impl NewStore {
    /// Begins a store that will be at `dir`, which must not exist or be empty.
    pub fn begin(dir: &Path, seals: Seals) -> Result<Self, StoreError> {
        match fs::read_dir(dir) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(StoreError::Exists { dir: dir.to_owned() });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(StoreError::Io {
                    what: "read",
                    path: dir.to_owned(),
                    source,
                });
            }
        }
        let parent = parent_of(dir);
        fs::create_dir_all(&parent).map_err(io_error("create", &parent))?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let building = parent.join(format!(".{name}.new-{}", std::process::id()));
        if building.exists() {
            fs::remove_dir_all(&building).map_err(io_error("remove", &building))?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&building)
            .map_err(io_error("create", &building))?;
        Ok(Self {
            dir: dir.to_owned(),
            building,
            seals,
        })
    }

    /// Writes one of its files.
    pub fn write<T: Serialize>(&self, kind: Kind, value: &T) -> Result<(), StoreError> {
        write_in(&self.building, &self.seals, kind, value)
    }

    /// Writes the public root certificate.
    pub fn write_root_pem(&self, pem: &str) -> Result<(), StoreError> {
        let path = self.building.join(ROOT_PEM);
        write_synced(&path, pem.as_bytes(), 0o644)
    }

    /// Puts the whole store in place.
    pub fn finish(self) -> Result<(), StoreError> {
        sync_dir(&self.building)?;
        // Replaces an empty directory, and fails on any other: two inits never both succeed.
        fs::rename(&self.building, &self.dir).map_err(|source| {
            let taken = [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists].contains(&source.kind());
            if taken {
                StoreError::Exists { dir: self.dir.clone() }
            } else {
                StoreError::Io {
                    what: "create",
                    path: self.dir.clone(),
                    source,
                }
            }
        })?;
        sync_dir(&parent_of(&self.dir))
    }
}

impl Drop for NewStore {
    fn drop(&mut self) {
        // Gone already if it was put in place; else a half-made store is of no use to anybody.
        let _ = fs::remove_dir_all(&self.building);
    }
}

fn bytes_in(dir: &Path, kind: Kind) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let path = dir.join(kind.file());
    let damaged = |why: String| StoreError::Damaged {
        path: path.clone(),
        kind,
        why,
    };
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StoreError::Io {
                what: "read",
                path,
                source,
            });
        }
    };
    private(&path, 0o600)?;
    if length > MAX_FILE {
        return Err(damaged(format!("{length} bytes long")));
    }
    let bytes = Zeroizing::new(fs::read(&path).map_err(io_error("read", &path))?);
    Ok(Some(bytes))
}

/// The value of a record of a store or a Secret that is not in its place; its keys were asked for.
pub(crate) fn read_record<T: DeserializeOwned>(seals: &Seals, kind: Kind, bytes: &[u8]) -> Result<T, String> {
    unsealed(seals, kind, bytes)
}

/// The value of what is kept, or what is wrong with it.
fn unsealed<T: DeserializeOwned>(seals: &Seals, kind: Kind, bytes: &[u8]) -> Result<T, String> {
    let body = record::open(seals, kind, bytes)?;
    serde_json::from_slice(&body).map_err(|error| format!("its content is not readable: {error}"))
}

fn write_in<T: Serialize>(dir: &Path, seals: &Seals, kind: Kind, value: &T) -> Result<(), StoreError> {
    let body = serde_json::to_vec_pretty(value).map(Zeroizing::new);
    let body = body.map_err(|error| StoreError::Io {
        what: "encode",
        path: dir.join(kind.file()),
        source: error.into(),
    })?;
    write_body(dir, seals, kind, &body)
}

fn write_body(dir: &Path, seals: &Seals, kind: Kind, body: &[u8]) -> Result<(), StoreError> {
    let path = dir.join(kind.file());
    let content = record::seal(seals, kind, body).map_err(|source| StoreError::Kek {
        path: path.clone(),
        source,
    })?;
    let temporary = dir.join(temporary(kind));
    write_synced(&temporary, &content, 0o600)?;
    fs::rename(&temporary, &path).map_err(io_error("replace", &path))?;
    sync_dir(dir)
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io_error("write", path))
}

fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(io_error("sync", dir))
}

fn private(path: &Path, wanted: u32) -> Result<(), StoreError> {
    let mode = fs::metadata(path).map_err(io_error("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Open {
            path: path.to_owned(),
            mode,
            wanted,
        });
    }
    Ok(())
}

fn temporary(kind: Kind) -> String {
    format!(".{}.tmp", kind.file())
}

fn parent_of(dir: &Path) -> PathBuf {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

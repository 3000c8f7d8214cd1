//! The CA's state on disk: three small files, each replaced whole, in one directory that one process owns.
//!
//! ```text
//! DIR (0700)/lock              held for as long as a process owns the store
//!            authority.json    root certificate, issuing key, bundle chain      } 0600, each one sealed record,
//!            root.json         root certificate and key; may be kept elsewhere  } written to a temporary file,
//!            tokens.json       join tokens (the SHA-256 of their secrets)       } synced, renamed, directory synced
//!            root.pem          the root certificate, for people and foreign peers
//! ```
//!
//! A file that is not exactly what was written is never guessed at: the error says which one and what to do. In Kubernetes
//! a Secret can hold the same sealed records instead (`secret.rs`).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

mod record;
#[cfg(feature = "kubernetes")]
pub(crate) mod secret;
#[cfg(test)]
mod tests;

/// State files are small; a larger one is not ours. (10,000 tokens take under 4 MiB.)
const MAX_FILE: u64 = 16 * 1024 * 1024;
const LOCK: &str = "lock";
/// The root certificate in PEM; public.
pub const ROOT_PEM: &str = "root.pem";

/// What a file of the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Root certificate, issuing key, bundle chain.
    Authority,
    /// Root key.
    Root,
    /// Join tokens.
    Tokens,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Authority, Self::Root, Self::Tokens];

    /// The word in the record's head.
    fn name(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Root => "root",
            Self::Tokens => "tokens",
        }
    }
    /// The file's name in the store.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Authority => "authority.json",
            Self::Root => "root.json",
            Self::Tokens => "tokens.json",
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
            Self::Tokens => {
                "move this one file away and start again: outstanding join tokens are void, make new ones; \
                 certificates and renewals are not touched"
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

/// An owned store.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// One write at a time: two would share a temporary file.
    writing: Mutex<()>,
    /// Released by the kernel when the process ends, however it ends.
    _lock: File,
}

impl Store {
    /// Takes ownership of an existing store.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        if !dir.join(Kind::Authority.file()).exists() && !dir.join(LOCK).exists() {
            return Err(StoreError::Missing { dir: dir.to_owned() });
        }
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
            writing: Mutex::new(()),
            _lock: lock,
        })
    }

    /// Reads a file; `None` if it is not there.
    pub fn read<T: DeserializeOwned>(&self, kind: Kind) -> Result<Option<T>, StoreError> {
        read_in(&self.dir, kind)
    }

    /// Replaces a file: when this returns, a crash finds the new one; before, the old one; never a mixture.
    pub fn write<T: Serialize>(&self, kind: Kind, value: &T) -> Result<(), StoreError> {
        // A write that panicked left at most its temporary file, which the next one truncates.
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write_in(&self.dir, kind, value)
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
}

impl NewStore {
    /// Begins a store that will be at `dir`, which must not exist or be empty.
    pub fn begin(dir: &Path) -> Result<Self, StoreError> {
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
        })
    }

    /// Writes one of its files.
    pub fn write<T: Serialize>(&self, kind: Kind, value: &T) -> Result<(), StoreError> {
        write_in(&self.building, kind, value)
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

fn read_in<T: DeserializeOwned>(dir: &Path, kind: Kind) -> Result<Option<T>, StoreError> {
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
    unsealed(kind, &bytes).map(Some).map_err(damaged)
}

/// A value as it is kept, wherever that is.
fn sealed<T: Serialize>(kind: Kind, value: &T) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let body = serde_json::to_vec_pretty(value).map(Zeroizing::new)?;
    Ok(record::seal(kind, &body))
}

/// The value of what is kept, or what is wrong with it.
fn unsealed<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, String> {
    let body = record::open(kind, bytes).map_err(str::to_owned)?;
    serde_json::from_slice(&body).map_err(|error| format!("its content is not readable: {error}"))
}

fn write_in<T: Serialize>(dir: &Path, kind: Kind, value: &T) -> Result<(), StoreError> {
    let path = dir.join(kind.file());
    let content = sealed(kind, value).map_err(|error| StoreError::Io {
        what: "encode",
        path: path.clone(),
        source: error.into(),
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

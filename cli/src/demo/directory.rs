//! The demo's private directory: in memory where there is any, removed at the end, and by the next demo if this one is
//! killed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const PREFIX: &str = "postern-demo-";
/// Held locked for as long as its demo lives; the kernel lets go of it however that ends.
const LOCK: &str = "lock";

/// Only we may look: it holds the CA's store, and join tokens.
#[derive(Debug)]
pub(super) struct Directory {
    directory: TempDir,
    _lock: Option<File>,
}

impl Directory {
    /// Makes it. `keep`: it is never removed, by nobody.
    pub(super) fn make(keep: bool) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for place in places() {
            // Not there, or not ours to write to: the next place will do.
            match Self::make_in(&place, keep) {
                Ok(directory) => return Ok(directory),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn make_in(place: &Path, keep: bool) -> io::Result<Self> {
        sweep(place);
        let mut directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(place)?;
        directory.disable_cleanup(keep);
        let lock = match keep {
            true => None,
            false => Some(locked(directory.path())?),
        };
        Ok(Self { directory, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Memory first: the CA syncs its store at every issuance, and certificates of seconds cannot wait for a busy disk. Who
/// sets TMPDIR has their reasons.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if std::env::var_os("TMPDIR").is_none() {
        places.extend(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
        places.push("/dev/shm".into());
    }
    places.push(std::env::temp_dir());
    places
}

/// Made under another name and renamed: whoever finds a lock file finds it locked, or its demo dead.
fn locked(directory: &Path) -> io::Result<File> {
    let new = directory.join("lock.new");
    let file = File::create(&new)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    fs::rename(&new, directory.join(LOCK))?;
    Ok(file)
}

/// Removes what demos of ours left that were killed.
fn sweep(place: &Path) {
    let own = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir(place).into_iter().flatten().filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let path = entry.path();
        // Of the entry itself: a link of somebody else's leads nowhere.
        let ours = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == own);
        if ours && is_abandoned(&path) {
            // Another demo may be removing it as well.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn is_abandoned(directory: &Path) -> bool {
    File::open(directory.join(LOCK)).is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_killed_demos_directory_is_removed_by_the_next_and_a_living_ones_is_not() {
        let place = tempfile::tempdir().unwrap();
        let living = Directory::make_in(place.path(), false).unwrap();
        let killed = place.path().join("postern-demo-killed");
        fs::create_dir(&killed).unwrap();
        fs::write(killed.join(LOCK), "").unwrap();
        let kept = Directory::make_in(place.path(), true).unwrap().path().to_owned();
        assert!(!killed.exists());
        assert!(living.path().exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
        Directory::make_in(place.path(), false).unwrap();
        assert!(kept.exists());
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

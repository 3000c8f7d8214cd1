//! The last good bundles, over a restart: an endpoint that proves itself by the bundle it serves can only be followed from
//! where we were.

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use postern_identity::{TrustBundle, TrustDomain, federation};
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use super::relationship::Relationship;
use crate::error_chain;

/// A directory of our own, or nothing at all.
#[derive(Debug, Clone)]
pub(super) struct Cache(Option<PathBuf>);

/// One file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    trust_domain: String,
    /// Under another one it is of no use: what is configured counts.
    relationship: String,
    document: String,
}

impl Cache {
    pub(super) fn at(directory: Option<PathBuf>) -> Self {
        Self(directory)
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// What was fetched last under this relationship.
    pub(super) fn load(&self, relationship: &Relationship) -> Option<TrustBundle> {
        let name = &relationship.trust_domain;
        let bytes = std::fs::read(self.path(name)?).ok()?;
        let entry: Entry = serde_json::from_slice(&bytes).ok()?;
        if entry.trust_domain != name.as_str() || entry.relationship != relationship.name() {
            return None;
        }
        let document = federation::parse_document(entry.document.as_bytes()).ok()?;
        Some(document.into_bundle(name.clone(), UnixTime::now()))
    }

    /// Whole or not at all. What cannot be kept is told, and in force all the same.
    pub(super) fn store(&self, relationship: &Relationship, bundle: &TrustBundle) {
        let (Some(directory), Some(path)) = (&self.0, self.path(&relationship.trust_domain)) else {
            return;
        };
        let entry = Entry {
            trust_domain: relationship.trust_domain.to_string(),
            relationship: relationship.name(),
            document: String::from_utf8_lossy(&bundle.to_document()).into_owned(),
        };
        let written = serde_json::to_vec(&entry)
            .map_err(io::Error::other)
            .and_then(|bytes| write(directory, &path, &bytes));
        if let Err(error) = written {
            tracing::error!(
                reason = "federation_cache",
                "the bundle of {} is not kept over a restart: {}: {}",
                relationship.trust_domain,
                path.display(),
                error_chain(&error)
            );
        }
    }

    /// The relationship has ended: should it come again, it begins with what is given then.
    pub(super) fn forget(&self, name: &TrustDomain) {
        if let Some(path) = self.path(name) {
            // Not there: nothing to forget.
            let _ = std::fs::remove_file(path);
        }
    }

    /// A trust domain's name may be as long as a file's name, and be dots alone.
    fn path(&self, name: &TrustDomain) -> Option<PathBuf> {
        let sum = digest(&SHA256, name.as_str().as_bytes());
        let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(self.0.as_ref()?.join(format!("{sum}.json")))
    }
}

fn write(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    // Replicas share a volume, and each is process 1 of its own pod: the name is nobody else's by chance alone.
    let temporary = path.with_extension(format!("{:016x}.tmp", fastrand::u64(..)));
    let written = write_new(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Half of a file, or none.
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    std::fs::File::open(directory)?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;

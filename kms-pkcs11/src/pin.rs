//! The token's PIN, in a file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::Zeroizing;

/// PKCS#11 counts a PIN's length in tens; this is a file with a newline or two.
const MAX_FILE: u64 = 1024;

/// Tells one state of a file from another, without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The file as it is now; `None`: there is none.
pub(crate) fn version(path: &Path) -> Option<Version> {
    // Of what it points to: Kubernetes swaps mounted Secrets by a symbolic link.
    let metadata = fs::metadata(path).ok()?;
    Some(Version {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// The PIN, without the newline that editors leave; an error never shows any of it.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| format!("cannot read the PIN file {shown}: {error}");
    let metadata = fs::metadata(path).map_err(failed)?;
    let (owner, own, mode) = (
        metadata.uid(),
        rustix::process::geteuid().as_raw(),
        metadata.mode() & 0o777,
    );
    if owner != own && owner != 0 {
        return Err(format!(
            "the PIN file {shown} belongs to user {owner}, who could change it; it must be one's own, or root's"
        ));
    }
    // Kubernetes gives a mounted Secret to root, and to a group of the pod's.
    let to_others = if owner == own { 0o077 } else { 0o037 };
    if mode & to_others != 0 {
        return Err(format!(
            "the PIN file {shown} is open to other users (mode {mode:03o}); run `chmod 600 {shown}`, and change the PIN if \
             somebody may have read it"
        ));
    }
    if metadata.len() > MAX_FILE {
        return Err(format!(
            "the PIN file {shown} has {} bytes; it holds the PIN alone",
            metadata.len()
        ));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
    let pin = Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned());
    if pin.is_empty() {
        return Err(format!(
            "the PIN file {shown} is empty; it holds the token's user PIN, alone"
        ));
    }
    Ok(pin)
}

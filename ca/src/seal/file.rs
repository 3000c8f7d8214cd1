//! Keys in a file: one per line, 32 bytes in base64, the first wraps, all unwrap. Another key is put before the old one,
//! which goes once nothing is sealed under it any more.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{KEY_LEN, KekError, Wrapped, aead};
use crate::base64_bytes::Base64;
use crate::tokens::hex;

pub(super) const PROVIDER: &str = "file";
/// Keys of a file; two are enough for a rotation.
const MAX_KEYS: usize = 16;
/// Sixteen keys, and what people write beside them.
const MAX_FILE: u64 = 64 * 1024;
const AAD: &[u8] = b"postern-ca seed";

struct Key {
    id: String,
    bytes: Zeroizing<[u8; KEY_LEN]>,
}

/// The keys of a file, as last read.
pub(crate) struct KekFile {
    path: PathBuf,
    keys: Vec<Key>,
}

impl std::fmt::Debug for KekFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KekFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Makes a file with one new key; one that is there is left alone, and false.
pub(crate) fn make(path: &Path) -> Result<bool, KekError> {
    let failed = |error: io::Error| KekError::File(format!("cannot write the KEK file {}: {error}", path.display()));
    let mut key = Zeroizing::new([0; KEY_LEN]);
    rand::fill(&mut *key).map_err(|_| KekError::Random)?;
    let text = Zeroizing::new(format!("{}\n", STANDARD.encode(*key)));
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = fs::File::open(parent.unwrap_or(Path::new(".")));
    parent.and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok(true)
}

impl KekFile {
    /// Reads the keys.
    pub(crate) fn read(path: &Path) -> Result<Self, KekError> {
        Ok(Self {
            path: path.to_owned(),
            keys: keys(path)?,
        })
    }

    pub(super) fn read_again(&mut self) -> Result<(), KekError> {
        self.keys = keys(&self.path)?;
        Ok(())
    }

    pub(super) fn key_id(&self) -> &str {
        // No file without a key is taken.
        self.keys.first().map_or("", |key| &key.id)
    }

    pub(super) fn wrap(&self, seed: &[u8; KEY_LEN]) -> Result<Wrapped, KekError> {
        let key = self.keys.first().ok_or_else(|| KekError::File(empty(&self.path)))?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| KekError::Random)?;
        let (cipher, unique) = aead(&*key.bytes, &nonce);
        // With room for the tag: a vector that grows leaves its old bytes behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(seed.len() + AES_256_GCM.tag_len()));
        bytes.extend_from_slice(seed);
        let sealed = cipher.seal_in_place_append_tag(unique, Aad::from(AAD), &mut *bytes);
        sealed.map_err(|_| KekError::Random)?;
        Ok(Wrapped {
            provider: PROVIDER.to_owned(),
            key_id: key.id.clone(),
            annotations: Vec::new(),
            seed: Base64::of(&[&nonce[..], &bytes].concat()),
        })
    }

    /// A key that came into the file since it was read is found as well.
    pub(super) fn unwrap(&mut self, wrapped: &Wrapped) -> Result<Zeroizing<[u8; KEY_LEN]>, KekError> {
        let has_it = |keys: &[Key]| keys.iter().position(|key| key.id == wrapped.key_id);
        if has_it(&self.keys).is_none() {
            self.read_again()?;
        }
        let key = has_it(&self.keys).and_then(|at| self.keys.get(at));
        let key = key.ok_or_else(|| KekError::OtherKey {
            key_id: wrapped.key_id.clone(),
            place: self.path.display().to_string(),
        })?;
        let changed = || KekError::Changed(wrapped.key_id.clone());
        let (nonce, sealed) = wrapped.seed.bytes().split_at_checked(NONCE_LEN).ok_or_else(changed)?;
        let (cipher, unique) = aead(&*key.bytes, nonce);
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let seed = cipher
            .open_in_place(unique, Aad::from(AAD), &mut bytes)
            .map_err(|_| changed())?;
        let seed: &[u8; KEY_LEN] = (&*seed).try_into().map_err(|_| changed())?;
        Ok(Zeroizing::new(*seed))
    }
}

fn empty(path: &Path) -> String {
    format!(
        "the KEK file {} holds no key: one line of 32 bytes in base64, such as `head -c 32 /dev/urandom | base64` writes",
        path.display()
    )
}

fn keys(path: &Path) -> Result<Vec<Key>, KekError> {
    let shown = path.display();
    let failed = |error: io::Error| {
        KekError::File(format!(
            "cannot read the KEK file {shown}: {error}; what is sealed under its key cannot be read without it: put it back \
             from where you keep it"
        ))
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    let mode = metadata.mode() & 0o777;
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != own && owner != 0 {
        return Err(KekError::File(format!(
            "the KEK file {shown} belongs to user {owner}, who could change it; it must be one's own, or root's"
        )));
    }
    // Kubernetes gives a mounted Secret to root, and to a group of the pod's.
    let of_group = if owner == own { 0o077 } else { 0o037 };
    if mode & of_group != 0 {
        return Err(KekError::File(format!(
            "the KEK file {shown} is open to other users (mode {mode:03o}); run `chmod 600 {shown}`, and if somebody may have \
             read it, put a new key before the old one"
        )));
    }
    if metadata.len() > MAX_FILE {
        return Err(KekError::File(format!(
            "the KEK file {shown} has {} bytes; it is no such file",
            metadata.len()
        )));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
    let mut keys: Vec<Key> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bytes = STANDARD.decode(line).map(Zeroizing::new);
        let bytes = bytes.ok().and_then(|bytes| <[u8; KEY_LEN]>::try_from(&**bytes).ok());
        let bytes = bytes.map(Zeroizing::new).ok_or_else(|| {
            // Never the line itself.
            KekError::File(format!("{shown}:{number}: this is not {KEY_LEN} bytes in base64"))
        })?;
        let id = id_of(&bytes);
        if keys.iter().any(|known| known.id == id) {
            return Err(KekError::File(format!("{shown}:{number}: this key stands there twice")));
        }
        keys.push(Key { id, bytes });
    }
    match keys.len() {
        0 => Err(KekError::File(empty(path))),
        n if n > MAX_KEYS => Err(KekError::File(format!(
            "the KEK file {shown} holds {n} keys; {MAX_KEYS} at most"
        ))),
        _ => Ok(keys),
    }
}

/// A name that tells nothing of the key.
fn id_of(key: &[u8; KEY_LEN]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"postern-ca key id");
    context.update(key);
    hex(context.finish().as_ref().get(..8).unwrap_or_default())
}

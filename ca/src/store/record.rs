//! One record: a head line with its kind, then its body, sealed (version 2) or, only in a cluster's Secret without a KEK, in
//! clear with its SHA-256 (version 1).

use std::fmt::Write as _;

use aws_lc_rs::digest;
use zeroize::Zeroizing;

use super::{Kind, Seals};
use crate::seal::KekError;

const NAME: &str = "postern-ca-store";
const CLEAR: &str = "1";
const SEALED: &str = "2";

/// The file's content for this body.
pub(super) fn seal(seals: &Seals, kind: Kind, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, KekError> {
    let (head, body) = match seals {
        Seals::Clear => (clear_head(kind, body), Zeroizing::new(body.to_vec())),
        Seals::Sealed(sealer) | Seals::Migrating(sealer) => {
            let head = sealed_head(kind);
            let body = sealer.seal(&head, body)?;
            (head, Zeroizing::new(body))
        }
    };
    let mut sealed = Zeroizing::new(Vec::with_capacity(head.len() + body.len()));
    sealed.extend_from_slice(head.as_bytes());
    sealed.extend_from_slice(&body);
    Ok(sealed)
}

/// The body of a file, if it is whole and of this kind.
pub(super) fn open(seals: &Seals, kind: Kind, content: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    let end = content
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("its first line is missing")?;
    let (found, body) = content.split_at(end + 1);
    let found = std::str::from_utf8(found).map_err(|_| "its first line is not text")?;
    let mut words = found.split_ascii_whitespace();
    if words.next() != Some(NAME) {
        return Err("it is not a file of a postern-ca store".to_owned());
    }
    let version = words.next();
    if words.next() != Some(kind.name()) {
        return Err("it is another kind of file".to_owned());
    }
    match (version, seals) {
        (Some(CLEAR), Seals::Clear | Seals::Migrating(_)) => {
            if found != clear_head(kind, body) {
                return Err("its checksum does not match its content".to_owned());
            }
            Ok(Zeroizing::new(body.to_vec()))
        }
        (Some(CLEAR), Seals::Sealed(_)) => Err(IN_CLEAR.to_owned()),
        (Some(SEALED), Seals::Sealed(sealer) | Seals::Migrating(sealer)) => {
            let head = sealed_head(kind);
            if found != head {
                return Err("its first line was changed".to_owned());
            }
            sealer.open(&head, body)
        }
        (Some(SEALED), Seals::Clear) => {
            Err("it is sealed, and no key was given: --kek-file or --kms-socket".to_owned())
        }
        (_, _) => Err("it was written in a format that this version does not read".to_owned()),
    }
}

/// Was it written by a version that did not seal?
pub(super) fn is_clear(content: &[u8]) -> bool {
    content.starts_with(format!("{NAME} {CLEAR} ").as_bytes())
}

pub(super) const IN_CLEAR: &str = "it is in clear, and this CA seals what it keeps; one that an older version wrote is sealed by \
     `postern-ca rewrap --migrate`, or by `serve --migrate` (chart: ca.kek.migrate)";

fn sealed_head(kind: Kind) -> String {
    format!("{NAME} {SEALED} {}\n", kind.name())
}

fn clear_head(kind: Kind, body: &[u8]) -> String {
    let mut head = format!("{NAME} {CLEAR} {} sha256=", kind.name());
    for byte in digest::digest(&digest::SHA256, body).as_ref() {
        let _ = write!(head, "{byte:02x}");
    }
    head.push('\n');
    head
}

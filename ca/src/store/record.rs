//! One record: a head line with the kind and the SHA-256 of the body, then the body.
//!
//! This is the one place where bytes become a file's content and back: sealing under a key goes here.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use zeroize::Zeroizing;

use super::Kind;

const NAME: &str = "postern-ca-store";
const VERSION: &str = "1";

/// The file's content for this body.
pub(super) fn seal(kind: Kind, body: &[u8]) -> Zeroizing<Vec<u8>> {
    let head = head(kind, body);
    let mut sealed = Zeroizing::new(Vec::with_capacity(head.len() + body.len()));
    sealed.extend_from_slice(head.as_bytes());
    sealed.extend_from_slice(body);
    sealed
}

/// The body of a file, if it is whole and of this kind.
pub(super) fn open(kind: Kind, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let end = sealed
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("its first line is missing")?;
    let (found, body) = sealed.split_at(end + 1);
    let found = std::str::from_utf8(found).map_err(|_| "its first line is not text")?;
    let mut words = found.split_ascii_whitespace();
    if words.next() != Some(NAME) {
        return Err("it is not a file of a postern-ca store");
    }
    if words.next() != Some(VERSION) {
        return Err("it was written in a format that this version does not read");
    }
    if words.next() != Some(kind.name()) {
        return Err("it is another kind of file");
    }
    if found != head(kind, body) {
        return Err("its checksum does not match its content");
    }
    Ok(Zeroizing::new(body.to_vec()))
}

fn head(kind: Kind, body: &[u8]) -> String {
    let mut head = format!("{NAME} {VERSION} {} sha256=", kind.name());
    for byte in digest::digest(&digest::SHA256, body).as_ref() {
        let _ = write!(head, "{byte:02x}");
    }
    head.push('\n');
    head
}

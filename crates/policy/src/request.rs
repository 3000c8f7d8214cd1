//! What is asked: only parsed and verified things, never raw text.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use postern_identity::SpiffeId;

use crate::User;
use crate::canonical::{CanonicalHost, CanonicalPathRef};

/// One request, or one opaque stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// The verified peer; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The labels of the peer's workload, found by its verified ID and instance.
    pub peer_labels: Labels<'a>,
    /// The labels of the peer's namespace, found by its verified ID.
    pub peer_namespace_labels: Labels<'a>,
    /// Where the transport comes from.
    pub source_ip: Option<IpAddr>,
    /// The same, or what a trusted proxy before us says of it.
    pub remote_ip: Option<IpAddr>,
    /// The workload's own address that was dialled.
    pub destination_ip: Option<IpAddr>,
    /// The workload's port number.
    pub port: u16,
    /// The server name of the TLS handshake, lower case.
    pub sni: Option<&'a str>,
    /// Seconds since 1970; for the age of a login.
    pub now: u64,
    /// How what is not told counts.
    pub doubt: Doubt,
    /// `None` on an opaque stream.
    pub http: Option<Http<'a>>,
}

/// The HTTP part of a request.
#[derive(Debug, Clone, Copy)]
pub struct Http<'a> {
    /// The method, case-sensitive.
    pub method: &'a str,
    /// The one effective authority.
    pub host: &'a CanonicalHost,
    /// The path as it will be forwarded.
    pub path: CanonicalPathRef<'a>,
    /// The other fields of the head.
    pub headers: &'a dyn Headers,
    /// The end user, if a token of theirs was verified.
    pub user: Option<&'a User>,
}

/// The fields of a request's head.
pub trait Headers: fmt::Debug {
    /// Calls `found` with the value of each field of this name, in order, without white space at its ends. `name` is in lower
    /// case; `-`, `_` and `.` in names count as one, since many servers take them for one (CGI, WSGI, PHP). False: nobody can
    /// tell (any more) what the field held; then no ALLOW rule is satisfied by it, and every DENY rule is.
    fn each(&self, name: &str, found: &mut dyn FnMut(&[u8])) -> bool;
}

/// A head without fields.
#[derive(Debug, Clone, Copy)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn each(&self, _: &str, _: &mut dyn FnMut(&[u8])) -> bool {
        true
    }
}

/// How that counts which nobody tells: an address or a label that is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Doubt {
    /// It allows nothing, and denies.
    #[default]
    Closed,
    /// The other way round. Never where it is about forwarding: `explain` finds out by it whether a verdict is certain.
    Open,
}

/// What control says of a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Labels<'a> {
    /// Nobody can tell (yet): no ALLOW rule is satisfied by it, and every DENY rule is.
    #[default]
    Unknown,
    /// There are none to tell of: the peer has no instance, or is of another trust domain.
    None,
    /// These.
    Known(&'a BTreeMap<String, String>),
}

/// Is `given` the field `wanted`, which is in lower case? See [`Headers::each`].
#[must_use]
pub fn is_same_field(given: &str, wanted: &str) -> bool {
    let fold = |byte: u8| match byte {
        b'_' | b'.' => b'-',
        other => other.to_ascii_lowercase(),
    };
    given.len() == wanted.len() && given.bytes().zip(wanted.bytes()).all(|(a, b)| fold(a) == fold(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_servers_take_for_one_are_one() {
        for given in ["x-role", "X-Role", "x_role", "X.ROLE"] {
            assert!(
                is_same_field(given, "x-role") && is_same_field(given, "x_role"),
                "{given}"
            );
        }
        for given in ["x-roles", "xrole", "y-role", ""] {
            assert!(!is_same_field(given, "x-role"), "{given}");
        }
    }
}

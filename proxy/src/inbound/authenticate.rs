//! Who calls: the verified peer of the connection, prepared once for every request on it. (The end user's token joins per
//! request: `user`.)

use std::net::SocketAddr;

use http::HeaderValue;
use postern_identity::{SpiffeId, VerifiedPeer};

use crate::readmission::Name;

/// The peer of one connection and what the app is told about it.
#[derive(Debug)]
pub struct Caller {
    peer: Option<VerifiedPeer>,
    address: Option<SocketAddr>,
    server_name: Option<Box<str>>,
    leaf_sha256: Option<[u8; 32]>,
    xfcc: Option<HeaderValue>,
    source: Option<HeaderValue>,
    connection: Option<Name>,
}

impl Caller {
    /// Nobody proved anything: plaintext on a permissive port.
    #[must_use]
    pub fn anonymous(address: Option<SocketAddr>) -> Self {
        Self {
            peer: None,
            address,
            server_name: None,
            leaf_sha256: None,
            xfcc: None,
            source: None,
            connection: None,
        }
    }

    /// Proved by mTLS. `leaf_sha256` is of the peer's leaf, for `x-forwarded-client-cert`.
    #[must_use]
    pub fn verified(peer: VerifiedPeer, own: &SpiffeId, leaf_sha256: [u8; 32]) -> Self {
        // SPIFFE IDs hold none of the characters that XFCC would have to quote (`,;="`).
        let mut xfcc = format!("By={own};Hash=");
        for byte in leaf_sha256 {
            xfcc.push(hex_digit(byte >> 4));
            xfcc.push(hex_digit(byte & 0xf));
        }
        xfcc.push_str(";URI=");
        xfcc.push_str(peer.id().as_str());
        Self {
            xfcc: HeaderValue::from_str(&xfcc).ok(),
            source: HeaderValue::from_str(peer.id().as_str()).ok(),
            peer: Some(peer),
            address: None,
            server_name: None,
            leaf_sha256: Some(leaf_sha256),
            connection: None,
        }
    }

    /// Its transport address.
    #[must_use]
    pub fn at(mut self, address: Option<SocketAddr>) -> Self {
        self.address = address;
        self
    }

    /// The server name of its handshake.
    #[must_use]
    pub fn naming(mut self, server_name: Option<&str>) -> Self {
        self.server_name = server_name.map(|name| name.to_ascii_lowercase().into());
        self
    }

    /// What its connection is called between it and us.
    #[must_use]
    pub fn on(mut self, connection: Option<Name>) -> Self {
        self.connection = connection;
        self
    }

    /// See [`Caller::on`].
    #[must_use]
    pub fn connection(&self) -> Option<&Name> {
        self.connection.as_ref()
    }

    /// The server name of its handshake, in lower case.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Whom mTLS verified.
    #[must_use]
    pub fn peer(&self) -> Option<&VerifiedPeer> {
        self.peer.as_ref()
    }

    /// Where it calls from.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// SHA-256 of the certificate that it proved itself with.
    #[must_use]
    pub fn certificate_sha256(&self) -> Option<&[u8; 32]> {
        self.leaf_sha256.as_ref()
    }

    pub(super) fn xfcc(&self) -> Option<&HeaderValue> {
        self.xfcc.as_ref()
    }

    pub(super) fn source(&self) -> Option<&HeaderValue> {
        self.source.as_ref()
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0')
}

//! rustls configs: TLS 1.3 only, X25519MLKEM768 preferred, no resumption, no early data, our verifier on both sides.
//!
//! One config per generation of SVID, never per connection. Trust is read through [`SharedTrust`] at each
//! handshake, so that a bundle change needs no new config.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::UnixTime;

use crate::{Role, SharedTrust, SpiffeId, Svid, Trust, TrustBundle, VerifiedPeer, VerifyError};

/// Does a server insist on a client certificate?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Between sidecars: no certificate, no handshake.
    Required,
    /// At the CA: a caller that attests otherwise has none yet. One that is sent must verify.
    Optional,
}

/// aws-lc-rs, restricted to what the mesh speaks.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    todo!()
}

/// A server that proves itself with `svid`. `alpn` in order of preference; empty: ALPN is not negotiated.
pub fn server_config(
    svid: &Svid,
    trust: SharedTrust,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let _ = (svid, trust, client_auth, alpn);
    todo!()
}

/// A client, anonymous without `svid`. The verifier believes any peer that [`crate::verify::verify_peer`] believes;
/// which of them a destination may have is checked with [`crate::Expected`] before the first byte is sent.
pub fn client_config(svid: Option<&Svid>, trust: SharedTrust, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let _ = (svid, trust, alpn);
    todo!()
}

/// First trust: an anonymous client that accepts only `expected`, under the root whose SHA-256 is `root_sha256`,
/// which the server must send as the last certificate of its chain.
pub fn pinned_client_config(
    root_sha256: [u8; 32],
    expected: SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let _ = (root_sha256, expected, alpn);
    todo!()
}

/// The bundle of one root that a pinned handshake proved, to [`crate::bundle::advance`] from.
#[must_use]
pub fn pinned_bundle(connection: &CommonState, root_sha256: [u8; 32], now: UnixTime) -> Option<TrustBundle> {
    let _ = (connection, root_sha256, now);
    todo!()
}

/// The peer of a finished handshake, verified again in full under `trust` (100 us; once per connection).
pub fn peer_of(connection: &CommonState, role: Role, trust: &Trust, now: UnixTime) -> Result<VerifiedPeer, VerifyError> {
    let chain = connection.peer_certificates().ok_or(VerifyError::NoCertificate)?;
    crate::verify::verify_peer(chain, role, trust, now)
}

/// Our verdict inside a failed handshake's error, if the verifier gave one.
#[must_use]
pub fn verify_error(error: &rustls::Error) -> Option<&VerifyError> {
    let _ = error;
    todo!()
}

/// The same for the `io::Error` that tokio-rustls wraps it in.
#[must_use]
pub fn verify_error_in(error: &std::io::Error) -> Option<&VerifyError> {
    error.get_ref()?.downcast_ref::<rustls::Error>().and_then(verify_error)
}

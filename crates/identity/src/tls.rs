//! rustls configs: TLS 1.3 only, X25519MLKEM768 preferred, no resumption, no early data, our verifier on both sides.
//!
//! One config per generation of SVID, never per connection. Trust is read through [`SharedTrust`] at each
//! handshake, so that a bundle change needs no new config. rustls does not call the verifier on a resumed handshake:
//! that is why tickets, session stores and client resumption are all off.

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{CertificateError, ClientConfig, CommonState, ConnectionCommon, OtherError, ServerConfig};
use rustls_pki_types::UnixTime;

use crate::{Role, SharedTrust, SpiffeId, Svid, Trust, TrustBundle, VerifiedPeer, VerifyError, bundle, verify};

mod pinned;
mod verifier;

use pinned::PinnedRoot;
use verifier::{Fixed, PeerVerifier};

/// Application protocols (RFC 7301) between sidecars, and those of foreign SPIFFE peers.
pub mod alpn {
    /// HTTP/1.1 between sidecars.
    pub const POSTERN_H1: &[u8] = b"postern/h1";
    /// HTTP/2 between sidecars.
    pub const POSTERN_H2: &[u8] = b"postern/h2";
    /// An opaque stream between sidecars.
    pub const POSTERN_TCP: &[u8] = b"postern/tcp";
    /// Nothing but the question whether an older connection between the same two sidecars may go on.
    pub const POSTERN_RENEW: &[u8] = b"postern/renew";
    /// HTTP/2 of any SPIFFE peer.
    pub const H2: &[u8] = b"h2";
    /// HTTP/1.1 of any SPIFFE peer.
    pub const HTTP_1_1: &[u8] = b"http/1.1";
}

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
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|suite| suite.tls13().is_some());
        provider.kx_groups = vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ];
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// A server that proves itself with `svid`. `alpn` in order of preference; empty: ALPN is not negotiated.
pub fn server_config(
    svid: &Svid,
    trust: SharedTrust,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(PeerVerifier::new(trust, client_auth)))
        .with_cert_resolver(Arc::new(Fixed(svid.certified_key())));
    Ok(Arc::new(without_resumption(config, alpn)))
}

/// A server that proves itself with `svid` and asks nobody who calls: for what anybody may read.
pub fn anonymous_server_config(svid: &Svid, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth();
    let config = builder.with_cert_resolver(Arc::new(Fixed(svid.certified_key())));
    Ok(Arc::new(without_resumption(config, alpn)))
}

fn without_resumption(mut config: ServerConfig, alpn: &[&[u8]]) -> ServerConfig {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}

/// A client, anonymous without `svid`. The verifier believes any peer that [`crate::verify::verify_peer`] believes;
/// which of them a destination may have is checked with [`crate::Expected`] before the first byte is sent.
pub fn client_config(
    svid: Option<&Svid>,
    trust: SharedTrust,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    client(svid, Arc::new(PeerVerifier::new(trust, ClientAuth::Required)), alpn)
}

/// First trust: an anonymous client that accepts only `expected`, under the root whose SHA-256 is `root_sha256`,
/// which the server must send in its chain.
pub fn pinned_client_config(
    root_sha256: [u8; 32],
    expected: SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    client(None, Arc::new(PinnedRoot::new(root_sha256, expected)), alpn)
}

fn client(
    svid: Option<&Svid>,
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(Fixed(svid.certified_key()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Identity is the URI SAN; a host name would only tell an observer where we go.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The bundle of one root that a pinned handshake proved, to [`crate::bundle::advance`] from.
#[must_use]
pub fn pinned_bundle(
    connection: &CommonState,
    expected: &SpiffeId,
    root_sha256: [u8; 32],
    now: UnixTime,
) -> Option<TrustBundle> {
    pinned::bundle_from(connection.peer_certificates()?, expected, root_sha256, now)
}

/// The peer of a finished handshake, verified again in full under `trust` (100 us; once per connection).
pub fn peer_of(
    connection: &CommonState,
    role: Role,
    trust: &Trust,
    now: UnixTime,
) -> Result<VerifiedPeer, VerifyError> {
    let chain = connection.peer_certificates().ok_or(VerifyError::NoCertificate)?;
    verify::verify_peer(chain, role, trust, now)
}

/// SHA-256 of the peer's leaf, for `x-forwarded-client-cert`.
#[must_use]
pub fn peer_fingerprint(connection: &CommonState) -> Option<[u8; 32]> {
    connection.peer_certificates()?.first().map(bundle::fingerprint)
}

/// RFC 5705 section 4: labels that begin so need no registration.
const NAME_LABEL: &[u8] = b"EXPERIMENTAL postern readmission";
/// Nobody guesses it, and no two connections share one.
pub const NAME_BYTES: usize = 32;

/// What the two ends of this connection call it and nobody else can (RFC 8446 section 7.5): it comes from its handshake's
/// secrets. `None` before the handshake is over.
#[must_use]
pub fn name_of<Side>(connection: &ConnectionCommon<Side>) -> Option<[u8; NAME_BYTES]> {
    connection
        .export_keying_material([0; NAME_BYTES], NAME_LABEL, None)
        .ok()
}

/// Our verdict inside a failed handshake's error, if the verifier gave one.
#[must_use]
pub fn verify_error(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
        rustls::Error::NoCertificatesPresented => Some(&VerifyError::NoCertificate),
        _ => None,
    }
}

/// The same for the `io::Error` that tokio-rustls wraps it in.
#[must_use]
pub fn verify_error_in(error: &std::io::Error) -> Option<&VerifyError> {
    error.get_ref()?.downcast_ref::<rustls::Error>().and_then(verify_error)
}

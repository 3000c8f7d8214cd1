//! First trust: a root known only by its SHA-256 (from a join token), and one identity that may answer.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::verifier::{as_presented, into_tls, no_tls12, schemes, verify_tls13};
use crate::{BundleSet, Role, SpiffeId, Trust, TrustBundle, TrustDomain, VerifyError, bundle, verify};

#[derive(Debug)]
pub(super) struct PinnedRoot {
    sha256: [u8; 32],
    expected: SpiffeId,
}

impl PinnedRoot {
    pub(super) fn new(sha256: [u8; 32], expected: SpiffeId) -> Self {
        Self { sha256, expected }
    }

    fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), VerifyError> {
        let bundle = bundle_from(chain, &self.expected, self.sha256, now).ok_or(VerifyError::NotPinned)?;
        let trust = Trust {
            bundles: BundleSet::default().with(bundle),
            ..Trust::default()
        };
        let peer = verify::verify_peer(chain, Role::Server, &trust, now)?;
        if *peer.id() == self.expected {
            return Ok(());
        }
        Err(VerifyError::WrongIdentity {
            got: peer.id().to_string(),
            expected: self.expected.to_string(),
        })
    }
}

/// The pinned root as a bundle of its own, with sequence 0, if `chain` holds it.
pub(super) fn bundle_from(
    chain: &[CertificateDer<'_>],
    expected: &SpiffeId,
    sha256: [u8; 32],
    now: UnixTime,
) -> Option<TrustBundle> {
    let trust_domain = TrustDomain::parse(expected.trust_domain()).ok()?;
    let root = chain.iter().find(|der| bundle::fingerprint(der) == sha256)?;
    Some(TrustBundle::new(trust_domain, 0, vec![root.clone().into_owned()], now))
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = as_presented(end_entity, intermediates);
        self.verify(&chain, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(into_tls)
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

//! Connections of the API server, and of anybody else who comes: a client certificate is asked for, whose key must be
//! proven; who it is, is decided with each request, so that a connection does not outlive a withdrawn CA.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_cluster::places::Places;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::http::Answering;

/// The API server keeps a few connections; past this it waits.
const MAX_CONNECTIONS: usize = 128;
/// Of one address, so that one pod does not take the API servers' places; each of them has a few. Behind some networks API
/// servers share an address with their node: there is room for several.
const MAX_OF_ADDRESS: usize = 32;
/// Who has connected has something to ask; a pod that only holds its place has not.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Two round trips and two signatures.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// A head comes at once.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// The review of access and the other replicas' pictures have shorter ones; this ends what they do not see.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// A silent connection is probed after this and closed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// However busy, a connection is replaced in time: the front proxy's certificate is short-lived in some clusters.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// A user's groups travel in headers: 512 of them.
const MAX_HEADERS: usize = 600;
/// Of usual length.
const MAX_HEAD: usize = 128 * 1024;
/// Requests at once on one connection; the API server sends all users' through a few.
const MAX_STREAMS: u32 = 128;

/// Serves until dropped.
pub(super) async fn serve(listener: TcpListener, certificate: Arc<dyn ResolvesServerCert>, answering: Arc<Answering>) {
    let config = match server_config(certificate) {
        Ok(config) => Arc::new(config),
        Err(error) => return tracing::error!(reason = "tls", "the API cannot be served: {error}"),
    };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::of_each(MAX_OF_ADDRESS);
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let Ok((tcp, peer)) = listener.accept().await else {
            // Out of descriptors or memory: the backlog waits, we do not spin.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Closed at once past its bound.
        let Some(place) = places.take(peer.ip()) else {
            continue;
        };
        let (acceptor, answering) = (TlsAcceptor::from(Arc::clone(&config)), Arc::clone(&answering));
        connections.spawn(async move {
            // What goes wrong on a connection is its peer's affair; refused requests are logged where they are refused.
            let _ = timeout(CONNECTION_DEADLINE, connection(tcp, acceptor, answering)).await;
            drop((permit, place));
        });
    }
}

/// Ends if nothing is asked in time.
async fn silent(mut asked: watch::Receiver<bool>) {
    let first = asked.wait_for(|asked| *asked);
    if matches!(timeout(FIRST_REQUEST_DEADLINE, first).await, Ok(Ok(_))) {
        std::future::pending::<()>().await;
    }
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, answering: Arc<Answering>) {
    let Ok(Ok(stream)) = timeout(HANDSHAKE_DEADLINE, acceptor.accept(tcp)).await else {
        return;
    };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let chain: Arc<[CertificateDer<'static>]> = session.peer_certificates().unwrap_or_default().into();
    let (first, asked) = watch::channel(false);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        first.send_if_modified(|asked| !std::mem::replace(asked, true));
        let (answering, chain) = (Arc::clone(&answering), Arc::clone(&chain));
        async move {
            match timeout(ANSWER_DEADLINE, answering.answer(&chain, request)).await {
                Ok(answer) => Ok::<_, Infallible>(answer),
                Err(_) => Ok(super::http::too_slow()),
            }
        }
    });
    let io = TokioIo::new(stream);
    if http2 {
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .serve_connection(io, service);
        until_silent(served, asked).await;
    } else {
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(io, service);
        until_silent(served, asked).await;
    }
}

async fn until_silent<T>(served: impl Future<Output = T>, asked: watch::Receiver<bool>) {
    tokio::select! {
        // What goes wrong on a connection is its peer's affair.
        _ = served => {}
        () = silent(asked) => {}
    }
}

fn server_config(certificate: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let provider = postern_identity::tls::provider();
    let schemes = provider.signature_verification_algorithms;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Possession { schemes }))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would not prove possession again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Proves that the client holds its certificate's key, and nothing else: whose it is, `FrontProxy` decides per request.
#[derive(Debug)]
struct Possession {
    schemes: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Possession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.schemes)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.schemes)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_nothing_ends_and_one_that_has_asked_stays() {
        let (first, asked) = watch::channel(false);
        until_silent(std::future::pending::<()>(), asked.clone()).await;
        first.send_replace(true);
        let stays = until_silent(std::future::pending::<()>(), asked);
        assert!(timeout(CONNECTION_DEADLINE, stays).await.is_err());
    }
}

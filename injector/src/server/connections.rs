//! Connections of the API server, and of anybody else who comes: nobody shows who he is, so all is bounded.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_cluster::places::Places;
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::Phase;
use super::answering::Answering;

/// Each API server keeps a few; past this they wait.
const MAX_CONNECTIONS: usize = 256;
/// Of one address: one stranger does not take the place of API servers. Behind some networks they share an address.
const MAX_OF_ADDRESS: usize = 64;
/// Two round trips and a signature.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// A head comes at once; a silent connection of HTTP/1.1 ends after this.
const HEAD_DEADLINE: Duration = Duration::from_secs(60);
/// A silent connection of HTTP/2 is probed after this and closed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Then a connection is ended in good order, so that an API server comes to know other replicas and the newest
/// certificate. Up to half of it more, so that not all end at once.
const AGE: Duration = Duration::from_secs(5 * 60);
/// From then on, at most: what is in flight has less.
const LAST: Duration = Duration::from_secs(15);
/// An API server's requests have a dozen headers.
const MAX_HEAD: usize = 16 * 1024;
/// Requests at once on one connection: an API server sends all through a few.
const MAX_STREAMS: u32 = 250;
/// Bytes of a connection of HTTP/2 that nobody has asked for yet, as while its requests wait for room. What a connection
/// has free fits into it, and an API server is near.
const WINDOW: u32 = 64 * 1024;

/// Serves until all is drained.
pub(super) async fn serve(
    listener: TcpListener,
    certificate: Arc<dyn ResolvesServerCert>,
    answering: Arc<Answering>,
    mut phase: watch::Receiver<Phase>,
) {
    let config = match server_config(certificate) {
        Ok(config) => Arc::new(config),
        Err(error) => return tracing::error!(reason = "tls", "webhooks cannot be served: {error}"),
    };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::of_each(MAX_OF_ADDRESS);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = draining(&mut phase) => break,
        };
        let Ok((tcp, peer)) = accepted else {
            // Out of descriptors or memory: the backlog waits, we do not spin.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Closed at once past its bound.
        let Some(place) = places.take(peer.ip()) else {
            continue;
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&config));
        let (answering, phase) = (Arc::clone(&answering), phase.clone());
        connections.spawn(async move {
            connection(tcp, peer.ip(), acceptor, answering, phase).await;
            drop((permit, place));
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Until it is time to end what is open.
async fn draining(phase: &mut watch::Receiver<Phase>) {
    // Whoever is gone does not wait either.
    let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
}

async fn connection(
    tcp: TcpStream,
    address: IpAddr,
    acceptor: TlsAcceptor,
    answering: Arc<Answering>,
    mut phase: watch::Receiver<Phase>,
) {
    // Answers are small and waited for.
    let _ = tcp.set_nodelay(true);
    let stream = match timeout(HANDSHAKE_DEADLINE, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            answering.metrics().handshake_failed();
            return tracing::debug!(reason = "handshake", "{error}");
        }
        Err(_) => return answering.metrics().handshake_failed(),
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let share = answering.share(address);
    let service = service_fn(move |request| {
        let (answering, share) = (Arc::clone(&answering), share.clone());
        async move { Ok::<_, Infallible>(answering.answer(&share, request).await) }
    });
    let io = TokioIo::new(stream);
    let end = async {
        tokio::select! {
            () = sleep(AGE.mul_f64(1.0 + fastrand::f64() / 2.0)) => {}
            () = draining(&mut phase) => {}
        }
    };
    // The two builders have nothing in common but their names.
    macro_rules! until_end {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            tokio::select! {
                // What goes wrong on a connection is its peer's affair.
                _ = connection.as_mut() => {}
                () = end => {
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(LAST, connection).await;
                }
            }
        }};
    }
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        until_end!(builder.serve_connection(io, service));
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(MAX_HEAD);
        until_end!(builder.serve_connection(io, service));
    }
}

fn server_config(certificate: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(postern_identity::tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Each connection is believed by the bundle of its time.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

//! gRPC over SPIFFE mTLS: one way to dial, one way to accept, for every component.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use postern_identity::{Expected, Role, SharedTrust, VerifiedPeer, VerifyError};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

mod giving_way;

use giving_way::GivingWay;

/// A TCP connect to a control-plane component: local or one hop away.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Two round trips and two signatures; a peer that takes longer is stalling.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Handshakes in progress at once; past it the backlog holds callers back.
const MAX_HANDSHAKES: usize = 256;
/// Of these, one address: whoever stalls all it has leaves room for the others.
const MAX_HANDSHAKES_PER_ADDRESS: usize = 128;
/// HTTP/2 keep-alive of control-plane streams: a dead peer is noticed within twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why a component could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// No TCP connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// What was dialled.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A phase took too long.
    #[error("{phase} with {address} took longer than {limit:?}")]
    TooSlow {
        /// What was dialled.
        address: String,
        /// `connect` or `handshake`.
        phase: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// TLS failed.
    #[error("TLS handshake with {address} failed")]
    Handshake {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer does not hold up.
    #[error("the peer at {address} is not believed")]
    Peer {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: VerifyError,
    },
    /// A valid peer, but not the one that belongs there.
    #[error("{address} answered as {got}, expected {expected}")]
    WrongPeer {
        /// What was dialled.
        address: String,
        /// Who answered.
        got: String,
        /// Who should have.
        expected: String,
    },
    /// The HTTP/2 layer failed.
    #[error("HTTP/2 with {address} failed")]
    Http {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// The current time, for verifiers; the one place in this crate that reads the clock.
#[must_use]
pub fn now() -> UnixTime {
    UnixTime::now()
}

/// Dials `address` (`host:port`) and finishes the TLS handshake. The caller checks who answered.
pub async fn dial(address: &str, config: Arc<ClientConfig>) -> Result<client::TlsStream<TcpStream>, DialError> {
    let slow = |phase, limit| DialError::TooSlow {
        address: address.to_owned(),
        phase,
        limit,
    };
    let tcp = timeout(CONNECT_DEADLINE, TcpStream::connect(address))
        .await
        .map_err(|_| slow("connect", CONNECT_DEADLINE))?
        .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
        .map_err(|source| DialError::Connect {
            address: address.to_owned(),
            source,
        })?;
    let ip = tcp
        .peer_addr()
        .map_err(|source| DialError::Connect {
            address: address.to_owned(),
            source,
        })?
        .ip();
    timeout(
        HANDSHAKE_DEADLINE,
        TlsConnector::from(config).connect(ServerName::IpAddress(ip.into()), tcp),
    )
    .await
    .map_err(|_| slow("handshake", HANDSHAKE_DEADLINE))?
    .map_err(|source| DialError::Handshake {
        address: address.to_owned(),
        source,
    })
}

/// TLS over a stream that is open already, such as a port forward's. The caller checks who answered, or `config` does.
pub async fn secure<S>(address: &str, stream: S, config: Arc<ClientConfig>) -> Result<client::TlsStream<S>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Identity is the URI SAN: an address is neither sent nor looked at.
    let nobody = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let shaken = timeout(HANDSHAKE_DEADLINE, TlsConnector::from(config).connect(nobody, stream)).await;
    shaken
        .map_err(|_| DialError::TooSlow {
            address: address.to_owned(),
            phase: "handshake",
            limit: HANDSHAKE_DEADLINE,
        })?
        .map_err(|source| DialError::Handshake {
            address: address.to_owned(),
            source,
        })
}

/// Dials `address`, requires one of the `expected` identities, and speaks gRPC. The channel is one connection: when it
/// ends, calls fail and the caller dials again (with the SVID that is current then).
pub async fn connect(
    address: &str,
    config: Arc<ClientConfig>,
    trust: &SharedTrust,
    expected: &Expected,
) -> Result<Channel, DialError> {
    let stream = dial(address, config).await?;
    let peer =
        postern_identity::tls::peer_of(stream.get_ref().1, Role::Server, &trust.load(), now()).map_err(|source| {
            DialError::Peer {
                address: address.to_owned(),
                source,
            }
        })?;
    if !expected.admits(&peer) {
        return Err(DialError::WrongPeer {
            address: address.to_owned(),
            got: peer.id().to_string(),
            expected: expected
                .ids
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" or "),
        });
    }
    channel_over(address, stream).await
}

/// gRPC over a stream whose peer the caller has already checked.
pub async fn channel_over<S>(address: &str, stream: S) -> Result<Channel, DialError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut once = Some(TokioIo::new(GivingWay(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    Endpoint::from_static("http://postern.invalid")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|source| DialError::Http {
            address: address.to_owned(),
            source,
        })
}

/// gRPC over a Unix socket: who may, is the file's mode.
pub async fn connect_unix(path: &std::path::Path) -> Result<Channel, DialError> {
    let address = path.display().to_string();
    let stream = tokio::net::UnixStream::connect(path)
        .await
        .map_err(|source| DialError::Connect {
            address: address.clone(),
            source,
        })?;
    channel_over(&address, stream).await
}

/// Who is at the other end of an accepted connection; in the extensions of every request on it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// `None`: no client certificate was sent.
    pub peer: Option<VerifiedPeer>,
    /// Where it dialled from.
    pub address: SocketAddr,
}

/// An accepted and verified connection.
#[derive(Debug)]
pub struct Accepted {
    stream: GivingWay<server::TlsStream<TcpStream>>,
    caller: Caller,
}

/// Why an accepted socket did not become a connection; for a counter and a log line.
#[derive(Debug)]
pub struct RefusedHandshake {
    /// Who dialled.
    pub address: SocketAddr,
    /// A closed set of `snake_case` words.
    pub reason: &'static str,
    /// The cause.
    pub source: io::Error,
}

/// Accepts TLS connections, handshaking `MAX_HANDSHAKES` at a time, each within its deadline. `config` is asked per
/// connection (a clone of an `Arc`), so that a renewed SVID serves at once. Refused handshakes go to `refused`.
pub fn incoming(
    listener: TcpListener,
    config: impl Fn() -> Arc<ServerConfig> + Send + 'static,
    trust: SharedTrust,
    refused: impl Fn(RefusedHandshake) + Send + 'static,
) -> impl Stream<Item = io::Result<Accepted>> + Send {
    let state = (listener, Handshakes::default(), config);
    futures_util::stream::unfold(state, move |(listener, mut handshakes, config)| {
        let trust = Arc::clone(&trust);
        async move {
            loop {
                tokio::select! {
                    Some(done) = handshakes.next() => return Some((done, (listener, handshakes, config))),
                    accepted = listener.accept(), if handshakes.in_progress.len() < MAX_HANDSHAKES => {
                        match accepted {
                            // The config is asked for now, not before the wait: it may have been replaced meanwhile.
                            Ok((tcp, address)) if handshakes.admit(address) => {
                                let handshake = handshake(tcp, address, config(), Arc::clone(&trust));
                                handshakes.in_progress.push(Box::pin(handshake));
                            }
                            Ok((_, address)) => {
                                let source = io::Error::from(io::ErrorKind::ResourceBusy);
                                let refused = RefusedHandshake { address, reason: "too_many_handshakes", source };
                                return Some((Err(refused), (listener, handshakes, config)));
                            }
                            // Out of descriptors or memory: the backlog waits, we do not spin.
                            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                        }
                    }
                }
            }
        }
    })
    .filter_map(move |done| {
        std::future::ready(match done {
            Ok(accepted) => Some(Ok(accepted)),
            Err(failure) => {
                refused(failure);
                None
            }
        })
    })
}

type Handshake = Pin<Box<dyn Future<Output = Result<Accepted, RefusedHandshake>> + Send>>;

/// Those in progress, and how many each address has.
#[derive(Default)]
struct Handshakes {
    in_progress: FuturesUnordered<Handshake>,
    by_address: HashMap<IpAddr, usize>,
}

impl Handshakes {
    fn admit(&mut self, address: SocketAddr) -> bool {
        let own = self.by_address.entry(address.ip()).or_default();
        let admitted = *own < MAX_HANDSHAKES_PER_ADDRESS;
        *own += usize::from(admitted);
        admitted
    }

    /// The next that ends; `None` while there are none.
    async fn next(&mut self) -> Option<Result<Accepted, RefusedHandshake>> {
        let done = self.in_progress.next().await?;
        let address = match &done {
            Ok(accepted) => accepted.caller.address,
            Err(refused) => refused.address,
        };
        if let Entry::Occupied(mut own) = self.by_address.entry(address.ip()) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
        Some(done)
    }
}

async fn handshake(
    tcp: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    trust: SharedTrust,
) -> Result<Accepted, RefusedHandshake> {
    let refuse = |reason, source| RefusedHandshake {
        address,
        reason,
        source,
    };
    tcp.set_nodelay(true).map_err(|source| refuse("io", source))?;
    let stream = match timeout(HANDSHAKE_DEADLINE, TlsAcceptor::from(config).accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => {
            let reason = postern_identity::tls::verify_error_in(&source).map_or("tls", VerifyError::reason);
            return Err(refuse(reason, source));
        }
        Err(_) => return Err(refuse("timeout", io::ErrorKind::TimedOut.into())),
    };
    let session = stream.get_ref().1;
    let peer = match session.peer_certificates() {
        None => None,
        Some(_) => match postern_identity::tls::peer_of(session, Role::Client, &trust.load(), now()) {
            Ok(peer) => Some(peer),
            Err(error) => return Err(refuse(error.reason(), io::Error::other(error))),
        },
    };
    Ok(Accepted {
        stream: GivingWay(stream),
        caller: Caller { peer, address },
    })
}

impl Connected for Accepted {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

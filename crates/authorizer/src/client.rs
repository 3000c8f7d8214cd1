//! Asking an ext_authz server over gRPC. One channel per worker and server: it connects when it is first asked, and again
//! when its connection broke. Nothing is retried; the deadline holds for everything, the connecting included.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};
use tonic::TimeoutExpired;
use tonic::transport::{Channel, Endpoint};

use crate::envoy::service::auth::v3::CheckRequest;
use crate::envoy::service::auth::v3::authorization_client;
use crate::reply::{self, MAX_REPLY};
use crate::{Check, Failure, Verdict};

/// Envoy's own default; Istio's of ten minutes has taken meshes down.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);
/// Somebody waits for every answer.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is gone without a word is noticed within twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Fields of an answer's head and end: gRPC's status and a message.
const MAX_HEADER_LIST: u32 = 16 * 1024;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A server to ask. Clones share the connection.
#[derive(Debug, Clone)]
pub struct AuthorizationClient {
    channel: Channel,
    timeout: Duration,
}

impl AuthorizationClient {
    /// HTTP/2 in clear: for a server on the same host or pod.
    #[must_use]
    pub fn plain(address: Address, timeout: Duration) -> Self {
        Self::over(timeout, move || {
            let address = address.clone();
            async move {
                Ok(match address {
                    Address::Tcp(address) => {
                        let tcp = TcpStream::connect(&address).await?;
                        tcp.set_nodelay(true)?;
                        Io::Tcp(tcp)
                    }
                    Address::Unix(path) => Io::Unix(UnixStream::connect(path).await?),
                })
            }
        })
    }

    /// HTTP/2 over what `connect` opens; it has checked who answers.
    pub fn over<C, F, S>(timeout: Duration, connect: C) -> Self
    where
        C: Fn() -> F + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connector = tower::service_fn(move |_| {
            let connecting = connect();
            async move { connecting.await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://authorizer.invalid")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .http2_max_header_list_size(MAX_HEADER_LIST)
            .connect_with_connector_lazy(connector);
        Self { channel, timeout }
    }

    /// Asks, and waits no longer than the deadline.
    pub async fn decide(&self, check: &Check) -> Result<Verdict, Failure> {
        self.ask(check.message()).await
    }

    async fn ask(&self, message: CheckRequest) -> Result<Verdict, Failure> {
        let mut client =
            authorization_client::AuthorizationClient::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY);
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        let began = Instant::now();
        match timeout(self.timeout, client.check(request)).await {
            Err(_) => Err(Failure::Timeout),
            // A server that keeps the deadline too may say so first, in a code of its own.
            Ok(Err(_)) if began.elapsed() >= self.timeout => Err(Failure::Timeout),
            Ok(Ok(reply)) => reply::decide(reply.into_inner()),
            Ok(Err(status)) => Err(failure_of(&status)),
        }
    }
}

fn failure_of(status: &tonic::Status) -> Failure {
    // Only what broke on our side has a cause; a server's word has none.
    let cause = std::error::Error::source(status);
    let causes = std::iter::successors(cause, |cause| cause.source());
    if status.code() == tonic::Code::DeadlineExceeded || causes.into_iter().any(|cause| cause.is::<TimeoutExpired>()) {
        return Failure::Timeout;
    }
    match cause {
        Some(_) => Failure::Unreachable,
        None => Failure::Grpc(status.code() as i32),
    }
}

/// Either kind of stream.
enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

mod io_of_either {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Io;

    impl AsyncRead for Io {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
                Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            }
        }
    }

    impl AsyncWrite for Io {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            match self.get_mut() {
                Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
                Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            }
        }
        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
                Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            }
        }
        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
                Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            }
        }
    }
}

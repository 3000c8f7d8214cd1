//! The byte streams that the data path runs on: a socket, or an in-process pipe for a hop to oneself.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A transport below TLS.
#[derive(Debug)]
pub enum Stream {
    /// A TCP socket, `TCP_NODELAY` set.
    Tcp(TcpStream),
    /// The other end is this proxy's own inbound or outbound.
    InProcess(DuplexStream),
}

impl Stream {
    /// Where the peer is; `None` in process.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok(),
            Self::InProcess(_) => None,
        }
    }

    /// Our own end's address; `None` in process.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok(),
            Self::InProcess(_) => None,
        }
    }

    /// See [`Reset`].
    pub fn reset(self) {
        if let Self::Tcp(tcp) = self {
            // Zero linger never blocks; failing leaves an ordinary close.
            let _ = socket2::SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO));
        }
    }
}

/// A stream that can end so that nobody takes what came for the whole.
pub trait Reset {
    /// Makes the close a reset (RST) instead of a FIN: for refusals that must not look like an answer, and for streams
    /// that broke off.
    fn reset(self);
}

impl Reset for Stream {
    fn reset(self) {
        Self::reset(self);
    }
}

impl<S: Reset> Reset for Rewound<S> {
    fn reset(self) {
        self.inner.reset();
    }
}

impl Reset for Transport {
    fn reset(self) {
        match self {
            // TLS without close_notify already says that the stream broke off.
            Self::Tls(_) => {}
            Self::Plain(stream) => stream.reset(),
        }
    }
}

/// What bytes ride on, to a peer or from one.
#[derive(Debug)]
pub enum Transport {
    /// Mutual TLS.
    Tls(Box<TlsStream<Rewound<Stream>>>),
    /// Plaintext, or TLS that is the app's own business.
    Plain(Rewound<Stream>),
}

/// Both enums read and write as what they hold.
macro_rules! read_and_write_as_either {
    ($name:ident, $a:ident, $b:ident) => {
        impl AsyncRead for $name {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(s) => Pin::new(s).poll_read(cx, buf),
                    Self::$b(s) => Pin::new(s).poll_read(cx, buf),
                }
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::$a(s) => Pin::new(s).poll_write(cx, buf),
                    Self::$b(s) => Pin::new(s).poll_write(cx, buf),
                }
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                // A TLS record comes alone: `send` is cheaper than `writev`.
                if let [only] = bufs {
                    return self.poll_write(cx, only);
                }
                match self.get_mut() {
                    Self::$a(s) => Pin::new(s).poll_write_vectored(cx, bufs),
                    Self::$b(s) => Pin::new(s).poll_write_vectored(cx, bufs),
                }
            }
            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::$a(s) => s.is_write_vectored(),
                    Self::$b(s) => s.is_write_vectored(),
                }
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(s) => Pin::new(s).poll_flush(cx),
                    Self::$b(s) => Pin::new(s).poll_flush(cx),
                }
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(s) => Pin::new(s).poll_shutdown(cx),
                    Self::$b(s) => Pin::new(s).poll_shutdown(cx),
                }
            }
        }
    };
}

read_and_write_as_either!(Stream, Tcp, InProcess);
read_and_write_as_either!(Transport, Tls, Plain);

/// A stream whose first bytes were already read: they come first.
#[derive(Debug)]
pub struct Rewound<S> {
    first: Bytes,
    inner: S,
}

impl<S> Rewound<S> {
    /// `first`, then `inner`.
    pub fn new(first: Bytes, inner: S) -> Self {
        Self { first, inner }
    }
    /// The same with `bytes` before everything else.
    #[must_use]
    pub fn preceded_by(self, mut bytes: Vec<u8>) -> Self {
        bytes.extend_from_slice(&self.first);
        Self {
            first: bytes.into(),
            inner: self.inner,
        }
    }
    /// The stream below; what was not replayed is lost.
    pub fn into_inner(self) -> S {
        self.inner
    }
    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.has_remaining() {
            let n = this.first.len().min(buf.remaining());
            buf.put_slice(&this.first.split_to(n));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

//! Serving HTTP: the one place that sets hyper's limits. The codec sits behind [`serve`], so that an own relay can
//! replace it.
//!
//! hyper's own timers are not used: `supervise` enforces head, body, write and idle deadlines for all connections of a
//! worker with one timer. `Watched` tells it what the socket does.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::Body;
use super::{OnThisThread, Version};
use crate::limits::{
    CONNECTION_WINDOW, MAX_HEAD_BYTES, MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_STREAMS, PING_DEADLINE, PING_INTERVAL,
    SEND_BUFFER, STREAM_WINDOW,
};
use crate::outcome::{BadRequest, Failure};
use crate::supervise::{Control, Signal};

/// A service's way of ending a connection (h1) or resetting a stream (h2) without an answer.
#[derive(Debug, thiserror::Error)]
#[error("refused without an answer")]
pub struct Abort(#[source] h2::Error);

impl Abort {
    /// Nothing was done with it: it may be sent again elsewhere (RFC 9113 section 8.7).
    #[must_use]
    pub fn unprocessed() -> Self {
        Self(h2::Reason::REFUSED_STREAM.into())
    }
}

/// What is left of an HTTP/1 connection whose last answer was 101.
#[derive(Debug)]
pub struct Upgraded<IO> {
    /// The stream.
    pub io: IO,
    /// What the client sent past the head.
    pub first: Bytes,
}

/// Serves one connection to its end. `Some`: the service answered 101 and the stream is the caller's.
pub async fn serve<IO, S>(
    io: IO,
    version: Version,
    control: &Rc<Control>,
    service: S,
) -> Result<Option<Upgraded<IO>>, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Abort>,
    S::Future: 'static,
{
    let io = Watched {
        io: TokioIo::new(io),
        control: Rc::clone(control),
    };
    match version {
        Version::H1 => serve_h1(io, control, service).await,
        Version::H2 => serve_h2(io, control, service).await.map(|()| None),
    }
}

async fn serve_h1<IO, S>(io: Watched<IO>, control: &Rc<Control>, service: S) -> Result<Option<Upgraded<IO>>, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Abort>,
{
    let mut connection = http1::Builder::new()
        // A client may close its half and wait for the answer.
        .half_close(true)
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(MAX_HEAD_BYTES)
        .auto_date_header(false)
        .serve_connection(io, service);
    let mut graceful = false;
    let done = std::future::poll_fn(|cx| {
        match control.signal(cx.waker()) {
            Signal::Run => {}
            Signal::Graceful => {
                if !std::mem::replace(&mut graceful, true) {
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
            Signal::Cut(failure) => return Poll::Ready(Err(failure)),
        }
        Pin::new(&mut connection).poll(cx).map_err(|error| failure_of(&error))
    });
    done.await?;
    let parts = connection.into_parts();
    let upgraded = parts.io.control.is_upgraded().then(|| Upgraded {
        io: parts.io.io.into_inner(),
        first: parts.read_buf,
    });
    Ok(upgraded)
}

async fn serve_h2<IO, S>(io: Watched<IO>, control: &Rc<Control>, service: S) -> Result<(), Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Abort>,
    S::Future: 'static,
{
    let connection = http2::Builder::new(OnThisThread)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_DEADLINE)
        .auto_date_header(false)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut graceful = false;
    std::future::poll_fn(|cx| {
        match control.signal(cx.waker()) {
            Signal::Run => {}
            Signal::Graceful => {
                if !std::mem::replace(&mut graceful, true) {
                    connection.as_mut().graceful_shutdown();
                }
            }
            Signal::Cut(failure) => return Poll::Ready(Err(failure)),
        }
        connection.as_mut().poll(cx).map_err(|error| failure_of(&error))
    })
    .await
}

/// hyper has answered 400, 414 or 431 already where there was something to answer.
fn failure_of(error: &hyper::Error) -> Failure {
    if error.is_parse_too_large() {
        Failure::BadRequest(BadRequest::TooLarge)
    } else if error.is_parse() {
        Failure::BadRequest(BadRequest::Framing)
    } else if error.is_user() {
        // A service's Abort, already recorded by its exchange.
        Failure::PeerGone
    } else if error.is_timeout() {
        Failure::HeadTimeout
    } else {
        Failure::PeerGone
    }
}

/// A transport that tells the supervisor when it is read and when it blocks.
struct Watched<IO> {
    io: TokioIo<IO>,
    control: Rc<Control>,
}

impl<IO: AsyncRead + Unpin> Read for Watched<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.control.read();
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> Write for Watched<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        this.control.wrote(polled.is_ready());
        polled
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.control.wrote(polled.is_ready());
        polled
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.control.wrote(polled.is_ready());
        polled
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

//! The client's end of a relayed connection: its next head, our own answers to it, and how it is closed.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::head::Scanned;
use super::{Meta, Refused};
use crate::exchange::Leg;
use crate::http::Version;
use crate::http::answer::{self, Told};
use crate::limits::{HEAD_READ, LINGER_BYTES, LINGER_DEADLINE, MAX_HEAD_BYTES};
use crate::outcome::{BadRequest, Failure};
use crate::scratch;
use crate::supervise::{Control, Signal};

/// The length of the next head in `unread`; `None`: the client is gone, or we end the connection between two requests.
pub(super) async fn next_head<IO>(
    client: &mut Watch<IO>,
    unread: &mut Vec<u8>,
    control: &Control,
) -> Result<Option<usize>, Failure>
where
    IO: AsyncRead + Unpin,
{
    let mut scanned = Scanned::default();
    if !unread.is_empty() {
        // It began behind the request before: its time runs.
        control.read();
    }
    std::future::poll_fn(|cx| {
        loop {
            let end = scanned.end(unread)?;
            // A head may also be found whole, behind a body.
            if end.unwrap_or(unread.len().saturating_add(1)) > MAX_HEAD_BYTES {
                return Poll::Ready(Err(Failure::BadRequest(BadRequest::TooLarge)));
            }
            if let Some(length) = end {
                return Poll::Ready(Ok(Some(length)));
            }
            match control.signal(cx.waker()) {
                Signal::Run => {}
                Signal::Graceful if unread.is_empty() => return Poll::Ready(Ok(None)),
                Signal::Graceful => {}
                Signal::Cut(failure) => return Poll::Ready(Err(failure)),
            }
            let room = MAX_HEAD_BYTES - unread.len();
            match ready!(poll_read_into(client, cx, unread, room)) {
                Ok(0) if unread.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) | Err(_) => return Poll::Ready(Err(Failure::PeerGone)),
                Ok(_) => {}
            }
        }
    })
    .await
}

/// Reads once, at most `room` bytes, to the end of `into`.
pub(super) fn poll_read_into<R: AsyncRead + Unpin>(
    from: &mut R,
    cx: &mut Context<'_>,
    into: &mut Vec<u8>,
    room: usize,
) -> Poll<io::Result<usize>> {
    scratch::with(|scratch| {
        let wanted = room.min(HEAD_READ).min(scratch.len());
        let mut buf = ReadBuf::new(scratch.get_mut(..wanted).unwrap_or_default());
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        into.extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    })
}

/// Tells a client why its request goes no further, and records it.
pub(super) async fn write_refusal<IO>(
    client: &mut Watch<IO>,
    refused: &Refused,
    meta: Meta,
    close: bool,
) -> Result<(), Failure>
where
    IO: AsyncWrite + Unpin,
{
    let exchange = refused.exchange.as_ref();
    let told = exchange.map_or_else(Told::default, |exchange| Told::of(exchange));
    let response = match refused.text.as_str() {
        "" => answer::refusal(refused.failure, meta.grpc, Version::H1, told),
        text => answer::refusal_saying(refused.failure, meta.grpc, Version::H1, told, text),
    };
    if let Some(exchange) = exchange {
        exchange.fail(refused.failure);
        exchange.answered(response.status());
    }
    let bytes = answer::as_h1(response, close, meta.to_head);
    let control = Rc::clone(&client.control);
    let writing = async {
        client.write_all(&bytes).await?;
        client.flush().await
    };
    let written = tokio::select! {
        // Dropped only to close the connection: a client need not read what it is told.
        written = writing => written.map_err(|_| Failure::PeerGone),
        failure = control.cut() => Err(failure),
    };
    if let Some(exchange) = exchange {
        exchange.closed(Leg::Answer);
    }
    written
}

/// Closes so that the last answer arrives: our half first, then what the client still sends is read for a moment.
pub(super) async fn linger<IO>(mut client: Watch<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let closing = async {
        client.shutdown().await?;
        let mut left = LINGER_BYTES;
        let mut passed_over = [0; 1024];
        while left > 0 {
            match client.read(&mut passed_over).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        Ok::<(), io::Error>(())
    };
    // Whatever is left by then is reset.
    let _ = tokio::time::timeout(LINGER_DEADLINE, closing).await;
}

/// The client's stream; tells the supervisor when it is read and when it blocks.
#[derive(Debug)]
pub(super) struct Watch<IO> {
    pub(super) io: IO,
    pub(super) control: Rc<Control>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watch<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.control.read();
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watch<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        this.control.wrote(polled.is_ready());
        polled
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

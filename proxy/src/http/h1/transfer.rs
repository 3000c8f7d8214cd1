//! One half of an exchange: bytes of a message from its sender to its receiver, in as few reads and writes as there are
//! pieces; a head and the body bytes that came with it leave in one write.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::{Body, Malformed};
use crate::exchange::{Exchange, Leg};
use crate::limits::{COPY_BUFFER, COPY_ENOUGH};
use crate::scratch;

/// Rounds of one half before the task yields.
const ROUNDS: usize = 16;

/// Whose fault an end is.
#[derive(Debug)]
pub(super) enum Broken {
    /// The sender went away, or broke its framing.
    Source(io::Error),
    /// The receiver did.
    Sink,
}

impl From<Malformed> for Broken {
    fn from(_: Malformed) -> Self {
        Self::Source(io::ErrorKind::InvalidData.into())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Half {
    leg: Leg,
    /// What is left of the body.
    pub(super) body: Body,
    /// Bytes for the receiver: first the head.
    pub(super) out: Vec<u8>,
    written: usize,
    flushed: bool,
    /// A byte of it has been taken by the receiver.
    begun: bool,
    /// See [`scratch::poll_gather`].
    broken: Option<io::Error>,
}

impl Half {
    /// A message whose head is `out`.
    #[must_use]
    pub(super) fn new(leg: Leg, out: Vec<u8>, body: Body) -> Self {
        Self {
            leg,
            body,
            out,
            written: 0,
            flushed: true,
            begun: false,
            broken: None,
        }
    }

    /// Not a byte of it has been taken by any receiver: head and what was read of the body are all in `out`.
    #[must_use]
    pub(super) fn is_untouched(&self) -> bool {
        !self.begun
    }

    /// Writes the head again from its first byte: nothing of a body may have been taken.
    pub(super) fn rewind(&mut self) {
        self.written = 0;
        self.flushed = true;
    }

    /// Moves what can be moved. `first`: bytes that were read from the sender already; what is left there when the body is
    /// whole belongs to the sender's next message. `keep`: the head may be needed again, so it stays in `out`.
    pub(super) fn poll<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        first: &mut Vec<u8>,
        sink: &mut D,
        exchange: &Exchange,
        keep: bool,
    ) -> Poll<Result<(), Broken>>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            if !self.body.is_done() && !first.is_empty() && self.out.len() - self.written < COPY_BUFFER {
                let taken = self.body.take(first, &mut self.out)?;
                first.drain(..taken);
                exchange.moved(self.leg, taken);
            }
            match self.poll_drain(cx, sink, keep) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Sink)),
                Poll::Pending => {
                    exchange.blocked(self.leg, cx.waker());
                    return Poll::Pending;
                }
            }
            if self.body.is_done() {
                return self.poll_flush(cx, sink);
            }
            if !first.is_empty() {
                // What was read first goes first.
                continue;
            }
            match scratch::with(|scratch| self.poll_copy(cx, source, first, sink, scratch)) {
                Poll::Ready(Ok(Copied::End)) if self.body.close(&mut self.out) => {}
                Poll::Ready(Ok(Copied::End)) => {
                    return Poll::Ready(Err(Broken::Source(io::ErrorKind::UnexpectedEof.into())));
                }
                Poll::Ready(Ok(Copied::Bytes(n))) => exchange.moved(self.leg, n),
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => {
                    exchange.waits(self.leg, cx.waker());
                    if self.out.is_empty() && self.out.capacity() > COPY_ENOUGH {
                        // A stream that rests holds no buffer.
                        self.out = Vec::new();
                    }
                    return match self.poll_flush(cx, sink) {
                        Poll::Ready(Err(broken)) => Poll::Ready(Err(broken)),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_flush<D: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, sink: &mut D) -> Poll<Result<(), Broken>> {
        if !self.flushed {
            ready!(Pin::new(sink).poll_flush(cx)).map_err(|_| Broken::Sink)?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain<D: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut D,
        keep: bool,
    ) -> Poll<io::Result<()>> {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *sink).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
            self.begun = true;
            self.flushed = false;
        }
        if !keep && self.written > 0 {
            self.out.clear();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there, and writes what of it may go on as it is.
    fn poll_copy<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        first: &mut Vec<u8>,
        sink: &mut D,
        scratch: &mut [u8],
    ) -> Poll<Result<Copied, Broken>>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        let mut buf = ReadBuf::new(scratch);
        match ready!(scratch::poll_gather(cx, source, &mut buf, &mut self.broken)) {
            Ok(0) => return Poll::Ready(Ok(Copied::End)),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(Broken::Source(error))),
        }
        let read = buf.filled();
        let Some(plain) = self.body.plain(read.len()) else {
            let taken = self.body.take(read, &mut self.out)?;
            first.extend_from_slice(read.get(taken..).unwrap_or_default());
            return Poll::Ready(Ok(Copied::Bytes(taken)));
        };
        self.body.passed(plain);
        first.extend_from_slice(read.get(plain..).unwrap_or_default());
        let mut rest = read.get(..plain).unwrap_or_default();
        while !rest.is_empty() {
            match Pin::new(&mut *sink).poll_write(cx, rest) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Broken::Sink)),
                Poll::Ready(Ok(n)) => rest = rest.get(n..).unwrap_or_default(),
                Poll::Pending => {
                    self.out.extend_from_slice(rest);
                    break;
                }
            }
            self.begun = true;
            self.flushed = false;
        }
        Poll::Ready(Ok(Copied::Bytes(plain)))
    }
}

/// What a read brought.
enum Copied {
    /// So many bytes of this message.
    Bytes(usize),
    /// The sender's end.
    End,
}

//! Bytes both ways, with half-close. An idle stream holds no buffer: reads go through one scratch buffer per thread,
//! and only what the sink did not take at once is kept.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::exchange::{Exchange, Leg};
use crate::outbound::originate;
use crate::outcome::Failure;
use crate::scratch;

/// Copies until both directions have ended, one of them fails, or the exchange is cut short.
pub async fn relay<A, B>(mut client: A, mut upstream: B, exchange: &Exchange) -> Result<(), Failure>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Direction::new(Leg::Request);
    let mut down = Direction::new(Leg::Answer);
    let result = poll_fn(|cx| {
        if let Some((failure, _)) = exchange.cut() {
            return Poll::Ready(Err(failure));
        }
        let up_done = up.poll(cx, &mut client, &mut upstream, exchange)?;
        let down_done = down.poll(cx, &mut upstream, &mut client, exchange)?;
        match (up_done, down_done) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Ready(()), Poll::Pending) | (Poll::Pending, Poll::Ready(())) => {
                exchange.half_closed();
                Poll::Pending
            }
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    })
    .await;
    if let Err(failure) = result {
        exchange.fail(failure);
    }
    exchange.ended();
    result
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    /// The source has ended; the sink is told once all is written.
    Ending,
    Done,
}

struct Direction {
    leg: Leg,
    state: State,
    /// Read and not written yet.
    left: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// See [`scratch::poll_gather`].
    broken: Option<io::Error>,
}

impl Direction {
    fn new(leg: Leg) -> Self {
        Self {
            leg,
            state: State::Copying,
            left: Vec::new(),
            written: 0,
            unflushed: false,
            broken: None,
        }
    }

    fn poll<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut D,
        exchange: &Exchange,
    ) -> Result<Poll<()>, Failure>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        let (source_gone, sink_gone) = match self.leg {
            Leg::Request => (Failure::PeerGone, Failure::UpstreamGone),
            Leg::Answer => (Failure::UpstreamGone, Failure::PeerGone),
        };
        // Several rounds, then yield: one busy direction must not starve the worker.
        for _ in 0..ROUNDS {
            match self.poll_drain(cx, sink) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(sink_gone),
                Poll::Pending => {
                    exchange.waits(self.leg, cx.waker());
                    return Ok(Poll::Pending);
                }
            }
            match self.state {
                State::Done => return Ok(Poll::Ready(())),
                State::Ending => match Pin::new(&mut *sink).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => {
                        self.state = State::Done;
                        return Ok(Poll::Ready(()));
                    }
                    Poll::Ready(Err(_)) => return Err(sink_gone),
                    Poll::Pending => return Ok(Poll::Pending),
                },
                State::Copying => match self.poll_copy(cx, source, sink) {
                    Poll::Ready(Ok(n)) => exchange.moved(self.leg, n),
                    Poll::Ready(Err(Side::Source(error))) => {
                        let refused = self.leg == Leg::Answer && originate::is_alert(&error);
                        return Err(if refused {
                            Failure::UpstreamHandshake(originate::REFUSED)
                        } else {
                            source_gone
                        });
                    }
                    Poll::Ready(Err(Side::Sink)) => return Err(sink_gone),
                    Poll::Pending => {
                        exchange.waits(self.leg, cx.waker());
                        if self.unflushed {
                            match Pin::new(&mut *sink).poll_flush(cx) {
                                Poll::Ready(Ok(())) => self.unflushed = false,
                                Poll::Ready(Err(_)) => return Err(sink_gone),
                                Poll::Pending => {}
                            }
                        }
                        return Ok(Poll::Pending);
                    }
                },
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    fn poll_drain<D: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, sink: &mut D) -> Poll<io::Result<()>> {
        while let Some(rest) = self.left.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *sink).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        if self.written > 0 {
            self.left = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there, up to a buffer full, and writes it at once.
    fn poll_copy<S, D>(&mut self, cx: &mut Context<'_>, source: &mut S, sink: &mut D) -> Poll<Result<usize, Side>>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        scratch::with(|scratch| self.read_and_write(cx, source, sink, scratch))
    }

    fn read_and_write<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut D,
        scratch: &mut [u8],
    ) -> Poll<Result<usize, Side>>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        let mut buf = ReadBuf::new(scratch);
        match ready!(scratch::poll_gather(cx, source, &mut buf, &mut self.broken)) {
            Ok(0) => self.state = State::Ending,
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(Side::Source(error))),
        }
        let filled = buf.filled();
        let mut done = 0;
        while let Some(rest) = filled.get(done..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *sink).poll_write(cx, rest) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Side::Sink)),
                Poll::Ready(Ok(n)) => done += n,
                Poll::Pending => {
                    self.left = rest.to_vec();
                    break;
                }
            }
        }
        self.unflushed = true;
        Poll::Ready(Ok(filled.len()))
    }
}

/// Whose fault.
enum Side {
    Source(io::Error),
    Sink,
}

/// Rounds of one direction before the task yields.
const ROUNDS: usize = 16;

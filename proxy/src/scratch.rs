//! One buffer per thread that reads go through: a connection that waits holds none.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use crate::limits::{COPY_BUFFER, COPY_ENOUGH};

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Lends the thread's buffer to `f`, which must not wait. What is in it is nobody's.
pub(crate) fn with<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut scratch = SCRATCH
        .take()
        .unwrap_or_else(|| vec![0; COPY_BUFFER].into_boxed_slice());
    let result = f(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// Reads what is there into `buf`, several pieces if they come at once (a TLS source gives one record at a time): more for
/// one write. The number of bytes; 0 is the end. A break behind bytes that have to go first is kept in `broken`, and is the
/// answer to the next call: a socket tells it once, and an orderly end afterwards.
pub(crate) fn poll_gather<S: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    source: &mut S,
    buf: &mut ReadBuf<'_>,
    broken: &mut Option<io::Error>,
) -> Poll<io::Result<usize>> {
    if let Some(error) = broken.take() {
        return Poll::Ready(Err(error));
    }
    loop {
        let before = buf.filled().len();
        match Pin::new(&mut *source).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() - before >= COPY_ENOUGH && buf.remaining() > 0 => {}
            Poll::Ready(Ok(())) => break,
            Poll::Ready(Err(error)) if before == 0 => return Poll::Ready(Err(error)),
            Poll::Pending if before == 0 => return Poll::Pending,
            Poll::Ready(Err(error)) => {
                *broken = Some(error);
                break;
            }
            Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(buf.filled().len()))
}

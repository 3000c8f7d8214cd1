//! A bound on open connections: one that is over is closed as soon as it has shaken hands.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use postern_api::transport::{Accepted, Caller};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::admission::{Admission, Admitted, CONNECTIONS, Full};

/// A connection that holds its place for as long as it is open.
#[derive(Debug)]
pub(crate) struct Bounded {
    stream: Accepted,
    _place: Admitted,
}

/// Lets connections through while there is room; `refused` hears of the others.
pub(crate) fn bounded(
    incoming: impl Stream<Item = io::Result<Accepted>> + Send,
    refused: impl Fn(&Caller, Full) + Send,
) -> impl Stream<Item = io::Result<Bounded>> + Send {
    let admission = Admission::new(CONNECTIONS);
    incoming.filter_map(move |accepted| {
        std::future::ready(match accepted {
            Err(error) => Some(Err(error)),
            Ok(stream) => {
                let caller = stream.connect_info();
                match admission.admit(caller.address.ip()) {
                    Ok(place) => Some(Ok(Bounded { stream, _place: place })),
                    Err(full) => {
                        refused(&caller, full);
                        None
                    }
                }
            }
        })
    })
}

impl Connected for Bounded {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.stream.connect_info()
    }
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bounded {
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

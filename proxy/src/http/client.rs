//! Speaking HTTP to an upstream: the handshake, and one sender over both versions.

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::Body;
use super::{OnThisThread, Version};
use crate::limits::{
    CONNECTION_WINDOW, MAX_HEAD_BYTES, MAX_LOCAL_RESETS, PING_DEADLINE, PING_INTERVAL, SEND_BUFFER, STREAM_WINDOW,
};
use crate::outbound::originate;
use crate::outcome::Failure;

/// One upstream connection's end for requests. The connection itself runs as a task of this thread and ends with it.
#[derive(Debug)]
pub enum Sender {
    /// One request at a time.
    H1(http1::SendRequest<Body>),
    /// Many; clones share the connection.
    H2(http2::SendRequest<Body>),
}

/// A request that got no answer.
#[derive(Debug)]
pub struct SendError {
    /// Why.
    pub failure: Failure,
    /// The request, if not a byte of it was written: it may be sent elsewhere.
    pub unsent: Option<Box<Request<Body>>>,
}

/// Begins HTTP on a stream.
pub async fn open<IO>(io: IO, version: Version) -> Result<Sender, Failure>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(io);
    match version {
        Version::H1 => {
            let (sender, connection) = http1::Builder::new()
                .max_header_size(MAX_HEAD_BYTES)
                .max_buf_size(MAX_HEAD_BYTES)
                .handshake(io)
                .await
                .map_err(|error| failure_of(&error))?;
            // Its errors reach the request that rides on it.
            tokio::task::spawn_local(async move {
                let _ = connection.with_upgrades().await;
            });
            Ok(Sender::H1(sender))
        }
        Version::H2 => {
            let (sender, connection) = http2::Builder::new(OnThisThread)
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEAD_BYTES as u32)
                .max_send_buf_size(SEND_BUFFER)
                .max_local_error_reset_streams(MAX_LOCAL_RESETS)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_DEADLINE)
                .handshake(io)
                .await
                .map_err(|error| failure_of(&error))?;
            tokio::task::spawn_local(async move {
                let _ = connection.await;
            });
            Ok(Sender::H2(sender))
        }
    }
}

impl Sender {
    /// Would take a request at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_ready(),
            Self::H2(sender) => sender.is_ready(),
        }
    }

    /// Will never take one again.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
        }
    }

    /// Another handle on the same connection, if it takes several requests.
    #[must_use]
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::H1(_) => None,
            Self::H2(sender) => Some(Self::H2(sender.clone())),
        }
    }

    /// Sends a request and waits for its answer's head. Dropping the future gives the request up.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let sent = match self {
            Self::H1(sender) => sender.try_send_request(request).await,
            Self::H2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| SendError {
            unsent: error.take_message().map(Box::new),
            failure: failure_of(error.error()),
        })
    }
}

fn failure_of(error: &hyper::Error) -> Failure {
    if originate::is_alert(error) {
        Failure::UpstreamHandshake(originate::REFUSED)
    } else if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        Failure::BadAnswer
    } else if error.is_user() {
        // Our own body: its exchange knows the cause.
        Failure::PeerGone
    } else {
        Failure::UpstreamGone
    }
}

//! The one body type of both legs: counts, can be cut short, and ends its [`Exchange`]'s record.

use std::any::Any;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::{answer, headers};
use crate::exchange::{Exchange, Leg};
use crate::outcome::Failure;

/// Bytes on their way, with what watches them.
#[derive(Debug, Default)]
pub struct Body {
    kind: Kind,
    watched: Option<(Rc<Exchange>, Leg)>,
    /// A gRPC answer: where we end it, its trailers say why.
    grpc: bool,
    ended: bool,
    /// Dropped with the body: gives a pooled connection back.
    lease: Option<Box<dyn Any>>,
}

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// We ended it.
    #[error("ended by the proxy: {}", .0.facts().reason)]
    Cut(Failure),
    /// Its source did.
    #[error("the sender of the body broke off")]
    Source(#[source] hyper::Error),
}

impl Body {
    /// Nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// All at once.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        let mut body = Self::default();
        body.kind = Kind::Full(bytes);
        body
    }

    /// What is received, as one leg of `exchange`.
    #[must_use]
    pub fn incoming(incoming: Incoming, exchange: Rc<Exchange>, leg: Leg) -> Self {
        let mut body = Self::default();
        body.kind = Kind::Incoming(incoming);
        body.watched = Some((exchange, leg));
        body
    }

    /// It is gRPC's, over HTTP/2: on HTTP/1 trailers would make a cut answer look whole.
    #[must_use]
    pub fn of_grpc(mut self, grpc: bool) -> Self {
        self.grpc = grpc;
        self
    }

    /// An answer of our own: it is not cut short, but its end is the exchange's.
    #[must_use]
    pub fn watched_to_end(mut self, exchange: Rc<Exchange>) -> Self {
        self.watched = Some((exchange, Leg::Answer));
        self
    }

    /// Keeps `lease` until the body is gone.
    #[must_use]
    pub fn holding(mut self, lease: Box<dyn Any>) -> Self {
        self.lease = Some(lease);
        self
    }

    /// The bytes of an answer of our own; nothing of one that is received.
    pub(crate) fn into_full(mut self) -> Bytes {
        match &mut self.kind {
            Kind::Full(bytes) => std::mem::take(bytes),
            Kind::Empty | Kind::Incoming(_) => Bytes::new(),
        }
    }

    fn failure_of_source(leg: Leg) -> Failure {
        match leg {
            Leg::Request => Failure::PeerGone,
            Leg::Answer => Failure::UpstreamGone,
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let (Kind::Incoming(_), Some((exchange, _))) = (&this.kind, &this.watched)
            && let Some((failure, _)) = exchange.cut()
        {
            if !this.grpc {
                return Poll::Ready(Some(Err(BodyError::Cut(failure))));
            }
            let trailers = answer::grpc_status(failure, exchange.decision_id());
            // Whoever still sends is dropped, and so told to stop.
            this.kind = Kind::Empty;
            this.ended = true;
            exchange.closed(Leg::Answer);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let polled = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Incoming(incoming) => Pin::new(incoming).poll_frame(cx),
        };
        let Some((exchange, leg)) = &this.watched else {
            return polled.map_err(BodyError::Source);
        };
        match polled {
            Poll::Pending => {
                exchange.waits(*leg, cx.waker());
                Poll::Pending
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    if *leg == Leg::Request && exchange.drops_trailers() {
                        trailers.clear();
                    }
                    headers::clean_trailers(trailers);
                }
                exchange.moved(*leg, frame.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                exchange.fail(Self::failure_of_source(*leg));
                Poll::Ready(Some(Err(BodyError::Source(error))))
            }
            Poll::Ready(None) => {
                this.ended = true;
                exchange.closed(*leg);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(incoming) => incoming.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some((exchange, leg)) = &self.watched else {
            return;
        };
        // hyper does not ask again past the last byte of a known length, so `None` may never have been seen.
        if *leg == Leg::Answer && !self.ended && !http_body::Body::is_end_stream(self) {
            exchange.fail(Failure::PeerGone);
        }
        exchange.closed(*leg);
    }
}

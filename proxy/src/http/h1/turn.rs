//! One request and its answer, both halves at once: an answer may come before the request is whole.

use std::rc::Rc;
use std::task::{Context, Poll};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Meta;
use super::client::poll_read_into;
use super::fields::{self, Class};
use super::framing::Body;
use super::head::{self, AnswerHead, Length, Scanned};
use super::resting::Upstream;
use super::transfer::{Broken, Half};
use crate::exchange::{Exchange, Leg};
use crate::limits::{MAX_HEAD_BYTES, MAX_INTERIM};
use crate::outbound::originate;
use crate::outcome::{BadRequest, Failure};
use crate::supervise::{Control, Signal};

/// How a turn broke off.
#[derive(Debug)]
pub(super) enum TurnError {
    /// Not a byte of the final answer has gone out: the client can be told.
    Before(Failure),
    /// A part of an answer has: the client must not take it for the whole.
    Within(Failure),
}

#[derive(Debug)]
enum Answer {
    /// Its head is not complete.
    Awaited(Scanned),
    /// A 1xx goes out.
    Interim(Half),
    /// Head and body go out.
    Final(Half),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Turn {
    request: Half,
    request_whole: bool,
    /// The upstream takes no more of it; its answer may still come.
    request_refused: bool,
    answer: Answer,
    /// Read from the upstream and not used yet.
    unread: Vec<u8>,
    interims: u32,
    meta: Meta,
    clean: bool,
    upstream_keeps_alive: bool,
    client_keeps_alive: bool,
    /// A part of an answer has gone out to the client, and not its end.
    told: bool,
    /// A whole 1xx has.
    interim_told: bool,
}

impl Turn {
    pub(super) fn new(request: Half, meta: Meta, clean: bool) -> Self {
        Self {
            request,
            request_whole: false,
            request_refused: false,
            answer: Answer::Awaited(Scanned::default()),
            unread: Vec::new(),
            interims: 0,
            meta,
            clean,
            upstream_keeps_alive: true,
            client_keeps_alive: !meta.close,
            told: false,
            interim_told: false,
        }
    }

    /// The upstream's connection can serve another request.
    pub(super) fn upstream_serves_on(&self) -> bool {
        self.request_whole && self.upstream_keeps_alive && self.unread.is_empty()
    }

    /// The client's can.
    pub(super) fn client_serves_on(&self) -> bool {
        self.request_whole && self.client_keeps_alive
    }

    /// Every byte of the request was taken from the client.
    pub(super) fn request_is_whole(&self) -> bool {
        self.request_whole || self.request.body.is_done()
    }

    /// Not a byte has reached the upstream, so that anything may be sent elsewhere.
    pub(super) fn nothing_sent(&self) -> bool {
        self.can_rewind() && self.request.is_untouched()
    }

    /// It may be sent once more, although it was sent.
    pub(super) fn may_be_repeated(&self) -> bool {
        self.can_rewind() && self.meta.repeatable
    }

    fn can_rewind(&self) -> bool {
        let unanswered = matches!(self.answer, Answer::Awaited(_)) && !self.interim_told && self.unread.is_empty();
        unanswered && (self.meta.repeatable || self.request.is_untouched())
    }

    /// Ready to be sent again, to another connection; false if that cannot be.
    pub(super) fn rewind(&mut self) -> bool {
        if !self.can_rewind() {
            return false;
        }
        self.request.rewind();
        self.request_whole = false;
        self.request_refused = false;
        self.answer = Answer::Awaited(Scanned::default());
        true
    }

    /// Moves what can be moved, until the answer is whole.
    pub(super) fn poll<C, U>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        client_unread: &mut Vec<u8>,
        upstream: &mut U,
        exchange: &Rc<Exchange>,
        control: &Control,
    ) -> Poll<Result<(), TurnError>>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: Upstream,
    {
        let told = self.told;
        let broken = |told: bool, failure| {
            Poll::Ready(Err(if told {
                TurnError::Within(failure)
            } else {
                TurnError::Before(failure)
            }))
        };
        if let Some((failure, _)) = exchange.cut() {
            return broken(told, failure);
        }
        match control.signal(cx.waker()) {
            Signal::Run => {}
            // Once the head has gone out, the end is told between two requests.
            Signal::Graceful if !matches!(self.answer, Answer::Final(_)) => self.client_keeps_alive = false,
            Signal::Graceful => {}
            Signal::Cut(failure) => return broken(told, failure),
        }
        if !self.request_whole && !self.request_refused {
            let keep = self.meta.repeatable;
            let polled = self
                .request
                .poll(cx, client, client_unread, upstream.io(), exchange, keep);
            match polled {
                Poll::Ready(Ok(())) => {
                    self.request_whole = true;
                    exchange.closed(Leg::Request);
                }
                Poll::Ready(Err(Broken::Source(error))) => {
                    let failure = match error.kind() {
                        std::io::ErrorKind::InvalidData => Failure::BadRequest(BadRequest::Framing),
                        _ => Failure::PeerGone,
                    };
                    return broken(self.told, failure);
                }
                Poll::Ready(Err(Broken::Sink)) => self.request_refused = true,
                Poll::Pending => {}
            }
        }
        loop {
            match &mut self.answer {
                Answer::Awaited(scanned) => {
                    let end = match scanned.end(&self.unread) {
                        Ok(end) => end,
                        Err(_) => return broken(self.told, Failure::BadAnswer),
                    };
                    if let Some(length) = end {
                        match self.begin(length, exchange, upstream) {
                            Ok(()) => continue,
                            Err(failure) => return broken(self.told, failure),
                        }
                    }
                    if self.unread.len() >= MAX_HEAD_BYTES {
                        return broken(self.told, Failure::BadAnswer);
                    }
                    let room = MAX_HEAD_BYTES - self.unread.len();
                    match poll_read_into(upstream.io(), cx, &mut self.unread, room) {
                        Poll::Ready(Ok(0)) => return broken(self.told, Failure::UpstreamGone),
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(error)) => {
                            let failure = if originate::is_alert(&error) {
                                Failure::UpstreamHandshake(originate::REFUSED)
                            } else {
                                Failure::UpstreamGone
                            };
                            return broken(self.told, failure);
                        }
                        Poll::Pending => {
                            exchange.waits(Leg::Answer, cx.waker());
                            return Poll::Pending;
                        }
                    }
                }
                Answer::Interim(half) | Answer::Final(half) => {
                    let polled = half.poll(cx, upstream.io(), &mut self.unread, client, exchange, false);
                    self.told = !half.is_untouched();
                    match polled {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(())) if matches!(self.answer, Answer::Interim(_)) => {
                            // It is whole: what follows may still be any answer.
                            self.told = false;
                            self.interim_told = true;
                            self.answer = Answer::Awaited(Scanned::default());
                        }
                        Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                        Poll::Ready(Err(Broken::Source(error))) => {
                            let failure = match error.kind() {
                                std::io::ErrorKind::InvalidData => Failure::BadAnswer,
                                _ => Failure::UpstreamGone,
                            };
                            return broken(self.told, failure);
                        }
                        Poll::Ready(Err(Broken::Sink)) => return broken(self.told, Failure::PeerGone),
                    }
                }
            }
        }
    }

    /// Turns a whole head into what goes out.
    fn begin<U: Upstream>(&mut self, length: usize, exchange: &Exchange, upstream: &U) -> Result<(), Failure> {
        let mut room = head::room();
        let bytes = self.unread.get(..length).unwrap_or_default();
        let head = AnswerHead::parse(bytes, &mut room)?;
        // An upgrade that nobody asked for: the relay never passes a request for one on.
        let status = StatusCode::from_u16(head.status)
            .ok()
            .filter(|status| *status != StatusCode::SWITCHING_PROTOCOLS)
            .ok_or(Failure::BadAnswer)?;
        let mut out = Vec::with_capacity(length + 1_536);
        out.extend_from_slice(b"HTTP/1.1 ");
        fields::write_number(&mut out, head.status.into());
        out.push(b' ');
        out.extend_from_slice(head.reason.as_bytes());
        out.extend_from_slice(b"\r\n");
        self.write_fields(&mut out, &head);
        let interim = status.is_informational();
        if interim {
            self.interims += 1;
            if self.interims > MAX_INTERIM {
                return Err(Failure::BadAnswer);
            }
            out.extend_from_slice(b"\r\n");
            self.answer = Answer::Interim(Half::new(Leg::Answer, out, Body::none()));
        } else {
            let body = head.body(self.meta.to_head);
            self.upstream_keeps_alive = head.keeps_alive && !self.request_refused;
            match head.length {
                Length::Bytes(0) | Length::Unsaid if head.status == 204 => {}
                // It may not say so (RFC 9110 section 8.6), and if it meant it, what follows is no answer to anybody.
                Length::Bytes(_) | Length::Chunked if head.status == 204 => self.upstream_keeps_alive = false,
                Length::Unsaid if matches!(body, Body::UntilClose) => {
                    self.upstream_keeps_alive = false;
                    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                }
                Length::Unsaid => {}
                // A HEAD's or 304's length says what a GET would bring.
                Length::Bytes(n) => {
                    out.extend_from_slice(b"content-length: ");
                    fields::write_number(&mut out, n);
                    out.extend_from_slice(b"\r\n");
                }
                Length::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            }
            // What is left of the request is not read any more.
            self.client_keeps_alive &= self.request_is_whole();
            if !self.client_keeps_alive {
                out.extend_from_slice(b"connection: close\r\n");
            }
            out.extend_from_slice(b"\r\n");
            exchange.answered(status);
            upstream.answered();
            self.answer = Answer::Final(Half::new(Leg::Answer, out, body));
        }
        drop(head);
        self.unread.drain(..length);
        Ok(())
    }

    fn write_fields(&self, out: &mut Vec<u8>, head: &AnswerHead<'_, '_>) {
        if self.clean {
            return fields::write_end_to_end(out, head.fields, &head.classes, &head.connection);
        }
        // What the peer's proxy says to our app (a decision ID) arrives.
        let mut classes = head.classes;
        for class in classes.iter_mut().filter(|class| **class == Class::Ours) {
            *class = Class::Plain;
        }
        fields::write_end_to_end(out, head.fields, &classes, &head.connection);
    }
}

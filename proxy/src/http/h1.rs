//! Our own HTTP/1.1 relay: one head is read, decided on and written anew, bodies are moved in their framing, both legs on
//! one task. It is the hot path; whatever is rare (HTTP/1.0, upgrades, CONNECT, absolute-form targets, an HTTP/2 upstream)
//! is handed to hyper behind the same seam, with every byte that was read.
//!
//! ```text
//! next head -> RequestHead (strict) -> Service::begin (checks, decides, writes the head) -> Service::open (upstream)
//!           -> Turn: request half >--> upstream, answer half <--< upstream -> next head
//! ```

mod client;
pub mod fields;
pub mod framing;
pub mod head;
pub mod resting;
mod transfer;
mod turn;

use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use self::client::{Watch, linger, next_head, write_refusal};
use self::framing::Body;
use self::head::RequestHead;
use self::resting::Upstream;
use self::transfer::Half;
use self::turn::{Turn, TurnError};
use crate::exchange::{Exchange, Head, Leg, Target, Way};
use crate::limits::LINGER_DEADLINE;
use crate::outcome::Failure;
use crate::stream::Reset;
use crate::supervise::Control;

/// How a relayed connection ended.
#[derive(Debug)]
pub(crate) enum Ended<IO> {
    /// In good order.
    Closed,
    /// What comes next is not for the relay: the stream, and what was read from it.
    Other(IO, Vec<u8>),
}

/// A request that goes no further.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) failure: Failure,
    /// Empty: the failure's reason.
    pub(crate) text: String,
    /// What it is recorded as, if it came that far.
    pub(crate) exchange: Option<Rc<Exchange>>,
}

impl Refused {
    /// With the failure's reason for a text.
    pub(crate) fn of(failure: Failure, exchange: Option<Rc<Exchange>>) -> Self {
        Self {
            failure,
            text: String::new(),
            exchange,
        }
    }
}

/// Why a request does not begin here.
#[derive(Debug)]
pub(crate) enum NotBegun {
    /// It goes no further.
    Refused(Refused),
    /// It must wait for something before it is decided: not for the relay.
    Other,
}

impl From<Refused> for NotBegun {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// There is nowhere to go, whatever the request.
#[derive(Debug)]
pub(crate) struct Unprepared {
    pub(crate) failure: Failure,
    /// What the client is told.
    pub(crate) text: String,
    /// Labels.
    pub(crate) way: Rc<Way>,
}

/// What a direction does with requests.
pub(crate) trait Service {
    /// What is settled before a head is looked at (outbound: where it goes).
    type Prepared;
    /// What lets one request through.
    type Ticket;
    /// A connection to where it goes.
    type Upstream: Upstream;

    /// Runs before each request.
    async fn prepare(&self) -> Result<Self::Prepared, Unprepared>;
    /// Is the upstream one for the relay?
    fn relays(&self, prepared: &Self::Prepared) -> bool;
    /// Checks and decides on a head, and writes its fields but for framing into `out`.
    fn begin(
        &self,
        prepared: &Self::Prepared,
        head: &RequestHead<'_, '_>,
        out: &mut Vec<u8>,
    ) -> Result<(Rc<Exchange>, Self::Ticket), NotBegun>;
    /// A connection to the upstream; `fresh`: not one that has rested.
    async fn open(
        &self,
        prepared: &Self::Prepared,
        ticket: &Self::Ticket,
        exchange: &Rc<Exchange>,
        fresh: bool,
    ) -> Result<Self::Upstream, Failure>;
    /// What a head that nobody could understand is recorded as.
    fn unheard(&self) -> Option<Rc<Exchange>>;
    /// May a repeatable request be sent once more?
    fn may_repeat(&self) -> bool;
    /// Fields that only we may set are taken out of answers.
    fn cleans_answers(&self) -> bool;
}

/// What a connection keeps between two requests: most heads fit.
const KEPT_BUFFER: usize = 1024;
/// Room for what we add to a head: `x-forwarded-client-cert`, `x-postern-source`, framing.
const OUR_FIELDS: usize = 768;

/// What is remembered of a request's head once its bytes are gone.
#[derive(Debug, Clone, Copy)]
struct Meta {
    /// The client closes after it.
    close: bool,
    to_head: bool,
    repeatable: bool,
    grpc: bool,
}

/// What becomes of a head.
enum Plan<S: Service> {
    /// Nobody can say what it means.
    Malformed(Failure),
    /// Not for the relay.
    Other,
    Refuse(Refused, Meta, Body),
    Forward(Forwarding<S>, Half),
}

/// A request on its way.
struct Forwarding<S: Service> {
    prepared: S::Prepared,
    ticket: S::Ticket,
    exchange: Rc<Exchange>,
    meta: Meta,
}

/// Relays requests until the connection ends.
pub(crate) async fn serve<IO, S>(io: IO, control: &Rc<Control>, service: &S) -> Result<Ended<IO>, Failure>
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin,
    S: Service,
{
    let mut client = Watch {
        io,
        control: Rc::clone(control),
    };
    let mut unread = Vec::new();
    loop {
        let plan = match next_head(&mut client, &mut unread, control).await {
            Ok(Some(length)) => {
                let prepared = service.prepare().await;
                let plan = plan(service, control, prepared, unread.get(..length).unwrap_or_default());
                if !matches!(plan, Plan::Other) {
                    unread.drain(..length);
                }
                plan
            }
            Ok(None) => {
                // The client has gone, or is told to: nothing is lost if it does not hear this.
                let _ = tokio::time::timeout(LINGER_DEADLINE, client.shutdown()).await;
                return Ok(Ended::Closed);
            }
            Err(failure @ Failure::BadRequest(_)) => Plan::Malformed(failure),
            Err(failure) => return Err(failure),
        };
        let serves_on = match plan {
            Plan::Other => return Ok(Ended::Other(client.io, unread)),
            Plan::Malformed(failure) => {
                let refused = Refused::of(failure, service.unheard());
                let recorded = refused.exchange.is_some();
                write_refusal(&mut client, &refused, Meta::of_nothing(), true).await?;
                linger(client).await;
                return if recorded { Ok(Ended::Closed) } else { Err(failure) };
            }
            Plan::Refuse(refused, meta, mut body) => {
                // A body that is here already is passed over. One that is not ends the connection: it must never be taken
                // for the next request.
                let passed = body.take(&unread, &mut Vec::new()).unwrap_or(0);
                unread.drain(..passed);
                let serves_on = body.is_done() && !meta.close && !refused.failure.facts().close;
                write_refusal(&mut client, &refused, meta, !serves_on).await?;
                serves_on
            }
            Plan::Forward(forwarding, half) => {
                match forward(&mut client, &mut unread, control, service, forwarding, half).await {
                    Ok(serves_on) => serves_on,
                    Err(Truncated) => {
                        client.io.reset();
                        return Ok(Ended::Closed);
                    }
                }
            }
        };
        if !serves_on {
            linger(client).await;
            return Ok(Ended::Closed);
        }
        if unread.is_empty() && unread.capacity() > KEPT_BUFFER {
            // While it waits it holds no more than the next small head needs.
            unread = Vec::new();
        }
    }
}

/// Parses and judges a head.
fn plan<S: Service>(
    service: &S,
    control: &Control,
    prepared: Result<S::Prepared, Unprepared>,
    bytes: &[u8],
) -> Plan<S> {
    let mut room = head::room();
    let head = match RequestHead::parse(bytes, &mut room) {
        Ok(head) => head,
        Err(failure) => return Plan::Malformed(failure),
    };
    let upgrades = head.has_upgrade && head.connection.upgrade;
    if !head.is_1_1 || upgrades || head.method == "CONNECT" || !head.target.starts_with('/') {
        return Plan::Other;
    }
    let meta = Meta::of(&head);
    let prepared = match prepared {
        Ok(prepared) if service.relays(&prepared) => prepared,
        Ok(_) => return Plan::Other,
        Err(unprepared) => {
            let refused = nowhere(unprepared, control, &head);
            return Plan::Refuse(refused, meta, head.length.of_request());
        }
    };
    let mut out = Vec::with_capacity(bytes.len() + OUR_FIELDS);
    match service.begin(&prepared, &head, &mut out) {
        Ok((exchange, ticket)) => {
            if head.te_trailers {
                fields::write(&mut out, b"te", b"trailers");
            }
            finish_head(&mut out, head.length);
            let body = match exchange.drops_trailers() {
                true => head.length.of_request().without_trailers(),
                false => head.length.of_request(),
            };
            let half = Half::new(Leg::Request, out, body);
            let forwarding = Forwarding {
                prepared,
                ticket,
                exchange,
                meta,
            };
            Plan::Forward(forwarding, half)
        }
        Err(NotBegun::Refused(refused)) => Plan::Refuse(refused, meta, head.length.of_request()),
        Err(NotBegun::Other) => Plan::Other,
    }
}

/// The record of a request that has nowhere to go.
fn nowhere(unprepared: Unprepared, control: &Control, head: &RequestHead<'_, '_>) -> Refused {
    let Unprepared { failure, text, way } = unprepared;
    let told = http::Method::from_bytes(head.method.as_bytes())
        .ok()
        .map(|method| Head {
            method,
            target: Target::Path(head.path().into()),
            host: head.host.unwrap_or("").into(),
        });
    let exchange = Exchange::begin(way, told);
    control.carries(&exchange);
    Refused {
        failure,
        text,
        exchange: Some(exchange),
    }
}

impl Meta {
    fn of(head: &RequestHead<'_, '_>) -> Self {
        Self {
            close: head.connection.close,
            to_head: head.method == "HEAD",
            repeatable: head.is_repeatable(),
            grpc: head.is_grpc,
        }
    }

    /// Of a head that was not understood.
    fn of_nothing() -> Self {
        Self {
            close: true,
            to_head: false,
            repeatable: false,
            grpc: false,
        }
    }
}

/// Framing as it was understood, and the empty line.
fn finish_head(out: &mut Vec<u8>, length: head::Length) {
    match length {
        head::Length::Unsaid => {}
        head::Length::Bytes(n) => {
            out.extend_from_slice(b"content-length: ");
            fields::write_number(out, n);
            out.extend_from_slice(b"\r\n");
        }
        head::Length::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// A part of an answer has gone out and its end will not: the client must not take it for the whole. Its exchange has the
/// record.
struct Truncated;

/// Sends a request and brings its answer. `Ok(true)`: the client's connection serves on.
async fn forward<IO, S>(
    client: &mut Watch<IO>,
    unread: &mut Vec<u8>,
    control: &Rc<Control>,
    service: &S,
    forwarding: Forwarding<S>,
    half: Half,
) -> Result<bool, Truncated>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    let Forwarding {
        prepared,
        ticket,
        exchange,
        meta,
    } = forwarding;
    let mut turn = Turn::new(half, meta, service.cleans_answers());
    let mut fresh = false;
    let failure = loop {
        let opening = exchange
            .unless_cut(service.open(&prepared, &ticket, &exchange, fresh))
            .await;
        let mut upstream = match opening {
            Ok(Ok(upstream)) => upstream,
            Ok(Err(failure)) | Err(failure) => break failure,
        };
        let turned = std::future::poll_fn(|cx| turn.poll(cx, client, unread, &mut upstream, &exchange, control)).await;
        match turned {
            Ok(()) => {
                exchange.closed(Leg::Answer);
                if turn.upstream_serves_on() {
                    upstream.give_back();
                }
                return Ok(turn.client_serves_on());
            }
            Err(TurnError::Before(failure)) => {
                let closed_at_rest = failure == Failure::UpstreamGone && upstream.rested().is_some() && !fresh;
                let again = closed_at_rest && (turn.nothing_sent() || (turn.may_be_repeated() && service.may_repeat()));
                if again && turn.rewind() {
                    fresh = true;
                    continue;
                }
                upstream.failed(failure);
                break failure;
            }
            Err(TurnError::Within(failure)) => {
                exchange.fail(failure);
                exchange.closed(Leg::Answer);
                return Err(Truncated);
            }
        }
    };
    let serves_on = turn.request_is_whole() && !meta.close && !failure.facts().close;
    let refused = Refused::of(failure, Some(exchange));
    match write_refusal(client, &refused, meta, !serves_on).await {
        Ok(()) => Ok(serves_on),
        Err(_) => Err(Truncated),
    }
}

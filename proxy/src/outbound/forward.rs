//! To a peer: over a pooled connection where one is at rest, to another endpoint where not a byte was sent.

use std::rc::Rc;

use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::balance::Load;
use super::originate::Riding;
use super::pool::{Group, Lease};
use super::resolve::Route;
use crate::exchange::Exchange;
use crate::http::body::Body;
use crate::http::shelf::Open;
use crate::http::target;
use crate::limits::{COPY_AFTER_REST, MAX_TRIES};
use crate::outcome::Failure;
use crate::stream::Transport;
use crate::worker::Worker;

/// A request in flight: its connection, counted at its endpoint.
#[derive(Debug)]
pub struct InFlight {
    lease: Lease,
    counted: Counted,
}

/// Sends a request to one of the route's endpoints and waits for the answer's head.
pub(super) async fn request(
    worker: &Rc<Worker>,
    route: &Route,
    mut request: Request<Body>,
    exchange: &Rc<Exchange>,
) -> Result<(Response<Incoming>, InFlight), Failure> {
    worker.peers.retries.earn();
    let mut tried: SmallVec<[usize; MAX_TRIES]> = SmallVec::new();
    let mut again = false;
    loop {
        let (at, group) = route.pick(worker, &tried)?;
        let lease = match group.lease(worker, again).await {
            Ok(lease) => lease,
            Err(failure) => {
                group.load.failed(failure, Instant::now());
                tried.push(at);
                if may_try_another(route, &tried, failure) {
                    continue;
                }
                return Err(failure);
            }
        };
        let started = Instant::now();
        let counted = Counted::begin(group);
        let mut in_flight = InFlight { lease, counted };
        let rested = in_flight.lease.rested();
        exchange.rides(in_flight.lease.admitted());
        readdress(&mut request, &in_flight.counted.0)?;
        let copy = rested
            .filter(|rested| *rested >= COPY_AFTER_REST && !again)
            .and_then(|_| copy_of(&request));
        let error = match in_flight.lease.send(request).await {
            Ok(response) => {
                in_flight.counted.load().answered(started.elapsed());
                return Ok((response, in_flight));
            }
            Err(error) => error,
        };
        request = match (error.unsent, copy) {
            // Not a byte was written: the connection had been closed while it rested.
            (Some(unsent), _) if rested.is_some() => *unsent,
            (None, Some(copy)) if error.failure == Failure::UpstreamGone && worker.peers.retries.spend() => copy,
            _ => {
                in_flight.counted.load().failed(error.failure, Instant::now());
                return Err(error.failure);
            }
        };
        again = true;
    }
}

/// The target in the form that this endpoint's protocol wants.
fn readdress(request: &mut Request<Body>, group: &Group) -> Result<(), Failure> {
    let version = group.version();
    *request.version_mut() = match version {
        crate::http::Version::H1 => http::Version::HTTP_11,
        crate::http::Version::H2 => http::Version::HTTP_2,
    };
    let mut uri = std::mem::take(request.uri_mut());
    target::retarget(&mut uri, request.headers_mut(), version)?;
    *request.uri_mut() = uri;
    Ok(())
}

/// Another endpoint may do better where this one was not even reached.
pub(super) fn may_try_another(route: &Route, tried: &[usize], failure: Failure) -> bool {
    let unreached = matches!(
        failure,
        Failure::ConnectFailed
            | Failure::ConnectTimeout
            | Failure::UpstreamHandshake(_)
            | Failure::WrongPeer
            | Failure::UpstreamGone
            | Failure::PeerExpired
    );
    unreached && tried.len() < MAX_TRIES.min(route.len())
}

/// RFC 9110 section 9.2.2: an idempotent request may be sent again; with a body we would have to keep that.
fn copy_of(request: &Request<Body>) -> Option<Request<Body>> {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    if !idempotent || !request.body().is_end_stream() || request.headers().contains_key(http::header::UPGRADE) {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// A peer's side of an opaque stream; counted at its endpoint.
#[derive(Debug)]
pub(super) struct OpenStream {
    pub(super) transport: Transport,
    pub(super) riding: Rc<Riding>,
    _open: Open,
    _counted: Counted,
}

/// A request or stream, counted at its endpoint.
#[derive(Debug)]
pub(super) struct Counted(Rc<Group>);

impl Counted {
    pub(super) fn begin(group: Rc<Group>) -> Self {
        group.load.began();
        Self(group)
    }

    pub(super) fn load(&self) -> &Load {
        &self.0.load
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.load.ended();
    }
}

/// Opens the peer's side of an opaque stream.
pub(super) async fn open_stream(worker: &Rc<Worker>, route: &Route) -> Result<OpenStream, Failure> {
    let mut tried: SmallVec<[usize; MAX_TRIES]> = SmallVec::new();
    loop {
        let (at, group) = route.pick(worker, &tried)?;
        let started = Instant::now();
        match group.stream(worker).await {
            Ok((transport, riding, open)) => {
                group.load.answered(started.elapsed());
                return Ok(OpenStream {
                    transport,
                    riding,
                    _open: open,
                    _counted: Counted::begin(group),
                });
            }
            Err(failure) => {
                group.load.failed(failure, Instant::now());
                tried.push(at);
                if !may_try_another(route, &tried, failure) {
                    return Err(failure);
                }
            }
        }
    }
}

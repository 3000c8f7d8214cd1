//! From our app to a peer.
//!
//! ```text
//! captured   original_dst ------------------> resolve -> detect -> http  -> balance -> pool -> originate -> forward -> peer
//! explicit   HTTP proxy request, or CONNECT -^                  \> opaque -> balance -> originate -> relay ------^
//! in time    readmit: a long stream's connection, before what it was admitted on ends
//! ```
//!
//! Outbound is no enforcement point against our own app (THREAT_MODEL); it sees to it that what goes to the mesh goes
//! under our identity, encrypted, to whoever should answer and nobody else.

pub mod balance;
pub mod explicit;
pub mod forward;
pub mod http;
pub mod originate;
pub mod pool;
pub(crate) mod readmit;
mod relay;
pub mod resolve;

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use self::http::Aim;
use self::originate::Carries;
use self::resolve::Route;
use crate::detect::{self, First};
use crate::exchange::Exchange;
use crate::http::Version;
use crate::limits::DETECT_DEADLINE;
use crate::opaque;
use crate::outcome::Failure;
use crate::snapshot::{Protocol, Target};
use crate::stream::{Reset, Rewound, Stream};
use crate::supervise::{Speaks, Supervisor};
use crate::worker::Worker;

/// Serves one captured connection of our app to its end.
pub async fn serve_captured(worker: Rc<Worker>, stream: Stream, original: SocketAddr) {
    let client = stream.peer_addr();
    let target = Target::Address(original);
    serve_fixed(&worker, Rewound::new(Bytes::new(), stream), target, client).await;
}

/// Serves one connection to the explicit port (HTTP proxy and CONNECT) to its end.
pub async fn serve_explicit(worker: Rc<Worker>, stream: Stream) {
    explicit::serve(&worker, stream).await;
}

/// HTTP/2 of the proxy's own to a service of the mesh; in clear it goes nowhere.
pub(crate) async fn serve_own(worker: Rc<Worker>, stream: tokio::io::DuplexStream, target: Target) {
    let client = Rewound::new(Bytes::new(), Stream::InProcess(stream));
    let _ = http::serve(&worker, client, Version::H2, Aim::Secured(target), None).await;
}

/// A connection of which the destination is settled: captured, or a CONNECT tunnel.
async fn serve_fixed<IO>(worker: &Rc<Worker>, mut client: Rewound<IO>, target: Target, address: Option<SocketAddr>)
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
{
    let carries = match resolve::declared(worker, &target).await {
        Protocol::Http1 => Carries::Http(Version::H1),
        Protocol::Http2 => Carries::Http(Version::H2),
        Protocol::Tcp => Carries::Bytes,
        Protocol::Detect => {
            let mut buf = BytesMut::new();
            let first = detect::first(&mut client, &mut buf, DETECT_DEADLINE).await;
            let carries = match first {
                Ok(First::Http1) => Carries::Http(Version::H1),
                Ok(First::Http2) => Carries::Http(Version::H2),
                // The app's own TLS, any other protocol, and servers that speak first.
                Ok(First::Tls | First::Other | First::Silence) => Carries::Bytes,
                Ok(First::Closed) | Err(_) => return,
            };
            let client = Rewound::new(buf.freeze(), client);
            return serve_as(worker, client, carries, target, address).await;
        }
    };
    serve_as(worker, client, carries, target, address).await;
}

async fn serve_as<IO>(
    worker: &Rc<Worker>,
    client: Rewound<IO>,
    carries: Carries,
    target: Target,
    address: Option<SocketAddr>,
) where
    IO: AsyncRead + AsyncWrite + Reset + Unpin + 'static,
{
    match carries {
        Carries::Http(version) => {
            // An upgraded connection is served to its end in there; CONNECT has no place in a settled one.
            let _ = http::serve(worker, client, version, Aim::Fixed(target), address).await;
        }
        Carries::Bytes => serve_opaque(worker, client, target, address).await,
    }
}

async fn serve_opaque<IO>(worker: &Rc<Worker>, client: IO, target: Target, address: Option<SocketAddr>)
where
    IO: AsyncRead + AsyncWrite + Reset + Unpin,
{
    match resolve::resolve(worker, target, Carries::Bytes, address).await {
        Ok(route) => {
            let exchange = Exchange::begin(Rc::clone(&route.way), None);
            relay(worker, client, &route, &exchange, None).await;
        }
        Err(nowhere) => {
            tracing::debug!(
                reason = nowhere.failure.facts().reason,
                detail = nowhere.detail,
                "nowhere to go"
            );
            Exchange::begin(nowhere.way, None).fail(nowhere.failure);
            client.reset();
        }
    }
}

/// Bytes both ways; every end is the exchange's to record. `opened`: the peer's side, where it is open already.
async fn relay<IO>(
    worker: &Rc<Worker>,
    mut client: IO,
    route: &Route,
    exchange: &Rc<Exchange>,
    opened: Option<forward::OpenStream>,
) where
    IO: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let control = Supervisor::watch(worker, Speaks::Opaque, None);
    exchange.goes_in_clear_to(route.in_clear_to());
    control.carries(exchange);
    let relaying = async {
        let mut upstream = match opened {
            Some(opened) => opened,
            None => exchange.unless_cut(forward::open_stream(worker, route)).await??,
        };
        exchange.rides(Some(&upstream.riding));
        let relayed = opaque::relay(&mut client, &mut upstream.transport, exchange).await;
        if relayed.is_err() {
            upstream.transport.reset();
        }
        relayed
    };
    let relayed: Result<(), Failure> = tokio::select! {
        // `relaying` is dropped only to close both streams.
        relayed = relaying => relayed,
        failure = control.cut() => Err(failure),
    };
    if let Err(failure) = relayed {
        exchange.fail(failure);
        tracing::debug!(reason = failure.facts().reason, "opaque stream ended");
        client.reset();
    }
    exchange.ended();
}

//! From a peer to our app.
//!
//! ```text
//! serve -> terminate (mTLS) -> protocol -> http   -> request (checks) -> user (token) -> authorize -> sanitize -> forward -> app
//!                                       -> opaque -> authorize -> relay -> app
//!                                       -> readmit (postern/renew): an older connection's streams are decided anew
//! ```

pub mod authenticate;
pub mod authorize;
mod edit;
mod fields;
pub mod forward;
pub mod http;
pub(crate) mod readmit;
mod relay;
pub mod request;
pub mod sanitize;
pub mod terminate;
pub mod user;

use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use postern_identity::tls::alpn;
use postern_policy::MtlsMode;

use self::authenticate::Caller;
use self::terminate::Found;
use crate::detect::{self, First};
use crate::exchange::{Exchange, Way};
use crate::http::Version;
use crate::limits::DETECT_DEADLINE;
use crate::metrics::{Direction, RouteKey};
use crate::opaque;
use crate::outcome::Failure;
use crate::snapshot::{Port, Protocol};
use crate::stream::{Rewound, Stream, Transport};
use crate::supervise::{Control, Speaks, Supervisor};
use crate::worker::Worker;

/// One accepted connection: who calls, at which port.
pub struct Connection {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// The port it came in on.
    pub port: Port,
    /// Who calls.
    pub caller: Rc<Caller>,
}

/// What a connection will be served as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Http(Version),
    Opaque,
}

/// Serves one inbound connection to its end. Also entered in process for a hop to oneself.
pub async fn serve(worker: Rc<Worker>, stream: Stream, port: Port) {
    let metrics = Arc::clone(&worker.metrics);
    let number = port.number;
    if let Err(failure) = admit(worker, stream, port).await {
        metrics.refused_connection(Direction::Inbound, failure);
        let reason = failure.facts().reason;
        tracing::debug!(reason, port = number, "inbound connection refused");
    }
}

/// An error is a connection that ended before any route was known.
async fn admit(worker: Rc<Worker>, stream: Stream, port: Port) -> Result<(), Failure> {
    let taken = worker.shared.policy.load();
    let Some(taken) = taken.as_ref().map(|state| state.workload.mtls.of(port.number)) else {
        stream.reset();
        return Err(Failure::ControlUnavailable);
    };
    let address = stream.peer_addr();
    let found = match taken {
        MtlsMode::Strict => {
            let (transport, caller, offered) = terminate::required(&worker, stream).await?;
            Found::Mesh(transport, caller, offered)
        }
        MtlsMode::Permissive => terminate::permissive(&worker, stream).await?,
        MtlsMode::Disable => terminate::untouched(stream, port.protocol).await?,
    };
    let (transport, caller, offered) = match found {
        Found::Mesh(transport, caller, offered) => (transport, caller, offered),
        Found::Plain(transport, caller, first) => {
            return serve_plain(worker, port, transport, caller, first).await;
        }
    };
    if offered.as_deref() == Some(alpn::POSTERN_RENEW) {
        // No data, whatever comes.
        readmit::serve(&worker, transport, &caller).await;
        return Ok(());
    }
    let connection = Rc::new(Connection {
        worker,
        port,
        caller: Rc::new(caller.at(address)),
    });
    let (transport, served) = protocol(&connection, transport, offered.as_deref()).await?;
    run(connection, transport, served).await
}

/// On a port that takes plaintext: it, or TLS of the app's own.
async fn serve_plain(
    worker: Rc<Worker>,
    port: Port,
    transport: Transport,
    caller: Caller,
    first: First,
) -> Result<(), Failure> {
    let served = match (port.protocol, first) {
        (_, First::Closed) => return Ok(()),
        (_, First::Tls) | (Protocol::Tcp, _) => Served::Opaque,
        (Protocol::Http1, _) => Served::Http(Version::H1),
        (Protocol::Http2, _) => Served::Http(Version::H2),
        (Protocol::Detect, First::Http1) => Served::Http(Version::H1),
        (Protocol::Detect, First::Http2) => Served::Http(Version::H2),
        (Protocol::Detect, First::Other | First::Silence) => Served::Opaque,
    };
    let connection = Rc::new(Connection {
        worker,
        port,
        caller: Rc::new(caller),
    });
    run(connection, Rewound::new(bytes::Bytes::new(), transport), served).await
}

/// By ALPN; without it by the port's declaration, else by the first decrypted bytes.
async fn protocol(
    connection: &Connection,
    mut transport: Transport,
    offered: Option<&[u8]>,
) -> Result<(Rewound<Transport>, Served), Failure> {
    let none = bytes::Bytes::new();
    let served = match offered {
        Some(alpn::POSTERN_H1 | alpn::HTTP_1_1) => Served::Http(Version::H1),
        Some(alpn::POSTERN_H2 | alpn::H2) => Served::Http(Version::H2),
        Some(alpn::POSTERN_TCP) => Served::Opaque,
        Some(_) | None => match connection.port.protocol {
            Protocol::Http1 => Served::Http(Version::H1),
            Protocol::Http2 => Served::Http(Version::H2),
            Protocol::Tcp => Served::Opaque,
            Protocol::Detect => {
                let mut buf = BytesMut::new();
                let first = detect::first(&mut transport, &mut buf, DETECT_DEADLINE)
                    .await
                    .map_err(|_| Failure::PeerGone)?;
                let served = match first {
                    First::Http1 => Served::Http(Version::H1),
                    First::Http2 => Served::Http(Version::H2),
                    First::Closed => return Err(Failure::PeerGone),
                    First::Tls | First::Other | First::Silence => Served::Opaque,
                };
                return Ok((Rewound::new(buf.freeze(), transport), served));
            }
        },
    };
    Ok((Rewound::new(none, transport), served))
}

async fn run(connection: Rc<Connection>, transport: Rewound<Transport>, served: Served) -> Result<(), Failure> {
    match served {
        Served::Http(version) => http::serve(connection, transport, version).await,
        Served::Opaque => serve_opaque(connection, transport).await,
    }
    Ok(())
}

/// Every end is the exchange's to record.
async fn serve_opaque(connection: Rc<Connection>, transport: Rewound<Transport>) {
    let way = connection.way(Protocol::Tcp);
    let exchange = Exchange::begin(way, None);
    let admitted = match authorize::stream(&connection, &exchange) {
        Ok(authorize::Admission::Permitted(permit)) => Ok(permit),
        // What it would edit is of requests. The client may go meanwhile: that is found out when bytes move.
        Ok(authorize::Admission::Asks(question)) => Box::pin(question.ask(&connection, &exchange))
            .await
            .map(|(permit, _)| permit),
        Err(failure) => Err(failure),
    };
    let relayed = match admitted {
        Err(failure) => Err(failure),
        Ok(permit) => {
            let control = Supervisor::watch(&connection.worker, Speaks::Opaque, Some(&connection.caller));
            connection.is_watched_by(&control);
            control.carries(&exchange);
            let relaying = async {
                let app = exchange
                    .unless_cut(forward::open_stream(&connection, permit, &exchange))
                    .await??;
                let (client, app) = (transport, app);
                opaque::relay(client, app, &exchange).await
            };
            tokio::select! {
                // `relaying` is dropped only to close both streams.
                relayed = relaying => relayed,
                failure = control.cut() => Err(failure),
            }
        }
    };
    if let Err(failure) = relayed {
        exchange.fail(failure);
        let reason = failure.facts().reason;
        tracing::debug!(reason, port = connection.port.number, "opaque stream ended");
    }
    exchange.ended();
}

impl Connection {
    /// A connection of nobody in particular lives as long as its port takes plaintext.
    fn is_watched_by(&self, control: &Control) {
        if self.caller.peer().is_none() {
            control.is_in_clear_on(self.port.number);
        }
    }

    /// Labels of this connection's traffic.
    pub(crate) fn way(&self, protocol: Protocol) -> Rc<Way> {
        let peer = self.caller.peer();
        let own = self.worker.shared.own_id();
        let key = RouteKey {
            direction: Direction::Inbound,
            source: peer.map_or_else(|| Arc::from(""), |peer| Arc::from(peer.id().as_str())),
            destination: own.map_or_else(|| Arc::from(""), |id| Arc::from(id.as_str())),
            service: Arc::clone(&self.port.name),
            port: self.port.number,
            protocol,
            mutual_tls: peer.is_some(),
        };
        Way::open(&self.worker, key, self.caller.address())
    }
}

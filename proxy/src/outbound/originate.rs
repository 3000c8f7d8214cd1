//! To an endpoint: TCP connect (or a hop to ourselves, in process), mutual TLS, and the check that whoever answers is one
//! that the destination may have. Nothing of a request is sent before that.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use postern_identity::tls;
use postern_identity::{Role, Trust, VerifiedPeer};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use super::readmit::Readmission;
use crate::http::Version;
use crate::inbound;
use crate::limits::{CONNECT_DEADLINE, HANDSHAKE_DEADLINE, IN_PROCESS_BUFFER, RIDE_MARGIN, USE_MARGIN};
use crate::metrics::Direction;
use crate::outcome::Failure;
use crate::readmission::Name;
use crate::snapshot::{Door, Endpoint, Identity, Port, Protocol};
use crate::stream::{Rewound, Stream, Transport};
use crate::worker::Worker;

/// What rides on a peer connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carries {
    /// Requests.
    Http(Version),
    /// One opaque stream.
    Bytes,
}

/// What a peer connection was admitted on, or readmitted: it is used no longer than that holds.
#[derive(Debug)]
pub struct Riding {
    /// `None`: plain bytes to an endpoint outside of the mesh.
    peer: RefCell<Option<VerifiedPeer>>,
    /// The earlier end of both SVIDs.
    end: Cell<Duration>,
    trust_revision: Cell<u64>,
    readmission: Option<Box<Readmission>>,
}

impl Riding {
    fn plain() -> Self {
        Self {
            peer: RefCell::new(None),
            end: Cell::new(Duration::MAX),
            trust_revision: Cell::new(0),
            readmission: None,
        }
    }

    /// What it takes to ask for it to be readmitted.
    pub(super) fn readmission(&self) -> Option<&Readmission> {
        self.readmission.as_deref()
    }

    /// Who answers.
    pub(super) fn peer(&self) -> Option<VerifiedPeer> {
        self.peer.borrow().clone()
    }

    /// The earlier end of both SVIDs; clear text has none.
    pub(super) fn end(&self) -> Duration {
        self.end.get()
    }

    /// The peer has proved itself anew, and agrees.
    pub(super) fn readmit(&self, peer: VerifiedPeer, end: Duration) {
        self.peer.replace(Some(peer));
        self.end.set(end);
        // It was verified under the trust of a moment ago.
        self.trust_revision.set(u64::MAX);
    }

    /// Both ends are still believed.
    pub(crate) fn still_holds(&self, trust: &Trust, clock: Duration) -> Result<(), Failure> {
        let Some(peer) = &*self.peer.borrow() else {
            return Ok(());
        };
        if clock >= self.end.get() {
            return Err(Failure::PeerExpired);
        }
        if self.trust_revision.get() == trust.revision {
            return Ok(());
        }
        match peer.still_holds(trust, UnixTime::since_unix_epoch(clock)) {
            Ok(()) => {
                self.trust_revision.set(trust.revision);
                Ok(())
            }
            Err(error) => Err(Failure::of_peer(&error)),
        }
    }

    /// A request may begin on it at its beginning.
    fn takes_its_first(&self, trust: &Trust, clock: Duration) -> bool {
        self.still_holds(trust, clock.saturating_add(USE_MARGIN)).is_ok()
    }

    /// A request may still begin on it: never once its readmission was asked for, which is for what is in flight.
    pub(crate) fn takes_requests(&self, trust: &Trust, clock: Duration) -> bool {
        let margin = match self.readmission() {
            None => USE_MARGIN,
            Some(readmission) if readmission.was_asked() => return false,
            Some(_) => RIDE_MARGIN,
        };
        self.still_holds(trust, clock.saturating_add(margin)).is_ok()
    }
}

/// Seconds since 1970.
pub(crate) fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// An open, verified connection to `endpoint`.
pub(crate) async fn open(
    worker: &Rc<Worker>,
    endpoint: &Arc<Endpoint>,
    identity: &Arc<Identity>,
    carries: Carries,
) -> Result<(Transport, Riding), Failure> {
    if endpoint.door == Door::Open {
        let stream = match own_open_port(worker, endpoint, identity) {
            Some(port) => to_ourselves(worker, port),
            None => connect(endpoint.address).await?,
        };
        return Ok((Transport::Plain(Rewound::new(Bytes::new(), stream)), Riding::plain()));
    }
    let secured = secure(worker, endpoint, identity, config_for(endpoint, identity, carries)).await?;
    let (_, session) = secured.stream.get_ref();
    let name = Name::of(session).filter(|_| endpoint.readmits);
    let end = secured.end(identity);
    let readmission = name.map(|name| Readmission::new(name, endpoint, identity, &secured.peer, end));
    let riding = Riding {
        end: Cell::new(end),
        trust_revision: Cell::new(secured.trust.revision),
        peer: RefCell::new(Some(secured.peer)),
        readmission: readmission.map(Box::new),
    };
    if !riding.takes_its_first(&secured.trust, clock()) {
        // The upstream's fault, not a caller's.
        worker.metrics.handshake(Direction::Outbound, Some(EXPIRED));
        return Err(Failure::UpstreamHandshake(EXPIRED));
    }
    worker.metrics.handshake(Direction::Outbound, None);
    Ok((Transport::Tls(Box::new(secured.stream.into())), riding))
}

/// See [`Failure::PeerExpired`].
const EXPIRED: &str = "peer_expired";

/// A full handshake with whoever may answer at the endpoint.
pub(super) struct Secured {
    pub(super) stream: client::TlsStream<Rewound<Stream>>,
    pub(super) peer: VerifiedPeer,
    trust: Arc<Trust>,
}

impl Secured {
    /// The earlier end of both SVIDs.
    pub(super) fn end(&self, own: &Identity) -> Duration {
        let end = self.peer.not_after().as_secs().min(own.svid.not_after().as_secs());
        Duration::from_secs(end)
    }
}

/// Dials the endpoint, or ourselves, and shakes hands. A failure is counted; a success is the caller's to count.
pub(super) async fn secure(
    worker: &Rc<Worker>,
    endpoint: &Endpoint,
    identity: &Identity,
    config: Arc<rustls::ClientConfig>,
) -> Result<Secured, Failure> {
    let stream = match own_port(worker, endpoint, identity) {
        Some(port) => to_ourselves(worker, port),
        None => connect(endpoint.address).await?,
    };
    let result = shake_hands(worker, stream, endpoint, config).await;
    if let Err(failure) = &result {
        worker
            .metrics
            .handshake(Direction::Outbound, Some(failure.facts().reason));
    }
    result
}

/// Our own inbound authorizes it like any other; it ends with either side of the pipe.
fn to_ourselves(worker: &Rc<Worker>, port: Port) -> Stream {
    let (ours, theirs) = tokio::io::duplex(IN_PROCESS_BUFFER);
    tokio::task::spawn_local(inbound::serve(Rc::clone(worker), Stream::InProcess(theirs), port));
    Stream::InProcess(ours)
}

async fn shake_hands(
    worker: &Worker,
    stream: Stream,
    endpoint: &Endpoint,
    config: Arc<rustls::ClientConfig>,
) -> Result<Secured, Failure> {
    let offered = config.alpn_protocols.first().cloned().unwrap_or_default();
    let stream = Rewound::new(Bytes::new(), stream);
    // Identity is the URI SAN: the name is neither sent nor looked at.
    let nobody = ServerName::IpAddress(endpoint.address.ip().into());
    let connecting = TlsConnector::from(config).connect(nobody, stream);
    let connected = tokio::time::timeout(HANDSHAKE_DEADLINE, connecting)
        .await
        .map_err(|_| Failure::UpstreamHandshake("handshake_timeout"))?
        .map_err(|error| failure_of(&error))?;
    let (_, session) = connected.get_ref();
    match session.alpn_protocol() {
        Some(agreed) if agreed == offered => {}
        // Many servers agree on nothing unless told to; what they speak is declared.
        None if endpoint.door == Door::Spiffe => {}
        Some(_) | None => return Err(Failure::UpstreamHandshake(NO_COMMON_PROTOCOL)),
    }
    let trust = worker.shared.trust.load_full();
    let peer = tls::peer_of(session, Role::Server, &trust, UnixTime::now())
        .map_err(|error| Failure::UpstreamHandshake(error.reason()))?;
    if !endpoint.expected.admits(&peer) {
        tracing::warn!(
            peer.id = %peer.id(),
            dst.workload = &*endpoint.workload,
            dst.address = %endpoint.address,
            reason = "wrong_peer",
            "whoever answers there is not who should; nothing was sent"
        );
        return Err(Failure::WrongPeer);
    }
    Ok(Secured {
        stream: connected,
        peer,
        trust,
    })
}

fn config_for(endpoint: &Endpoint, identity: &Identity, carries: Carries) -> Arc<rustls::ClientConfig> {
    let config = match (endpoint.door, endpoint.protocol, carries) {
        (_, Protocol::Tcp, _) | (_, _, Carries::Bytes) => &identity.client_tcp,
        (Door::Spiffe, _, Carries::Http(Version::H1)) => &identity.client_spiffe_h1,
        (Door::Spiffe, _, Carries::Http(Version::H2)) => &identity.client_spiffe_h2,
        (Door::Sidecar | Door::Open, _, Carries::Http(Version::H1)) => &identity.client_h1,
        (Door::Sidecar | Door::Open, _, Carries::Http(Version::H2)) => &identity.client_h2,
    };
    Arc::clone(config)
}

/// Our own port, if the endpoint is ourselves: an app that calls its own service.
fn own_port(worker: &Worker, endpoint: &Endpoint, identity: &Identity) -> Option<Port> {
    let svid = &identity.svid;
    if endpoint.expected.instance.is_none()
        || endpoint.expected.instance.as_ref() != svid.instance()
        || !endpoint.expected.ids.contains(svid.id())
    {
        return None;
    }
    port_at(worker, endpoint)
}

/// The same where we take plaintext alone: our packets to our own address would reach the app past our inbound. Nobody proves
/// anything there, so it goes by control's word.
fn own_open_port(worker: &Worker, endpoint: &Endpoint, identity: &Identity) -> Option<Port> {
    if endpoint.expected.instance.as_ref()? != identity.svid.instance()? {
        return None;
    }
    let policy = worker.shared.policy.load();
    let own = &policy.as_ref()?.workload;
    let (namespace, name) = endpoint.workload.split_once('/')?;
    if (namespace, name) != (own.namespace.as_str(), own.name.as_str()) {
        return None;
    }
    port_at(worker, endpoint)
}

/// Of our workload, the port that an endpoint is.
fn port_at(worker: &Worker, endpoint: &Endpoint) -> Option<Port> {
    let policy = worker.shared.policy.load();
    let ports = &policy.as_ref()?.workload.ports;
    // Explicit capture: the endpoint is where we listen ourselves.
    if let Some(port) = ports.iter().find(|port| port.listen == endpoint.address) {
        return Some(port.clone());
    }
    let declared = ports.iter().find(|port| port.number == endpoint.workload_port);
    Some(Port {
        name: declared.map_or_else(|| "".into(), |port| Arc::clone(&port.name)),
        number: endpoint.workload_port,
        protocol: declared.map_or(Protocol::Detect, |port| port.protocol),
        listen: endpoint.address,
        app: endpoint.address,
    })
}

/// A TCP connection, within its deadline.
pub(crate) async fn connect(address: SocketAddr) -> Result<Stream, Failure> {
    let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await;
    let tcp = connected
        .map_err(|_| Failure::ConnectTimeout)?
        .map_err(|_| Failure::ConnectFailed)?;
    // A request's last small segment must not wait for an acknowledgement.
    let _ = tcp.set_nodelay(true);
    Ok(Stream::Tcp(tcp))
}

fn failure_of(error: &io::Error) -> Failure {
    if let Some(verdict) = tls::verify_error_in(error) {
        return Failure::UpstreamHandshake(verdict.reason());
    }
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => Failure::UpstreamHandshake("not_tls"),
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
            Failure::UpstreamHandshake(NO_COMMON_PROTOCOL)
        }
        Some(rustls::Error::AlertReceived(_)) => Failure::UpstreamHandshake(REFUSED),
        Some(_) => Failure::UpstreamHandshake("tls"),
        None => Failure::UpstreamGone,
    }
}

/// It does not speak what we offer.
pub(super) const NO_COMMON_PROTOCOL: &str = "no_common_protocol";

/// The peer did not like our certificate. In TLS 1.3 its word comes with the first read after the handshake.
pub(crate) const REFUSED: &str = "refused_by_peer";

/// Is an alert behind this error?
pub(crate) fn is_alert(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::AlertReceived(_)) = error.downcast_ref() {
            return true;
        }
        // An `io::Error` shows its inner error through `get_ref`, not as its source.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(rustls::Error::AlertReceived(_)) = inner.downcast_ref()
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The identities that a route's metrics name as its destination.
pub(crate) fn first_id(endpoints: &[Arc<Endpoint>]) -> Arc<str> {
    let first = endpoints.iter().find_map(|endpoint| endpoint.expected.ids.first());
    first.map_or_else(|| Arc::from(""), |id| Arc::from(id.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use postern_identity::{Expected, verify};

    use super::*;
    use crate::authority::Authority;

    fn riding(authority: &Authority, readmits: bool) -> Riding {
        let trust = authority.shared_trust();
        let own = authority.svid("spiffe://cluster.local/ns/shop/sa/web", Some("web-1"));
        let identity = Identity::new(1, own, &trust).unwrap();
        let svid = authority.svid("spiffe://cluster.local/ns/shop/sa/cart", Some("cart-1"));
        let peer = verify::verify_peer(svid.chain(), Role::Server, &trust.load(), UnixTime::now()).unwrap();
        let endpoint = Endpoint {
            address: "127.0.0.1:1".parse().unwrap(),
            workload_port: 80,
            expected: Expected {
                ids: vec![peer.id().clone()],
                instance: None,
            },
            protocol: Protocol::Tcp,
            door: Door::Sidecar,
            readmits,
            workload: "cart-1".into(),
        };
        let end = Duration::from_secs(peer.not_after().as_secs());
        let name = Name::from_bytes(&zeroize::Zeroizing::new([7; tls::NAME_BYTES]));
        let readmission = readmits.then(|| Readmission::new(name, &Arc::new(endpoint), &identity, &peer, end));
        Riding {
            peer: RefCell::new(Some(peer)),
            end: Cell::new(end),
            trust_revision: Cell::new(0),
            readmission: readmission.map(Box::new),
        }
    }

    #[test]
    fn what_begins_on_a_resting_connection_finds_the_time_to_be_readmitted() {
        let authority = Authority::new("cluster.local");
        let trust = authority.trust();
        let moment = Duration::from_millis(1);
        for (readmits, margin) in [(true, RIDE_MARGIN), (false, USE_MARGIN)] {
            let riding = riding(&authority, readmits);
            let last = riding.end() - margin;
            assert!(riding.takes_requests(&trust, last - moment), "readmits: {readmits}");
            assert!(!riding.takes_requests(&trust, last), "readmits: {readmits}");
            // A new one is the best that there is.
            assert!(riding.takes_its_first(&trust, riding.end() - USE_MARGIN - moment));
            assert!(!riding.takes_its_first(&trust, riding.end() - USE_MARGIN));
        }
    }
}

//! From a socket to a verified peer: mTLS where it is spoken, and the refusal of everything else.

use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use postern_identity::Role;
use postern_identity::tls::{self, alpn};
use rustls_pki_types::UnixTime;
use tokio_rustls::TlsAcceptor;

use super::authenticate::Caller;
use crate::detect::{self, First};
use crate::limits::{DETECT_DEADLINE, HANDSHAKE_DEADLINE};
use crate::metrics::Direction;
use crate::outcome::Failure;
use crate::readmission::Name;
use crate::snapshot::Protocol;
use crate::stream::{Rewound, Stream, Transport};
use crate::worker::Worker;

/// What a port found that does not ask for mutual TLS alone.
#[derive(Debug)]
pub enum Found {
    /// mTLS of the mesh, with the ALPN agreed on.
    Mesh(Transport, Caller, Option<Vec<u8>>),
    /// Anything else.
    Plain(Transport, Caller, First),
}

/// Where mutual TLS alone is taken: mTLS or a reset.
pub async fn required(worker: &Rc<Worker>, stream: Stream) -> Result<(Transport, Caller, Option<Vec<u8>>), Failure> {
    let mut first = [0; 1];
    if let Stream::Tcp(tcp) = &stream {
        // Peeking before the handshake keeps a plaintext client from being answered with a TLS alert.
        match tokio::time::timeout(HANDSHAKE_DEADLINE, tcp.peek(&mut first)).await {
            Ok(Ok(1)) if first == [0x16] => {}
            Ok(Ok(0) | Err(_)) => return Err(Failure::PeerGone),
            Ok(Ok(_)) => {
                stream.reset();
                return Err(Failure::Plaintext);
            }
            Err(_) => {
                stream.reset();
                return Err(Failure::HandshakeTimeout);
            }
        }
    }
    handshake(worker, Rewound::new(Bytes::new(), stream)).await
}

/// Where plaintext alone is taken: nothing is for us, and the app's own TLS passes as bytes. In bytes nobody looks for anything:
/// the server may speak first.
pub async fn untouched(mut stream: Stream, declared: Protocol) -> Result<Found, Failure> {
    let address = stream.peer_addr();
    let mut buf = BytesMut::new();
    let first = match declared {
        Protocol::Tcp => First::Other,
        Protocol::Detect | Protocol::Http1 | Protocol::Http2 => detect::first(&mut stream, &mut buf, DETECT_DEADLINE)
            .await
            .map_err(|_| Failure::PeerGone)?,
    };
    let transport = Transport::Plain(Rewound::new(buf.freeze(), stream));
    Ok(Found::Plain(transport, Caller::anonymous(address), first))
}

/// Where either is taken: only what offers one of our own ALPNs is for us; the app's own TLS passes as bytes.
pub async fn permissive(worker: &Rc<Worker>, mut stream: Stream) -> Result<Found, Failure> {
    let address = stream.peer_addr();
    let mut buf = BytesMut::new();
    let mut first = detect::first(&mut stream, &mut buf, DETECT_DEADLINE)
        .await
        .map_err(|_| Failure::PeerGone)?;
    if first == First::Tls {
        let offered = tokio::time::timeout(HANDSHAKE_DEADLINE, detect::offered(&mut stream, &mut buf)).await;
        match offered {
            Ok(Ok(Some(alpn))) if alpn.iter().any(|protocol| protocol.starts_with(b"postern/")) => {
                let stream = Rewound::new(buf.freeze(), stream);
                let (transport, caller, alpn) = handshake(worker, stream).await?;
                return Ok(Found::Mesh(transport, caller, alpn));
            }
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Failure::PeerGone),
            // What dribbles its ClientHello is no peer of ours; the app has deadlines of its own.
            Err(_) => first = First::Other,
        }
    }
    let transport = Transport::Plain(Rewound::new(buf.freeze(), stream));
    Ok(Found::Plain(transport, Caller::anonymous(address), first))
}

async fn handshake(
    worker: &Rc<Worker>,
    stream: Rewound<Stream>,
) -> Result<(Transport, Caller, Option<Vec<u8>>), Failure> {
    let result = shake_hands(worker, stream).await;
    let failure = result.as_ref().err().map(|failure| failure.facts().reason);
    worker.metrics.handshake(Direction::Inbound, failure);
    result
}

async fn shake_hands(
    worker: &Rc<Worker>,
    stream: Rewound<Stream>,
) -> Result<(Transport, Caller, Option<Vec<u8>>), Failure> {
    let Some(identity) = worker.shared.identity.load_full() else {
        stream.into_inner().reset();
        return Err(Failure::NoIdentity);
    };
    let Some(slot) = worker.supervisor.handshake() else {
        stream.into_inner().reset();
        return Err(Failure::Overloaded);
    };
    let accepting = TlsAcceptor::from(std::sync::Arc::clone(&identity.server)).accept(stream);
    let accepted = match tokio::time::timeout(HANDSHAKE_DEADLINE, accepting).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => return Err(failure_of(&error)),
        Err(_) => return Err(Failure::HandshakeTimeout),
    };
    drop(slot);
    let (_, session) = accepted.get_ref();
    let trust = worker.shared.trust.load();
    let peer = tls::peer_of(session, Role::Client, &trust, UnixTime::now())
        .map_err(|error| Failure::Handshake(error.reason()))?;
    let leaf = tls::peer_fingerprint(session).ok_or(Failure::Handshake("no_certificate"))?;
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    // Only a proxy of ours asks for its connections to be readmitted.
    let name = match alpn.as_deref() {
        Some(alpn::POSTERN_H1 | alpn::POSTERN_H2 | alpn::POSTERN_TCP) => Name::of(session),
        Some(_) | None => None,
    };
    let caller = Caller::verified(peer, identity.svid.id(), leaf)
        .naming(session.server_name())
        .on(name);
    Ok((Transport::Tls(Box::new(accepted.into())), caller, alpn))
}

fn failure_of(error: &io::Error) -> Failure {
    if let Some(verdict) = tls::verify_error_in(error) {
        return Failure::Handshake(verdict.reason());
    }
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => Failure::Plaintext,
        Some(rustls::Error::NoApplicationProtocol) => Failure::Handshake("no_common_protocol"),
        Some(rustls::Error::PeerIncompatible(_)) => Failure::Handshake("incompatible_tls"),
        Some(_) => Failure::Handshake("tls"),
        None => Failure::PeerGone,
    }
}

//! The one table: what went wrong -> who is at fault, status, connection fate, metric reason, log level.
#![deny(clippy::wildcard_enum_match_arm)]

use postern_identity::VerifyError;
use postern_policy::Reason;
use postern_policy::canonical::CanonicalError;

use crate::limits::RETRY_AFTER_KEYS;

/// Who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Whoever called.
    Peer,
    /// This proxy or its control plane.
    Local,
    /// Whoever was called.
    Upstream,
    /// Nobody: a policy said no.
    Policy,
}

/// How a request, stream or connection ended when it did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    // -- peer
    /// Not TLS where only mTLS is taken: by the workload's mode, or a PeerAuthentication.
    Plaintext,
    /// The TLS handshake failed; the word is the verifier's or `tls`.
    Handshake(&'static str),
    /// The handshake took too long.
    HandshakeTimeout,
    /// The request is not canonical or contradicts itself.
    BadRequest(BadRequest),
    /// Path refused by the canonical form.
    BadPath(CanonicalError),
    /// No complete head in time.
    HeadTimeout,
    /// A body stopped moving.
    BodyTimeout,
    /// The peer went away in the middle.
    PeerGone,
    /// The peer's SVID expired.
    PeerExpired,
    /// The peer is no longer believed: its root was withdrawn.
    PeerWithdrawn,
    /// The peer is cut off.
    PeerQuarantined,
    /// The end user's token is not believed; the word is [`postern_token::Refusal`]'s.
    Token(&'static str),
    // -- policy
    /// A decision.
    Denied(Reason),
    /// Whom a CUSTOM policy asks said no.
    CustomDenied,
    /// It gave no valid answer, or could not be asked.
    CustomError,
    /// It gave none in time.
    CustomTimeout,
    /// The same, and a login would change it: there is no user, or one who logged in too weakly or too long ago.
    NeedsLogin(Reason),
    /// The same, and a token that reaches further would change it.
    NeedsScope(Reason),
    /// A port with HTTP rules got a stream that is not HTTP.
    NotHttp,
    // -- local
    /// No SVID yet.
    NoIdentity,
    /// Our own SVID expired and could not be renewed.
    IdentityExpired,
    /// We are cut off ourselves: nothing comes in, and nothing goes out.
    SelfQuarantined,
    /// Control never told, and is away.
    ControlUnavailable,
    /// Nothing that could verify an end user's token: keys that never came, a document that cannot be read.
    NoTokenKeys(&'static str),
    /// Past a bound of ours.
    Overloaded,
    /// Shutting down.
    Draining,
    // -- upstream
    /// Control does not know such a host or port.
    UnknownDestination,
    /// A workload of the mesh's namespaces without identity.
    NoPeerIdentity,
    /// The service has no endpoint.
    NoEndpoint,
    /// Nobody listens, or nothing came back.
    ConnectFailed,
    /// TCP connect took too long.
    ConnectTimeout,
    /// mTLS with the endpoint failed; the word is the verifier's or `tls`.
    UpstreamHandshake(&'static str),
    /// A valid identity, but not one that the destination may have.
    WrongPeer,
    /// The upstream went away before its answer was whole.
    UpstreamGone,
    /// No answer in time.
    UpstreamTimeout,
    /// The upstream's answer breaks HTTP.
    BadAnswer,
}

/// What is wrong with a request that is refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BadRequest {
    /// No Host, several, or one that differs from the authority.
    Host,
    /// CONNECT, or a form of target that has no place here.
    Target,
    /// Framing: Transfer-Encoding and Content-Length at odds, and the like.
    Framing,
    /// A field name or value that may not be forwarded.
    Field,
    /// More or larger fields than we take.
    TooLarge,
    /// More than one token of an end user (RFC 6750 section 2).
    Tokens,
}

/// What follows from a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Who is at fault.
    pub blame: Blame,
    /// HTTP status, where an answer can be given.
    pub status: u16,
    /// gRPC status, where the request was gRPC.
    pub grpc: u8,
    /// Does the connection end with it?
    pub close: bool,
    /// For metrics, logs and flow reports: a closed set.
    pub reason: &'static str,
    /// For the log.
    pub level: tracing::Level,
}

impl Failure {
    /// The table. No wildcard: a new failure must be placed.
    #[must_use]
    pub fn facts(self) -> Facts {
        use tracing::Level;
        let facts = |blame, status, grpc, close, reason, level| Facts {
            blame,
            status,
            grpc,
            close,
            reason,
            level,
        };
        match self {
            Self::Plaintext => facts(Blame::Peer, 400, 3, true, "plaintext", Level::WARN),
            Self::Handshake(reason) => facts(Blame::Peer, 400, 16, true, reason, Level::WARN),
            Self::HandshakeTimeout => facts(Blame::Peer, 408, 4, true, "handshake_timeout", Level::INFO),
            Self::BadRequest(BadRequest::Host) => facts(Blame::Peer, 400, 3, true, "bad_host", Level::WARN),
            Self::BadRequest(BadRequest::Target) => facts(Blame::Peer, 400, 3, true, "bad_target", Level::WARN),
            Self::BadRequest(BadRequest::Framing) => facts(Blame::Peer, 400, 3, true, "bad_framing", Level::WARN),
            Self::BadRequest(BadRequest::Field) => facts(Blame::Peer, 400, 3, true, "bad_field", Level::WARN),
            Self::BadRequest(BadRequest::TooLarge) => facts(Blame::Peer, 431, 8, true, "head_too_large", Level::WARN),
            // Its answer says what to do, and the next request may be well.
            Self::BadRequest(BadRequest::Tokens) => facts(Blame::Peer, 400, 3, false, "several_tokens", Level::WARN),
            Self::BadPath(error) => facts(Blame::Peer, 400, 3, false, error.reason(), Level::WARN),
            Self::HeadTimeout => facts(Blame::Peer, 408, 4, true, "head_timeout", Level::INFO),
            Self::BodyTimeout => facts(Blame::Peer, 408, 4, true, "body_timeout", Level::INFO),
            Self::PeerGone => facts(Blame::Peer, 499, 1, true, "peer_gone", Level::DEBUG),
            Self::PeerExpired => facts(Blame::Peer, 403, 16, true, "peer_expired", Level::INFO),
            Self::PeerWithdrawn => facts(Blame::Peer, 403, 16, true, "peer_withdrawn", Level::WARN),
            Self::PeerQuarantined => facts(Blame::Peer, 403, 16, true, "peer_quarantined", Level::WARN),
            Self::Token(reason) => facts(Blame::Peer, 401, 16, false, reason, Level::INFO),
            Self::NeedsLogin(reason) => facts(Blame::Policy, 401, 16, false, reason.as_str(), Level::INFO),
            Self::NeedsScope(reason) => facts(Blame::Policy, 403, 7, false, reason.as_str(), Level::INFO),
            Self::Denied(reason) => facts(Blame::Policy, 403, 7, false, reason.as_str(), Level::INFO),
            Self::CustomDenied => facts(Blame::Policy, 403, 7, false, "custom_denied", Level::INFO),
            Self::CustomError => facts(Blame::Policy, 403, 7, false, "custom_error", Level::WARN),
            Self::CustomTimeout => facts(Blame::Policy, 403, 7, false, "custom_timeout", Level::WARN),
            Self::NotHttp => facts(Blame::Policy, 403, 7, true, "not_http", Level::WARN),
            Self::NoIdentity => facts(Blame::Local, 503, 14, false, "no_identity", Level::ERROR),
            Self::IdentityExpired => facts(Blame::Local, 503, 14, false, "identity_expired", Level::ERROR),
            Self::SelfQuarantined => facts(Blame::Local, 503, 14, true, "self_quarantined", Level::ERROR),
            Self::ControlUnavailable => facts(Blame::Local, 503, 14, false, "control_unavailable", Level::ERROR),
            Self::NoTokenKeys(reason) => facts(Blame::Local, 503, 14, false, reason, Level::WARN),
            Self::Overloaded => facts(Blame::Local, 503, 8, true, "overloaded", Level::WARN),
            Self::Draining => facts(Blame::Local, 503, 14, true, "draining", Level::INFO),
            Self::UnknownDestination => facts(Blame::Upstream, 502, 14, false, "unknown_destination", Level::WARN),
            Self::NoPeerIdentity => facts(Blame::Upstream, 502, 14, false, "no_peer_identity", Level::WARN),
            Self::NoEndpoint => facts(Blame::Upstream, 503, 14, false, "no_endpoint", Level::WARN),
            Self::ConnectFailed => facts(Blame::Upstream, 503, 14, false, "connect_failed", Level::WARN),
            Self::ConnectTimeout => facts(Blame::Upstream, 504, 14, false, "connect_timeout", Level::WARN),
            Self::UpstreamHandshake(reason) => facts(Blame::Upstream, 502, 14, false, reason, Level::WARN),
            Self::WrongPeer => facts(Blame::Upstream, 502, 14, false, "wrong_peer", Level::ERROR),
            Self::UpstreamGone => facts(Blame::Upstream, 502, 14, true, "upstream_gone", Level::WARN),
            Self::UpstreamTimeout => facts(Blame::Upstream, 504, 4, true, "upstream_timeout", Level::WARN),
            Self::BadAnswer => facts(Blame::Upstream, 502, 13, true, "bad_answer", Level::WARN),
        }
    }

    /// A peer that was believed is not any more.
    pub(crate) fn of_peer(error: &VerifyError) -> Self {
        match matches!(error, VerifyError::Quarantined(_)) {
            true => Self::PeerQuarantined,
            false => Self::PeerWithdrawn,
        }
    }

    /// Seconds after which the same request may fare better, if we can tell.
    #[must_use]
    pub fn retry_after(self) -> Option<u64> {
        matches!(self, Self::NoTokenKeys(_)).then_some(RETRY_AFTER_KEYS.as_secs())
    }
}

//! Long streams outlive the SVIDs that they began under, by a fresh handshake of the same two workloads.
//!
//! ```text
//! client's proxy                                          server's proxy
//! outbound/readmit  --- mTLS, ALPN postern/renew -------> inbound/terminate: who is it, under the trust of now?
//!                   --- name of the old connection -----> inbound/readmit:   Table -> that connection's worker:
//!                                                         same ID and instance? believed? every stream decided anew
//!                   <-- one byte ------------------------ Answer
//! Riding::readmit: the server's new SVID and end          Control::readmit: the client's new SVID and end
//! ```
//!
//! The name comes from the secrets of the old connection's handshake: whoever says it is one of its two ends. That alone is
//! worth nothing, and neither is the right identity alone. Nothing gets wider: what was admitted goes on under the same
//! identity and the policy of now, and a readmitted connection takes no further requests.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use postern_identity::VerifiedPeer;
use postern_identity::tls::{self, NAME_BYTES};
use rustls::ConnectionCommon;
use tokio::sync::{mpsc, oneshot};
use zeroize::{Zeroize, Zeroizing};

use crate::limits::MAX_READMISSIBLE;

/// What the two ends of a connection call it, and nobody else can.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Box<[u8; NAME_BYTES]>);

impl Name {
    pub(crate) fn of<Side>(connection: &ConnectionCommon<Side>) -> Option<Self> {
        let bytes = Zeroizing::new(tls::name_of(connection)?);
        Some(Self::from_bytes(&bytes))
    }

    pub(crate) fn from_bytes(bytes: &Zeroizing<[u8; NAME_BYTES]>) -> Self {
        // Boxed: it is moved about, and leaves nothing where it was.
        Self(Box::new(**bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &*self.0
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Name(..)")
    }
}

/// Why a connection is not readmitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// What was sent is no name.
    Malformed,
    /// No long-lived connection is called that.
    Unknown,
    /// There is one, and it is somebody else's: another ID or instance.
    WrongPeer,
    /// Whoever asks is not believed any more.
    NotBelieved,
    /// Its SVID ends before the one that it is to replace.
    Older,
    /// The connection is being ended.
    Ending,
    /// Nothing is in flight on it.
    Idle,
    /// Policy does not allow any of it now.
    Denied,
    /// It is being asked about already, or the deadline has passed.
    Busy,
}

impl Refusal {
    /// For metrics and logs.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::WrongPeer => "wrong_peer",
            Self::NotBelieved => "not_believed",
            Self::Older => "older",
            Self::Ending => "ending",
            Self::Idle => "idle",
            Self::Denied => "denied",
            Self::Busy => "busy",
        }
    }
}

/// The answer on the wire: one byte. A number that is not known is a refusal like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Readmitted,
    Refused(&'static str),
}

impl Answer {
    pub(crate) fn to_byte(result: Result<(), Refusal>) -> u8 {
        match result {
            Ok(()) => 0,
            // Whoever it does not belong to need not know that it is there.
            Err(Refusal::Unknown | Refusal::WrongPeer | Refusal::Malformed) => 1,
            Err(Refusal::NotBelieved) => 2,
            Err(Refusal::Older) => 3,
            Err(Refusal::Ending) => 4,
            Err(Refusal::Idle) => 5,
            Err(Refusal::Denied) => 6,
            Err(Refusal::Busy) => 7,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Self {
        Self::Refused(match byte {
            0 => return Self::Readmitted,
            1 => "unknown",
            2 => "not_believed",
            3 => "older",
            4 => "ending",
            5 => "idle",
            6 => "denied",
            7 => "busy",
            _ => "not_understood",
        })
    }
}

/// Somebody proved to be `peer`, and named a connection.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) peer: VerifiedPeer,
    pub(crate) answer: oneshot::Sender<Result<(), Refusal>>,
}

/// Connections of our peers that live long, by name. Locked when one becomes such, ends, or is asked about: never for a request.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<HashMap<Name, mpsc::Sender<Offer>>>);

/// A connection can be asked for by its name while this is held.
#[derive(Debug)]
pub(crate) struct Registered {
    name: Name,
    table: Arc<Table>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.table.locked().remove(&self.name);
    }
}

impl Table {
    /// What is asked of the connection comes to the receiver, one at a time. `None`: there is no room.
    pub(crate) fn register(self: &Arc<Self>, name: &Name) -> Option<(Registered, mpsc::Receiver<Offer>)> {
        let mut known = self.locked();
        if known.len() >= MAX_READMISSIBLE || known.contains_key(name) {
            return None;
        }
        let (offers, offered) = mpsc::channel(1);
        known.insert(name.clone(), offers);
        let registered = Registered {
            name: name.clone(),
            table: Arc::clone(self),
        };
        Some((registered, offered))
    }

    /// Where to ask about a connection.
    pub(crate) fn find(&self, name: &Name) -> Option<mpsc::Sender<Offer>> {
        self.locked().get(name).cloned()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<Name, mpsc::Sender<Offer>>> {
        // Whole between any two of its calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn name(n: usize) -> Name {
        let mut bytes = Zeroizing::new([0; NAME_BYTES]);
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Name::from_bytes(&bytes)
    }

    #[test]
    fn a_name_leads_to_its_connection_until_that_is_gone_and_shows_in_no_log() {
        let table = Arc::new(Table::default());
        let (registered, _offered) = table.register(&name(1)).unwrap();
        assert!(table.find(&name(1)).is_some() && table.find(&name(2)).is_none());
        assert!(table.register(&name(1)).is_none(), "nobody takes another's name");
        assert_eq!(format!("{:?}", name(1)), "Name(..)");
        drop(registered);
        assert!(table.find(&name(1)).is_none());
    }

    #[test]
    fn the_table_holds_so_many_connections_and_not_one_more() {
        let table = Arc::new(Table::default());
        let mut held: Vec<_> = (0..MAX_READMISSIBLE)
            .map(|n| table.register(&name(n)).unwrap())
            .collect();
        assert!(table.register(&name(MAX_READMISSIBLE)).is_none());
        held.pop();
        assert!(table.register(&name(MAX_READMISSIBLE)).is_some());
    }

    #[test]
    fn each_refusal_is_heard_as_what_it_is_and_the_wrong_peer_learns_nothing() {
        assert_eq!(Answer::from_byte(Answer::to_byte(Ok(()))), Answer::Readmitted);
        for refusal in [
            Refusal::Unknown,
            Refusal::NotBelieved,
            Refusal::Older,
            Refusal::Ending,
            Refusal::Idle,
            Refusal::Denied,
            Refusal::Busy,
        ] {
            let heard = Answer::from_byte(Answer::to_byte(Err(refusal)));
            assert_eq!(heard, Answer::Refused(refusal.reason()));
        }
        for refusal in [Refusal::WrongPeer, Refusal::Malformed] {
            assert_eq!(Answer::to_byte(Err(refusal)), Answer::to_byte(Err(Refusal::Unknown)));
        }
        assert_eq!(Answer::from_byte(0xff), Answer::Refused("not_understood"));
    }
}

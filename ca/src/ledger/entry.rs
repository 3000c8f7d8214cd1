//! What a record says.

use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

/// One record's content; JSON under its seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Seconds since 1970, by the CA's clock.
    pub(crate) time: u64,
    #[serde(flatten)]
    pub(crate) event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The chain's first record.
    Begun { version: String },
    /// A certificate was signed; it leaves only after this is on disk.
    Issued(Issued),
    /// A JWT-SVID was signed; it leaves only after this is on disk.
    IssuedJwt(IssuedJwt),
    /// That certificate did not leave after all.
    Withdrawn { serial: String, reason: String },
    /// A request was refused, and `count` - 1 others of this caller for this reason since.
    Refused(Refused),
    /// Records up to this one were taken out because they were old.
    Pruned { through: u64, records: u64 },
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// Hex.
    pub(crate) serial: String,
    pub(crate) identity: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) instance: Option<String>,
    /// SHA-256 of the SubjectPublicKeyInfo, hex.
    pub(crate) key_sha256: String,
    pub(crate) attestation: String,
    /// What was believed: which join token, which certificate before, which pod.
    pub(crate) evidence: String,
    /// Its address; none for the CA's own certificate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) caller: Option<String>,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) issuer_epoch: u64,
}

/// A JWT-SVID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IssuedJwt {
    pub(crate) identity: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) instance: Option<String>,
    /// Serial number of the certificate that was shown for it, hex.
    pub(crate) shown: String,
    pub(crate) audience: Vec<String>,
    /// Its address.
    pub(crate) caller: String,
    pub(crate) not_after: u64,
    /// Of the key that signed it.
    pub(crate) key_id: String,
}

/// One refusal, or several that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    pub(crate) attestation: String,
    /// Its address (an IPv6 /64); none: of several callers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) caller: Option<String>,
    /// What the first of them was told.
    pub(crate) message: String,
    pub(crate) count: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Entry {
    pub(crate) fn at(now: UnixTime, event: Event) -> Self {
        Self {
            time: now.as_secs(),
            event,
        }
    }

    /// For its metric.
    pub(crate) fn name(&self) -> &'static str {
        match self.event {
            Event::Begun { .. } => "begun",
            Event::Issued(_) => "issued",
            Event::IssuedJwt(_) => "issued_jwt",
            Event::Withdrawn { .. } => "withdrawn",
            Event::Refused(_) => "refused",
            Event::Pruned { .. } => "pruned",
        }
    }

    /// Is it about this identity?
    pub(crate) fn concerns(&self, identity: &str) -> bool {
        match &self.event {
            Event::Issued(issued) => issued.identity == identity,
            Event::IssuedJwt(issued) => issued.identity == identity,
            // Who a refused caller would have been is only in what it was told.
            Event::Refused(refused) => refused.message.contains(identity),
            Event::Begun { .. } | Event::Withdrawn { .. } | Event::Pruned { .. } => false,
        }
    }
}

/// All of them, for metrics that start at zero.
pub(crate) const EVENTS: [&str; 6] = ["begun", "issued", "issued_jwt", "withdrawn", "refused", "pruned"];

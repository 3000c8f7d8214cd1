//! Who is cut off, as the CA keeps it: each with a reason, by whom and since when; signed for whoever carries it.
//!
//! ```text
//! operator --add, lift--> changed --signed--> stored --> held: refused here, streamed to control, in each answer
//! ```
//!
//! The version only grows: it is at least the time in milliseconds, so that what is made after an old backup was put back is
//! newer than what was made before. What control still holds of a newer one is taken back ([`Held::relearned`]), and of one that
//! is not among those that led here, because the quarantine was changed after a backup was put back, nobody is lifted.

use std::collections::BTreeMap;

use postern_api::ca::v1 as pb;
use postern_api::quarantine_wire::{subject_from_wire, subject_to_wire};
use postern_identity::quarantine::{MAX_DOCUMENT, QuarantineError, Subject};
use postern_identity::{QuarantineSet, SignedQuarantine};
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use crate::authority::{Authority, AuthorityError};

/// Longest reason, and longest name of who asked for it, in characters.
pub(crate) const MAX_TEXT: usize = 256;
/// A set travels to each proxy with each change: past this it is a policy that is wanted. Half of what a reader takes, so
/// that one carried back from control fits, too.
const MAX_SIGNED: usize = MAX_DOCUMENT / 2;

/// Of the record, which has reasons and names beside the set: in base64 and sealed it is half of what a Secret may hold (1 MiB),
/// which holds the CA's other records as well.
const MAX_RECORD: usize = 384 * 1024;
/// Versions that are remembered. A backup that is older than so many changes of the quarantine is not one to go on with.
const MAX_PASSED: usize = 1_024;

/// What is known of an entry beside its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) since_unix: u64,
}

/// The set in force, and the CA's word on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    pub(crate) version: u64,
    /// The versions that led here, ascending: another that control holds and that lies between is one that was lost.
    passed: Vec<u64>,
    pub(crate) entries: BTreeMap<Subject, Entry>,
    /// `None`: nobody was ever cut off.
    pub(crate) signed: Option<SignedQuarantine>,
}

/// `quarantine.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u64,
    #[serde(default)]
    passed: Vec<u64>,
    entries: Vec<EntryRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    reason: String,
    by: String,
    since_unix: u64,
}

/// What an operator wants.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Add(Subject, Entry),
    Lift(Subject),
    /// Control holds a newer one than we, which this CA has signed.
    Relearn(QuarantineSet),
}

/// Why nothing is changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("{0} is not in quarantine")]
    NotThere(Subject),
    #[error("the quarantine holds {0} entries and is full; lift some, or deny by policy what is of a kind")]
    Full(usize),
    #[error("it cannot be signed")]
    Sign(#[from] AuthorityError),
}

impl Held {
    /// As it was stored, signed anew.
    pub(crate) fn load(record: Record, authority: &Authority) -> Result<Self, String> {
        let mut entries = BTreeMap::new();
        for entry in record.entries {
            let (subject, entry) = entry.load().map_err(|error| error.to_string())?;
            entries.insert(subject, entry);
        }
        let held = Self {
            version: record.version,
            passed: record.passed,
            entries,
            signed: None,
        };
        held.signed_by(authority).map_err(|error| crate::error_chain(&error))
    }

    pub(crate) fn record(&self) -> Record {
        let entries = self.entries.iter();
        Record {
            version: self.version,
            passed: self.passed.clone(),
            entries: entries
                .map(|(subject, entry)| EntryRecord::of(subject, entry))
                .collect(),
        }
    }

    /// What proxies enforce.
    pub(crate) fn set(&self) -> QuarantineSet {
        QuarantineSet::new(self.version, self.entries.keys().cloned().collect())
    }

    /// The same under the signature of this authority's issuer.
    pub(crate) fn signed_by(mut self, authority: &Authority) -> Result<Self, AuthorityError> {
        if self.version != 0 {
            self.signed = Some(authority.sign_quarantine(self.set().to_document())?);
        }
        Ok(self)
    }

    /// After the change; `None`: it is so already.
    pub(crate) fn changed(
        &self,
        change: &Change,
        authority: &Authority,
        now: UnixTime,
    ) -> Result<Option<Self>, ChangeError> {
        let mut next = Self {
            version: self.version.saturating_add(1).max(now.as_secs().saturating_mul(1000)),
            passed: self.passed_with(self.version),
            entries: self.entries.clone(),
            signed: None,
        };
        match change {
            Change::Add(subject, _) if self.entries.contains_key(subject) => return Ok(None),
            Change::Add(subject, entry) => {
                next.entries.insert(subject.clone(), entry.clone());
                let record = serde_json::to_vec(&next.record()).map_or(usize::MAX, |record| record.len());
                if next.set().to_document().len() > MAX_SIGNED || record > MAX_RECORD {
                    return Err(ChangeError::Full(self.entries.len()));
                }
            }
            Change::Lift(subject) => {
                if next.entries.remove(subject).is_none() {
                    return Err(ChangeError::NotThere(subject.clone()));
                }
            }
            Change::Relearn(set) if self.knows(set.version()) => return Ok(None),
            // Changed since the backup was put back, and by whom does not know of it: nobody is lifted by that.
            Change::Relearn(set) if set.version() < self.version => {
                let lost = self.relearned(set, now).entries;
                next.passed = next.passed_with(set.version());
                for (subject, entry) in lost {
                    next.entries.entry(subject).or_insert(entry);
                }
            }
            Change::Relearn(set) => next = self.relearned(set, now),
        }
        Ok(Some(next.signed_by(authority)?))
    }

    /// Is it in what led here? Of what came before the oldest that is remembered, nothing can be lost that is not long past.
    pub(crate) fn knows(&self, version: u64) -> bool {
        let oldest = self.passed.first().copied().unwrap_or(self.version);
        version == self.version || version < oldest || self.passed.contains(&version)
    }

    fn passed_with(&self, version: u64) -> Vec<u64> {
        let mut passed = self.passed.clone();
        if !passed.contains(&version) {
            passed.push(version);
            passed.sort_unstable();
        }
        let excess = passed.len().saturating_sub(MAX_PASSED);
        passed.drain(..excess);
        passed
    }

    /// What this CA signed and has forgotten: exactly that is in force.
    fn relearned(&self, set: &QuarantineSet, now: UnixTime) -> Self {
        let entry = |subject: &Subject| {
            self.entries.get(subject).cloned().unwrap_or_else(|| Entry {
                reason: "not in this CA's state, which is older; control still had it".to_owned(),
                by: String::new(),
                since_unix: now.as_secs(),
            })
        };
        Self {
            version: set.version(),
            passed: self.passed_with(self.version),
            entries: set
                .subjects()
                .iter()
                .map(|subject| (subject.clone(), entry(subject)))
                .collect(),
            signed: None,
        }
    }

    /// For people.
    pub(crate) fn shown(&self) -> Vec<pb::Quarantined> {
        let shown = |(subject, entry): (&Subject, &Entry)| pb::Quarantined {
            subject: Some(subject_to_wire(subject)),
            reason: entry.reason.clone(),
            by: entry.by.clone(),
            since_unix: i64::try_from(entry.since_unix).unwrap_or(i64::MAX),
        };
        self.entries.iter().map(shown).collect()
    }

    pub(crate) fn state(&self, changed: bool) -> pb::QuarantineState {
        pb::QuarantineState {
            version: self.version,
            entries: self.shown(),
            signed: self.signed.as_ref().map(Into::into),
            changed,
        }
    }
}

impl EntryRecord {
    fn of(subject: &Subject, entry: &Entry) -> Self {
        let (spiffe_id, instance, serial) = match subject {
            Subject::Id(id) => (Some(id.to_string()), None, None),
            Subject::Instance(instance, id) => (id.as_ref().map(ToString::to_string), Some(instance.to_string()), None),
            Subject::Serial(serial) => (None, None, Some(serial.to_string())),
        };
        Self {
            spiffe_id,
            instance,
            serial,
            reason: entry.reason.clone(),
            by: entry.by.clone(),
            since_unix: entry.since_unix,
        }
    }

    fn load(self) -> Result<(Subject, Entry), QuarantineError> {
        use pb::quarantined::Subject as Wire;
        let wire = match (self.spiffe_id, self.instance, self.serial) {
            (Some(id), None, None) => Some(Wire::SpiffeId(id)),
            (id, Some(instance), None) => Some(Wire::Instance(pb::QuarantinedInstance {
                instance,
                spiffe_id: id.unwrap_or_default(),
            })),
            (None, None, Some(serial)) => Some(Wire::Serial(serial)),
            (_, _, _) => None,
        };
        let entry = Entry {
            reason: self.reason,
            by: self.by,
            since_unix: self.since_unix,
        };
        Ok((subject_from_wire(wire.as_ref())?, entry))
    }
}

#[cfg(test)]
mod tests;

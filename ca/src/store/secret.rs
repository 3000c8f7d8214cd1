//! The CA's state in a Secret that its replicas share: the records of a store, sealed alike, under the names of its files.
//!
//! Every write has the precondition that what was read is still there: of two replicas that found a CA, or rotate, one
//! succeeds and the other reads again. What cannot be read is never overwritten.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use postern_cluster::confidential::{self, CallError};
use rustls_pki_types::UnixTime;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Kind, Seals, unsealed};
use crate::authority::{Authority, AuthorityRecord, Root, RootRecord};
use crate::ledger::chain::KeyRecord;
use crate::quarantine::{Held, Record};
use crate::seal::KekError;

/// Reading or writing one small object.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Which Secret.
#[derive(Clone)]
pub(crate) struct SecretStore {
    client: Client,
    namespace: String,
    name: String,
    seals: Seals,
}

/// Why a value cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SealError {
    /// It is no JSON.
    #[error("it cannot be encoded")]
    Encoding(#[from] serde_json::Error),
    /// It cannot be sealed.
    #[error(transparent)]
    Kek(#[from] KekError),
}

/// A Secret as it was read; writing it back has that as its precondition.
pub(crate) struct Stored {
    secret: Secret,
    place: String,
    seals: Seals,
}

/// Why the state cannot be read or written; each says the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SecretError {
    /// No answer, or a refusal.
    #[error("cannot {what} Secret {place}")]
    Call {
        /// `read` or `write`.
        what: &'static str,
        /// Namespace and name.
        place: String,
        /// Why.
        #[source]
        source: CallError,
    },
    /// No answer in time.
    #[error("cannot {what} Secret {place}: no answer within {CALL_DEADLINE:?}")]
    Slow {
        /// `read` or `write`.
        what: &'static str,
        /// Namespace and name.
        place: String,
    },
    /// It is not there.
    #[error("there is no Secret {0}; the chart creates it empty, and the CA fills it")]
    Missing(String),
    /// Somebody wrote since it was read.
    #[error("Secret {0} was written by somebody else just now")]
    Conflict(String),
    /// Not what was written.
    #[error(
        "Secret {place}, key {key}, is damaged ({why}); put the Secret back from a backup; without one, scale the CA to \
         0, empty the Secret and the ConfigMap of the roots (kubectl patch, data: null), scale it up, which founds a new CA, \
         and re-create every pod of the mesh"
    )]
    Damaged {
        /// Namespace and name.
        place: String,
        /// Which record.
        key: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Its key.
    #[error("Secret {place} cannot be opened or sealed")]
    Kek {
        /// Namespace and name.
        place: String,
        /// Why.
        #[source]
        source: KekError,
    },
    /// It is another mesh's.
    #[error(
        "Secret {place} holds the CA of trust domain {found}, not of {wanted}; a CA that was founded keeps its trust domain"
    )]
    TrustDomain {
        /// Namespace and name.
        place: String,
        /// In it.
        found: String,
        /// By the command line.
        wanted: String,
    },
}

impl SecretError {
    /// Trying again can help: it is not the content that is wrong.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Call { .. } | Self::Slow { .. } | Self::Missing(_) | Self::Conflict(_) => true,
            Self::Kek { source, .. } => source.is_outage(),
            Self::Damaged { .. } | Self::TrustDomain { .. } => false,
        }
    }
}

impl SecretStore {
    pub(crate) fn new(client: Client, namespace: &str, name: &str, seals: Seals) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            seals,
        }
    }
    /// A record as it is kept.
    pub(crate) fn record<T: Serialize>(&self, kind: Kind, value: &T) -> Result<(Kind, Vec<u8>), SealError> {
        let body = serde_json::to_vec_pretty(value).map(Zeroizing::new)?;
        Ok((kind, super::record::seal(&self.seals, kind, &body)?.to_vec()))
    }
    /// How its records are sealed.
    pub(crate) fn seals(&self) -> &Seals {
        &self.seals
    }
    /// For messages.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
    fn collection(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.namespace)
    }

    pub(crate) async fn read(&self) -> Result<Stored, SecretError> {
        let collection = self.collection();
        let asked = timeout(CALL_DEADLINE, confidential::get(&self.client, &collection, &self.name)).await;
        let stored = Stored {
            secret: self.answered("read", asked)?,
            place: self.place(),
            seals: self.seals.clone(),
        };
        let records: Vec<&[u8]> = stored.records().map(|(_, record)| record).collect();
        let learned = self.seals.learn(&records).await;
        learned.map_err(|source| SecretError::Kek {
            place: self.place(),
            source,
        })?;
        Ok(stored)
    }

    /// Seals anew what is not sealed as it would be now; which records those were.
    pub(crate) async fn rewrap(&self) -> Result<Vec<Kind>, SecretError> {
        let stored = self.read().await?;
        let mut records = Vec::new();
        for (kind, record) in stored.records().filter(|(_, record)| !self.seals.is_current(record)) {
            let damaged = |why| stored.damaged(kind, why);
            let body = super::record::open(&self.seals, kind, record).map_err(damaged)?;
            let sealed = super::record::seal(&self.seals, kind, &body);
            let sealed = sealed.map_err(|source| SecretError::Kek {
                place: self.place(),
                source,
            })?;
            records.push((kind, sealed.to_vec()));
        }
        let kinds = records.iter().map(|(kind, _)| *kind).collect();
        if !records.is_empty() {
            self.write(stored, records).await?;
        }
        Ok(kinds)
    }

    /// Writes these records over what was read, the others as they were.
    pub(crate) async fn write(&self, mut over: Stored, records: Vec<(Kind, Vec<u8>)>) -> Result<(), SecretError> {
        if over.secret.metadata.resource_version.is_none() {
            // Without it there would be no precondition.
            return Err(SecretError::Conflict(self.place()));
        }
        let data = over.secret.data.get_or_insert_default();
        for (kind, record) in records {
            if let Some(mut old) = data.insert(kind.file().to_owned(), ByteString(record)) {
                old.0.zeroize();
            }
        }
        let collection = self.collection();
        let written = confidential::replace(&self.client, &collection, &self.name, &over.secret);
        let asked = timeout(CALL_DEADLINE, written).await;
        self.answered("write", asked).map(drop)
    }

    fn answered(
        &self,
        what: &'static str,
        asked: Result<Result<Secret, CallError>, tokio::time::error::Elapsed>,
    ) -> Result<Secret, SecretError> {
        let place = self.place();
        match asked {
            Err(_) => Err(SecretError::Slow { what, place }),
            Ok(Ok(secret)) => Ok(secret),
            Ok(Err(error)) if error.is_conflict() => Err(SecretError::Conflict(place)),
            Ok(Err(error)) if error.status() == Some(404) => Err(SecretError::Missing(place)),
            Ok(Err(source)) => Err(SecretError::Call { what, place, source }),
        }
    }
}

impl Stored {
    /// Which state of the Secret this is.
    pub(crate) fn version(&self) -> Option<&str> {
        self.secret.metadata.resource_version.as_deref()
    }

    /// The authority, checked as one from a directory is; `None`: nobody has founded it.
    pub(crate) fn authority(&self, now: UnixTime) -> Result<Option<Authority>, SecretError> {
        let root = self.root()?;
        let Some(record) = self.record::<AuthorityRecord>(Kind::Authority)? else {
            return match root {
                None => Ok(None),
                Some(_) => Err(self.damaged(Kind::Authority, "it is missing, and a root is there".to_owned())),
            };
        };
        let authority = record
            .load(now)
            .map_err(|error| self.damaged(Kind::Authority, error.to_string()))?
            .with_jwt_keys(self.record(Kind::JwtKeys)?)
            .map_err(|error| self.damaged(Kind::JwtKeys, error.to_string()))?
            .with_rotation(self.record(Kind::Rotation)?, now)
            .map_err(|error| self.damaged(Kind::Rotation, error.to_string()))?;
        self.root_of(&authority)?;
        Ok(Some(authority))
    }

    /// The root that signs, with its key; `None`: that is kept elsewhere.
    pub(crate) fn root_of(&self, authority: &Authority) -> Result<Option<Root>, SecretError> {
        let root = self.root()?;
        if root.as_ref().is_some_and(|root| root.cert() != authority.root()) {
            return Err(self.damaged(Kind::Root, "it is the root of another CA".to_owned()));
        }
        Ok(root)
    }

    /// The root with its key; `None` if it is kept elsewhere.
    fn root(&self) -> Result<Option<Root>, SecretError> {
        self.record::<RootRecord>(Kind::Root)?
            .map(|record| {
                record
                    .load()
                    .map_err(|error| self.damaged(Kind::Root, error.to_string()))
            })
            .transpose()
    }

    /// The quarantine, signed by this authority; `None`: there never was one.
    pub(crate) fn quarantine(&self, authority: &Authority) -> Result<Option<Held>, SecretError> {
        let record = self.record::<Record>(Kind::Quarantine)?;
        let held = record.map(|record| Held::load(record, authority)).transpose();
        held.map_err(|why| self.damaged(Kind::Quarantine, why))
    }

    /// What seals the ledgers of all replicas; `None`: nobody has made it.
    pub(crate) fn ledger_key(&self) -> Result<Option<KeyRecord>, SecretError> {
        self.record(Kind::Ledger)
    }

    fn records(&self) -> impl Iterator<Item = (Kind, &[u8])> {
        let data = self.secret.data.as_ref();
        let of = move |kind: Kind| Some((kind, data?.get(kind.file())?.0.as_slice()));
        Kind::ALL.into_iter().filter_map(of)
    }

    fn record<T: DeserializeOwned>(&self, kind: Kind) -> Result<Option<T>, SecretError> {
        let Some(bytes) = self.secret.data.as_ref().and_then(|data| data.get(kind.file())) else {
            return Ok(None);
        };
        unsealed(&self.seals, kind, &bytes.0)
            .map(Some)
            .map_err(|why| self.damaged(kind, why))
    }

    fn damaged(&self, kind: Kind, why: String) -> SecretError {
        SecretError::Damaged {
            place: self.place.clone(),
            key: kind.file(),
            why,
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        for value in self.secret.data.iter_mut().flat_map(|data| data.values_mut()) {
            value.0.zeroize();
        }
    }
}

//! Who is cut off: a set that the CA alone can make, and that whoever carries it can neither add to, shorten nor turn back.
//!
//! It travels as a [`SignedQuarantine`], signed by an issuing intermediate under a root of the bundle that is held. Its
//! version only grows: a holder takes no older one ([`Trust::with_quarantine`]).

use std::collections::{BTreeMap, BTreeSet};

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use crate::bundle::{self, TrustBundle};
use crate::{IdError, Instance, SpiffeId, Trust, TrustDomain};

/// A document past this is not read. The CA keeps below [`MAX_DOCUMENT`] by refusing entries.
pub const MAX_DOCUMENT: usize = 256 * 1024;
/// The longest serial number that a certificate may have (RFC 5280 section 4.1.2.2), with a leading zero.
const MAX_SERIAL: usize = 21;

/// What is cut off.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// An identity, all its instances.
    Id(SpiffeId),
    /// One instance (a pod's UID). With an ID only under that: without Kubernetes an instance is a workload's name, which
    /// another namespace may have as well.
    Instance(Instance, Option<SpiffeId>),
    /// One certificate.
    Serial(Serial),
}

/// A certificate's serial number as a number: without leading zeros.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(Vec<u8>);

/// What is in force: which subjects, of which version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuarantineSet {
    version: u64,
    subjects: BTreeSet<Subject>,
}

/// The set as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedQuarantine {
    /// JSON, byte for byte as signed.
    pub document: Vec<u8>,
    /// ECDSA (ASN.1) over [`signing_input`].
    pub signature: Vec<u8>,
    /// The signing intermediate first, up to but without the root.
    pub signer_chain: Vec<CertificateDer<'static>>,
}

/// Why a set was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuarantineError {
    /// Not a document of ours.
    #[error("the quarantine set cannot be read: {0}")]
    Document(String),
    /// It names somebody who cannot be.
    #[error("the quarantine set names somebody malformed")]
    Subject(#[from] IdError),
    /// Not a serial number.
    #[error("`{0}` is no serial number: hexadecimal, up to 40 digits, colons as you like")]
    Serial(String),
    /// Nobody who may has signed it.
    #[error("quarantine set {version} is not signed under a root of bundle {bundle}: {why}")]
    Unsigned {
        /// The refused one.
        version: u64,
        /// The bundle it was checked against.
        bundle: u64,
        /// What failed.
        why: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u64,
    #[serde(default)]
    spiffe_ids: Vec<String>,
    #[serde(default)]
    instances: Vec<InstanceEntry>,
    #[serde(default)]
    serials: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct InstanceEntry {
    instance: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<String>,
}

impl Serial {
    /// From a certificate's big-endian bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(significant(bytes).to_vec())
    }
    /// From what people read in tools: hexadecimal, in either case, with or without colons.
    pub fn parse(text: &str) -> Result<Self, QuarantineError> {
        let refused = || QuarantineError::Serial(text.chars().take(64).collect());
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or_else(refused)?;
        // Of an odd number the first stands alone.
        let (first, rest) = digits.split_at(digits.len() % 2);
        let pairs = rest
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit));
        let bytes: Vec<u8> = first.iter().copied().chain(pairs).collect();
        let serial = Self::of(&bytes);
        if serial.0.is_empty() || bytes.len() > MAX_SERIAL {
            return Err(refused());
        }
        Ok(serial)
    }
}

fn significant(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

impl std::fmt::Display for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Instance(instance, None) => write!(f, "instance {instance}"),
            Self::Instance(instance, Some(id)) => write!(f, "instance {instance} of {id}"),
            Self::Serial(serial) => write!(f, "serial {serial}"),
        }
    }
}

impl QuarantineSet {
    /// A set under its version.
    #[must_use]
    pub fn new(version: u64, subjects: BTreeSet<Subject>) -> Self {
        Self { version, subjects }
    }
    /// Grows with every change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
    /// Who is in it.
    #[must_use]
    pub fn subjects(&self) -> &BTreeSet<Subject> {
        &self.subjects
    }

    /// Deterministic.
    #[must_use]
    pub fn to_document(&self) -> Vec<u8> {
        let mut document = Document {
            version: self.version,
            spiffe_ids: Vec::new(),
            instances: Vec::new(),
            serials: Vec::new(),
        };
        for subject in &self.subjects {
            match subject {
                Subject::Id(id) => document.spiffe_ids.push(id.to_string()),
                Subject::Instance(instance, id) => document.instances.push(InstanceEntry {
                    instance: instance.to_string(),
                    spiffe_id: id.as_ref().map(ToString::to_string),
                }),
                Subject::Serial(serial) => document.serials.push(serial.to_string()),
            }
        }
        // Of strings and numbers alone: there is nothing in it that JSON cannot say.
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// Fields of a newer CA are passed over: what is understood must be enforced.
    fn from_document(json: &[u8]) -> Result<Self, QuarantineError> {
        if json.len() > MAX_DOCUMENT {
            return Err(QuarantineError::Document(format!("longer than {MAX_DOCUMENT} bytes")));
        }
        let document: Document =
            serde_json::from_slice(json).map_err(|error| QuarantineError::Document(error.to_string()))?;
        let mut subjects = BTreeSet::new();
        for id in &document.spiffe_ids {
            subjects.insert(Subject::Id(SpiffeId::parse(id)?));
        }
        for entry in &document.instances {
            let id = entry.spiffe_id.as_deref().map(SpiffeId::parse).transpose()?;
            subjects.insert(Subject::Instance(Instance::parse(&entry.instance)?, id));
        }
        for serial in &document.serials {
            subjects.insert(Subject::Serial(Serial::parse(serial)?));
        }
        Ok(Self::new(document.version, subjects))
    }
}

/// The bytes that the signature covers.
#[must_use]
pub fn signing_input(trust_domain: &TrustDomain, document: &[u8]) -> Vec<u8> {
    let domain = trust_domain.as_str().as_bytes();
    [b"postern-quarantine-v1\0", domain, b"\0", document].concat()
}

/// The set, if whoever signed it is under a root of this bundle.
pub fn open(bundle: &TrustBundle, signed: &SignedQuarantine, now: UnixTime) -> Result<QuarantineSet, QuarantineError> {
    let set = QuarantineSet::from_document(&signed.document)?;
    let message = signing_input(bundle.trust_domain(), &signed.document);
    bundle::verify_signed(bundle, &message, &signed.signature, &signed.signer_chain, now).map_err(|why| {
        QuarantineError::Unsigned {
            version: set.version,
            bundle: bundle.sequence(),
            why,
        }
    })?;
    Ok(set)
}

/// Instances under one ID, and certificates, as each handshake looks them up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    instances: BTreeMap<Instance, BTreeSet<SpiffeId>>,
    serials: BTreeSet<Vec<u8>>,
}

impl Index {
    pub(crate) fn holds(&self, id: &SpiffeId, instance: Option<&Instance>, serial: &[u8]) -> Option<String> {
        if let Some(instance) = instance
            && self.instances.get(instance).is_some_and(|ids| ids.contains(id))
        {
            return Some(instance.to_string());
        }
        // Most meshes have none, most of the time.
        if !self.serials.is_empty() && self.serials.contains(significant(serial)) {
            return Some(Serial::of(serial).to_string());
        }
        None
    }
}

impl Trust {
    /// Who is cut off.
    #[must_use]
    pub fn cut_off(&self) -> BTreeSet<Subject> {
        let ids = self.quarantined_ids.iter().cloned().map(Subject::Id);
        let instances = self.quarantined_instances.iter().cloned();
        let under_ids = self.quarantined.instances.iter().flat_map(|(instance, ids)| {
            let of = |id: &SpiffeId| Subject::Instance(instance.clone(), Some(id.clone()));
            ids.iter().map(of)
        });
        let serials = self.quarantined.serials.iter();
        ids.chain(instances.map(|instance| Subject::Instance(instance, None)))
            .chain(under_ids)
            .chain(serials.map(|serial| Subject::Serial(Serial(serial.clone()))))
            .collect()
    }

    /// The same trust with this set; `None` if it holds this version already, or a newer one.
    #[must_use]
    pub fn with_quarantine(&self, set: &QuarantineSet) -> Option<Self> {
        if set.version <= self.quarantine_version {
            return None;
        }
        let mut next = Self {
            revision: self.revision + 1,
            bundles: self.bundles.clone(),
            quarantine_version: set.version,
            ..Self::default()
        };
        for subject in &set.subjects {
            match subject.clone() {
                Subject::Id(id) => drop(next.quarantined_ids.insert(id)),
                Subject::Instance(instance, None) => drop(next.quarantined_instances.insert(instance)),
                Subject::Instance(instance, Some(id)) => {
                    next.quarantined.instances.entry(instance).or_default().insert(id);
                }
                Subject::Serial(serial) => drop(next.quarantined.serials.insert(serial.0)),
            }
        }
        Some(next)
    }
}

//! The leaf rules of the X.509-SVID standard, read by our own parser.

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{Instance, SpiffeId};

/// The private, non-critical extension that carries the [`Instance`] as a DER UTF8String.
/// (2.25.* is the arc for UUID-derived OIDs, ITU-T X.667.)
pub const INSTANCE_OID: &[u64] = &[2, 25, 153_715_371, 1];

/// What a well-formed SVID leaf says.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its one URI SAN.
    pub id: SpiffeId,
    /// The instance extension, if present.
    pub instance: Option<Instance>,
    /// Big-endian serial number.
    pub serial: Vec<u8>,
    /// First instant of validity.
    pub not_before: UnixTime,
    /// Last instant of validity.
    pub not_after: UnixTime,
}

/// Which leaf rule a certificate breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    /// Not one well-formed DER certificate.
    #[error("not one well-formed DER certificate")]
    Malformed,
}

/// Checks every leaf rule that needs neither a clock nor a trust anchor.
pub fn inspect(der: &CertificateDer<'_>) -> Result<Leaf, LeafError> {
    let _ = der;
    todo!()
}

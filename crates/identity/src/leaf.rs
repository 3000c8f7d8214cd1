//! The leaf rules of the X.509-SVID standard, read by our own parser.
//!
//! webpki accepts two URI SANs, a leaf with keyCertSign and a leaf without BasicConstraints; x509-parser's iterator does
//! not show a second URI SAN that is not IA5. So SAN entries are counted on the raw extension, and every rule is here.

use std::sync::LazyLock;

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::asn1_rs::Oid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::oid_registry as oid;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::der::{self, Tlv};
use crate::{IdError, Instance, SpiffeId};

/// The private, non-critical extension that carries the [`Instance`] as a DER UTF8String.
/// (2.25.* is the arc for UUID-derived OIDs, ITU-T X.667.)
pub const INSTANCE_OID: &[u64] = &[2, 25, 153_715_371, 1];

/// Marks an SVID that an app got from its proxy: the app is who it says, and not its proxy. Its value is a DER NULL; it is
/// not critical, so that others, who need not know the difference, read past it.
pub const APP_OID: &[u64] = &[2, 25, 153_715_371, 2];
/// The value of [`APP_OID`].
pub const APP_EXTENSION_DER: &[u8] = &[5, 0];

/// The smallest RSA key of a foreign peer that is believed (NIST SP 800-131A). Our own SVIDs are P-256.
pub const MIN_RSA_BITS: usize = 2048;

/// 1.3.6.1.5.5.7.3.1 and .2 (RFC 5280 4.2.1.12).
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

static INSTANCE: LazyLock<Oid<'static>> =
    LazyLock::new(|| Oid::from(INSTANCE_OID).unwrap_or(oid::OID_X509_COMMON_NAME));
static APP: LazyLock<Oid<'static>> = LazyLock::new(|| Oid::from(APP_OID).unwrap_or(oid::OID_X509_COMMON_NAME));

/// What a well-formed SVID leaf says.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its one URI SAN.
    pub id: SpiffeId,
    /// The instance extension, if present.
    pub instance: Option<Instance>,
    /// Is it an app's, beside its proxy?
    pub of_app: bool,
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
    /// Bytes after the certificate.
    #[error("bytes follow the certificate")]
    Trailing,
    /// An extension occurs twice.
    #[error("an extension occurs twice")]
    DuplicateExtension,
    /// A critical extension that we do not process.
    #[error("critical extension {0} is not understood")]
    UnknownCritical(String),
    /// No subject alternative name.
    #[error("there is no subject alternative name")]
    NoSan,
    /// The SAN extension cannot be read.
    #[error("the subject alternative name is malformed")]
    MalformedSan,
    /// RFC 5280 4.2.1.6: an empty subject makes the SAN critical.
    #[error("the subject is empty and the subject alternative name is not critical")]
    SanNotCritical,
    /// X509-SVID section 2: exactly one URI SAN.
    #[error("there are {0} URI SANs, there must be exactly one")]
    UriSans(usize),
    /// The one URI SAN is no workload's SPIFFE ID.
    #[error("the URI SAN is not a workload's SPIFFE ID")]
    Id(#[source] IdError),
    /// BasicConstraints absent or malformed.
    #[error("BasicConstraints are {0}")]
    BasicConstraints(&'static str),
    /// A CA certificate is no leaf.
    #[error("the certificate is a CA's")]
    IsCa,
    /// RFC 5280 4.2.1.10: only a CA certificate may have them.
    #[error("a leaf has name constraints")]
    NameConstraints,
    /// KeyUsage absent, malformed, not critical or wrong.
    #[error("KeyUsage {0}")]
    KeyUsage(&'static str),
    /// ExtendedKeyUsage malformed, or lacking serverAuth or clientAuth.
    #[error("ExtendedKeyUsage {0}")]
    ExtendedKeyUsage(&'static str),
    /// A key that is too weak or of a kind that we do not verify.
    #[error("the public key is {0}")]
    Key(&'static str),
    /// The instance extension is malformed.
    #[error("the instance extension is malformed")]
    Instance,
    /// notAfter lies before notBefore, or outside of time.
    #[error("the validity period is empty or out of range")]
    Validity,
}

impl LeafError {
    /// A closed set of `snake_case` words, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed | Self::Trailing | Self::DuplicateExtension | Self::Validity => "leaf_malformed",
            Self::UnknownCritical(_) => "leaf_critical_extension",
            Self::NoSan | Self::MalformedSan | Self::SanNotCritical | Self::UriSans(_) => "leaf_san",
            Self::Id(_) => "leaf_spiffe_id",
            Self::BasicConstraints(_) | Self::IsCa | Self::NameConstraints => "leaf_basic_constraints",
            Self::KeyUsage(_) | Self::ExtendedKeyUsage(_) => "leaf_key_usage",
            Self::Key(_) => "leaf_key",
            Self::Instance => "leaf_instance",
        }
    }
}

/// Checks every leaf rule that needs neither a clock nor a trust anchor.
pub fn inspect(der: &CertificateDer<'_>) -> Result<Leaf, LeafError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError::Malformed)?;
    if !rest.is_empty() {
        return Err(LeafError::Trailing);
    }
    check_key(&certificate)?;
    let extensions = Extensions::read(&certificate)?;
    let san = extensions.san.ok_or(LeafError::NoSan)?;
    if der::is_empty_sequence(certificate.subject().as_raw()) && !san.critical {
        return Err(LeafError::SanNotCritical);
    }
    let id = one_uri(san.value)?;
    if !extensions.basic_constraints {
        return Err(LeafError::BasicConstraints("absent"));
    }
    if !extensions.key_usage {
        return Err(LeafError::KeyUsage("is absent"));
    }
    let (not_before, not_after) = validity(&certificate)?;
    Ok(Leaf {
        id,
        instance: extensions.instance,
        of_app: extensions.of_app,
        serial: certificate.raw_serial().to_vec(),
        not_before,
        not_after,
    })
}

/// The instance extension's value: a DER UTF8String.
#[must_use]
pub fn instance_extension_der(instance: &Instance) -> Vec<u8> {
    let text = instance.as_str().as_bytes();
    // MAX_INSTANCE_LEN is 253: the length takes one byte, or two.
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let header: &[u8] = if length < 0x80 {
        &[0x0c, length]
    } else {
        &[0x0c, 0x81, length]
    };
    [header, text].concat()
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Result<(UnixTime, UnixTime), LeafError> {
    let at = |time: x509_parser::time::ASN1Time| {
        u64::try_from(time.timestamp())
            .map(|seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
            .map_err(|_| LeafError::Validity)
    };
    let (not_before, not_after) = (
        at(certificate.validity().not_before)?,
        at(certificate.validity().not_after)?,
    );
    if not_after < not_before {
        Err(LeafError::Validity)
    } else {
        Ok((not_before, not_after))
    }
}

/// The parsed value, unless bytes follow it: x509-parser does not mind them, and another reader might read them.
pub(crate) fn parsed<'a>(extension: &'a X509Extension<'a>) -> Option<&'a ParsedExtension<'a>> {
    Tlv::only(extension.value).map(|_| extension.parsed_extension())
}

struct San<'a> {
    critical: bool,
    value: &'a [u8],
}

#[derive(Default)]
struct Extensions<'a> {
    san: Option<San<'a>>,
    basic_constraints: bool,
    key_usage: bool,
    instance: Option<Instance>,
    of_app: bool,
}

impl<'a> Extensions<'a> {
    fn read(certificate: &'a X509Certificate<'a>) -> Result<Self, LeafError> {
        let mut found = Self::default();
        let all = certificate.extensions();
        for (i, extension) in all.iter().enumerate() {
            if all.iter().skip(i + 1).any(|other| other.oid == extension.oid) {
                return Err(LeafError::DuplicateExtension);
            }
            if extension.oid == oid::OID_X509_EXT_SUBJECT_ALT_NAME {
                found.san = Some(San {
                    critical: extension.critical,
                    value: extension.value,
                });
            } else if extension.oid == oid::OID_X509_EXT_BASIC_CONSTRAINTS {
                let Some(ParsedExtension::BasicConstraints(constraints)) = parsed(extension) else {
                    return Err(LeafError::BasicConstraints("malformed"));
                };
                if constraints.ca {
                    return Err(LeafError::IsCa);
                }
                found.basic_constraints = true;
            } else if extension.oid == oid::OID_X509_EXT_KEY_USAGE {
                let Some(ParsedExtension::KeyUsage(usage)) = parsed(extension) else {
                    return Err(LeafError::KeyUsage("is malformed"));
                };
                check_key_usage(usage, extension.critical)?;
                found.key_usage = true;
            } else if extension.oid == oid::OID_X509_EXT_EXTENDED_KEY_USAGE {
                // Absence is allowed by the standard (a SHOULD); half of it is not.
                check_extended_key_usage(extension.value)?;
            } else if extension.oid == *INSTANCE {
                found.instance = Some(instance(extension.value)?);
            } else if extension.oid == *APP {
                // Whatever its value is: who doubts it takes the lesser.
                found.of_app = true;
            } else if extension.oid == oid::OID_X509_EXT_NAME_CONSTRAINTS {
                return Err(LeafError::NameConstraints);
            } else if extension.critical {
                return Err(LeafError::UnknownCritical(extension.oid.to_id_string()));
            }
        }
        Ok(found)
    }
}

fn check_key_usage(usage: &x509_parser::extensions::KeyUsage, critical: bool) -> Result<(), LeafError> {
    let wrong = if !critical {
        "is not critical"
    } else if usage.key_cert_sign() {
        "allows keyCertSign"
    } else if usage.crl_sign() {
        "allows cRLSign"
    } else if !usage.digital_signature() {
        "lacks digitalSignature"
    } else {
        return Ok(());
    };
    Err(LeafError::KeyUsage(wrong))
}

/// By our own parser: x509-parser takes a purpose of any tag for an OID.
fn check_extended_key_usage(value: &[u8]) -> Result<(), LeafError> {
    let malformed = LeafError::ExtendedKeyUsage("is malformed");
    let Some(purposes) = Tlv::only(value).filter(|tlv| tlv.tag == der::SEQUENCE) else {
        return Err(malformed);
    };
    let (mut server, mut client) = (false, false);
    for purpose in purposes.children() {
        let Some(purpose) = purpose.filter(|tlv| tlv.tag == der::OID) else {
            return Err(malformed);
        };
        server |= purpose.value == SERVER_AUTH;
        client |= purpose.value == CLIENT_AUTH;
    }
    if server && client {
        Ok(())
    } else {
        Err(LeafError::ExtendedKeyUsage("lacks serverAuth or clientAuth"))
    }
}

pub(crate) fn check_key(certificate: &X509Certificate<'_>) -> Result<(), LeafError> {
    let key = certificate.public_key();
    if key.algorithm.algorithm == oid::OID_SIG_ED25519 {
        return Ok(());
    }
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() >= MIN_RSA_BITS => Ok(()),
        Ok(PublicKey::RSA(_)) => Err(LeafError::Key("an RSA key of less than 2048 bits")),
        Ok(PublicKey::EC(_)) => {
            let curve = key
                .algorithm
                .parameters
                .as_ref()
                .and_then(|parameters| parameters.as_oid().ok());
            match curve {
                Some(curve) if curve == oid::OID_EC_P256 || curve == oid::OID_NIST_EC_P384 => Ok(()),
                _ => Err(LeafError::Key("on a curve other than P-256 and P-384")),
            }
        }
        _ => Err(LeafError::Key("of an unknown kind")),
    }
}

/// Walks the raw GeneralNames and counts every entry of tag 6 (uniformResourceIdentifier), readable or not.
fn one_uri(san: &[u8]) -> Result<SpiffeId, LeafError> {
    let names = Tlv::only(san)
        .filter(|tlv| tlv.tag == der::SEQUENCE)
        .ok_or(LeafError::MalformedSan)?;
    let mut uris = Vec::new();
    for name in names.children() {
        let name = name.filter(Tlv::is_general_name).ok_or(LeafError::MalformedSan)?;
        if name.is_context(6) {
            uris.push(name);
        }
    }
    let [uri] = uris.as_slice() else {
        return Err(LeafError::UriSans(uris.len()));
    };
    if uri.is_constructed() || !uri.value.is_ascii() {
        return Err(LeafError::MalformedSan);
    }
    let text = std::str::from_utf8(uri.value).map_err(|_| LeafError::MalformedSan)?;
    SpiffeId::parse(text).map_err(LeafError::Id)
}

fn instance(value: &[u8]) -> Result<Instance, LeafError> {
    let text = Tlv::only(value)
        .filter(|tlv| tlv.tag == der::UTF8_STRING)
        .ok_or(LeafError::Instance)?;
    let text = std::str::from_utf8(text.value).map_err(|_| LeafError::Instance)?;
    Instance::parse(text).map_err(|_| LeafError::Instance)
}

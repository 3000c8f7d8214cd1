//! Who is cut off, between the wire and `postern_identity::quarantine`.

use postern_identity::quarantine::{QuarantineError, Serial, Subject};
use postern_identity::{Instance, SignedQuarantine, SpiffeId};
use rustls::pki_types::CertificateDer;

use crate::ca::v1 as pb;
use crate::ca::v1::quarantined;

/// The service account whose token operators of a cluster show, in the CA's namespace.
pub const OPERATOR_ACCOUNT: &str = "postern-responder";
/// Whom that token is for.
pub const OPERATOR_AUDIENCE: &str = "postern-ca-operator";

impl From<pb::SignedQuarantine> for SignedQuarantine {
    fn from(wire: pb::SignedQuarantine) -> Self {
        Self {
            document: wire.document,
            signature: wire.signature,
            signer_chain: wire.signer_chain.into_iter().map(CertificateDer::from).collect(),
        }
    }
}

impl From<&SignedQuarantine> for pb::SignedQuarantine {
    fn from(signed: &SignedQuarantine) -> Self {
        Self {
            document: signed.document.clone(),
            signature: signed.signature.clone(),
            signer_chain: signed.signer_chain.iter().map(|der| der.to_vec()).collect(),
        }
    }
}

/// As it travels.
#[must_use]
pub fn subject_to_wire(subject: &Subject) -> quarantined::Subject {
    match subject {
        Subject::Id(id) => quarantined::Subject::SpiffeId(id.to_string()),
        Subject::Instance(instance, id) => quarantined::Subject::Instance(pb::QuarantinedInstance {
            instance: instance.to_string(),
            spiffe_id: id.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
        Subject::Serial(serial) => quarantined::Subject::Serial(serial.to_string()),
    }
}

/// Read strictly; an absent one is an error.
pub fn subject_from_wire(subject: Option<&quarantined::Subject>) -> Result<Subject, QuarantineError> {
    match subject {
        Some(quarantined::Subject::SpiffeId(id)) => Ok(Subject::Id(SpiffeId::parse(id)?)),
        Some(quarantined::Subject::Instance(of)) => {
            let id = (!of.spiffe_id.is_empty()).then(|| SpiffeId::parse(&of.spiffe_id));
            Ok(Subject::Instance(Instance::parse(&of.instance)?, id.transpose()?))
        }
        Some(quarantined::Subject::Serial(serial)) => Ok(Subject::Serial(Serial::parse(serial)?)),
        None => Err(QuarantineError::Document("an entry names nobody".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_subject_survives_the_wire_and_an_absent_one_is_refused() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
        let instance = Instance::parse("web-1").unwrap();
        for subject in [
            Subject::Id(id.clone()),
            Subject::Instance(instance.clone(), None),
            Subject::Instance(instance, Some(id)),
            Subject::Serial(Serial::parse("0A:ff").unwrap()),
        ] {
            let wire = subject_to_wire(&subject);
            assert_eq!(subject_from_wire(Some(&wire)).unwrap(), subject);
        }
        assert!(subject_from_wire(None).is_err());
        let nobody = quarantined::Subject::SpiffeId(String::new());
        assert!(subject_from_wire(Some(&nobody)).is_err());
    }
}

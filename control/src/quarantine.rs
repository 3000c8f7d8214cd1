//! Who is cut off, by the CA's word: checked here, carried to proxies byte for byte, never an older one. A proxy that is cut
//! off itself hears that much, and nothing else of the mesh.

use postern_api::ca::v1 as pb;
use postern_api::ca_client;
use postern_identity::quarantine::{self, QuarantineError};
use postern_identity::{QuarantineSet, SignedQuarantine, Trust, TrustBundle, VerifiedPeer};
use rustls::pki_types::UnixTime;

use crate::hub::Hub;

/// What is in force.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    /// 0: the CA never cut anybody off, or there is no CA.
    pub(crate) version: u64,
    pub(crate) signed: Option<pb::SignedQuarantine>,
    /// The same, with reasons; it may come a moment later.
    pub(crate) entries: Vec<pb::Quarantined>,
    /// Holds nothing else.
    index: Trust,
}

impl Quarantine {
    pub(crate) fn new(set: &QuarantineSet, signed: pb::SignedQuarantine, entries: Vec<pb::Quarantined>) -> Self {
        Self {
            version: set.version(),
            signed: Some(signed),
            entries,
            index: Trust::default().with_quarantine(set).unwrap_or_default(),
        }
    }

    /// Is it cut off?
    /// Whoever is cut off, and nobody's roots.
    pub(crate) fn trust(&self) -> Trust {
        self.index.clone()
    }

    pub(crate) fn holds(&self, peer: &VerifiedPeer) -> bool {
        let checked = self.index.check_quarantine(peer.id(), peer.instance(), peer.serial());
        checked.is_err()
    }

    /// For proxies that know of no signature: their words, which say no less.
    pub(crate) fn in_clear(&self) -> (Vec<String>, Vec<String>) {
        let (mut ids, mut instances) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            match &entry.subject {
                Some(pb::quarantined::Subject::SpiffeId(id)) => ids.push(id.clone()),
                Some(pb::quarantined::Subject::Instance(of)) => instances.push(of.instance.clone()),
                Some(pb::quarantined::Subject::Serial(_)) | None => {}
            }
        }
        (ids, instances)
    }
}

/// What came with our own SVID: before anybody is served, and while the CA's stream is away.
pub(crate) fn from_answer(hub: &Hub, came: Option<&ca_client::Quarantine>) {
    // Of the version that is held the stream knows more.
    let Some(came) = came.filter(|came| came.set.version() != hub.quarantine().version) else {
        return;
    };
    let entries = came.set.subjects().iter().map(|subject| pb::Quarantined {
        subject: Some(postern_api::quarantine_wire::subject_to_wire(subject)),
        ..pb::Quarantined::default()
    });
    adopt(hub, &came.set, (&came.signed).into(), entries.collect());
}

/// What the CA's stream says.
pub(crate) fn from_stream(
    hub: &Hub,
    bundle: &TrustBundle,
    signed: Option<pb::SignedQuarantine>,
    entries: Vec<pb::Quarantined>,
    now: UnixTime,
) -> Result<(), QuarantineError> {
    let Some(signed) = signed else {
        if hub.quarantine().version != 0 {
            older(hub, 0);
        }
        return Ok(());
    };
    let set = quarantine::open(bundle, &SignedQuarantine::from(signed.clone()), now)?;
    adopt(hub, &set, signed, entries);
    Ok(())
}

fn adopt(hub: &Hub, set: &QuarantineSet, signed: pb::SignedQuarantine, entries: Vec<pb::Quarantined>) {
    let held = hub.quarantine();
    if set.version() < held.version {
        return older(hub, set.version());
    }
    // Of one version only the signature may differ (a new issuer's), and what is known of its entries.
    if set.version() == held.version && held.signed.as_ref() == Some(&signed) && held.entries == entries {
        return;
    }
    if set.version() != held.version {
        tracing::warn!(
            reason = "quarantine",
            version = set.version(),
            entries = set.subjects().len(),
            "quarantine"
        );
        let count = set.subjects().len();
        hub.event(
            "warning",
            format!("quarantine {} is in force: {count} cut off", set.version()),
        );
    }
    hub.publish_quarantine(Quarantine::new(set, signed, entries));
}

/// It goes on with what it has, and tells the CA of it at the next stream.
fn older(hub: &Hub, version: u64) {
    let held = hub.quarantine().version;
    tracing::error!(
        reason = "quarantine",
        version,
        held,
        "the CA's quarantine is older than the one in force, which stays: was its store put back from a backup?"
    );
}

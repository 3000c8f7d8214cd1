//! Who is cut off, as this proxy enforces it: a set that the CA signed, from its answers or through control, whichever is newer.
//!
//! ```text
//! CA's answer (first SVID, each renewal) --opened by ca_client--.
//! control's Quarantine --opened here, under the bundle-----------+--> Trust (never an older one) -> verifier, live connections
//!                                                                '--> Shared::is_cut_off: are we in it ourselves?
//! ```
//!
//! Control carries it and cannot change it: what is not signed changes nothing, and what is older is refused for ever. Only
//! the CA's next word lifts it.

use std::sync::atomic::Ordering;

use postern_api::control::v1 as wire;
use postern_identity::{QuarantineSet, SignedQuarantine, TrustDomain, quarantine};
use rustls::pki_types::UnixTime;

use crate::metrics::Metrics;
use crate::outcome::Failure;
use crate::snapshot::Shared;
use crate::status::error_chain;

/// Puts what control carries in force, or says what is wrong with it.
pub(crate) fn take(
    shared: &Shared,
    metrics: &Metrics,
    trust_domain: &TrustDomain,
    message: &wire::Quarantine,
    now: UnixTime,
) -> Result<(), String> {
    let Some(signed) = message.signed.clone() else {
        // Of a control that knows of no CA, or of one that has never cut anybody off.
        return match message.spiffe_ids.is_empty() && message.instances.is_empty() {
            true => Ok(()),
            false => Err("it is not signed by the CA".to_owned()),
        };
    };
    let trust = shared.trust.load();
    let bundle = trust
        .bundles
        .get(trust_domain.as_str())
        .ok_or("no bundle to verify it against")?;
    let set = quarantine::open(bundle, &SignedQuarantine::from(signed), now).map_err(|error| error_chain(&error))?;
    let held = trust.quarantine_version;
    if set.version() < held {
        return Err(format!(
            "version {} is older than {held}, which is in force",
            set.version()
        ));
    }
    adopt(shared, metrics, &set);
    Ok(())
}

/// In force from now on, unless one as new is.
pub(crate) fn adopt(shared: &Shared, metrics: &Metrics, set: &QuarantineSet) {
    if !shared.change_trust(|trust| trust.with_quarantine(set)) {
        return;
    }
    let process = &metrics.process;
    process.quarantine_version.store(set.version(), Ordering::Relaxed);
    let entries = u64::try_from(set.subjects().len()).unwrap_or(u64::MAX);
    process.quarantined.store(entries, Ordering::Relaxed);
    tracing::warn!(
        reason = "quarantine",
        version = set.version(),
        entries,
        cut_off = shared.is_cut_off(),
        "quarantine"
    );
}

impl Shared {
    /// Are we ourselves cut off? Then nothing comes in, and nothing goes out.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// The same, for where a request or stream begins.
    pub fn not_cut_off(&self) -> Result<(), Failure> {
        match self.is_cut_off() {
            true => Err(Failure::SelfQuarantined),
            false => Ok(()),
        }
    }

    /// After each change of identity or trust.
    pub(crate) fn look_at_self(&self) {
        let (identity, trust) = (self.identity.load(), self.trust.load());
        let cut_off = identity.as_ref().is_some_and(|identity| {
            let leaf = identity.svid.leaf();
            trust
                .check_quarantine(&leaf.id, leaf.instance.as_ref(), &leaf.serial)
                .is_err()
        });
        self.cut_off.store(cut_off, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

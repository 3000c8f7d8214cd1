//! The root's replacement: one record, and stages that follow from it and from what signs.
//!
//! ```text
//! prepared --(at once)--> published --acknowledged, or a timeout--> activated --the longest leaf's life--> retired
//!   new root,               bundle: old + new,                         new root signs,                       bundle: new;
//!   tested                  signed under the old                       bundle: old + new                     nothing of the old counts
//!
//! tainted (what is in the store is in wrong hands): a fresh root, activated once acknowledged or seconds after it was published;
//! retired once acknowledged and renewed, or after a timeout
//! ```
//!
//! The record is written before the authority that it announces, so that a kill between the two leaves the stage before.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::record::{self, IssuerRecord, LinkRecord};
use super::{Authority, AuthorityError, Brought, Issuer, Root, matching, validity_of};
use crate::base64_bytes::Base64;
use crate::clock::later;
use crate::profile::Validity;

mod changes;

/// After a compromise proxies renew at once, spread over 30 s: the old root leaves only after that, or they could not.
const RENEWALS: Duration = Duration::from_secs(60);

/// After a compromise the new root signs this long after it was published, whoever has heard: a replica looks every 5 s at what
/// another wrote, and control pushes within one.
const NOTICE: Duration = Duration::from_secs(7);

/// How patient a replacement of the root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootPace {
    /// The new root signs when every connected control has reported that its proxies know it, and after this long in any case.
    pub acknowledge: Duration,
    /// The old root leaves the bundle this long after the new one signs.
    pub retire: Duration,
    /// What controls have reported counts once none of them has come or gone for so long.
    pub settle: Duration,
}

impl RootPace {
    /// What is waited for an acknowledgement, unless said otherwise: control pushes a bundle within a second, and a proxy that lost
    /// its control finds another within some.
    pub const ACKNOWLEDGE: Duration = Duration::from_secs(10 * 60);
    /// A control that restarts is away for some seconds, and its proxies with it; so long nobody may have come or gone, before what
    /// those say who are here counts.
    const SETTLE: Duration = Duration::from_secs(30);

    /// In keeping with how long is waited at all, and with how often each control comes anew: at half of its SVID's life.
    pub(crate) fn settling(acknowledge: Duration, svid_life: Duration) -> Duration {
        Self::SETTLE.min(acknowledge / 20).min(svid_life / 8)
    }

    /// For a CA that serves nobody.
    pub(crate) const PATIENT: Self = Self {
        acknowledge: Self::ACKNOWLEDGE,
        retire: Duration::from_secs(48 * 3600),
        settle: Self::SETTLE,
    };
}

/// Where a replacement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Prepared,
    Published,
    Activated,
    Retired,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Publish,
    Activate,
    /// The new root's key takes the place of the old one's; a brought issuer is where the one before it was.
    StoreRoot,
    Retire,
    /// Until then, at the latest.
    Wait(UnixTime),
}

/// When a stage began, and the bundle that it brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mark {
    pub(crate) unix: u64,
    pub(crate) sequence: u64,
}

/// `rotation.json`, the last replacement of the root. Versions that know nothing of it leave it alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    /// Of the root that this CA was founded with: its ledger goes by it.
    founding_root_sha256: Base64,
    old_root: Base64,
    new_root: Base64,
    /// PKCS#8; until it is in `root.json`.
    new_root_key: Option<Base64>,
    /// Of a root whose key is elsewhere: the issuer under it, until it signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new_issuer: Option<IssuerRecord>,
    tainted: bool,
    prepared_unix: u64,
    published: Option<Mark>,
    activated: Option<Mark>,
    retired_unix: Option<u64>,
    /// The issuer's key under the old root, for whoever knows only that one.
    cross: Option<Base64>,
    /// The bundle that had both roots first, signed under the old one.
    bridge: Option<LinkRecord>,
}

impl Stage {
    pub(crate) const ALL: [Self; 4] = [Self::Prepared, Self::Published, Self::Activated, Self::Retired];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Activated => "activated",
            Self::Retired => "retired",
        }
    }
}

impl Rotation {
    /// A new root stands ready to follow that of `authority`: its issuer's leaf has passed our verifier.
    pub(crate) fn prepare(authority: &Authority, tainted: bool, now: UnixTime) -> Result<Self, AuthorityError> {
        let life = Duration::from_secs(
            (authority.root_validity.not_after.as_secs()).saturating_sub(authority.root_validity.not_before.as_secs()),
        );
        let root = Root::succeeding(&authority.trust_domain, life, now)?;
        Authority::found(&authority.trust_domain, &root, authority.issuer_life, now)?;
        Ok(Self {
            new_root_key: Some(Base64::of(root.key.serialized_der())),
            tainted,
            ..Self::begun(authority, &root.cert, now)
        })
    }

    /// An issuer under another root stands ready, which was checked.
    pub(super) fn prepare_brought(authority: &Authority, brought: &Brought, now: UnixTime) -> Self {
        Self {
            new_issuer: Some(brought.record.clone()),
            ..Self::begun(authority, &brought.root, now)
        }
    }

    fn begun(authority: &Authority, new_root: &CertificateDer<'_>, now: UnixTime) -> Self {
        Self {
            founding_root_sha256: Base64::of(&authority.founding_root_sha256()),
            old_root: Base64::of(&authority.root),
            new_root: Base64::of(new_root),
            new_root_key: None,
            new_issuer: None,
            tainted: false,
            prepared_unix: now.as_secs(),
            published: None,
            activated: None,
            retired_unix: None,
            cross: None,
            bridge: None,
        }
    }

    /// What the next root needs to sign is here.
    fn is_pending(&self) -> bool {
        self.new_root_key.is_some() || self.new_issuer.is_some()
    }

    /// The issuer that was brought with the new root, as long as it is here; number `epoch`.
    fn pending_issuer(&self, epoch: u64) -> Result<Option<(Issuer, Validity)>, AuthorityError> {
        let Some(record) = &self.new_issuer else {
            return Ok(None);
        };
        let unusable = |why: &str| AuthorityError::Unusable(format!("the next root {why}"));
        let root = self.new_root();
        let (_, parsed) = X509Certificate::from_der(&root).map_err(|_| unusable("cannot be read"))?;
        let validity = validity_of(&parsed).ok_or_else(|| unusable("has a validity before 1970"))?;
        Ok(Some((record.clone().numbered(epoch).load(validity)?, validity)))
    }

    /// The same with another issuer under the new root.
    pub(super) fn with_issuer(&self, brought: &Brought) -> Self {
        Self {
            new_issuer: Some(brought.record.clone()),
            ..self.clone()
        }
    }

    /// The issuer that waits ended before it signed: it never will.
    pub(super) fn is_spent(&self, now: UnixTime) -> bool {
        let waits = self.pending_issuer(0).ok().flatten();
        waits.is_some_and(|(issuer, _)| now > issuer.validity.not_after)
    }

    /// The issuer that signs has ended, and its leaves with it: it can publish nothing, and nobody is left to be told first.
    fn is_all_there_is(&self, authority: &Authority, now: UnixTime) -> bool {
        self.new_issuer.is_some() && authority.has_ended(now) && !self.is_spent(now)
    }

    /// The certificate of the issuer that waits.
    pub(super) fn pending_issuer_cert(&self) -> Option<CertificateDer<'static>> {
        self.new_issuer.as_ref().map(IssuerRecord::cert)
    }

    /// The issuer that waited was let go before it signed: what is left is the name of the founding root.
    fn is_let_go(&self, authority: &Authority) -> bool {
        self.old_root() == authority.root && self.activated.is_none() && !self.is_pending()
    }

    /// The new root with its key, as long as that is here.
    pub(crate) fn pending_root(&self) -> Result<Option<Root>, AuthorityError> {
        let Some(key) = &self.new_root_key else {
            return Ok(None);
        };
        let key = record::key(key, "next root's")?;
        let cert = self.new_root();
        let validity = matching(&cert, &key, "next root")?;
        Ok(Some(Root { cert, key, validity }))
    }

    /// The same, in a hurry.
    pub(super) fn tainting(&self) -> Self {
        Self {
            tainted: true,
            ..self.clone()
        }
    }

    pub(crate) fn old_root(&self) -> CertificateDer<'static> {
        der(&self.old_root)
    }
    pub(crate) fn new_root(&self) -> CertificateDer<'static> {
        der(&self.new_root)
    }
    pub(crate) fn founding_root_sha256(&self) -> Option<[u8; 32]> {
        self.founding_root_sha256.bytes().try_into().ok()
    }
    pub(crate) fn is_tainted(&self) -> bool {
        self.tainted
    }
    pub(crate) fn prepared_unix(&self) -> u64 {
        self.prepared_unix
    }
    pub(crate) fn published(&self) -> Option<Mark> {
        self.published
    }
    pub(crate) fn activated(&self) -> Option<Mark> {
        self.activated
    }
    pub(crate) fn retired_unix(&self) -> Option<u64> {
        self.retired_unix
    }

    /// `None`: it is not about this authority (a backup was put back), and counts for nothing.
    pub(crate) fn stage(&self, authority: &Authority) -> Option<Stage> {
        let (old, new) = (self.old_root(), self.new_root());
        let published = |root| authority.bundle.roots().contains(root);
        if authority.root == new {
            return Some(if published(&old) {
                Stage::Activated
            } else {
                Stage::Retired
            });
        }
        // Without its key it leads nowhere.
        (authority.root == old && self.is_pending()).then(|| {
            if published(&new) {
                Stage::Published
            } else {
                Stage::Prepared
            }
        })
    }

    /// A bundle of this number says what those of its stages said, some of which may have been said otherwise by a state that was
    /// lost: it is the one to acknowledge.
    pub(super) fn renumbered(&self, sequence: u64) -> Self {
        let anew = |mark: Option<Mark>| mark.map(|mark| Mark { sequence, ..mark });
        Self {
            published: anew(self.published),
            activated: anew(self.activated),
            ..self.clone()
        }
    }

    /// What is due. `began`: since when this process serves; before, nobody could hear or renew. `acknowledged`: `None`: not all who are
    /// connected have this bundle, or a later one; else for how long nobody has come or gone.
    pub(crate) fn step(
        &self,
        authority: &Authority,
        pace: &RootPace,
        began: UnixTime,
        acknowledged: impl Fn(u64) -> Option<Duration>,
        now: UnixTime,
    ) -> Option<Step> {
        let since = |mark: Option<Mark>| mark.map_or(now, |mark| at(mark.unix));
        let served = |mark: Option<Mark>| since(mark).max(began);
        let quiet = |mark: Option<Mark>| mark.and_then(|mark| acknowledged(mark.sequence));
        let known = |mark: Option<Mark>| quiet(mark).is_some_and(|quiet| quiet >= pace.settle);
        let step = match self.stage(authority)? {
            Stage::Prepared | Stage::Published if self.is_all_there_is(authority, now) => Step::Activate,
            Stage::Prepared => Step::Publish,
            // Its root was published for another issuer, so nobody counts since when.
            Stage::Published if self.published.is_none() => Step::Publish,
            Stage::Published if self.tainted => {
                let latest = later(served(self.published), NOTICE.min(pace.acknowledge));
                if quiet(self.published).is_some() || now >= latest {
                    Step::Activate
                } else {
                    Step::Wait(latest)
                }
            }
            Stage::Published => {
                let latest = later(served(self.published), pace.acknowledge);
                if known(self.published) || now >= latest {
                    Step::Activate
                } else {
                    Step::Wait(latest)
                }
            }
            Stage::Activated if self.is_pending() => Step::StoreRoot,
            Stage::Activated if self.tainted => {
                let begun = served(self.activated);
                let latest = later(begun, pace.acknowledge);
                let renewed = later(begun, RENEWALS.min(pace.retire)).min(latest);
                if now >= latest || (known(self.activated) && now >= renewed) {
                    Step::Retire
                } else {
                    Step::Wait(if now < renewed && known(self.activated) {
                        renewed
                    } else {
                        latest
                    })
                }
            }
            Stage::Activated => {
                // By the clock alone: so do leaves end.
                let latest = later(since(self.activated), pace.retire);
                if now >= latest {
                    Step::Retire
                } else {
                    Step::Wait(latest)
                }
            }
            Stage::Retired if self.is_pending() => Step::StoreRoot,
            Stage::Retired => return None,
        };
        Some(step)
    }

    /// The bundle that the next stage waits for.
    pub(crate) fn awaited(&self, stage: Stage) -> Option<u64> {
        match stage {
            Stage::Published => self.published.map(|mark| mark.sequence),
            Stage::Activated if self.tainted => self.activated.map(|mark| mark.sequence),
            Stage::Prepared | Stage::Activated | Stage::Retired => None,
        }
    }
}

fn nothing_pending() -> AuthorityError {
    AuthorityError::Unusable("no root stands ready".to_owned())
}

fn der(bytes: &Base64) -> CertificateDer<'static> {
    CertificateDer::from(bytes.bytes().to_vec())
}

fn at(unix: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(unix))
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotation")
            .field("tainted", &self.tainted)
            .field("published", &self.published)
            .field("activated", &self.activated)
            .field("retired_unix", &self.retired_unix)
            .finish_non_exhaustive()
    }
}

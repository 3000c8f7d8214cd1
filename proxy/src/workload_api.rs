//! The SPIFFE Workload API for the app beside us: an SVID of its own, with a key of its own, and the bundles to judge peers by.
//!
//! ```text
//! audiences ------------Tokens--------> a JWT-SVID of the CA's, kept for half of its life
//! our own SVID, anew --Keeper::issue--> the app's SVID (same identity, other key)   proven to the CA by ours
//!                                          |
//! trust, changed ------Keeper::publish-----+--> Offer (one revision: SVID and bundles) --serve--> each open stream
//! ```
//!
//! Our own key never leaves this process: what the app gets is certified for it, and lives as long as ours. An SVID that does
//! not verify under the bundles beside it is never handed out: streams end instead, and clients ask again.

mod answers;
mod serve;
mod socket;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use postern_api::ca_client::{self, Backoff, CaError, Issued, KubernetesToken};
use postern_identity::{BundleSet, Role, SpiffeId, Svid, TrustDomain, VerifyError, verify};
use rustls::pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::sleep;
use zeroize::Zeroizing;

use crate::metrics::Metrics;
use crate::snapshot::Shared;
use crate::status::{Level, Status, Topic, error_chain};
use crate::workload::{Source, adopt_bundle};

pub(crate) use serve::serve;
pub(crate) use socket::{Callers, bind};
pub(crate) use tokens::Tokens;

/// While the app waits for its first SVID.
const LONGEST_WITHOUT: Duration = Duration::from_millis(900);
/// While the one it has is good.
const LONGEST_WITH: Duration = Duration::from_secs(30);
/// A wait never sleeps past this, so that a clock that jumps (suspend) is noticed.
const NAP: Duration = Duration::from_secs(10);

/// What the app is told.
#[derive(Debug)]
pub(crate) enum Offer {
    /// Nothing holds at this moment. Clients try again.
    Unavailable(String),
    /// It is entitled to nothing (any more). Clients stop using what they have.
    Denied(String),
    /// This, whole.
    Held(Material),
}

/// SVID and bundles of one revision. Debug shows no key.
pub(crate) struct Material {
    pub(crate) svid: Svid,
    /// PKCS#8, DER.
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) bundles: BundleSet,
    /// Whose tokens are no longer believed. A token names no instance and no certificate.
    pub(crate) quarantined: HashSet<SpiffeId>,
}

/// An SVID of the app's.
struct AppSvid {
    svid: Svid,
    key: Zeroizing<Vec<u8>>,
}

/// How the app's SVID stands.
enum Standing {
    /// None yet, and why.
    Waiting(String),
    /// The CA will never give one for what we hold.
    Refused(String),
    Issued(AppSvid),
}

/// Gets and keeps the app's SVID.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The CA's address.
    pub(crate) ca: String,
    pub(crate) source: Source,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: Arc<Status>,
}

impl Keeper {
    /// Runs for the life of the process.
    pub(crate) async fn run(self, offers: watch::Sender<Arc<Offer>>) -> Infallible {
        let standing = watch::Sender::new(Arc::new(Standing::Waiting("this proxy has no SVID yet".to_owned())));
        let seen = standing.subscribe();
        let (never, _) = tokio::join!(self.issue(standing), self.publish(seen, offers));
        never
    }

    /// An SVID for the app with each new generation of ours: then both have the same life, and what makes us renew (half of
    /// life, a new issuer) renews the app's.
    async fn issue(&self, standing: watch::Sender<Arc<Standing>>) -> Infallible {
        let mut changes = self.shared.changes.subscribe();
        let mut asked_with = 0;
        loop {
            let own = self.shared.identity.load_full();
            let Some(own) = own.filter(|own| own.generation != asked_with) else {
                if changes.changed().await.is_err() {
                    pending::<()>().await;
                }
                continue;
            };
            asked_with = own.generation;
            self.issue_with(&own.svid, asked_with, &standing).await;
        }
    }

    /// Until there is one, or a newer generation to ask with.
    async fn issue_with(&self, own: &Svid, generation: u64, standing: &watch::Sender<Arc<Standing>>) {
        let first = !matches!(&**standing.borrow(), Standing::Issued(_));
        let mut backoff = Backoff::up_to(if first { LONGEST_WITHOUT } else { LONGEST_WITH });
        let is_newest = || {
            self.shared
                .identity
                .load()
                .as_ref()
                .is_none_or(|now| now.generation == generation)
        };
        while is_newest() {
            match self.ask(own).await {
                Ok((issued, key)) => {
                    adopt_bundle(&self.shared, &self.metrics, &issued.bundle);
                    self.status.solved(Topic::AppIdentity);
                    if first {
                        let what = format!("first SVID for the app at the Workload API, {}", issued.svid.id());
                        self.status.event(Level::Info, what);
                    }
                    let svid = issued.svid;
                    standing.send_replace(Arc::new(Standing::Issued(AppSvid { svid, key })));
                    return;
                }
                Err(error) => self.failed(&error, standing),
            }
            sleep(backoff.after_failure(fastrand::f64())).await;
        }
    }

    fn failed(&self, error: &CaError, standing: &watch::Sender<Arc<Standing>>) {
        let text = format!("no SVID for the app at the Workload API: {}", error_chain(error));
        self.metrics.renewal_failed(error.reason());
        self.status.problem(Topic::AppIdentity, Level::Warning, text.clone());
        let now = if error.is_final() {
            Standing::Refused(text)
        } else if matches!(&**standing.borrow(), Standing::Issued(_)) {
            // What it has stays in force until it expires.
            return;
        } else {
            Standing::Waiting(text)
        };
        standing.send_replace(Arc::new(now));
    }

    async fn ask(&self, own: &Svid) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
        let trust = &self.shared.trust;
        match &self.source {
            Source::JoinToken(_) => ca_client::issue_for_app(&self.ca, own, trust).await,
            Source::Pod { token_file, pins } => {
                let token = KubernetesToken::read(token_file).map_err(|error| {
                    CaError::Local(format!(
                        "the service-account token {} cannot be read: {error}",
                        token_file.display()
                    ))
                })?;
                let (issued, key) =
                    ca_client::issue_for_app_by_kubernetes_token(&self.ca, &token, pins, trust, &self.trust_domain)
                        .await?;
                if issued.svid.id() == own.id() && issued.svid.instance() == own.instance() {
                    return Ok((issued, key));
                }
                Err(CaError::Local(format!(
                    "the token is for {}, we are {}",
                    issued.svid.id(),
                    own.id()
                )))
            }
            #[cfg(feature = "workload-client")]
            Source::WorkloadApi(_) => Err(CaError::Local(crate::workload::NO_CA.to_owned())),
        }
    }

    /// Every change of SVID, bundles or quarantine becomes one new offer.
    async fn publish(
        &self,
        mut standing: watch::Receiver<Arc<Standing>>,
        offers: watch::Sender<Arc<Offer>>,
    ) -> Infallible {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let now = Arc::clone(&standing.borrow_and_update());
            let next = self.offer(&now);
            offers.send_if_modified(|offer| {
                let differs = !offer.says_the_same(&next);
                if differs {
                    *offer = Arc::new(next);
                }
                differs
            });
            // All branches are cancel-safe: they take nothing but the fact that something happened.
            tokio::select! {
                _ = changes.changed() => {}
                _ = standing.changed() => {}
                // Expiry is nobody's event.
                () = sleep(self.until_expiry(&now).min(NAP)) => {}
            }
        }
    }

    fn offer(&self, standing: &Standing) -> Offer {
        let app = match standing {
            Standing::Waiting(why) => return Offer::Unavailable(why.clone()),
            Standing::Refused(why) => return Offer::Denied(why.clone()),
            Standing::Issued(app) => app,
        };
        // Its proxy's certificate alone may be, by its serial number: the app beside it is no safer.
        if self.shared.is_cut_off() {
            return Offer::Denied("this workload is in quarantine".to_owned());
        }
        let trust = self.shared.trust.load();
        match verify::verify_peer(app.svid.chain(), Role::Client, &trust, UnixTime::now()) {
            Ok(_) => Offer::Held(Material {
                svid: app.svid.clone(),
                key: app.key.clone(),
                bundles: trust.bundles.clone(),
                quarantined: trust.quarantined_ids.clone(),
            }),
            Err(error @ VerifyError::Quarantined(_)) => Offer::Denied(error_chain(&error)),
            Err(error) => Offer::Unavailable(format!("the app's SVID does not hold: {}", error_chain(&error))),
        }
    }

    fn until_expiry(&self, standing: &Standing) -> Duration {
        let Standing::Issued(app) = standing else { return NAP };
        let left = app.svid.not_after().as_secs().saturating_sub(UnixTime::now().as_secs());
        // It holds through its last second.
        Duration::from_secs(left.saturating_add(1))
    }
}

impl Offer {
    /// Would a client learn nothing new?
    fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unavailable(a), Self::Unavailable(b)) | (Self::Denied(a), Self::Denied(b)) => a == b,
            (Self::Held(a), Self::Held(b)) => a.has_the_svid_of(b) && a.has_the_roots_of(b) && a.has_the_jwt_keys_of(b),
            _ => false,
        }
    }
}

impl Material {
    fn has_the_svid_of(&self, other: &Self) -> bool {
        self.svid.chain() == other.svid.chain()
    }

    fn has_the_roots_of(&self, other: &Self) -> bool {
        let roots = |material: &Self| -> Vec<_> {
            let bundles = material.bundles.iter();
            bundles
                .map(|bundle| (bundle.trust_domain().clone(), bundle.roots().to_vec()))
                .collect()
        };
        roots(self) == roots(other)
    }

    fn has_the_jwt_keys_of(&self, other: &Self) -> bool {
        let keys = |material: &Self| -> Vec<_> {
            let bundles = material.bundles.iter();
            bundles
                .map(|bundle| (bundle.trust_domain().clone(), bundle.jwt_keys().to_vec()))
                .collect()
        };
        keys(self) == keys(other)
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("svid", &self.svid)
            .finish_non_exhaustive()
    }
}

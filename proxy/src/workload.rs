//! Our own SVID: a first one, then a fresh key at half of life, again and again.
//!
//! ```text
//! Source --first--> Issued --publish (bundle, then identity)--> wait: half of life, a raised issuer epoch, or our root gone
//!    ^                                                            |
//!    '-- only when the CA will never renew what we hold <- renew -'   (backoff; what we hold stays till expiry)
//!
//! WorkloadApi: whatever it gives (given.rs); none of the below
//! JoinToken: a file with a one-time token; renewal by the SVID that we hold
//! Pod:       the file with the pod's service-account token, read anew for the first and for each other
//! ```

#[cfg(feature = "workload-client")]
mod given;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use postern_api::ca_client::{self, Backoff, CaError, Issued, JoinToken, JoinTokenError, KubernetesToken, RootPins};
use postern_api::refusal::RefusalReason;
use postern_identity::verify::{self, VerifyError};
use postern_identity::{Role, Svid, Trust, TrustBundle, TrustDomain};
use rustls::pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::sleep;
use zeroize::Zeroizing;

use crate::access_log::unix_ms;
use crate::metrics::Metrics;
use crate::quarantine;
use crate::snapshot::Shared;
use crate::status::{Level, Status, Topic, error_chain};

/// A first SVID is due within 1 s of the CA being reachable, and an expired proxy recovers within 2 s.
const LONGEST_WITHOUT: Duration = Duration::from_millis(900);
/// While what we hold is good, patience spares a CA that has trouble.
const LONGEST_WITH: Duration = Duration::from_secs(30);
/// Renewals that a new issuer causes are spread over this (or a tenth of what life is left, if that is less).
const EPOCH_SPREAD: Duration = Duration::from_secs(30);
/// One of several CAs may not sign with the new issuer yet (they look every 5 s): asked again after this, and up to so much more.
const BEHIND_WAIT: Duration = Duration::from_secs(10);
/// See [`BEHIND_WAIT`].
const BEHIND_SPREAD: Duration = Duration::from_secs(20);
/// In a row: a CA that was put back to an older state stays behind what was announced.
const BEHIND_TRIES: u32 = 3;
/// Renewals because our root has left the bundle: nobody believes us meanwhile.
const DISTRUST_SPREAD: Duration = Duration::from_secs(5);
/// A wait never sleeps past this, so that a clock that jumps (suspend) is noticed.
const NAP: Duration = Duration::from_secs(10);
/// How often a token file is looked at while only a new token can help.
const TOKEN_POLL: Duration = Duration::from_millis(500);
/// A token has under 256 bytes; a larger file is not one.
const MAX_TOKEN_FILE: u64 = 4 * 1024;
/// What a restarted proxy must be told.
const NEW_TOKEN: &str = "a proxy that (re)starts needs a new join token from whatever started it";
/// What is to be done where no root that was pinned is the CA's any more.
const NEW_POD: &str = "the roots that this pod was given are not the CA's (any more): the pod must be created anew";

/// The CA has no part in an identity of a Workload API.
#[cfg(feature = "workload-client")]
pub(crate) const NO_CA: &str = "the identity is that of a Workload API, not our CA's";

/// What our identity comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file that holds a join token of this workload.
    JoinToken(PathBuf),
    /// A pod's service-account token, and the roots that the injector pinned.
    Pod {
        /// Kept fresh by the kubelet.
        token_file: PathBuf,
        pins: RootPins,
    },
    /// Somebody else's Workload API, in place of our CA.
    #[cfg(feature = "workload-client")]
    WorkloadApi(String),
}

impl Source {
    /// For people.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::JoinToken(_) => "join_token",
            Self::Pod { .. } => "pod",
            #[cfg(feature = "workload-client")]
            Self::WorkloadApi(_) => "workload_api",
        }
    }
}

/// Gets and keeps the SVID.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The CA's address.
    pub(crate) ca: String,
    pub(crate) source: Source,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: Arc<Status>,
    /// The issuer epoch that control announces.
    pub(crate) epoch: watch::Receiver<u64>,
}

/// Why there is no first SVID.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("cannot read the join token file {path}")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the file {path} does not hold a join token")]
    Malformed {
        path: String,
        #[source]
        source: JoinTokenError,
    },
}

impl Keeper {
    /// Runs for the life of the process.
    pub(crate) async fn run(mut self) -> Infallible {
        let mut held = match self.source.clone() {
            Source::JoinToken(file) => self.first_by_join_token(&file).await,
            Source::Pod { token_file, pins } => self.first_by_pod(&token_file, &pins).await,
            #[cfg(feature = "workload-client")]
            Source::WorkloadApi(address) => return self.follow(&address).await,
        };
        let mut behind = Behind::default();
        loop {
            self.until_due(&held, &mut behind).await;
            held = self.renewed(held.svid).await;
        }
    }

    async fn first_by_pod(&mut self, token_file: &Path, pins: &RootPins) -> Issued {
        let mut backoff = Backoff::up_to(LONGEST_WITHOUT);
        loop {
            match self.by_pod(token_file, pins).await {
                Ok(issued) => match self.adopted_first(issued) {
                    Ok(issued) => return issued,
                    Err(error) => self.failed("configuration", error_chain(&error)),
                },
                Err(CaError::Untrusted(error)) => {
                    self.failed("ca_untrusted", format!("{}; {NEW_POD}", error_chain(&error)));
                }
                Err(error) => self.failed(error.reason(), error_chain(&error)),
            }
            sleep(backoff.after_failure(fastrand::f64())).await;
        }
    }

    async fn by_pod(&self, token_file: &Path, pins: &RootPins) -> Result<Issued, CaError> {
        let token = KubernetesToken::read(token_file).map_err(|error| {
            CaError::Local(format!(
                "the service-account token {} cannot be read: {error}",
                token_file.display()
            ))
        })?;
        ca_client::issue_by_kubernetes_token(&self.ca, &token, pins, &self.shared.trust, &self.trust_domain).await
    }

    fn adopted_first(&self, issued: Issued) -> Result<Issued, rustls::Error> {
        self.adopt(&issued)?;
        let what = format!(
            "first SVID for {}, good until {}",
            issued.svid.id(),
            until(&issued.svid)
        );
        self.status.event(Level::Info, what);
        Ok(issued)
    }

    /// The first SVID, by a token that is not known to be of no use.
    async fn first_by_join_token(&mut self, file: &Path) -> Issued {
        let mut useless: Option<String> = None;
        let mut backoff = Backoff::up_to(LONGEST_WITHOUT);
        loop {
            let token = match read_join_token(file) {
                Ok(token) => token,
                Err(error) => {
                    let reason = match error {
                        TokenError::File { .. } => "token_file",
                        TokenError::Malformed { .. } => "token_malformed",
                    };
                    self.failed(reason, format!("{}; {NEW_TOKEN}", error_chain(&error)));
                    sleep(backoff.after_failure(fastrand::f64())).await;
                    continue;
                }
            };
            if useless.as_deref() == Some(token.id()) {
                sleep(TOKEN_POLL).await;
                continue;
            }
            match ca_client::first_issue(&self.ca, &token, &self.trust_domain).await {
                Ok(issued) => match self.adopted_first(issued) {
                    Ok(issued) => return issued,
                    Err(error) => self.failed("configuration", error_chain(&error)),
                },
                Err(error) if error.is_final() => {
                    useless = Some(token.id().to_owned());
                    let id = token.id();
                    self.failed(
                        error.reason(),
                        format!("the join token {id} is of no use: {}; {NEW_TOKEN}", error_chain(&error)),
                    );
                }
                Err(error) => self.failed(error.reason(), error_chain(&error)),
            }
            sleep(backoff.after_failure(fastrand::f64())).await;
        }
    }

    /// Waits until renewal is due: half of life, or soon after a new issuer was announced, or our root has left the bundle.
    async fn until_due(&mut self, held: &Issued, behind: &mut Behind) {
        let mut changes = self.shared.changes.subscribe();
        let now = SystemTime::now();
        let after = ca_client::renew_after(&held.svid, UnixTime::now(), fastrand::f64());
        let announced = *self.epoch.borrow_and_update();
        let mut believed = is_believed(&held.svid, &self.shared.trust.load());
        let outdated = held.issuer_epoch < announced || !believed;
        let mut due = now
            + behind
                .again_after(outdated, fastrand::f64())
                .map_or(after, |again| again.min(after));
        let mut seen = held.issuer_epoch.max(announced);
        loop {
            let Ok(left) = due.duration_since(SystemTime::now()) else {
                return;
            };
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(left.min(NAP)) => {}
                announced = self.epoch.changed() => {
                    if announced.is_err() {
                        // Control's side is gone: the process is ending.
                        std::future::pending::<()>().await;
                    }
                    let epoch = *self.epoch.borrow_and_update();
                    if epoch > seen {
                        seen = epoch;
                        *behind = Behind::default();
                        let soon = SystemTime::now() + (left / 10).min(EPOCH_SPREAD).mul_f64(fastrand::f64());
                        due = due.min(soon);
                    }
                }
                changed = changes.changed(), if believed => {
                    if changed.is_ok() && !is_believed(&held.svid, &self.shared.trust.load()) {
                        believed = false;
                        let soon = SystemTime::now() + (left / 10).min(DISTRUST_SPREAD).mul_f64(fastrand::f64());
                        due = due.min(soon);
                    }
                }
            }
        }
    }

    /// The next SVID. What is held stays in force until it expires; past that, requests fail closed.
    async fn renewed(&mut self, previous: Svid) -> Issued {
        let mut backoff = Backoff::up_to(LONGEST_WITH);
        let mut told_expired = false;
        loop {
            match self.next(&previous).await {
                Ok(issued) => match self.adopt(&issued) {
                    Ok(()) => {
                        let renewals = self.metrics.process.renewals.fetch_add(1, Ordering::Relaxed) + 1;
                        self.status.event(
                            Level::Info,
                            format!("renewed ({renewals}), good until {}", until(&issued.svid)),
                        );
                        return issued;
                    }
                    // The generation before stays in force, whole.
                    Err(error) => self.failed("configuration", error_chain(&error)),
                },
                Err(error) => {
                    let hopeless = needs_another_token(&error);
                    self.renewal_failed(&previous, &error);
                    if hopeless && let Some(issued) = self.by_another_token(&previous).await {
                        return issued;
                    }
                }
            }
            let left = previous.not_after().as_secs().saturating_sub(UnixTime::now().as_secs());
            if left == 0 && !told_expired {
                told_expired = true;
                self.status.event(
                    Level::Error,
                    "our own SVID has expired: requests fail closed until the CA renews it".to_owned(),
                );
            }
            // An eighth of what is left, so that several attempts fit before expiry.
            let longest = Duration::from_millis(left.saturating_mul(125)).clamp(LONGEST_WITHOUT, LONGEST_WITH);
            sleep(backoff.after_failure(fastrand::f64()).min(longest)).await;
        }
    }

    async fn next(&self, previous: &Svid) -> Result<Issued, CaError> {
        match &self.source {
            Source::JoinToken(_) => ca_client::renew(&self.ca, previous, &self.shared.trust).await,
            Source::Pod { token_file, pins } => {
                let issued = self.by_pod(token_file, pins).await?;
                same_identity(previous, &issued.svid)
                    .map(|()| issued)
                    .map_err(CaError::Local)
            }
            #[cfg(feature = "workload-client")]
            Source::WorkloadApi(_) => Err(CaError::Local(NO_CA.to_owned())),
        }
    }

    /// Where the CA will never renew what we hold, a new token may have been put into the file.
    async fn by_another_token(&mut self, previous: &Svid) -> Option<Issued> {
        let Source::JoinToken(file) = &self.source else {
            return None;
        };
        let token = read_join_token(file).ok()?;
        let issued = ca_client::first_issue(&self.ca, &token, &self.trust_domain)
            .await
            .ok()?;
        if let Err(error) = same_identity(previous, &issued.svid) {
            self.failed("token_identity", error);
            return None;
        }
        self.adopt(&issued).ok()?;
        self.status.event(Level::Info, "a new join token was taken".to_owned());
        Some(issued)
    }

    fn renewal_failed(&self, previous: &Svid, error: &CaError) {
        let expired = UnixTime::now() > previous.not_after();
        let kept = if expired { "it has expired" } else { "it stays in force" };
        let help = match &self.source {
            Source::JoinToken(_) if needs_another_token(error) => format!("; {NEW_TOKEN}"),
            // The chain of bundles was cut: by a forced rotation, or a new CA.
            Source::Pod { .. } if matches!(error, CaError::Untrusted(_)) => format!("; {NEW_POD}"),
            _ => String::new(),
        };
        self.failed(
            error.reason(),
            format!(
                "renewal failed: {}; {kept}, good until {}{help}",
                error_chain(error),
                until(previous)
            ),
        );
    }

    fn failed(&self, reason: &'static str, text: String) {
        self.metrics.renewal_failed(reason);
        self.status.problem(Topic::Identity, Level::Warning, text);
    }

    /// Bundle first, then who is cut off, then identity: whoever sees the new identity also sees roots that hold it, and nobody
    /// is served before that is known.
    fn adopt(&self, issued: &Issued) -> Result<(), rustls::Error> {
        adopt_bundle(&self.shared, &self.metrics, &issued.bundle);
        if let Some(quarantine) = &issued.quarantine {
            quarantine::adopt(&self.shared, &self.metrics, &quarantine.set);
        }
        self.take_svid(issued.svid.clone())
    }

    fn take_svid(&self, svid: Svid) -> Result<(), rustls::Error> {
        let now = u64::try_from(unix_ms(SystemTime::now())).unwrap_or(0);
        self.shared.publish_identity(svid.clone())?;
        self.metrics.certificate(&svid, now);
        self.status.solved(Topic::Identity);
        Ok(())
    }
}

/// How often in a row what came was of an older issuer than the one announced, or under a root that nobody believes any more.
#[derive(Debug, Default)]
struct Behind {
    times: u32,
}

impl Behind {
    /// When it is worth asking again before the half of life is over.
    fn again_after(&mut self, outdated: bool, jitter: f64) -> Option<Duration> {
        self.times = if outdated { self.times.saturating_add(1) } else { 0 };
        (1..=BEHIND_TRIES)
            .contains(&self.times)
            .then(|| BEHIND_WAIT + BEHIND_SPREAD.mul_f64(jitter))
    }
}

/// Does a peer that holds the same bundle find a root above ours? (Whatever else it may have against us, another SVID does not mend.)
fn is_believed(svid: &Svid, trust: &Trust) -> bool {
    let verdict = verify::verify_peer(svid.chain(), Role::Client, trust, UnixTime::now());
    !matches!(verdict, Err(VerifyError::UnknownIssuer(_)))
}

/// Will what we hold never be renewed, as far as can be told? Also where the root that it is under was replaced while we were away: the
/// CA no longer believes us, or (after a compromise) we it. A new token names the root of today.
fn needs_another_token(error: &CaError) -> bool {
    let replaced = match error {
        CaError::Refused { reason, .. } => *reason == RefusalReason::RenewalChain,
        CaError::Untrusted(_) => true,
        CaError::Unreachable(_) | CaError::Answer(_) | CaError::Local(_) => false,
        _ => false,
    };
    replaced || error.is_final()
}

fn read_join_token(file: &Path) -> Result<JoinToken, TokenError> {
    use std::io::Read as _;
    let path = || file.display().to_string();
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(file)
        .and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text))
        .map_err(|source| TokenError::File { path: path(), source })?;
    JoinToken::parse(&text).map_err(|source| TokenError::Malformed { path: path(), source })
}

/// A process is one workload for its whole life.
fn same_identity(previous: &Svid, next: &Svid) -> Result<(), String> {
    if next.id() == previous.id() && next.instance() == previous.instance() {
        return Ok(());
    }
    Err(format!("the new token is for {}, we are {}", next.id(), previous.id()))
}

/// The higher sequence wins, whether it came from the CA or from control.
pub(crate) fn adopt_bundle(shared: &Shared, metrics: &Metrics, bundle: &TrustBundle) {
    let newer = shared.change_trust(|trust| {
        let held = trust.bundles.get(bundle.trust_domain().as_str());
        let newer = held.is_none_or(|held| held.sequence() < bundle.sequence());
        newer.then(|| Trust {
            bundles: trust.bundles.clone().with(bundle.clone()),
            ..trust.clone()
        })
    });
    if newer {
        let sequence = &metrics.process.bundle_sequence;
        sequence.fetch_max(bundle.sequence(), Ordering::Relaxed);
    }
}

fn until(svid: &Svid) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(svid.not_after().as_secs());
    humantime::format_rfc3339_seconds(at).to_string()
}

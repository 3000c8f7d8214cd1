//! Control's own identity: a first SVID by join token, then renewed at half its life, kept until it expires. In a pod: by
//! its service-account token, each time.

#[cfg(feature = "workload-client")]
pub(crate) mod given;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use postern_api::ca_client::{self, ALPN, Backoff, CaError, Issued, JoinToken, KubernetesToken, RootPins};
use postern_api::transport;
use postern_identity::tls::{self, ClientAuth};
use postern_identity::{SharedTrust, Svid, Trust, TrustBundle, TrustDomain};
use rustls::ServerConfig;
use tokio::sync::watch;

use crate::error_chain;
use crate::hub::Hub;
use crate::quarantine;
use crate::state::Bundles;

/// Between attempts: a CA that comes back is noticed well within two seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// After a change of the issuer all holders renew; spread over this.
const EPOCH_JITTER: Duration = Duration::from_secs(2);
/// A wait never sleeps past this, so that a clock that jumps (suspend) is noticed. Also between attempts once the CA's no
/// is final: only a CA that was put right (a restored store) would answer otherwise.
const NAP: Duration = Duration::from_secs(10);

/// Where control's identity comes from.
#[derive(Debug)]
pub enum IdentitySource {
    /// The CA.
    Ca {
        /// `host:port`.
        address: String,
        /// What it is shown.
        evidence: Evidence,
    },
    /// A Workload API (SPIRE), in place of our CA. SVIDs of it name no instance, and no bundles are sent to proxies: theirs come
    /// from there as well.
    #[cfg(feature = "workload-client")]
    WorkloadApi {
        /// `unix:///path` or `tcp://1.2.3.4:port`.
        address: String,
    },
    /// Somebody else's affair; never renewed, and no bundles come.
    Given {
        /// What control shows.
        svid: Svid,
        /// What its callers must chain to.
        bundle: TrustBundle,
    },
}

/// What attests control.
#[derive(Debug, Clone)]
pub enum Evidence {
    /// A one-time token made for control's fixed ID, at the first; then the SVID that it gave.
    JoinToken(JoinToken),
    /// A pod's service-account token, each time.
    Pod {
        /// Kept fresh by the kubelet.
        token_file: PathBuf,
        /// The CA's published sums of its roots; looked at as long as no bundle is known. It may come late.
        pins_file: PathBuf,
    },
}

/// The current SVID and what is made from it.
pub(crate) struct Own {
    server: ArcSwap<ServerConfig>,
    svid: watch::Sender<Arc<Svid>>,
    trust: SharedTrust,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnError {
    /// The CA says no, and will say so again.
    #[error("no identity, and the same join token can never give one; make a new one (postern ca token create)")]
    Refused(#[source] CaError),
    /// Made for somebody else.
    #[error("the token is for {got}; control is {expected}")]
    WrongIdentity { got: String, expected: String },
    /// A Workload API's, of somebody else.
    #[cfg(feature = "workload-client")]
    #[error("the Workload API gave an identity of {got}; control is {expected}: register it under that ID")]
    WrongGiven { got: String, expected: String },
    /// rustls.
    #[error("the SVID cannot serve")]
    Tls(#[source] rustls::Error),
}

impl Own {
    pub(crate) fn new(svid: Svid, trust: SharedTrust) -> Result<Self, OwnError> {
        let server = server_config(&svid, &trust)?;
        Ok(Self {
            server: ArcSwap::new(server),
            svid: watch::Sender::new(Arc::new(svid)),
            trust,
        })
    }

    /// For a connection that comes in now.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.load_full()
    }
    pub(crate) fn svid(&self) -> Arc<Svid> {
        Arc::clone(&self.svid.borrow())
    }
    /// The current one, and every one after it.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Svid>> {
        self.svid.subscribe()
    }
    pub(crate) fn replace(&self, svid: Svid) -> Result<(), OwnError> {
        self.server.store(server_config(&svid, &self.trust)?);
        self.svid.send_replace(Arc::new(svid));
        Ok(())
    }
}

fn server_config(svid: &Svid, trust: &SharedTrust) -> Result<Arc<ServerConfig>, OwnError> {
    tls::server_config(svid, Arc::clone(trust), ClientAuth::Required, ALPN).map_err(OwnError::Tls)
}

/// The first SVID; waits for the CA as long as it takes, unless the CA's answer is final.
pub(crate) async fn first(
    address: &str,
    evidence: &Evidence,
    trust: &SharedTrust,
    trust_domain: &TrustDomain,
) -> Result<Issued, OwnError> {
    let mut backoff = Backoff::up_to(LONGEST_WAIT);
    loop {
        let asked = match evidence {
            Evidence::JoinToken(token) => ca_client::first_issue(address, token, trust_domain).await,
            Evidence::Pod { token_file, pins_file } => {
                by_pod(address, token_file, pins_file, trust, trust_domain).await
            }
        };
        match asked {
            Ok(issued) => return checked(issued, trust_domain),
            Err(error) if error.is_final() && matches!(evidence, Evidence::JoinToken(_)) => {
                return Err(OwnError::Refused(error));
            }
            Err(error) => {
                tracing::warn!(reason = error.reason(), "no identity yet: {}", error_chain(&error));
                tokio::time::sleep(backoff.after_failure(fastrand::f64())).await;
            }
        }
    }
}

async fn by_pod(
    address: &str,
    token_file: &Path,
    pins_file: &Path,
    trust: &SharedTrust,
    trust_domain: &TrustDomain,
) -> Result<Issued, CaError> {
    let unreadable = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
        CaError::Local(format!("{what} {} cannot be read: {error}", path.display()))
    };
    let token = KubernetesToken::read(token_file)
        .map_err(|error| unreadable("the service-account token", token_file, &error))?;
    let text = std::fs::read_to_string(pins_file)
        .map_err(|error| unreadable("the sums of the CA's roots in", pins_file, &error))?;
    let pins =
        RootPins::parse(&text).map_err(|error| unreadable("the sums of the CA's roots in", pins_file, &error))?;
    ca_client::issue_by_kubernetes_token(address, &token, &pins, trust, trust_domain).await
}

fn checked(issued: Issued, trust_domain: &TrustDomain) -> Result<Issued, OwnError> {
    match not_control(&issued.svid, trust_domain) {
        None => Ok(issued),
        Some((got, expected)) => Err(OwnError::WrongIdentity { got, expected }),
    }
}

/// Proxies believe control under its fixed ID alone: whose it is, and whose it should be.
fn not_control(svid: &Svid, trust_domain: &TrustDomain) -> Option<(String, String)> {
    let expected = ca_client::control_id(trust_domain)
        .map(|id| id.to_string())
        .unwrap_or_default();
    (svid.id().as_str() != expected).then(|| (svid.id().to_string(), expected))
}

/// Takes a bundle unless a newer one is there already.
pub(crate) fn trust_bundle(trust: &SharedTrust, bundle: &TrustBundle) {
    trust.rcu(|current| {
        let held = current.bundles.get(bundle.trust_domain().as_str());
        if held.is_some_and(|held| held.sequence() >= bundle.sequence()) {
            return Arc::clone(current);
        }
        Arc::new(Trust {
            revision: current.revision + 1,
            bundles: current.bundles.clone().with(bundle.clone()),
            ..Trust::clone(current)
        })
    });
}

/// Renews for ever: at half of life, and at once when the CA has a new issuer.
pub(crate) async fn keep_fresh(
    hub: Arc<Hub>,
    own: Arc<Own>,
    (address, evidence): (String, Evidence),
    mut epoch: u64,
) -> std::convert::Infallible {
    let mut bundles = hub.watch_bundles();
    let mut failures = Failures::default();
    let mut wait = ca_client::renew_after(&own.svid(), transport::now(), fastrand::f64());
    loop {
        let due = Due::after(wait, SystemTime::now(), Instant::now());
        while let Some(nap) = due.nap(SystemTime::now(), Instant::now()) {
            tokio::select! {
                () = tokio::time::sleep(nap) => {}
                () = epoch_after(&mut bundles, epoch) => {
                    tokio::time::sleep(EPOCH_JITTER.mul_f64(fastrand::f64())).await;
                    break;
                }
            }
        }
        let asked = match &evidence {
            Evidence::JoinToken(_) => ca_client::renew(&address, &own.svid(), &hub.trust).await,
            Evidence::Pod { token_file, pins_file } => {
                by_pod(&address, token_file, pins_file, &hub.trust, &hub.mesh.trust_domain).await
            }
        };
        let outcome = match asked.map(|issued| checked(issued, &hub.mesh.trust_domain)) {
            Ok(Err(error)) => Err(Failure::from(error)),
            Ok(Ok(issued)) => {
                trust_bundle(&hub.trust, &issued.bundle);
                quarantine::from_answer(&hub, issued.quarantine.as_ref());
                // Taken even if the announced one is higher: or else a CA that lags behind itself would be asked on and on.
                epoch = issued.issuer_epoch.max(bundles.borrow().issuer_epoch);
                own.replace(issued.svid).map_err(Failure::from)
            }
            Err(error) => Err(Failure::from(error)),
        };
        wait = match outcome {
            Ok(()) => {
                let svid = own.svid();
                hub.metrics.renewal(true);
                hub.metrics.certificate(svid.not_after().as_secs());
                tracing::info!(not_after = svid.not_after().as_secs(), "own certificate renewed");
                failures = Failures::default();
                ca_client::renew_after(&svid, transport::now(), fastrand::f64())
            }
            Err(mut failure) => {
                // The kubelet puts a new token there: there is always another one to come.
                failure.is_final &= matches!(evidence, Evidence::JoinToken(_));
                failures.after(&hub, &failure)
            }
        };
    }
}

/// When something is due. The wall clock runs on while the machine sleeps, and SVIDs expire by it; the steady one does
/// not wait longer because somebody set the time back. The first to say so counts.
struct Due {
    wall: SystemTime,
    steady: Instant,
}

impl Due {
    fn after(wait: Duration, wall: SystemTime, steady: Instant) -> Self {
        Self {
            wall: wall + wait,
            steady: steady + wait,
        }
    }
    /// How long to sleep before the clocks are read again. `None`: it is due.
    fn nap(&self, wall: SystemTime, steady: Instant) -> Option<Duration> {
        let by_wall = self.wall.duration_since(wall).unwrap_or_default();
        let left = by_wall.min(self.steady.saturating_duration_since(steady)).min(NAP);
        (!left.is_zero()).then_some(left)
    }
}

/// Why there is no renewed SVID.
struct Failure {
    reason: &'static str,
    is_final: bool,
    text: String,
}

impl From<CaError> for Failure {
    fn from(error: CaError) -> Self {
        Self {
            reason: error.reason(),
            is_final: error.is_final(),
            text: error_chain(&error),
        }
    }
}

impl From<OwnError> for Failure {
    fn from(error: OwnError) -> Self {
        Self {
            reason: "tls",
            is_final: false,
            text: error_chain(&error),
        }
    }
}

/// Those since the last success.
struct Failures {
    backoff: Backoff,
    told_final: bool,
}

impl Default for Failures {
    fn default() -> Self {
        Self {
            backoff: Backoff::up_to(LONGEST_WAIT),
            told_final: false,
        }
    }
}

impl Failures {
    /// Tells of one more; a final one is told once. How long to wait now.
    fn after(&mut self, hub: &Hub, failure: &Failure) -> Duration {
        let Failure { reason, is_final, text } = failure;
        hub.metrics.renewal(false);
        if !is_final {
            tracing::warn!(
                reason,
                "own certificate not renewed, the current one is kept until it expires: {text}"
            );
            return self.backoff.after_failure(fastrand::f64());
        }
        if !std::mem::replace(&mut self.told_final, true) {
            let what = format!(
                "the CA will not renew control's own certificate, which is kept until it expires: control needs a new \
                 join token (postern ca token create) and a restart: {text}"
            );
            tracing::error!(reason, "{what}");
            hub.event("error", what);
            hub.look();
        }
        NAP
    }
}

async fn epoch_after(bundles: &mut watch::Receiver<Arc<Bundles>>, epoch: u64) {
    // An error means that the hub is gone, and with it this task.
    let _ = bundles.wait_for(|bundles| bundles.issuer_epoch > epoch).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use postern_api::refusal::RefusalReason;

    use super::*;
    use crate::mesh::Mesh;
    use crate::metrics::Metrics;

    fn refused(reason: RefusalReason) -> Failure {
        let message = "no".to_owned();
        CaError::Refused { reason, message }.into()
    }

    #[test]
    fn a_final_refusal_to_renew_is_told_once_with_what_is_needed_and_asked_seldom() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let hub = Hub::new(Mesh::named(domain), SharedTrust::default(), Metrics::default());
        let events = || -> Vec<String> { hub.observed().events.iter().map(|event| event.text.clone()).collect() };
        let mut failures = Failures::default();
        assert!(failures.after(&hub, &refused(RefusalReason::Busy)) <= LONGEST_WAIT);
        assert!(events().is_empty());
        for _ in 0..3 {
            assert_eq!(failures.after(&hub, &refused(RefusalReason::RenewalExpired)), NAP);
        }
        let told = events();
        assert!(
            told.len() == 1 && told[0].contains("needs a new join token"),
            "{told:?}"
        );
    }

    /// A machine that slept past its SVID's half waited as long again when it woke.
    #[test]
    fn a_clock_that_jumps_is_noticed_within_a_nap_and_never_makes_a_wait_longer() {
        let (wall, steady) = (SystemTime::now(), Instant::now());
        let due = Due::after(Duration::from_secs(1800), wall, steady);
        assert_eq!(due.nap(wall, steady), Some(NAP));
        // Suspended: the steady clock stood still.
        assert_eq!(due.nap(wall + Duration::from_secs(1800), steady), None);
        assert_eq!(
            due.nap(wall + Duration::from_secs(1799), steady),
            Some(Duration::from_secs(1))
        );
        // Set back.
        let back = wall - Duration::from_secs(3600);
        assert_eq!(due.nap(back, steady + Duration::from_secs(1800)), None);
    }
}

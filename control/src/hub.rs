//! What the parts of control share: what is in force, who is connected, what was observed.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use postern_api::control::v1 as wire;
use postern_identity::{SharedTrust, Svid};
use tokio::sync::watch;

use crate::federation::Federation;
use crate::keys::Keys;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::model::Name;
use crate::observed::Observed;
use crate::quarantine::Quarantine;
use crate::source::Load;
#[cfg(feature = "kubernetes")]
use crate::source::Revisions;
use crate::state::{Bundles, State};
use crate::subscribers::Subscribers;

/// Shared by all streams; one per process.
pub(crate) struct Hub {
    /// Tells this process from other replicas and from those before it.
    replica: String,
    pub(crate) mesh: Mesh,
    pub(crate) trust: SharedTrust,
    pub(crate) metrics: Metrics,
    state: watch::Sender<Arc<State>>,
    bundles: watch::Sender<Arc<Bundles>>,
    quarantine: watch::Sender<Arc<Quarantine>>,
    /// Of end users' issuers.
    pub(crate) keys: Keys,
    /// Other trust domains.
    pub(crate) federation: Federation,
    pub(crate) subscribers: Mutex<Subscribers>,
    observed: Mutex<Observed>,
    /// Grows when viewers should look at once.
    news: watch::Sender<u64>,
    pub(crate) ca_connected: AtomicBool,
    /// Control's own, once there is one.
    own: OnceLock<watch::Receiver<Arc<Svid>>>,
    /// What is still missing before proxies can be served.
    awaited: Mutex<String>,
    wanted: watch::Sender<Wanted>,
    /// The newest that any proxy ever had: while we are behind it some stream may wait.
    newest_wanted: AtomicU64,
    /// True once the process is going down.
    pub(crate) down: watch::Sender<bool>,
}

/// What proxies have that is newer than our state: another replica gave it to them.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Wanted {
    /// How often it was said.
    said: u64,
    /// The newest of it.
    pub(crate) revision: u64,
}

impl Hub {
    /// This process runs in a pod, whose name tells operators more than a number.
    pub(crate) fn in_pod(mut self, pod: Option<&str>) -> Self {
        if let Some(pod) = pod {
            self.replica = format!("{pod}.{}", self.replica);
        }
        self
    }

    pub(crate) fn new(mesh: Mesh, trust: SharedTrust, metrics: Metrics) -> Self {
        Self {
            replica: format!("{:016x}", fastrand::u64(..)),
            mesh,
            trust,
            metrics,
            state: watch::Sender::default(),
            bundles: watch::Sender::default(),
            quarantine: watch::Sender::default(),
            keys: Keys::default(),
            federation: Federation::default(),
            subscribers: Mutex::default(),
            observed: Mutex::default(),
            news: watch::Sender::default(),
            ca_connected: AtomicBool::new(false),
            own: OnceLock::new(),
            awaited: Mutex::new("the directory is not read yet".to_owned()),
            wanted: watch::Sender::default(),
            newest_wanted: AtomicU64::new(0),
            down: watch::Sender::default(),
        }
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }
    pub(crate) fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }
    pub(crate) fn bundles(&self) -> Arc<Bundles> {
        Arc::clone(&self.bundles.borrow())
    }
    pub(crate) fn watch_bundles(&self) -> watch::Receiver<Arc<Bundles>> {
        self.bundles.subscribe()
    }
    pub(crate) fn quarantine(&self) -> Arc<Quarantine> {
        Arc::clone(&self.quarantine.borrow())
    }
    pub(crate) fn watch_quarantine(&self) -> watch::Receiver<Arc<Quarantine>> {
        self.quarantine.subscribe()
    }
    pub(crate) fn watch_news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }
    pub(crate) fn observed(&self) -> MutexGuard<'_, Observed> {
        // Nothing in there is left half done by a panic that matters more than going on.
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose certificate the pictures show as control's own.
    pub(crate) fn show_own(&self, svid: watch::Receiver<Arc<Svid>>) {
        // The first stays: there is one per process.
        let _ = self.own.set(svid);
    }

    /// Puts a load in force: every stream sees it at once.
    pub(crate) fn publish(&self, load: Load) {
        let previous = self.state();
        let next = Arc::new(State::after(&previous, load, &self.mesh, SystemTime::now()));
        self.metrics.reloaded(&next);
        self.tell(&previous, &next);
        self.state.send_replace(next);
        self.look();
    }

    /// Nothing changed, and that is known up to there: no stream needs to look.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn confirm(&self, revisions: Revisions) {
        let before = self.state();
        let next = Arc::new(before.confirmed(revisions));
        if before.revisions == next.revisions {
            return;
        }
        let behind = before.revisions.policies.complete.min(before.revisions.others.complete);
        let waited_for = self.newest_wanted.load(Ordering::Relaxed) > behind;
        self.state.send_if_modified(|state| {
            *state = next;
            waited_for
        });
    }

    pub(crate) fn awaited(&self) -> String {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    #[cfg(feature = "kubernetes")]
    pub(crate) fn set_awaited(&self, awaited: String) {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = awaited;
    }

    /// Somebody has a snapshot of this revision. The newest counts: who has less is content with it.
    pub(crate) fn want(&self, revision: u64) {
        self.newest_wanted.fetch_max(revision, Ordering::Relaxed);
        self.wanted.send_modify(|wanted| {
            wanted.said += 1;
            wanted.revision = wanted.revision.max(revision);
        });
    }
    #[cfg(feature = "kubernetes")]
    pub(crate) fn watch_wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }
    /// The API server has no more than `found`: one word that is too large must not outlast all that are said after it.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn not_to_be_had(&self, wanted: u64, found: u64) {
        self.wanted.send_if_modified(|held| {
            if held.revision == wanted {
                held.revision = found;
            }
            false
        });
    }

    /// Puts the CA's bundles in force.
    pub(crate) fn publish_bundles(&self, bundles: Bundles) {
        self.metrics.bundle_sequence(bundles.sequence);
        self.bundles.send_replace(Arc::new(bundles));
        self.look();
    }

    /// Every stream sees it at once.
    pub(crate) fn publish_quarantine(&self, quarantine: Quarantine) {
        self.quarantine.send_replace(Arc::new(quarantine));
        self.look();
    }

    /// Wakes the viewers.
    pub(crate) fn look(&self) {
        self.news.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Control's own word in the list of events.
    pub(crate) fn event(&self, level: &'static str, text: impl Into<String>) {
        self.observed().event(level, text.into());
    }

    pub(crate) fn set_ca_connected(&self, connected: bool) {
        if self.ca_connected.swap(connected, Ordering::Relaxed) != connected {
            let (level, text) = if connected {
                ("info", "the CA is connected")
            } else {
                ("warning", "the CA is away; its last bundle stays in force")
            };
            self.event(level, text);
            self.look();
        }
    }

    /// Says what became bad, what was mended, and which faults between documents came and went.
    fn tell(&self, previous: &State, next: &State) {
        for (file, errors) in &next.bad {
            if previous.bad.get(file) != Some(errors) {
                for error in errors {
                    tracing::error!(reason = "bad_file", file, "{error}");
                }
                let first = errors.first().map_or("", String::as_str);
                let meanwhile = if next.shared_count {
                    "and denies what it selects"
                } else {
                    "its last good state stays"
                };
                self.event("error", format!("{file} is refused, {meanwhile}: {first}"));
            }
        }
        for file in previous.bad.keys().filter(|file| !next.bad.contains_key(*file)) {
            // An object may as well be gone.
            let now = if next.shared_count {
                "not refused any more"
            } else {
                "good again"
            };
            tracing::info!(file, "it is {now}");
            self.event("info", format!("{file} is {now}"));
        }
        let before: BTreeSet<&String> = previous.model.conditions.iter().collect();
        let after: BTreeSet<&String> = next.model.conditions.iter().collect();
        for condition in after.difference(&before) {
            tracing::warn!(reason = "condition", "{condition}");
            self.event("warning", (*condition).clone());
        }
        for condition in before.difference(&after) {
            tracing::info!(reason = "condition_cleared", "{condition}");
        }
        if previous.is_there() && next.policy_version != previous.policy_version {
            self.event("info", "the changed policies are in force");
        }
        // A cluster's pods come and go all the time.
        if next.shared_count && previous.is_there() && next.policy_version == previous.policy_version {
            return;
        }
        tracing::info!(
            version = next.version(),
            workloads = next.model.workloads.len(),
            policies = next.model.policies.len(),
            bad_files = next.bad.len(),
            "read"
        );
    }
}

/// Waits until the process goes down. Cancel-safe: nothing is taken from the receiver.
pub(crate) async fn told(down: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and so is whoever could stop us in another way.
    let _ = down.wait_for(|down| *down).await;
}

/// Everything a viewer sees, put together.
pub(crate) fn picture(hub: &Hub) -> wire::Picture {
    let (state, bundles, quarantine) = (hub.state(), hub.bundles(), hub.quarantine());
    let observed = hub.observed();
    let subscribers = hub.subscribers();
    let mut views: HashMap<Name, wire::WorkloadView> = HashMap::new();
    for (name, workload) in &state.model.workloads {
        let crate::model::Standing::Meshed(id) = &workload.standing else {
            continue;
        };
        let view = wire::WorkloadView {
            namespace: name.0.clone(),
            name: name.1.clone(),
            spiffe_id: id.to_string(),
            mode: postern_api::policy_wire::mode_to_wire(workload.mode) as i32,
            instance: workload.document.instance.clone(),
            ..wire::WorkloadView::default()
        };
        views.insert(name.clone(), view);
    }
    for (name, subscriber) in subscribers.iter() {
        // Gone from the directory, and connected a moment ago: still shown until it is pruned.
        let view = views.entry(name.clone()).or_insert_with(|| wire::WorkloadView {
            namespace: name.0.clone(),
            name: name.1.clone(),
            spiffe_id: subscriber.spiffe_id.clone(),
            ..wire::WorkloadView::default()
        });
        view.connected = subscriber.connected();
        view.proxy_version.clone_from(&subscriber.proxy_version);
        view.policy_version_acknowledged = subscriber.policies.in_force;
        view.bundle_sequence_acknowledged = subscriber.bundle.in_force;
        view.quarantine_version_acknowledged = subscriber.quarantine.in_force;
        view.certificate.clone_from(&subscriber.certificate);
        view.refused = subscriber.refused.as_ref().map_or_else(String::new, |(kind, reason)| {
            format!("{}: {reason}", crate::connect::snapshot_word(*kind))
        });
    }
    let mut workloads: Vec<wire::WorkloadView> = views.into_values().collect();
    workloads.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let (flows, reach) = observed.flow_views();
    wire::Picture {
        time_unix_ms: crate::state::now_ms(),
        workloads,
        flows,
        denials: observed.denials.iter().cloned().collect(),
        events: observed.events.iter().cloned().collect(),
        bad_files: state
            .bad
            .iter()
            .map(|(file, errors)| (file.clone(), errors.clone()))
            .chain(hub.federation.refused())
            .map(|(file, errors)| wire::BadFile { file, errors })
            .collect(),
        policy_version: state.policy_version,
        bundle_sequence: bundles.sequence,
        issuer_epoch: bundles.issuer_epoch,
        ca_connected: hub.ca_connected.load(Ordering::Relaxed),
        replica: hub.replica.clone(),
        control_version: postern_api::VERSION.to_owned(),
        conditions: state.model.conditions.clone(),
        roots_sha256: roots(hub),
        certificate: hub.own.get().map(|svid| certificate(&svid.borrow())),
        recent_ms: u32::try_from(reach.as_millis()).unwrap_or(u32::MAX),
        quarantined: quarantine.entries.clone(),
        quarantine_version: quarantine.version,
    }
}

/// The fingerprints of our own trust domain's roots.
fn roots(hub: &Hub) -> Vec<String> {
    let trust = hub.trust.load();
    let bundle = trust.bundles.get(hub.mesh.trust_domain.as_str());
    let roots = bundle.iter().flat_map(|bundle| bundle.roots());
    roots
        .map(|root| hex(&postern_identity::bundle::fingerprint(root)))
        .collect()
}

fn certificate(svid: &Svid) -> wire::Certificate {
    wire::Certificate {
        spiffe_id: svid.id().to_string(),
        serial: hex(&svid.leaf().serial),
        not_after_unix_ms: i64::try_from(svid.not_after().as_secs().saturating_mul(1000)).unwrap_or(i64::MAX),
        ..wire::Certificate::default()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

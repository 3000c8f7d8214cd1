//! What becomes of our policies, written where people look for it: their status.
//!
//! ```text
//! follow -> Told (our policies, and since when each is in force)
//! Told + acknowledgements of the proxies that are connected here -> counts -> a Lease of this replica
//! the leader: its own counts + those in the other replicas' Leases -> conditions -> server-side apply, where they changed
//! ```

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use postern_policy::{Action, Authorizer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::Instant;

use super::follow::{CALL_DEADLINE, within};
use super::policies::PolicyItem;
use super::{Cluster, Leads, resource};
use crate::hub::Hub;
use crate::model::Name;
use crate::state::State;

mod counts;
mod lease;

use counts::{Count, counts};
use lease::Reported;

/// How often it is looked at what changed.
const LOOK: Duration = Duration::from_secs(1);
/// Statuses written per look: a policy set that is applied at once must not flood the API server.
const MAX_WRITES: usize = 20;
/// While proxies come and go a policy's count is written no more often than this, unless all have it.
const SETTLE: Duration = Duration::from_secs(5);
/// Under which our fields of a status are ours.
const MANAGER: &str = "postern-control";
/// Longest message of a condition; Kubernetes' own conditions stop at 32 KiB.
const MAX_MESSAGE: usize = 2048;

/// Our policies, as they are in force now.
#[derive(Debug, Default, Clone)]
pub(super) struct Told {
    pub(super) policies: BTreeMap<Name, Policy>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) item: PolicyItem,
    /// The policy version that brought it in force as it is.
    pub(super) since: u64,
    /// Whom a CUSTOM one asks, or why it cannot.
    pub(super) asked: Option<Result<Arc<Authorizer>, String>>,
}

impl Told {
    /// After `state` was put in force.
    pub(super) fn after(previous: &Self, items: impl Iterator<Item = (Name, PolicyItem)>, state: &State) -> Self {
        let policies = items.map(|(name, item)| {
            let policy = &item.in_force;
            let asked = (policy.action == Action::Custom).then(|| state.model.provider_of(policy).cloned());
            let same = previous
                .policies
                .get(&name)
                .filter(|before| before.item.in_force == item.in_force && before.asked == asked);
            let since = same.map_or(state.policy_version, |before| before.since);
            (name, Policy { item, since, asked })
        });
        Self {
            policies: policies.collect(),
        }
    }
}

/// Keeps this replica's Lease and, while it leads, the statuses; for ever.
pub(super) async fn keep(
    hub: Arc<Hub>,
    cluster: Cluster,
    told: watch::Receiver<Arc<Told>>,
    leads: Leads,
) -> Infallible {
    let mut reporter = lease::Reporter::new(&cluster);
    let mut writer = Writer {
        cluster: cluster.clone(),
        written: HashMap::new(),
    };
    loop {
        tokio::time::sleep(LOOK).await;
        let told = Arc::clone(&told.borrow());
        let own = counts(&hub, &told);
        reporter.report(&hub, &own).await;
        if leads.borrow().is_none() {
            writer.written.clear();
            continue;
        }
        let Some(others) = reporter.others().await else {
            continue;
        };
        writer.write(&told, &own, &others).await;
    }
}

struct Writer {
    cluster: Cluster,
    /// What the API server shows may be a moment behind.
    written: HashMap<Name, Written>,
}

/// What was written last.
struct Written {
    /// Of which object: one that is deleted and made anew has no status.
    uid: String,
    at: Instant,
    status: Value,
}

impl Writer {
    async fn write(&mut self, told: &Told, own: &BTreeMap<Name, Count>, others: &[Reported]) {
        self.written
            .retain(|name, written| told.policies.get(name).is_some_and(|told| told.item.uid == written.uid));
        let mut writes = 0;
        for (name, policy) in &told.policies {
            if writes == MAX_WRITES {
                return;
            }
            let count = own.get(name).copied().unwrap_or_default();
            let elsewhere: u32 = others
                .iter()
                .map(|reported| reported.of(name, policy.item.generation))
                .sum();
            let total = Count {
                // A proxy that has just moved may be counted twice.
                enforced: count.enforced.saturating_add(elsewhere).min(count.selected),
                ..count
            };
            let before = match self.written.get(name) {
                Some(written) => &written.status,
                None => &policy.item.status,
            };
            let next = status(policy, total, before, OffsetDateTime::now_utc());
            if next == *before || (self.too_soon(name) && !matters(before, &next, total)) {
                continue;
            }
            writes += 1;
            match self.apply(name, policy, &next).await {
                Ok(()) => {
                    let written = Written {
                        uid: policy.item.uid.clone(),
                        at: Instant::now(),
                        status: next,
                    };
                    self.written.insert(name.clone(), written);
                }
                Err(error) => {
                    let (namespace, name) = name;
                    let why = super::follow::why(&error);
                    tracing::warn!(
                        reason = "status",
                        "the status of AuthorizationPolicy {namespace}/{name}: {why}"
                    );
                }
            }
        }
    }

    fn too_soon(&self, name: &Name) -> bool {
        self.written
            .get(name)
            .is_some_and(|written| written.at.elapsed() < SETTLE)
    }

    async fn apply(&self, (namespace, name): &Name, policy: &Policy, status: &Value) -> kube::Result<()> {
        let resource = resource("postern.dev", "v1alpha1");
        let api: Api<DynamicObject> = Api::namespaced_with(self.cluster.client.clone(), namespace, &resource);
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            // One that was deleted and made anew is another's.
            "metadata": { "name": name, "namespace": namespace, "uid": policy.item.uid },
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(patch);
        match within(CALL_DEADLINE, api.patch_status(name, &params, &patch)).await {
            Ok(_) => Ok(()),
            // Gone, or another by now: its watch says so.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// People wait for it: whether it is accepted, and that all have it.
fn matters(before: &Value, next: &Value, count: Count) -> bool {
    let accepted = |status: &Value| condition(status, "Accepted").cloned();
    accepted(before) != accepted(next) || count.enforced == count.selected
}

fn status(policy: &Policy, count: Count, before: &Value, now: OffsetDateTime) -> Value {
    let generation = policy.item.generation;
    let make = |kind: &str, status: &str, reason: &str, mut message: String| {
        crate::observed::cut(&mut message, MAX_MESSAGE);
        let same = condition(before, kind).filter(|before| before["status"] == status);
        let since = same.map(|before| before["lastTransitionTime"].clone());
        json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or_else(|| json!(at(now))),
        })
    };
    let accepted = match (policy.item.errors.as_slice(), &policy.asked) {
        ([], Some(Err(why))) => make("Accepted", "False", "NoProvider", why.clone()),
        ([], _) => make("Accepted", "True", "Accepted", "it is read as it is meant".to_owned()),
        (errors, _) => {
            // Whose status it is, is known.
            let origin = format!("{}:", policy.item.in_force.place.file);
            let errors = errors.iter().map(|error| error.trim_start_matches(&origin));
            let errors = errors.collect::<Vec<_>>().join("; ");
            let message = format!("it denies what it selects until it is mended: {errors}");
            make("Accepted", "False", "Invalid", message)
        }
    };
    let Count { selected, enforced, .. } = count;
    let enforced_by = format!("in force at {enforced} of {selected} proxies");
    let enforced_condition = match enforced {
        _ if selected == 0 => {
            let message = "it selects no workload of the mesh".to_owned();
            make("Enforced", "Unknown", "SelectsNobody", message)
        }
        enforced if enforced == selected => make("Enforced", "True", "Enforced", enforced_by),
        _ => make("Enforced", "False", "Pending", enforced_by),
    };
    json!({
        "observedGeneration": generation,
        "proxies": format!("{enforced}/{selected}"),
        "conditions": [accepted, enforced_condition],
    })
}

fn condition<'v>(status: &'v Value, kind: &str) -> Option<&'v Value> {
    status["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// As Kubernetes writes it.
fn at(now: OffsetDateTime) -> String {
    now.replace_nanosecond(0)
        .unwrap_or(now)
        .format(&Rfc3339)
        .unwrap_or_default()
}

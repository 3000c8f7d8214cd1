//! A replica's counts, in a Lease of its own: `postern-control-<pod>`. It is its pod's, and goes with it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, PostParams};
use tokio::time::Instant;

use super::Count;
use crate::hub::Hub;
use crate::kubernetes::Cluster;
use crate::kubernetes::complaint::Complaint;
use crate::kubernetes::follow::{CALL_DEADLINE, within};
use crate::model::Name;

const PREFIX: &str = "postern-control-";
const COUNTS: &str = "postern.dev/acknowledged";
/// Between renewals, if the counts stay.
const RENEW: Duration = Duration::from_secs(10);
/// A Lease that was not renewed for so long is a replica's that is gone. By our own clock, from when we saw it change.
const EXPIRES: Duration = Duration::from_secs(30);
/// All annotations of an object together have 256 KiB. Past this (about 2,000 policies) counts are left out, and the other
/// replicas' proxies are not counted.
const MAX_COUNTS: usize = 128 * 1024;

/// Writes our Lease, and reads the others'.
pub(super) struct Reporter {
    leases: Api<Lease>,
    own: Option<(String, String)>,
    written: Option<(Instant, String)>,
    /// By Lease: what it said last, and when we heard it.
    heard: HashMap<String, (String, Instant)>,
    complaint: Complaint,
    unheard: Complaint,
}

/// What another replica says.
#[derive(Debug, Default)]
pub(super) struct Reported {
    counts: BTreeMap<String, u32>,
}

impl Reported {
    /// Its proxies that have this generation in force.
    pub(super) fn of(&self, name: &Name, generation: i64) -> u32 {
        self.counts.get(&key(name, generation)).copied().unwrap_or(0)
    }
}

fn key((namespace, name): &Name, generation: i64) -> String {
    format!("{namespace}/{name}@{generation}")
}

impl Reporter {
    pub(super) fn new(cluster: &Cluster) -> Self {
        Self {
            leases: Api::namespaced(cluster.client.clone(), cluster.client.default_namespace()),
            own: cluster.own_pod.clone(),
            written: None,
            heard: HashMap::new(),
            complaint: Complaint::default(),
            unheard: Complaint::default(),
        }
    }

    /// Writes them if they changed, or if it is time to.
    pub(super) async fn report(&mut self, hub: &Hub, counts: &BTreeMap<Name, Count>) {
        let Some((namespace, pod)) = self.own.clone() else {
            return;
        };
        let text = text(counts);
        if self
            .written
            .as_ref()
            .is_some_and(|(at, last)| *last == text && at.elapsed() < RENEW)
        {
            return;
        }
        let uid = hub
            .state()
            .model
            .workloads
            .get(&(namespace, pod.clone()))
            .map(|w| w.document.instance.clone());
        // One without an owner would stay for ever, should this pod end before it is heard of.
        let Some(uid) = uid else { return };
        match within(CALL_DEADLINE, self.put(&pod, uid, &text)).await {
            Ok(()) => {
                self.complaint.over();
                self.written = Some((Instant::now(), text));
            }
            Err(error) => {
                let why = crate::kubernetes::follow::why(&error);
                self.complaint.say(&format!("Lease {PREFIX}{pod}: {why}"));
            }
        }
    }

    async fn put(&self, pod: &str, uid: String, text: &str) -> kube::Result<()> {
        let name = format!("{PREFIX}{pod}");
        let found = self.leases.get_opt(&name).await?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod.to_owned(),
            uid,
            ..OwnerReference::default()
        };
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                resource_version: found.as_ref().and_then(|found| found.metadata.resource_version.clone()),
                annotations: Some(BTreeMap::from([(COUNTS.to_owned(), text.to_owned())])),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(pod.to_owned()),
                lease_duration_seconds: i32::try_from(EXPIRES.as_secs()).ok(),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let params = PostParams::default();
        match found {
            Some(_) => self.leases.replace(&name, &params, &lease).await?,
            None => self.leases.create(&params, &lease).await?,
        };
        Ok(())
    }

    /// What the other replicas that live say; `None` if they cannot be asked: a sum without them would be wrong.
    pub(super) async fn others(&mut self) -> Option<Vec<Reported>> {
        let params = ListParams::default();
        let leases = match within(CALL_DEADLINE, self.leases.list(&params)).await {
            Ok(leases) => {
                self.unheard.over();
                leases.items
            }
            Err(error) => {
                let why = crate::kubernetes::follow::why(&error);
                self.unheard.say(&format!("Leases of other replicas: {why}"));
                return None;
            }
        };
        let own = self.own.as_ref().map(|(_, pod)| format!("{PREFIX}{pod}"));
        let now = Instant::now();
        let mut reported = Vec::new();
        for lease in leases {
            let name = lease.metadata.name.unwrap_or_default();
            if !name.starts_with(PREFIX) || Some(&name) == own.as_ref() {
                continue;
            }
            let version = lease.metadata.resource_version.unwrap_or_default();
            let heard = self.heard.entry(name).or_insert_with(|| (version.clone(), now));
            if heard.0 != version {
                *heard = (version, now);
            }
            let text = lease.metadata.annotations.and_then(|mut all| all.remove(COUNTS));
            if now.duration_since(heard.1) < EXPIRES
                && let Some(counts) = text.and_then(|text| serde_json::from_str(&text).ok())
            {
                reported.push(Reported { counts });
            }
        }
        self.heard.retain(|_, (_, at)| now.duration_since(*at) < EXPIRES * 10);
        Some(reported)
    }
}

fn text(counts: &BTreeMap<Name, Count>) -> String {
    let mut kept = BTreeMap::new();
    let mut length = 2;
    for (name, count) in counts.iter().filter(|(_, count)| count.enforced > 0) {
        let key = key(name, count.generation);
        // Quotes, colon, comma.
        length += key.len() + count.enforced.to_string().len() + 4;
        if length > MAX_COUNTS {
            break;
        }
        kept.insert(key, count.enforced);
    }
    serde_json::to_string(&kept).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_fit_into_an_annotation() {
        let name = |i: usize| ("n".repeat(63), format!("{}{i}", "p".repeat(50)));
        let counts = |n: usize| {
            let count = Count {
                generation: i64::MAX,
                selected: 1,
                enforced: 1,
            };
            (0..n).map(|i| (name(i), count)).collect::<BTreeMap<_, _>>()
        };
        assert!(text(&counts(10)).len() < 2000);
        let full = text(&counts(10_000));
        assert!(
            full.len() <= MAX_COUNTS && full.len() > MAX_COUNTS - 300,
            "{}",
            full.len()
        );
    }
}

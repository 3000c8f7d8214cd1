//! What is in force: one immutable object per change of the source, and one per change of the bundle.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use postern_api::ca::v1 as ca;
use postern_api::control::v1 as wire;
use postern_api::control::v1::destination::State as Answer;

use crate::mesh::Mesh;
use crate::model::Model;
use crate::snapshot::{self, LabelNames, Target};
use crate::source::{Load, Reach, Revisions};

mod answers;

use answers::Answers;

/// What the source says, and under which versions.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Grows with every change. Of a directory it begins at the time, so that it grows across restarts, too, and all is read
    /// at once; of a cluster it is the API server's own count, the same for all replicas.
    pub(crate) revisions: Revisions,
    /// The version that last changed any policy.
    pub(crate) policy_version: u64,
    /// Do other replicas count alike? Then what they gave out is neither more nor less than its count says.
    pub(crate) shared_count: bool,
    pub(crate) model: Arc<Model>,
    /// Refused files or objects, and why.
    pub(crate) bad: BTreeMap<String, Vec<String>>,
    answers: Arc<Answers>,
    /// Labels of peers by which of them are looked at: many proxies have the same policies.
    peer_labels: Mutex<HashMap<LabelNames, Arc<wire::PeerLabels>>>,
}

impl State {
    /// The state after `load`.
    pub(crate) fn after(previous: &Self, load: Load, mesh: &Mesh, now: SystemTime) -> Self {
        let model = Model::build(&mesh.root_namespace, &mesh.aliases(), &load).sharing(&previous.model);
        let revisions = match load.revisions {
            Some(revisions) => counted(revisions),
            None => {
                let version = next_version(previous.version(), now);
                let reach = Reach {
                    newest: version,
                    complete: version,
                };
                Revisions {
                    policies: reach,
                    others: reach,
                }
            }
        };
        let same = previous.is_there()
            && previous.model.has_same_policies(&model)
            && previous.model.authentications == model.authentications;
        Self {
            revisions,
            // Resource versions may be no numbers, and stand still; a change must be told of all the same.
            policy_version: if same {
                previous.policy_version
            } else {
                revisions.policies.newest.max(previous.policy_version.saturating_add(1))
            },
            shared_count: load.revisions.is_some(),
            model: Arc::new(model),
            bad: load.bad,
            answers: Arc::new(Answers::after(&previous.answers)),
            peer_labels: Mutex::default(),
        }
    }

    /// The same, known to be newer than it was: nothing changed since.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn confirmed(&self, revisions: Revisions) -> Self {
        Self {
            revisions: counted(revisions),
            policy_version: self.policy_version,
            shared_count: self.shared_count,
            model: Arc::clone(&self.model),
            bad: self.bad.clone(),
            answers: Arc::clone(&self.answers),
            peer_labels: Mutex::default(),
        }
    }

    /// What a proxy of this namespace is told about a target.
    pub(crate) fn answer(&self, target: &Target, namespace: &str) -> Arc<Answer> {
        self.answers.get(&self.model, target, namespace)
    }

    /// The labels of everybody that go by these names.
    pub(crate) fn peer_labels(&self, names: LabelNames) -> Arc<wire::PeerLabels> {
        let mut known = self.peer_labels.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = known.entry(names);
        let labels = labels.or_insert_with_key(|names| Arc::new(snapshot::peer_labels(&self.model, names)));
        Arc::clone(labels)
    }

    /// Was anything put in force yet?
    pub(crate) fn is_there(&self) -> bool {
        self.version() != 0
    }

    /// The newest change that is in it.
    pub(crate) fn version(&self) -> u64 {
        self.revisions.others.newest
    }

    /// How new a snapshot of this kind is.
    pub(crate) fn reach(&self, kind: wire::Kind) -> Reach {
        match kind {
            wire::Kind::Policies => self.revisions.policies,
            // Without a word of the CA nobody is cut off, and that has no age: a proxy never takes an older one.
            wire::Kind::Quarantine if self.shared_count => Reach { newest: 1, complete: 1 },
            wire::Kind::Unspecified
            | wire::Kind::Workload
            | wire::Kind::Destination
            | wire::Kind::Bundle
            | wire::Kind::Quarantine
            | wire::Kind::Federation
            | wire::Kind::Ranges
            | wire::Kind::PeerLabels => self.revisions.others,
        }
    }
}

/// Proxies know no version 0.
fn counted(revisions: Revisions) -> Revisions {
    let at_least_one = |reach: Reach| Reach {
        newest: reach.newest.max(1),
        complete: reach.complete.max(1),
    };
    Revisions {
        policies: at_least_one(revisions.policies),
        others: at_least_one(revisions.others),
    }
}

/// The CA's bundles as they are carried to proxies: byte for byte what the CA signed.
#[derive(Debug, Default)]
pub(crate) struct Bundles {
    pub(crate) version: u64,
    /// Sequence of the newest one.
    pub(crate) sequence: u64,
    pub(crate) issuer_epoch: u64,
    /// The whole chain of links, oldest first: a proxy may hold any of them.
    pub(crate) links: Vec<ca::SignedBundle>,
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The same, as the wire has it.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(unix_ms(SystemTime::now())).unwrap_or(i64::MAX)
}

/// Above `previous`, and above everything that an earlier process gave out, unless the clock was set back: then
/// [`crate::connect`] counts on from what the proxy holds.
pub(crate) fn next_version(previous: u64, now: SystemTime) -> u64 {
    previous.saturating_add(1).max(unix_ms(now))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn versions_grow_whatever_the_clock_does(times in proptest::collection::vec(0u64..4_000_000_000_000, 1..50)) {
            let mut version = 0;
            for ms in times {
                let next = next_version(version, UNIX_EPOCH + Duration::from_millis(ms));
                prop_assert!(next > version);
                version = next;
            }
        }
    }

    #[test]
    fn a_restarted_control_begins_above_what_the_one_before_gave_out() {
        let started = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut version = next_version(0, started);
        for _ in 0..1000 {
            version = next_version(version, started);
        }
        assert!(next_version(0, started + Duration::from_secs(2)) > version);
    }

    /// A second DENY was never sent while the revision that both kinds of policy had in common stood still.
    #[test]
    fn a_change_of_policies_is_told_of_though_their_common_revision_stands_still() {
        let load = |names: &[&str]| {
            let text = |name: &&str| {
                format!(
                    "apiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
                     spec: {{action: DENY, rules: [{{}}]}}\n---\n"
                )
            };
            let text: String = names.iter().map(text).collect();
            let domain = postern_identity::TrustDomain::parse("cluster.local").unwrap();
            let documents = postern_policy::document::parse("policies.yaml", &text)
                .unwrap()
                .iter()
                .map(|object| crate::documents::decode(object, &domain).unwrap())
                .collect();
            let reach = |newest| Reach { newest, complete: 900 };
            let revisions = Some(Revisions {
                others: reach(1200),
                policies: reach(1003),
            });
            Load {
                documents,
                revisions,
                ..Load::default()
            }
        };
        let mesh = Mesh::named(postern_identity::TrustDomain::parse("cluster.local").unwrap());
        let after = |previous: &State, names: &[&str]| State::after(previous, load(names), &mesh, UNIX_EPOCH);
        let first = after(&State::default(), &["one"]);
        let second = after(&first, &["one", "two"]);
        assert!(second.policy_version > first.policy_version);
        assert_eq!(second.revisions.policies.newest, 1003);
        let same = after(&second, &["one", "two"]);
        assert_eq!(same.policy_version, second.policy_version);
    }
}

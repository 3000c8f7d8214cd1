//! How many proxies a policy selects, and how many of those that are connected here have it in force.

use std::collections::BTreeMap;

use super::Told;
use crate::hub::Hub;
use crate::model::{Name, Standing, Workload};

/// Of one policy.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) generation: i64,
    pub(super) selected: u32,
    pub(super) enforced: u32,
}

pub(super) fn counts(hub: &Hub, told: &Told) -> BTreeMap<Name, Count> {
    let (state, subscribers) = (hub.state(), hub.subscribers());
    // The policy version that each proxy of a namespace has in force; 0 if it is not connected here.
    let mut by_namespace: BTreeMap<&str, Vec<(&Workload, u64)>> = BTreeMap::new();
    for (name, workload) in &state.model.workloads {
        if matches!(workload.standing, Standing::Meshed(_)) {
            let connected = subscribers.get(name).filter(|subscriber| subscriber.connected());
            let in_force = connected.map_or(0, |subscriber| subscriber.policies.in_force);
            let namespace = by_namespace.entry(name.0.as_str()).or_default();
            namespace.push((workload, in_force));
        }
    }
    let root = state.model.root_namespace.as_str();
    let count = |namespace: &str, policy: &super::Policy| {
        let in_reach = by_namespace
            .iter()
            .filter(|(of, _)| namespace == root || **of == namespace);
        let mut count = Count {
            generation: policy.item.generation,
            ..Count::default()
        };
        for (workload, in_force) in in_reach.flat_map(|(_, workloads)| workloads) {
            let document = &workload.document;
            if policy
                .item
                .in_force
                .selects(root, &document.namespace, &document.labels)
            {
                count.selected += 1;
                count.enforced += u32::from(*in_force >= policy.since);
            }
        }
        count
    };
    told.policies
        .iter()
        .map(|(name, policy)| (name.clone(), count(&name.0, policy)))
        .collect()
}
